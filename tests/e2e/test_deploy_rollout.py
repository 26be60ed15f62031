"""Saved plans, done at a real control plane: how a fleet takes over from another, and how all goes back."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support import deploying
from support.configurations import copied
from support.plane_server import KEY, PlaneServer, plane_server
from support.provider import attached, reaching
from support.provider.needed import schema_or_skip
from support.rollouts import ROLLOUT, Team, lock_of, two_models

from medport.errors import (
    Forbidden,
    InputError,
    NotFound,
    PreconditionFailed,
    ServerError,
    VerificationError,
)
from medport.wire.vertex import rfc3339
from medport_deploy import names
from medport_deploy.control.plane import ControlPlane
from medport_deploy.run import journal, sweep, todo
from medport_deploy.run.interrupts import Interrupts, Stopped
from medport_deploy.terraform.root import Terraform
from medport_deploy.terraform.variables import root_variables
from medport_deploy.trial.gates import GateFailed
from medport_deploy.trial.trial import LiveTrial

LATER = rfc3339(datetime.now(UTC) + timedelta(hours=1))
PAST = rfc3339(datetime.now(UTC) - timedelta(hours=1))
FAILED = GateFailed("reader at 25 %: error_ratio 0.5, limit 0.01")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaneServer]:
    with plane_server(tmp_path_factory.mktemp("plane"), "--allow-faults") as server:
        yield server


@pytest.fixture(scope="module")
def control(server: PlaneServer) -> Iterator[ControlPlane]:
    with deploying.plane(server.url, server.line["ca_file"], KEY) as control:
        yield control


@pytest.fixture
def team(
    server: PlaneServer, control: ControlPlane, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Team]:
    made = Team(control, server.url, tmp_path, f"t{abs(hash(request.node.name)) % 10**8}")
    yield made
    server.http.delete("/medport/v1/faults").raise_for_status()
    for endpoint in control.list_endpoints({names.DEPLOYMENT_LABEL: made.name}):
        for each in endpoint.get("deployedModels", []):
            if each["displayName"] == "by hand":
                undeploy = {"deployedModelId": each["id"], "trafficSplit": {}}
                others = [other["id"] for other in endpoint["deployedModels"] if other["id"] != each["id"]]
                if others and endpoint.get("trafficSplit", {}).get(each["id"]):
                    undeploy["trafficSplit"] = {others[0]: 100}
                short = endpoint["name"].rpartition("/")[2]
                server.succeeded(server.ok("POST", f"/endpoints/{short}:undeployModel", undeploy))
    made.destroy()
    assert control.list_endpoints({names.DEPLOYMENT_LABEL: made.name}) == []
    assert control.list_models({names.DEPLOYMENT_LABEL: made.name}) == []


def first(team: Team) -> str:
    """Deploy the first lock; its fleet's id."""
    team.apply(team.plan())
    team.log.clear()
    team.judge.watched.clear()
    return team.id_of()


def by_hand(server: PlaneServer, team: Team, split: dict[str, int]) -> str:
    """What somebody deploys without medport; the fleet's id."""
    version = f"{server.parent}/models/{team.spec.model_id('reader')}"
    return server.deployed(team.endpoint, version, displayName="by hand", split=split)


def test_first_fleet_gets_all_and_is_tried_once_before_it_is_called_good(team: Team) -> None:
    plan = team.plan()

    team.apply(plan)

    assert team.log == ["deploy [100]", "smoke reader", "gate reader 100", "record"]
    assert team.judge.watched == [0.0]
    assert team.split() == {team.id_of(): 100}
    (version,) = team.control.list_versions(team.spec.model_id("reader"))
    assert {each.partition("-")[0] for each in version["versionAliases"]} == {"default", "mp"}
    assert any(each.startswith(names.GOOD_PREFIX) for each in version["versionAliases"])
    assert version["labels"][names.DEPLOYMENT_LABEL] == team.name


def test_plan_right_after_an_apply_has_nothing_to_do_and_its_run_tries_nothing(team: Team) -> None:
    first(team)

    plan = team.plan()
    report = team.apply(plan)

    assert plan.exit_code == 0
    assert (report.done, team.log, team.recorded) == ((), [], 1)
    assert sweep.find(team.control, team.name, journal.all_of(team.directory)) == []


