"""A list of steps against a real control plane: applied, resumed, taken back, and refused where it must be."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import deploying
from support.plane_server import KEY, PlaneServer

from medport.errors import (
    AuthError,
    Conflict,
    InputError,
    MedportError,
    NotFound,
    PreconditionFailed,
    QuotaExceeded,
    ServerError,
)
from medport_deploy import names
from medport_deploy.control.plane import ControlPlane, split_of
from medport_deploy.plan import file as plan_file
from medport_deploy.run import apply, destroy, journal, vertex_steps
from medport_deploy.run.interrupts import Interrupts, Stopped
from medport_deploy.run.steps import Event, Step
from medport_local.phantom import weights_dir

MODEL = json.loads((weights_dir("medsiglip") / "manifest.json").read_bytes())["repo_id"]
POLL = {"method": "GET", "path": "/ui/*"}
Json = dict[str, Any]


class Deployment:
    """One deployment at the plane, under a name of its own."""

    def __init__(self, control: ControlPlane, root: Path, name: str) -> None:
        self.control = control
        self.name = name
        self.root = root
        self.directory = deploying.directory(root, name)
        self.endpoint = names.endpoint_id(name, "reader")
        self.model = names.model_id(name, "reader")
        self.events: list[Event] = []

    def steps(self, lock: str = "one", **more: Any) -> list[Step]:
        return deploying.steps(self.control, self.name, MODEL, lock, **more)

    def run(
        self, todo: list[Step], verb: str = "apply", lock: str = "one", *, plan: Json | None = None, **more: Any
    ) -> apply.Report:
        header = deploying.header(verb, self.name, lock, **(plan or {}))
        return apply.run(todo, header, self.directory, control=self.control, on_event=self.events.append, **more)

    def journals(self) -> list[journal.Journal]:
        return journal.all_of(self.directory)

    @property
    def split(self) -> dict[str, int]:
        return split_of(self.control.get_endpoint(self.endpoint))

    def deployed(self) -> set[str]:
        return {each["id"] for each in self.control.get_endpoint(self.endpoint).get("deployedModels", [])}

    def destroy(self) -> None:
        if self.directory.exists():
            self.run(destroy.steps(self.control, self.name, self.journals()), "destroy")


@pytest.fixture
def deployment(
    control: ControlPlane, plane: PlaneServer, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Deployment]:
    made = Deployment(control, tmp_path, f"t{abs(hash(request.node.name)) % 10**8}")
    yield made
    plane.http.delete("/medport/v1/faults").raise_for_status()
    made.destroy()
    left = control.list_endpoints({names.DEPLOYMENT_LABEL: made.name})
    assert (left, control.list_models({names.DEPLOYMENT_LABEL: made.name})) == ([], [])


def order(plane: PlaneServer, **rule: Any) -> None:
    plane.http.post("/medport/v1/faults", json=rule).raise_for_status()


def fails(error: MedportError) -> Step:
    def do(doing: object) -> None:
        raise error

    return Step(kind="smoke", name="x", title="smoke test", do=do)


def test_applied_deployment_stands_and_a_second_apply_does_nothing(deployment: Deployment) -> None:
    first = deployment.run(deployment.steps())
    second = deployment.run(deployment.steps())

    one, two = deploying.deployed_ids(deployment.name)
    assert deployment.split == {one: 50, two: 50}
    assert (len(first.done), second.done, len(second.skipped)) == (6, (), 6)
    assert [each.ended for each in deployment.journals()] == ["finished", "finished"]
    assert any(event.state == "stage" for event in deployment.events)


def test_quota_of_nothing_fails_with_its_name_and_the_same_plan_goes_on_later(
    plane: PlaneServer, deployment: Deployment
) -> None:
    order(plane, times=1, match={"endpoint": deployment.endpoint}, deploy={"failure": "quota"})

    with pytest.raises(QuotaExceeded, match="custom_model_serving"):
        deployment.run(deployment.steps())
    later = deployment.run(deployment.steps())

    assert later.resumed
    assert len(later.skipped) == 2
    assert deployment.deployed() == set(deploying.deployed_ids(deployment.name))


def test_container_that_does_not_start_is_taken_back_to_what_was(
    plane: PlaneServer, deployment: Deployment
) -> None:
    order(plane, match={"endpoint": deployment.endpoint}, deploy={"failure": "failing_container"})

    with pytest.raises(PreconditionFailed, match="Model server exited unexpectedly"):
        deployment.run(deployment.steps(), back_on_failure=True)

    with pytest.raises(NotFound):
        deployment.control.get_endpoint(deployment.endpoint)
    with pytest.raises(NotFound):
        deployment.control.list_versions(deployment.model)
    assert [each.ended for each in deployment.journals()] == ["taken back"]


def test_failure_in_the_middle_of_a_rollout_brings_the_old_split_back_first(deployment: Deployment) -> None:
    deployment.run(deployment.steps())
    old = deployment.split
    one, two = deploying.deployed_ids(deployment.name)
    three, _ = deploying.deployed_ids(deployment.name, "two")
    alias = names.version_alias(deploying.lock_id("two"))
    splits: list[dict[str, int]] = []
    body = deploying.version_body(MODEL, deploying.IMAGE.replace("a" * 64, "b" * 64))
    rollout = [
        vertex_steps.version(deployment.control, deployment.name, deployment.model, alias, body),
        vertex_steps.deployed_model(
            deployment.control, deployment.endpoint, deployment.model, alias, deploying.deployed_body(three)
        ),
        vertex_steps.traffic(deployment.control, deployment.endpoint, {one: 48, two: 47, three: 5}),
        vertex_steps.traffic(deployment.control, deployment.endpoint, {one: 38, two: 37, three: 25}),
        fails(ServerError("the gate did not open")),
    ]

    def watched(line: Json, written: bool) -> None:
        if written and line.get("state") in ("done", "undone"):
            splits.append(deployment.split)

    with pytest.raises(ServerError, match="gate"):
        deployment.run(rollout, lock="two", back_on_failure=True, on_journal_line=watched)

    assert splits[2:5] == [{one: 48, two: 47, three: 5}, {one: 38, two: 37, three: 25}, old]
    assert deployment.deployed() == {one, two}
    versions = deployment.control.list_versions(deployment.model)
    assert [each["versionId"] for each in versions] == ["1"]


def test_expired_credential_half_way_ends_the_run_which_goes_on_with_a_new_one(
    plane: PlaneServer, deployment: Deployment
) -> None:
    order(plane, match=POLL, http={"status": 401})
    with pytest.raises(AuthError, match="operations/"):
        deployment.run(deployment.steps())
    plane.http.delete("/medport/v1/faults").raise_for_status()

    later = deployment.run(deployment.steps())

    assert later.resumed
    assert deployment.deployed() == set(deploying.deployed_ids(deployment.name))


def test_answer_that_comes_too_late_is_not_taken_for_a_failure(plane: PlaneServer, tmp_path: Path) -> None:
    late = {"method": "POST", "path": "*/endpoints"}
    order(plane, times=1, match=late, http={"delaySeconds": 1.5})
    ca_file = plane.line["ca_file"]
    with deploying.plane(plane.url, ca_file, KEY, timeout_s=1.0) as impatient:
        deployment = Deployment(impatient, tmp_path, "late")

        deployment.run(deployment.steps()[:1])

    with deploying.plane(plane.url, ca_file, KEY) as control:
        assert control.get_endpoint(deployment.endpoint)
        deployment.control = control
        deployment.destroy()


def test_endpoint_of_somebody_else_is_not_taken_over(control: ControlPlane, deployment: Deployment) -> None:
    other = vertex_steps.endpoint(control, "other", deployment.endpoint, {"displayName": "theirs"})
    elsewhere = Deployment(control, deployment.root / "other", "other")
    elsewhere.run([other])

    with pytest.raises(Conflict, match="of the deployment other"):
        deployment.run(deployment.steps())

    elsewhere.destroy()


def test_version_with_our_alias_and_another_image_is_a_conflict(deployment: Deployment) -> None:
    alias = names.version_alias(deploying.lock_id("one"))
    other = deploying.version_body(MODEL, deploying.IMAGE.replace("a", "c"))
    step = vertex_steps.version(deployment.control, deployment.name, deployment.model, alias, other)
    deployment.run([step])

    with pytest.raises(Conflict, match="another image"):
        deployment.run(deployment.steps())


def test_split_that_somebody_changed_during_a_rollout_is_not_overwritten(deployment: Deployment) -> None:
    deployment.run(deployment.steps())
    one, two = deploying.deployed_ids(deployment.name)

    def meddle(line: Json, written: bool) -> None:
        if written and line.get("state") == "before":
            deployment.control.set_traffic(deployment.endpoint, {one: 1, two: 99})

    canary = vertex_steps.traffic(deployment.control, deployment.endpoint, {one: 95, two: 5})
    with pytest.raises(Conflict, match="has not set"):
        deployment.run([canary], lock="two", on_journal_line=meddle)

    assert deployment.split == {one: 1, two: 99}


def test_plan_of_another_version_is_refused() -> None:
    plan_file.check_maker("1.0", "1.0")

    with pytest.raises(PreconditionFailed, match=r"made by medport 0\.9, and this is 1\.0"):
        plan_file.check_maker("0.9", "1.0")


def interrupted(deployment: Deployment, **plan: str) -> None:
    """Leave a run open after its first step."""
    interrupts = Interrupts()
    todo = deployment.steps()

    def stop(line: Json, written: bool) -> None:
        if line.get("state") == "done":
            interrupts.ask()

    with pytest.raises(Stopped):
        deployment.run(todo, plan=plan, interrupts=interrupts, on_journal_line=stop)


def test_run_that_another_version_began_is_not_gone_on_with(deployment: Deployment) -> None:
    interrupted(deployment, medport="0.9")

    with pytest.raises(PreconditionFailed, match=r"medport 0\.9"):
        deployment.run(deployment.steps())


def test_other_plan_waits_until_what_the_first_left_is_put_away(deployment: Deployment) -> None:
    interrupted(deployment)

    with pytest.raises(Conflict, match="has not come to its end") as refused:
        deployment.run(deployment.steps("two"), lock="two")

    assert f"process {os.getpid()}" in str(refused.value)
    assert "medport deploy sweep" in str(refused.value.remedy)
    assert len(deployment.journals()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_run_between_two_steps_and_gives_the_handler_back(
    deployment: Deployment, number: signal.Signals
) -> None:
    before = signal.getsignal(number)

    def stop(line: Json, written: bool) -> None:
        if written and line.get("state") == "before":
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped, match="medport deploy apply"):
        deployment.run(deployment.steps(), on_journal_line=stop)

    states = [record.state for record in deployment.journals()[0].records]
    assert states == ["before", "done"]
    assert signal.getsignal(number) is before


def test_user_who_does_not_wait_leaves_the_deployment_to_the_server(deployment: Deployment) -> None:
    interrupts = Interrupts()

    def stop(line: Json, written: bool) -> None:
        if written and line.get("state") == "running":
            interrupts.ask()
            interrupts.ask()

    with pytest.raises(Stopped, match="operations/"):
        deployment.run(deployment.steps(), interrupts=interrupts, on_journal_line=stop)
    later = deployment.run(deployment.steps())

    assert later.resumed
    assert deployment.deployed() == set(deploying.deployed_ids(deployment.name))


def test_two_steps_of_one_name_are_refused_before_anything_is_done(deployment: Deployment) -> None:
    todo = deployment.steps()

    with pytest.raises(InputError, match="two steps are called endpoint"):
        deployment.run([*todo, todo[0]])

    assert not deployment.directory.exists()
