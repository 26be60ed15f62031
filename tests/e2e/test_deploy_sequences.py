"""Commands of ``medport deploy`` one after another, as days bring them: what serves, what is kept, what is said.

Server, engine, specification, plan and history are real; whoever judges finds good what a test does not let fail.
A run that dies ends at a line of its journal: an exception that nothing catches stands for the end of its process.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import deploying
from support.command_walk import text_of
from support.desks import VARIABLE, Desk, Said
from support.plane_server import KEY, PlaneServer, plane_server
from support.rollouts import Judge

from medport.errors import EXIT_CHANGES, EXIT_FAILED, Conflict
from medport_deploy.control.plane import ControlPlane
from medport_deploy.past import history
from medport_deploy.run import apply
from medport_deploy.run.sweep import Leftover
from medport_deploy.trial.gates import GateFailed
from medport_deploy.work import away, opening
from medport_deploy.work import run as running

pytest.importorskip("google.cloud.aiplatform", reason="medport[deploy] is not installed")

Json = dict[str, Any]
ROLLOUT: Json = {"steps": [50, 100], "bake_s": 0, "retain_s": 3600}
TWO = ["reader", "writer"]
OTHER_ENDPOINT = "4100000078"
TRIED = ["straight", "baseline", "smoke", "gate", "smoke", "gate"]
"""How the judge is asked about a fleet that comes in two shares."""


class Died(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaneServer]:
    with plane_server(tmp_path_factory.mktemp("plane"), "--allow-faults") as server:
        yield server


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    judge = Judge([])
    monkeypatch.setattr(running, "trial_of", lambda deployment: judge)
    return judge


@pytest.fixture
def desk(
    server: PlaneServer,
    judge: Judge,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Desk]:
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setattr(opening, "ControlPlane", partial(ControlPlane, polling=deploying.FAST))
    root = tmp_path / "one"
    root.mkdir()
    desk = Desk(server, root, f"s{abs(hash(request.node.name)) % 10**8}")
    yield desk
    desk.close()


def deployed(desk: Desk, number: int, **changes: Any) -> str:
    """Let a lock serve, canary by canary if nothing else is said; its id."""
    return desk.deployed(number=number, **{"rollout": ROLLOUT, **changes})


def planned(desk: Desk, number: int, **changes: Any) -> str:
    """A lock that a saved plan would let serve; its id."""
    desk.planned(number=number, **{"rollout": ROLLOUT, **changes})
    lock_id: str = desk.run("status", "--json").json["lock_id"]
    return lock_id


def held(desk: Desk, number: int, **changes: Any) -> str:
    """A lock whose run is held at half of the traffic; its id."""
    lock_id = planned(desk, number, **changes)
    done(desk, "apply", "--hold", "50")
    return lock_id


def done(desk: Desk, *arguments: str) -> Said:
    said = desk.run(*arguments)
    assert said.code == 0, said.err
    return said


def killed(desk: Desk, line: str, *arguments: str, written: bool = True) -> None:
    """A command whose process ends after a line of its journal is on the disk, or before."""

    def die(said: Json, written_now: bool) -> None:
        if (text_of(said), written_now) == (line, written):
            raise Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apply, "run", partial(apply.run, on_journal_line=die))
        patch.setattr(apply, "back", partial(apply.back, on_journal_line=die))
        with pytest.raises(Died):
            desk.run(*arguments)


def take_approved(desk: Desk, lock_id: str) -> None:
    """Take the files of a lock that was verified, as ``rollback`` says how to."""
    for name in ("medport.yaml", "medport.lock"):
        shutil.copy(desk.state / "approved" / lock_id / name, desk.root / name)


def with_traffic(status: Json) -> dict[str, list[tuple[str, int, bool]]]:
    """Of each model: locks that have traffic, how much, and whether they are verified."""
    return {
        name: [(each["lock_id"], each["percent"], each["verified"]) for each in model["fleets"] if each["percent"]]
        for name, model in status["models"].items()
    }


def assert_serves(desk: Desk, lock_id: str, names: tuple[str, ...] = ("reader",)) -> Json:
    """One verified lock has all the traffic, the history says the same, and no run is open; the status."""
    status = desk.run("status", "--json").json
    assert with_traffic(status) == {name: [(lock_id, 100, True)] for name in names}
    assert (status["last_verified"] or {}).get("lock_id") == lock_id
    assert status["runs"] == []
    return status


def assert_nothing_is_left_over(desk: Desk) -> None:
    assert done(desk, "sweep").out == f"nothing is left over of {desk.name}\n"


def test_held_run_that_is_promoted_can_be_gone_back_from_even_once_the_old_fleet_was_let_go(desk: Desk) -> None:
    first = deployed(desk, 1)
    second = held(desk, 2)

    done(desk, "promote")
    kept, back_to = len(desk.fleets()), assert_serves(desk, second)["back_to"]
    done(desk, "promote")
    alone = len(desk.fleets())
    assert_nothing_is_left_over(desk)
    unchanged = desk.run("plan")
    done(desk, "rollback")

    assert (kept, back_to, alone, unchanged.code) == (2, first, 1, 0)
    assert_serves(desk, first)


def test_lock_whose_gate_failed_is_planned_again_and_tried_from_the_beginning(desk: Desk, judge: Judge) -> None:
    first = deployed(desk, 1)
    second = planned(desk, 2)
    judge.fails["gate reader 100"] = GateFailed("more errors than are allowed")

    failed = desk.run("apply")
    fleets = len(desk.fleets())
    assert_serves(desk, first)
    judge.fails.clear()
    old_plan = desk.run("apply")
    planned_again = desk.run("plan")
    judge.log.clear()
    done(desk, "apply")

    assert (failed.code, fleets, old_plan.code, planned_again.code) == (EXIT_FAILED, 1, EXIT_FAILED, EXIT_CHANGES)
    assert [each.split()[0] for each in judge.log] == TRIED
    assert_serves(desk, second)


def test_lock_that_a_rollback_left_can_be_applied_and_left_again(desk: Desk) -> None:
    first, second = deployed(desk, 1), deployed(desk, 2)

    done(desk, "rollback")
    nowhere = desk.run("rollback")
    assert_serves(desk, first)
    again = desk.run("plan")
    done(desk, "apply")
    assert_serves(desk, second)
    done(desk, "rollback")

    assert (nowhere.code, again.code) == (EXIT_FAILED, EXIT_CHANGES)
    assert_serves(desk, first)


def test_rollbacks_go_back_lock_by_lock_and_forward_to_the_one_that_is_named(desk: Desk) -> None:
    first, second, third = (deployed(desk, number) for number in (1, 2, 3))

    done(desk, "rollback")
    assert_serves(desk, second)
    done(desk, "rollback")
    assert_serves(desk, first)
    nowhere = desk.run("rollback")
    assert_nothing_is_left_over(desk)
    done(desk, "rollback", "--to", third)

    assert nowhere.code == EXIT_FAILED
    assert_serves(desk, third)


def test_rejected_fleet_that_stayed_serves_again_without_being_deployed(desk: Desk) -> None:
    first, second = deployed(desk, 1), deployed(desk, 2)

    done(desk, "rollback", "--keep")
    fleets = assert_serves(desk, first)["models"]["reader"]["fleets"]
    forward = done(desk, "rollback", "--to", second, "--json")

    assert [(each["lock_id"], bool(each["kept_until"])) for each in fleets] == [(first, False), (second, True)]
    assert not [title for title in forward.json["done"] if title.startswith("deploy ")]
    assert_serves(desk, second)


def test_what_was_destroyed_comes_back_by_its_lock_alone(desk: Desk) -> None:
    first, _ = deployed(desk, 1), deployed(desk, 2)
    done(desk, "destroy", "--yes")

    unnamed = desk.run("rollback")
    done(desk, "rollback", "--to", first)

    assert unnamed.code == EXIT_FAILED
    assert_serves(desk, first)
    assert_nothing_is_left_over(desk)


def test_held_run_is_over_once_all_is_destroyed(desk: Desk) -> None:
    deployed(desk, 1)
    held(desk, 2)

    done(desk, "destroy", "--yes")
    status = desk.run("status", "--json").json
    promoted, applied = done(desk, "promote"), desk.run("apply")

    assert (status["runs"], status["last_verified"], with_traffic(status)) == ([], None, {"reader": []})
    assert promoted.out == "nothing to do\n"
    assert applied.code == EXIT_FAILED


def test_commands_that_change_something_do_nothing_while_a_run_is_at_work(desk: Desk, judge: Judge) -> None:
    deployed(desk, 1)
    second = planned(desk, 2)
    others = [["apply"], ["rollback"], ["sweep", "--yes"], ["promote"], ["destroy", "--yes"]]
    refused: list[Said] = []

    def meanwhile() -> None:
        judge.while_watching = lambda: None
        refused.extend(desk.run(*each) for each in others)

    judge.while_watching = meanwhile
    done(desk, "apply")

    assert [each.code for each in refused] == [EXIT_FAILED] * len(others)
    assert all(each.err.startswith("Busy: ") for each in refused)
    assert_serves(desk, second)
    assert [(each.verb, each.outcome) for each in history.read(desk.state)] == [("apply", "verified")] * 2


def test_list_of_leftovers_that_a_run_has_finished_since_is_not_swept(desk: Desk, judge: Judge) -> None:
    deployed(desk, 1)
    second = planned(desk, 2)
    found: list[Leftover] = []
    with opening.opened(desk.file) as deployment:
        judge.while_watching = lambda: found.extend(away.leftovers(deployment) if not found else [])
        done(desk, "apply")

        with pytest.raises(Conflict, match="another run has worked on it"):
            away.swept(deployment, found)

    assert {each.kind for each in found} == {"deployed_model", "version"}
    assert_serves(desk, second)


class TestTwoCheckouts:
    """Two directories with one specification; each knows its own runs alone, and one has deployed."""

    @pytest.fixture
    def other(self, desk: Desk, tmp_path: Path) -> Desk:
        root = tmp_path / "other"
        root.mkdir()
        deployed(desk, 1)
        for name in ("medport.yaml", "medport.lock"):
            shutil.copy(desk.root / name, root / name)
        return Desk(desk.server, root, desk.name)

    def test_what_the_other_one_rolls_out_is_no_leftover_here(self, desk: Desk, other: Desk) -> None:
        unchanged = other.run("plan")
        second = held(desk, 2)

        assert_nothing_is_left_over(other)
        seen = with_traffic(other.run("status", "--json").json)["reader"]
        done(desk, "promote")
        assert_nothing_is_left_over(other)

        assert unchanged.code == 0
        assert (second, 50, False) in seen
        assert_serves(desk, second)

    def test_what_the_other_one_deployed_is_drift_here_and_can_be_taken_over_from(
        self, desk: Desk, other: Desk
    ) -> None:
        (first,) = [each.lock_id for each in history.read(desk.state)]
        deployed(other, 2)

        nowhere = [each.run("rollback").code for each in (desk, other)]
        drift = desk.run("verify", "--no-smoke")
        third = deployed(desk, 3)
        assert_serves(desk, third)
        done(desk, "rollback")

        assert (nowhere, drift.code) == ([EXIT_FAILED] * 2, EXIT_CHANGES)
        assert_serves(desk, first)


def test_replicas_that_changed_in_place_are_passed_over_by_the_way_back(desk: Desk) -> None:
    first, second = deployed(desk, 1), deployed(desk, 2)
    more = deployed(desk, 2, model={"replicas": {"min": 1, "max": 3}})
    back_to = assert_serves(desk, more)["back_to"]

    done(desk, "rollback")

    assert more == second
    assert back_to == first
    assert_serves(desk, first)


def test_model_that_is_no_more_in_the_specification_is_swept_once_the_rest_was_applied(desk: Desk) -> None:
    deployed(desk, 1)
    both = deployed(desk, 1, names=TWO)
    assert_serves(desk, both, ("reader", "writer"))
    writer = desk.spec.endpoint_id("writer")

    alone = deployed(desk, 2)
    before = desk.server.call("GET", f"/endpoints/{writer}").status_code
    done(desk, "sweep", "--yes")

    assert (before, desk.server.call("GET", f"/endpoints/{writer}").status_code) == (200, 404)
    assert_serves(desk, alone)


def test_model_that_a_rollback_has_brought_back_is_no_leftover_for_a_specification_without_it(desk: Desk) -> None:
    both = deployed(desk, 1, names=TWO)
    writer = desk.spec.endpoint_id("writer")
    deployed(desk, 2)

    done(desk, "rollback")
    done(desk, "sweep", "--yes")

    assert len(desk.server.endpoint(writer)["deployedModels"]) == 1
    assert_serves(desk, both)


def test_endpoint_that_a_rollback_has_left_is_swept_once_the_specification_has_left_it_too(desk: Desk) -> None:
    first, endpoint = deployed(desk, 1), desk.endpoint
    second = deployed(desk, 2, model={"endpoint": {"id": OTHER_ENDPOINT}})
    assert_serves(desk, second)

    done(desk, "rollback")
    assert_nothing_is_left_over(desk)
    take_approved(desk, first)
    done(desk, "sweep", "--yes")

    assert desk.server.call("GET", f"/endpoints/{OTHER_ENDPOINT}").status_code == 404
    assert desk.endpoint == endpoint
    assert_serves(desk, first)


def test_held_run_of_two_models_goes_back_in_both(desk: Desk) -> None:
    first = deployed(desk, 1, names=TWO)
    held(desk, 2, names=TWO)

    done(desk, "rollback")

    assert_serves(desk, first, ("reader", "writer"))
    assert_nothing_is_left_over(desk)


def test_lock_that_one_of_two_models_was_called_good_for_is_swept_from_both(desk: Desk) -> None:
    first = deployed(desk, 1, names=TWO)
    planned(desk, 2, names=TWO)

    killed(desk, "done alias", "apply")
    done(desk, "sweep", "--yes")

    status = assert_serves(desk, first, ("reader", "writer"))
    assert [each["lock_id"] for model in status["models"].values() for each in model["fleets"]] == [first, first]


@pytest.mark.parametrize("then", ["promote", "rollback"])
def test_rollback_that_died_half_way_can_be_turned_round_or_gone_on_with(
    desk: Desk, judge: Judge, then: str
) -> None:
    first = deployed(desk, 1)
    second = held(desk, 2)
    killed(desk, "undone deployed_model", "rollback")
    judge.log.clear()

    done(desk, then)

    # What is deployed anew has to pass all of it again.
    tried = [
        "straight reader",
        "baseline reader",
        "smoke reader",
        "gate reader 50",
        "smoke reader",
        "gate reader 100",
    ]
    assert judge.log == (tried if then == "promote" else [])
    assert_serves(desk, second if then == "promote" else first)


def test_run_that_died_once_it_was_recorded_is_finished_before_it_can_be_left(desk: Desk) -> None:
    first = deployed(desk, 1)
    second = planned(desk, 2)
    killed(desk, "done record", "apply", written=False)

    refused = desk.run("rollback", "--json")
    done(desk, "apply")
    assert_serves(desk, second)
    done(desk, "rollback")

    assert (refused.code, refused.error["type"]) == (EXIT_FAILED, "PreconditionFailed")
    assert_serves(desk, first)


def test_what_a_destroy_that_died_has_taken_is_deployed_and_destroyed_again(desk: Desk) -> None:
    first = deployed(desk, 1)
    killed(desk, "done undeploy", "destroy", "--yes")

    deployed(desk, 1)
    assert_serves(desk, first)
    killed(desk, "done record", "destroy", "--yes")
    gone = desk.run("status", "--json").json["last_verified"]
    deployed(desk, 1)
    assert_serves(desk, first)
    done(desk, "destroy", "--yes")

    assert (gone, desk.run("status", "--json").json["last_verified"]) == (None, None)


@pytest.mark.parametrize("strategy", ["rolling", "recreate"])
def test_fleet_that_takes_the_others_machines_gives_them_back_and_takes_them_later(
    desk: Desk, judge: Judge, strategy: str
) -> None:
    rollout = {"strategy": strategy, "bake_s": 0}
    first = deployed(desk, 1, rollout=rollout)
    second = planned(desk, 2, rollout=rollout)
    judge.fails["gate reader 100"] = GateFailed("more errors than are allowed")

    failed = desk.run("apply")
    fleets = len(desk.fleets())
    assert_serves(desk, first)
    judge.fails.clear()
    desk.run("plan")
    done(desk, "apply")
    assert_serves(desk, second)
    done(desk, "rollback")

    assert (failed.code, fleets) == (EXIT_FAILED, 1)
    assert_serves(desk, first)


@pytest.mark.parametrize(("strategy", "line"), [("rolling", "done deployed_model"), ("recreate", "done given_up")])
def test_lock_whose_machines_a_dead_run_has_taken_comes_back_by_its_id(
    desk: Desk, strategy: str, line: str
) -> None:
    rollout = {"strategy": strategy, "bake_s": 0}
    first = deployed(desk, 1, rollout=rollout)
    planned(desk, 2, rollout=rollout)
    killed(desk, line, "apply")

    done(desk, "sweep", "--yes")
    swept = desk.fleets()
    done(desk, "rollback", "--to", first)

    assert swept == {}
    assert_serves(desk, first)