def test_canary_takes_over_in_steps_each_of_which_is_judged(team: Team) -> None:
    old = first(team)

    team.apply(team.plan("two"), "two")

    assert team.log == [
        "deploy [0, 100]",
        "straight reader",
        "baseline reader",
        "traffic [5, 95]",
        "smoke reader",
        "gate reader 5",
        "traffic [25, 75]",
        "gate reader 25",
        "traffic [100]",
        "smoke reader",
        "gate reader 100",
        "record",
    ]
    assert team.judge.watched == [60.0] * 3
    assert team.judge.beside == [False, True, True, True]  # the first fleet stood alone
    assert team.split() == {team.id_of("two"): 100}
    assert set(team.fleets()) == {old, team.id_of("two")}


def test_target_without_a_way_straight_to_a_fleet_is_said_and_the_rollout_goes_on(team: Team) -> None:
    first(team)
    team.judge.no_way = "Vertex AI has no way to a fleet without traffic"

    team.apply(team.plan("two"), "two")

    assert team.judge.no_way in [event.text for event in team.events if event.state == "said"]
    assert team.split() == {team.id_of("two"): 100}


def test_gate_that_fails_brings_the_old_split_back_before_the_new_fleet_goes(team: Team) -> None:
    old = first(team)
    team.judge.fails["gate reader 25"] = FAILED

    with pytest.raises(GateFailed, match=r"error_ratio 0\.5, limit 0\.01"):
        team.apply(team.plan("two"), "two")

    at = team.log.index("gate reader 25")
    assert team.log[at + 1 :] == ["traffic [100]", "undeploy", "delete version"]
    assert team.split() == {old: 100}
    assert (set(team.fleets()), team.versions()) == ({old}, ["1"])
    assert team.ended() == ["finished", "taken back"]
    assert team.recorded == 1


@pytest.mark.parametrize("what", ["straight reader", "smoke reader"])
def test_smoke_test_that_fails_is_not_repeated_and_leaves_the_old_fleet_alone(team: Team, what: str) -> None:
    old = first(team)
    team.judge.fails[what] = VerificationError("said nothing")

    with pytest.raises(VerificationError, match="said nothing"):
        team.apply(team.plan("two"), "two")

    assert team.log.count(what) == 1
    assert (team.split(), set(team.fleets())) == ({old: 100}, {old})


def test_old_fleet_that_is_kept_is_nothing_to_do_until_its_time_is_over(team: Team) -> None:
    old = first(team)
    team.apply(team.plan("two"), "two")

    kept = team.plan("two", retained={old: LATER})
    over = team.plan("two", retained={old: PAST})
    team.log.clear()
    team.apply(over, "two")

    (row,) = [row for row in kept.rows if row.address == f"deployed_model.reader/{old}"]
    assert (kept.exit_code, row.action) == (0, "none")
    assert LATER in row.why
    assert "medport deploy promote" in row.why
    assert [row.address for row in over.rows if row.changes] == [f"deployed_model.reader/{old}"]
    assert team.log == ["record", "undeploy"]
    assert set(team.fleets()) == {team.id_of("two")}


def test_old_fleet_that_is_not_to_be_kept_goes_when_all_is_recorded(team: Team) -> None:
    team.changes = {"rollout": {**ROLLOUT, "retain_s": 0}}
    first(team)

    team.apply(team.plan("two"), "two")

    assert team.log[-2:] == ["record", "undeploy"]
    assert set(team.fleets()) == {team.id_of("two")}


