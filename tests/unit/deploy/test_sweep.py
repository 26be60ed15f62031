"""What a run has left is found by name and label, listed, and taken away; all else stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import deploying
from support.plane_server import PlaneServer

from medport.errors import NotFound, ServerError
from medport_deploy import names
from medport_deploy.control.plane import ControlPlane, split_of
from medport_deploy.run import apply, destroy, journal, sweep, vertex_removal, vertex_steps
from medport_deploy.run.interrupts import Interrupts, Stopped
from medport_deploy.run.steps import Step
from medport_local.phantom import weights_dir

MODEL = json.loads((weights_dir("medsiglip") / "manifest.json").read_bytes())["repo_id"]
Json = dict[str, Any]


class Deployment:
    def __init__(self, control: ControlPlane, root: Path, name: str) -> None:
        self.control = control
        self.name = name
        self.directory = deploying.directory(root, name)
        self.endpoint = names.endpoint_id(name, "reader")
        self.model = names.model_id(name, "reader")
        self.alias = names.version_alias(deploying.lock_id("two"))
        self.one, self.two = deploying.deployed_ids(name)
        self.new, _ = deploying.deployed_ids(name, "two")

    def run(self, todo: list[Step], verb: str = "apply", lock: str = "one", **more: Any) -> apply.Report:
        header = deploying.header(verb, self.name, lock)
        return apply.run(todo, header, self.directory, control=self.control, **more)

    def first(self) -> None:
        """A run that finishes; its version is called good."""
        self.run(deploying.steps(self.control, self.name, MODEL))

    def second(self) -> list[Step]:
        """A rollout that fails when it has a quarter of the traffic."""
        return [
            vertex_steps.version(self.control, self.name, self.model, self.alias, deploying.version_body(MODEL)),
            vertex_steps.deployed_model(
                self.control, self.endpoint, self.model, self.alias, deploying.deployed_body(self.new)
            ),
            vertex_steps.traffic(self.control, self.endpoint, {self.one: 38, self.two: 37, self.new: 25}),
            failing(),
        ]

    def found(self, keep: sweep.Keep | None = None) -> list[sweep.Leftover]:
        return sweep.find(self.control, self.name, journal.all_of(self.directory), keep)

    def swept(self) -> apply.Report:
        return self.run(sweep.steps(self.found()), "sweep")

    def destroyed(self) -> apply.Report:
        return self.run(destroy.steps(self.control, self.name, journal.all_of(self.directory)), "destroy")

    @property
    def shown(self) -> Json:
        return self.control.get_endpoint(self.endpoint)

    @property
    def deployed(self) -> set[str]:
        return set(vertex_removal.ids(self.shown))


def failing() -> Step:
    def do(doing: object) -> None:
        raise ServerError("it died")

    return Step(kind="smoke", name="x", title="smoke test", do=do)


@pytest.fixture
def deployment(
    control: ControlPlane, plane: PlaneServer, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Deployment]:
    made = Deployment(control, tmp_path, f"s{abs(hash(request.node.name)) % 10**8}")
    yield made
    plane.http.delete("/medport/v1/faults").raise_for_status()
    made.destroyed()
    label = {names.DEPLOYMENT_LABEL: made.name}
    assert (control.list_endpoints(label), control.list_models(label)) == ([], [])


@pytest.fixture
def half(deployment: Deployment) -> Deployment:
    """A deployment that serves, and a second rollout that died with a quarter of the traffic."""
    deployment.first()
    with pytest.raises(ServerError):
        deployment.run(deployment.second(), lock="two")
    return deployment


def test_finished_deployment_has_nothing_to_sweep(deployment: Deployment) -> None:
    deployment.first()

    assert deployment.found() == []


def test_list_says_what_is_to_go_and_how_much_traffic_it_has(half: Deployment) -> None:
    found = half.found()

    assert [(each.kind, each.name, each.percent) for each in found] == [
        ("deployed_model", f"{half.endpoint}/{half.new}", 25),
        ("version", f"{half.model}@2", 0),
    ]
    assert "no finished run" in found[0].why
    assert half.new in half.deployed


def test_sweep_gives_the_traffic_back_and_takes_only_what_the_dead_run_made(half: Deployment) -> None:
    half.swept()

    assert split_of(half.shown) == {half.one: 51, half.two: 49}
    assert half.deployed == {half.one, half.two}
    assert [each["versionId"] for each in half.control.list_versions(half.model)] == ["1"]
    assert half.found() == []


def test_swept_run_is_closed_so_that_another_plan_may_begin(half: Deployment) -> None:
    half.swept()

    assert [each.ended for each in journal.all_of(half.directory)] == ["finished", "swept", "finished"]
    half.run(half.second()[:1], lock="three")


def test_version_that_was_verified_stays_with_its_fleet(half: Deployment) -> None:
    half.control.merge_aliases(half.model, "2", [names.good_alias(deploying.lock_id("two"))])

    assert half.found() == []


def test_what_the_caller_keeps_stays(half: Deployment) -> None:
    keep = sweep.Keep(deployed=frozenset({f"{half.endpoint}/{half.new}"}), versions=frozenset({f"{half.model}@2"}))

    assert half.found(keep) == []


def test_default_version_that_goes_leaves_the_default_to_the_verified_one(half: Deployment) -> None:
    half.control.merge_aliases(half.model, "2", ["default"])

    half.swept()

    assert half.control.get_model(half.model)["versionId"] == "1"


def test_what_has_the_label_is_found_without_a_journal(half: Deployment) -> None:
    for each in journal.all_of(half.directory):
        each.path.unlink()

    held = half.found()
    half.control.set_traffic(half.endpoint, {half.one: 51, half.two: 49})
    kinds = [each.kind for each in half.found()]

    # With traffic, it may be of a run in another directory. Of what was verified nothing is ever proposed.
    assert held == []
    assert kinds == ["deployed_model", "version"]


def test_run_that_died_while_it_deployed_is_swept_with_what_was_coming(
    plane: PlaneServer, deployment: Deployment
) -> None:
    interrupts = Interrupts()

    def leave(line: Json, written: bool) -> None:
        if written and line.get("state") == "running":
            interrupts.ask()
            interrupts.ask()

    with pytest.raises(Stopped):
        deployment.run(
            deploying.steps(deployment.control, deployment.name, MODEL),
            interrupts=interrupts,
            on_journal_line=leave,
        )
    found = deployment.found()
    deployment.run(sweep.steps(found), "sweep")

    assert [each.kind for each in found][-1] == "endpoint"
    with pytest.raises(NotFound):
        deployment.control.get_endpoint(deployment.endpoint)
    with pytest.raises(NotFound):
        deployment.control.list_versions(deployment.model)


def test_endpoint_of_terraform_is_left_to_terraform(control: ControlPlane, deployment: Deployment) -> None:
    labels = {names.DEPLOYMENT_LABEL: deployment.name, "goog-terraform-provisioned": "true"}
    body = {"displayName": "reader", "labels": labels, "dedicatedEndpointEnabled": True}
    control.wait(control.create_endpoint(body, endpoint_id=deployment.endpoint))
    with pytest.raises(ServerError):
        deployment.run([*deploying.steps(control, deployment.name, MODEL)[:3], failing()])

    deployment.destroyed()

    assert deployment.deployed == set()
    control.wait(control.delete_endpoint(deployment.endpoint))


def test_models_of_others_on_our_endpoint_are_not_touched(control: ControlPlane, deployment: Deployment) -> None:
    deployment.first()
    theirs = control.wait(control.upload_model(deploying.version_body(MODEL), model_id="theirs", new=True))
    body = {**deploying.deployed_body("77"), "model": theirs["response"]["model"]}
    split = {**split_of(deployment.shown), "0": 0}
    control.wait(control.deploy_model(deployment.endpoint, body, split))

    deployment.destroyed()

    assert deployment.deployed == {"77"}
    control.wait(control.undeploy_model(deployment.endpoint, "77"))
    control.wait(control.delete_model("theirs"))


def test_deletion_that_is_refused_as_still_deployed_is_tried_again(
    plane: PlaneServer, deployment: Deployment
) -> None:
    deployment.first()
    still = {
        "status": 400,
        "rpcStatus": "FAILED_PRECONDITION",
        "message": "has deployed models.",
    }
    match = {"method": "DELETE", "path": "*/models/{model}"}
    plane.http.post("/medport/v1/faults", json={"times": 1, "match": match, "http": still}).raise_for_status()

    deployment.destroyed()

    with pytest.raises(NotFound):
        deployment.control.list_versions(deployment.model)


def test_destroyed_deployment_is_gone_and_what_remains_is_said(deployment: Deployment) -> None:
    deployment.first()

    report = deployment.destroyed()

    kinds = [title.split()[0] for title in report.done]
    assert kinds == ["undeploy", "undeploy", "delete", "delete"]
    assert deployment.found() == []
    assert any(each.costs for each in destroy.CLOUD)
    assert not any(each.costs for each in destroy.LOCAL)


def test_destroying_twice_does_nothing_the_second_time(deployment: Deployment) -> None:
    deployment.first()
    deployment.destroyed()

    assert deployment.destroyed().done == ()