def test_failure_after_the_record_takes_nothing_back_and_the_run_is_gone_on_with(
    server: PlaneServer, team: Team
) -> None:
    team.changes = {"rollout": {**ROLLOUT, "retain_s": 0}}
    first(team)
    plan = team.plan("two")
    rule = {"match": {"method": "POST", "path": "*:undeployModel"}, "http": {"status": 403}}
    server.http.post("/medport/v1/faults", json=rule).raise_for_status()

    with pytest.raises(Forbidden):
        team.apply(plan, "two")
    with pytest.raises(PreconditionFailed, match="verified and recorded"):
        team.back(plan, "two")
    server.http.delete("/medport/v1/faults").raise_for_status()
    tried = len(team.log)
    report = team.apply(plan, "two")

    assert team.split() == {team.id_of("two"): 100}
    assert (report.resumed, team.log[tried:], set(team.fleets())) == (True, ["undeploy"], {team.id_of("two")})


def test_fleet_of_others_keeps_its_proportion_until_the_end(server: PlaneServer, team: Team) -> None:
    old = first(team)
    other = by_hand(server, team, {"0": 40, old: 60})
    plan = team.plan("two")

    team.apply(plan, "two", hold=25)
    held = team.split()
    team.apply(plan, "two")

    new = team.id_of("two")
    assert held == {new: 25, old: 45, other: 30}
    assert team.split() == {new: 100}
    assert other in team.fleets()


def test_held_run_stays_open_and_goes_on_without_trying_again_what_passed(team: Team) -> None:
    old = first(team)
    plan = team.plan("two")

    team.apply(plan, "two", hold=30)
    held, tried = team.split(), list(team.log)
    team.log.clear()
    report = team.apply(plan, "two", hurry=True)

    assert held == {old: 75, team.id_of("two"): 25}
    assert tried[-1] == "gate reader 25"
    assert team.ended() == ["finished", "finished"]
    assert (report.resumed, team.log) == (True, ["traffic [100]", "smoke reader", "gate reader 100", "record"])
    assert team.judge.watched == [60.0, 60.0, 0.0]


def test_fleet_that_fails_its_smoke_test_only_once_it_has_all_the_traffic_gives_it_back(team: Team) -> None:
    old = first(team)
    plan = team.plan("two")
    team.apply(plan, "two", hold=25)
    team.judge.fails["smoke reader"] = VerificationError("no stream")

    with pytest.raises(VerificationError, match="no stream"):
        team.apply(plan, "two")

    assert (team.split(), set(team.fleets())) == ({old: 100}, {old})


def test_held_run_goes_back_split_first(team: Team) -> None:
    old = first(team)
    plan = team.plan("two")
    team.apply(plan, "two", hold=25)
    team.log.clear()

    report = team.back(plan, "two")

    assert team.log == ["traffic [100]", "undeploy", "delete version"]
    assert (team.split(), set(team.fleets())) == ({old: 100}, {old})
    assert (report.resumed, team.ended()) == (True, ["finished", "taken back"])


def test_run_that_is_not_open_cannot_go_back(team: Team) -> None:
    first(team)

    with pytest.raises(NotFound, match="no such run"):
        team.back(team.plan("two"), "two")


def test_what_does_not_go_back_keeps_the_run_open(server: PlaneServer, team: Team) -> None:
    first(team)
    plan = team.plan("two")
    team.apply(plan, "two", hold=5)
    rule = {"match": {"method": "DELETE", "path": "*:deleteVersion"}, "http": {"status": 403}}
    server.http.post("/medport/v1/faults", json=rule).raise_for_status()

    with pytest.raises(PreconditionFailed, match="did not go back: upload"):
        team.back(plan, "two")

    assert team.ended() == ["finished", None]
    server.http.delete("/medport/v1/faults").raise_for_status()
    team.back(plan, "two")
    assert team.ended() == ["finished", "taken back"]


@pytest.mark.parametrize("hold", [-1, 101])
def test_share_that_is_none_is_not_held(team: Team, hold: int) -> None:
    with pytest.raises(InputError, match="no share"):
        todo.steps(team.job(team.plan()), hold=hold)


def test_run_that_goes_in_no_steps_cannot_be_held(team: Team) -> None:
    with pytest.raises(InputError, match="nothing to hold"):
        todo.steps(team.job(team.plan()), hold=25)


def test_hold_under_the_first_share_leaves_the_new_fleet_without_traffic(team: Team) -> None:
    old = first(team)

    team.apply(team.plan("two"), "two", hold=4)

    assert team.log == ["deploy [0, 100]", "straight reader"]
    assert team.split() == {old: 100}


@pytest.mark.parametrize(
    ("hold", "given_back"), [(4, []), (25, ["traffic [100]"])], ids=["without traffic", "at a quarter"]
)
def test_fleet_of_a_run_that_nobody_remembers_is_tried_like_a_new_one(
    team: Team, hold: int, given_back: list[str]
) -> None:
    old = first(team)
    team.apply(team.plan("two"), "two", hold=hold)
    shutil.rmtree(team.directory)
    team.log.clear()

    team.apply(team.plan("two"), "two")

    assert team.log == [
        *given_back,
        "straight reader",
        "baseline reader",
        "traffic [5, 95]",
        "smoke reader",
        "gate reader 5",
        "traffic [25, 75]",
        "gate reader 25",
        "traffic [100]",
        "smoke reader",
        "gate reader 100",
        "record",
    ]
    assert team.split() == {team.id_of("two"): 100}
    assert old in team.fleets()


def test_fleet_of_a_run_that_nobody_remembers_has_no_traffic_once_it_failed(team: Team) -> None:
    old = first(team)
    team.apply(team.plan("two"), "two", hold=25)
    shutil.rmtree(team.directory)
    team.judge.fails["gate reader 5"] = FAILED

    with pytest.raises(GateFailed):
        team.apply(team.plan("two"), "two")

    assert team.split() == {old: 100}


def test_fleet_of_a_run_that_nobody_remembers_can_be_held(team: Team) -> None:
    old = first(team)
    team.apply(team.plan("two"), "two", hold=25)
    shutil.rmtree(team.directory)

    team.apply(team.plan("two"), "two", hold=5)

    assert team.split() == {old: 95, team.id_of("two"): 5}


def test_rollout_that_is_stopped_while_it_watches_goes_on_with_the_same_gate(team: Team) -> None:
    first(team)
    plan, interrupts = team.plan("two"), Interrupts()
    team.judge.while_watching = interrupts.ask

    with pytest.raises(Stopped, match="medport deploy apply"):
        team.apply(plan, "two", interrupts=interrupts)
    stopped = list(team.log)
    team.judge.while_watching = lambda: None
    team.log.clear()
    team.apply(plan, "two")

    assert stopped[-1] == "smoke reader"
    assert team.log[0] == "gate reader 5"
    assert team.split() == {team.id_of("two"): 100}


def test_one_models_failure_takes_the_other_models_finished_rollout_back_too(team: Team) -> None:
    team.changes = {"rollout": ROLLOUT, "models": two_models(team.url, team.name)}
    team.apply(team.plan())
    team.log.clear()
    team.judge.fails["gate writer 5"] = FAILED

    with pytest.raises(GateFailed):
        team.apply(team.plan("two"), "two")

    assert "gate reader 100" in team.log
    back = team.log[team.log.index("gate writer 5") + 1 :]
    # Both old fleets serve again before any new one goes.
    assert back[:2] == ["traffic [100]", "traffic [100]"]
    assert sorted(back[2:]) == ["delete version", "delete version", "undeploy", "undeploy"]
    for name in ("reader", "writer"):
        assert team.split(name) == {team.id_of(name=name): 100}
        assert (set(team.fleets(name)), team.versions(name)) == ({team.id_of(name=name)}, ["1"])


def test_first_deployment_that_fails_leaves_nothing(team: Team) -> None:
    team.judge.fails["smoke reader"] = VerificationError("said nothing")

    with pytest.raises(VerificationError):
        team.apply(team.plan())

    with pytest.raises(NotFound):
        team.control.get_endpoint(team.endpoint)
    assert team.ended() == ["taken back"]


class TestRolling:
    """One fleet takes over the machines of the other."""

    @pytest.fixture(autouse=True)
    def rolls(self, team: Team) -> None:
        team.changes = {"rollout": {"strategy": "rolling", "bake_s": 60}}

    def test_new_version_takes_the_place_of_the_old_one_and_is_watched_then(self, team: Team) -> None:
        first(team)
        plan = team.plan("two")

        team.apply(plan, "two")

        assert team.log == ["baseline reader", "roll", "smoke reader", "gate reader 100", "record"]
        assert team.judge.watched == [60.0]
        assert (team.split(), set(team.fleets())) == ({team.id_of("two"): 100}, {team.id_of("two")})
        assert plan.downtime_s == 0
        assert team.plan("two").exit_code == 0

    def test_gate_that_fails_rolls_the_old_version_out_again(self, team: Team) -> None:
        old = first(team)
        team.judge.fails["gate reader 100"] = FAILED

        with pytest.raises(GateFailed):
            team.apply(team.plan("two"), "two")

        assert (team.split(), set(team.fleets())) == ({old: 100}, {old})
        assert team.fleets()[old]["modelVersionId"] == "1"
        assert team.versions() == ["1"]
        assert team.plan().exit_code == 0

    def test_fleet_that_does_not_come_up_leaves_the_old_one_serving(self, server: PlaneServer, team: Team) -> None:
        old = first(team)
        rule = {"match": {"endpoint": team.endpoint}, "deploy": {"failure": "failing_container"}}
        server.http.post("/medport/v1/faults", json=rule).raise_for_status()

        with pytest.raises(PreconditionFailed, match="exited"):
            team.apply(team.plan("two"), "two")

        assert (team.split(), set(team.fleets()), team.versions()) == ({old: 100}, {old}, ["1"])

    def test_more_replicas_are_asked_for_when_the_old_fleet_has_gone(self, team: Team) -> None:
        first(team)
        team.changes |= {"model": {"replicas": {"min": 1, "max": 3}}}

        team.apply(team.plan("two"), "two")

        (fleet,) = team.fleets().values()
        assert int(fleet["dedicatedResources"]["maxReplicaCount"]) == 3
        assert team.plan("two").exit_code == 0

    def test_its_operations_can_be_read_by_a_later_process(self, server: PlaneServer, team: Team) -> None:
        first(team)
        team.apply(team.plan("two"), "two")
        program = (
            "import sys; from support import deploying; url, ca_file, key, endpoint = sys.argv[1:]\n"
            "with deploying.plane(url, ca_file, key) as plane:\n"
            "    print(plane.pending(plane.endpoint_name(endpoint)))"
        )
        arguments = [server.url, server.line["ca_file"], KEY, team.endpoint]

        ran = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=False,
        )

        assert (ran.stdout, ran.returncode) == ("[]\n", 0), ran.stderr

    def test_other_machine_is_refused_before_anything_is_done(self, team: Team) -> None:
        first(team)
        team.changes |= {"model": {"machine": {"type": "n1-standard-8"}}}
        plan = team.plan("two")

        with pytest.raises(PreconditionFailed, match="rolling takes over the machines"):
            todo.steps(team.job(plan, "two"))

        assert team.ended() == ["finished"]


class TestRecreate:
    """The old fleet goes before the new one comes."""

    @pytest.fixture(autouse=True)
    def recreates(self, team: Team) -> None:
        team.changes = {"rollout": {"strategy": "recreate", "bake_s": 60}}

    def test_old_fleet_goes_before_the_new_one_comes(self, team: Team) -> None:
        first(team)
        plan = team.plan("two")

        team.apply(plan, "two")

        assert plan.downtime_s > 0
        assert team.log == [
            "baseline reader",
            "undeploy",
            "deploy [100]",
            "smoke reader",
            "gate reader 100",
            "record",
        ]
        assert (team.split(), set(team.fleets())) == ({team.id_of("two"): 100}, {team.id_of("two")})
        assert team.plan("two").exit_code == 0

    def test_smoke_test_that_fails_deploys_the_old_version_again(self, team: Team) -> None:
        old = first(team)
        before = team.fleets()[old]
        team.judge.fails["smoke reader"] = VerificationError("said nothing")

        with pytest.raises(VerificationError):
            team.apply(team.plan("two"), "two")

        assert team.log[-3:] == ["undeploy", "deploy [100]", "delete version"]
        assert team.split() == {old: 100}
        again = team.fleets()[old]
        assert [again[key] for key in ("modelVersionId", "displayName", "dedicatedResources")] == [
            before[key] for key in ("modelVersionId", "displayName", "dedicatedResources")
        ]
        assert team.plan().exit_code == 0

    def test_fleet_of_others_does_not_answer_in_the_meantime(self, server: PlaneServer, team: Team) -> None:
        old = first(team)
        other = by_hand(server, team, {"0": 0, old: 100})

        team.apply(team.plan("two"), "two")

        assert team.log[1:4] == ["traffic []", "undeploy", "deploy [100]"]
        assert (team.split(), set(team.fleets())) == ({team.id_of("two"): 100}, {team.id_of("two"), other})

    def test_what_goes_back_beside_a_fleet_of_others_has_its_old_split(
        self, server: PlaneServer, team: Team
    ) -> None:
        old = first(team)
        other = by_hand(server, team, {"0": 40, old: 60})
        team.judge.fails["smoke reader"] = VerificationError("said nothing")

        with pytest.raises(VerificationError):
            team.apply(team.plan("two"), "two")

        assert team.split() == {old: 60, other: 40}


def test_replicas_change_in_place_and_go_back_if_the_fleet_fails(team: Team) -> None:
    old = first(team)
    team.changes |= {"model": {"replicas": {"min": 1, "max": 3}}}
    plan = team.plan()
    team.judge.fails["smoke reader"] = VerificationError("said nothing")

    with pytest.raises(VerificationError):
        team.apply(plan)
    back = team.fleets()[old]["dedicatedResources"]
    team.judge.fails.clear()
    team.apply(team.plan())

    assert [row.action for row in plan.rows if row.changes] == ["update"]
    assert int(back.get("maxReplicaCount", 1)) == 1
    assert int(team.fleets()[old]["dedicatedResources"]["maxReplicaCount"]) == 3
    assert team.plan().exit_code == 0


def test_endpoint_changes_in_place_and_labels_of_others_stay(server: PlaneServer, team: Team) -> None:
    first(team)
    server.ok("PATCH", f"/endpoints/{team.endpoint}?updateMask=labels", {
        "displayName": "x", "labels": {"theirs": "yes", names.DEPLOYMENT_LABEL: team.name},
    })  # fmt: skip
    team.changes |= {
        "labels": {"site": "north"},
        "model": {"endpoint": {"display_name": "North", "inference_timeout_s": 900}},
    }

    team.apply(team.plan())

    found = team.control.get_endpoint(team.endpoint)
    assert found["labels"] == {"theirs": "yes", "site": "north", names.DEPLOYMENT_LABEL: team.name}
    assert (found["displayName"], found["clientConnectionConfig"]) == ("North", {"inferenceTimeout": "900s"})
    assert team.plan().exit_code == 0


def test_changed_endpoint_goes_back_with_the_rest(team: Team) -> None:
    first(team)
    before = team.control.get_endpoint(team.endpoint)
    team.changes |= {
        "labels": {"site": "north"},
        "model": {"endpoint": {"display_name": "North", "inference_timeout_s": 900}},
    }
    team.judge.fails["straight reader"] = VerificationError("said nothing")

    with pytest.raises(VerificationError):
        team.apply(team.plan("two"), "two")

    after = team.control.get_endpoint(team.endpoint)
    kept = ("displayName", "labels", "clientConnectionConfig")
    assert [after[key] for key in kept] == [before[key] for key in kept]


@pytest.mark.parametrize(
    ("changes", "field", "wanted"),
    [
        (
            {"keys": {"kms_key_name": "projects/p/locations/europe-west4/keyRings/r/cryptoKeys/k"}},
            "encryptionSpec",
            {"kmsKeyName": "projects/p/locations/europe-west4/keyRings/r/cryptoKeys/k"},
        ),
        (
            {
                "network": {"private": True, "allowed_projects": ["hospital-one"]},
                "model": {"endpoint": {"dedicated": False}},
            },
            "privateServiceConnectConfig",
            {"enablePrivateServiceConnect": True, "projectAllowlist": ["hospital-one"]},
        ),
    ],
)
def test_endpoint_that_medport_makes_has_the_key_and_the_network_of_the_specification(
    team: Team, changes: dict[str, Any], field: str, wanted: dict[str, Any]
) -> None:
    team.changes |= changes

    plan = team.plan()
    team.apply(plan)

    found = team.control.get_endpoint(team.endpoint)
    assert found[field] == wanted
    assert team.plan().exit_code == 0


def test_without_a_judge_nothing_is_called_good(team: Team) -> None:
    plan = team.plan()

    team.run(todo.steps(team.job(plan, trial=None)), team.header(plan))

    (version,) = team.control.list_versions(team.spec.model_id("reader"))
    assert not any(each.startswith(names.GOOD_PREFIX) for each in version["versionAliases"])
    assert team.recorded == 1


def test_keys_of_steps_are_the_same_held_hurried_or_not(team: Team) -> None:
    first(team)
    job = team.job(team.plan("two"), "two")

    whole = [step.key for step in todo.steps(job)]
    held = [step.key for step in todo.steps(job, hold=25)]
    hurried = [step.key for step in todo.steps(job, hurry=True)]

    assert whole == hurried
    assert held == whole[: len(held)]
    assert re.search(r" at 25 %$", held[-1])
    assert len(set(whole)) == len(whole)


def test_record_that_cannot_be_written_takes_all_back(team: Team) -> None:
    old = first(team)
    plan = team.plan("two")
    job = team.job(plan, "two")

    def record() -> None:
        raise ServerError("no room")

    broken = todo.Job(**{**{key: getattr(job, key) for key in job.__dataclass_fields__}, "record": record})
    with pytest.raises(ServerError, match="no room"):
        team.run(todo.steps(broken), team.header(plan, "two"))

    assert (team.split(), set(team.fleets())) == ({old: 100}, {old})


class TestTerraformMakesTheEndpoint:
    """The project's own local root below the models, with the stand-in for Google's provider."""

    @pytest.fixture
    def root(self, server: PlaneServer, team: Team, tmp_path: Path) -> Iterator[Callable[[], Terraform]]:
        schema = schema_or_skip()
        team.changes |= {
            "terraform": {"root": "terraform/roots/local"},
            "model": {"endpoint": {"id": "4100000009", "inference_timeout_s": 900}},
        }
        directory = copied(tmp_path) / "roots" / "local"
        with attached(schema, reaching(server.url, server.line["ca_file"], KEY)) as environment:

            def made() -> Terraform:
                return Terraform(directory, environment=environment, variables=root_variables(team.spec))

            made().init()
            yield made
            team.destroy()
            terraform = made()
            terraform.apply(terraform.plan(tmp_path / "gone.tfplan", destroy=True))
        assert server.call("GET", "/endpoints/4100000009").status_code == 404

    def planned(self, team: Team, root: Callable[[], Terraform], said: str = "") -> todo.Job:
        file = team.root / f"{said or 'one'}.tfplan"
        terraform = root()
        plan = team.plan(said, terraform=terraform, terraform_file=file)
        return team.job(plan, said, terraform=terraform, terraform_file=file)

    def test_plan_apply_and_plan_again_with_one_owner_a_field(
        self, team: Team, root: Callable[[], Terraform]
    ) -> None:
        job = self.planned(team, root)

        team.run(todo.steps(job), team.header(job.plan))
        again = self.planned(team, root).plan

        assert job.plan.rows[0].address.startswith("terraform:module.endpoint")
        found = team.control.get_endpoint("4100000009")
        assert found["clientConnectionConfig"] == {"inferenceTimeout": "900s"}
        assert found["labels"]["goog-terraform-provisioned"] == "true"
        assert team.split() == {team.id_of(): 100}
        assert (again.exit_code, [row.address for row in again.rows if row.changes]) == (0, [])

    def test_fleets_go_before_terraform_takes_their_endpoint_away(
        self, server: PlaneServer, team: Team, root: Callable[[], Terraform]
    ) -> None:
        job = self.planned(team, root)
        team.run(todo.steps(job), team.header(job.plan))
        team.changes["model"] = {"endpoint": {"id": "4100000008", "inference_timeout_s": 900}}

        moved = self.planned(team, root)
        team.run(todo.steps(moved), team.header(moved.plan))

        gone = f"endpoint/4100000009/{team.id_of()}"
        assert [row.action for row in moved.plan.rows if row.address == gone] == ["destroy"]
        assert server.call("GET", "/endpoints/4100000009").status_code == 404
        assert team.split() == {team.id_of(): 100}
        assert self.planned(team, root).plan.exit_code == 0

    def test_what_fails_later_leaves_what_terraform_made_to_terraform(
        self, team: Team, root: Callable[[], Terraform]
    ) -> None:
        job = self.planned(team, root)
        team.judge.fails["smoke reader"] = VerificationError("said nothing")

        with pytest.raises(VerificationError):
            team.run(todo.steps(job), team.header(job.plan))

        assert team.fleets() == {}
        assert self.planned(team, root).plan.rows[0].address == "endpoint.reader"


class Died(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        ("canary", "deployed_model"),
        ("rolling", "deployed_model"),
        ("recreate", "given_up"),
        ("recreate", "deployed_model"),
    ],
)
@pytest.mark.parametrize("then", ["goes on", "goes back"])
def test_run_that_died_while_a_fleet_came_or_went_is_whole_afterwards(
    team: Team, strategy: str, kind: str, then: str
) -> None:
    team.changes = {"rollout": {"strategy": strategy, "bake_s": 0}}
    old = first(team)
    plan = team.plan("two")

    def die(line: dict[str, Any], written: bool) -> None:
        if (line.get("state"), line.get("kind"), written) == ("running", kind, True):
            raise Died

    with pytest.raises(Died):
        team.run(todo.steps(team.job(plan, "two")), team.header(plan, "two"), on_journal_line=die)
    if then == "goes on":
        team.apply(plan, "two")
    else:
        team.back(plan, "two")

    serves = team.id_of("two") if then == "goes on" else old
    kept = {old} if strategy == "canary" else set()
    assert (team.split(), set(team.fleets())) == ({serves: 100}, {serves} | kept)
    assert team.fleets()[serves]["modelVersionId"] == ("2" if then == "goes on" else "1")
    assert team.versions() == (["1", "2"] if then == "goes on" else ["1"])


class TestLive:
    """Requests are sent, and answers judged."""

    @pytest.fixture
    def trial(
        self, server: PlaneServer, team: Team, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[str], LiveTrial]:
        monkeypatch.setenv("KEY", KEY)
        target = {
            "kind": "local",
            "project": deploying.PROJECT,
            "location": deploying.LOCATION,
            "url": server.url,
            "ca_file": str(server.line["ca_file"]),
            "auth": {"api_key_env": "KEY"},
        }
        team.changes = {"rollout": {"steps": [50, 100], "bake_s": 0}, "target": target}
        return lambda said: LiveTrial(
            team.spec, lock_of(team.spec, said), team.directory, team.control, rate_per_s=100
        )

    def run(self, team: Team, trial: Callable[[str], LiveTrial], said: str = "") -> None:
        plan = team.plan(said)
        team.run(todo.steps(team.job(plan, said, trial=trial(said))), team.header(plan, said))

    def test_fleet_that_answers_as_it_should_takes_over(
        self, team: Team, trial: Callable[[str], LiveTrial]
    ) -> None:
        self.run(team, trial)

        self.run(team, trial, "two")

        assert team.split() == {team.id_of("two"): 100}

    def test_fleet_that_fails_its_requests_is_found_out_and_goes(
        self, server: PlaneServer, team: Team, trial: Callable[[str], LiveTrial]
    ) -> None:
        self.run(team, trial)
        rule = {"match": {"deployedModelId": team.id_of("two"), "verb": "*predict*"}, "http": {"status": 500}}
        server.http.post("/medport/v1/faults", json=rule).raise_for_status()

        with pytest.raises(VerificationError):
            self.run(team, trial, "two")

        assert (team.split(), set(team.fleets())) == ({team.id_of(): 100}, {team.id_of()})
