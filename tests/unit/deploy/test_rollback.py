"""The fast way back: only traffic moves, to a fleet that was verified and still stands, and then the rest goes."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import deploy_plans, deploying
from support.plane_server import PlaneServer
from support.planned import deploy, lock_of, spec_bytes

from medport.errors import VerificationError
from medport.lock import Lock
from medport_deploy import names, provenance
from medport_deploy.control.plane import ControlPlane, split_of
from medport_deploy.past import rollback
from medport_deploy.past.history import Deployed, Entry
from medport_deploy.run import apply, vertex_steps
from medport_deploy.run.steps import Step
from medport_deploy.spec import reading as specs
from medport_deploy.spec.reading import Spec

Json = dict[str, Any]
NUMBERS = itertools.count()


class Two:
    """A deployment in which a second lock has taken over from the first, whose fleet is kept."""

    def __init__(self, plane: PlaneServer, control: ControlPlane, name: str, root: Path) -> None:
        self.control, self.root = control, root
        data = spec_bytes(plane.url, name)
        self.spec: Spec = specs.parse(data)
        self.old_lock, self.new_lock = lock_of(self.spec), lock_of(self.spec, "two")
        self.endpoint, self.model = self.spec.endpoint_id("reader"), self.spec.model_id("reader")
        self.old = deploy(control, data, root)
        self.new = names.deployed_model_id(self.new_lock.lock_id, name, "reader")
        alias = names.version_alias(self.new_lock.lock_id)
        body = provenance.model_body(self.spec, self.new_lock, "reader")
        steps = [
            vertex_steps.version(control, name, self.model, alias, body),
            vertex_steps.deployed_model(control, self.endpoint, self.model, alias, fleet(self.new_lock, self.new)),
            vertex_steps.traffic(control, self.endpoint, {self.new: 100}),
        ]
        self.run("apply", steps, self.new_lock)

    def run(self, verb: str, steps: list[Step], lock: Lock) -> apply.Report:
        header = replace(deploying.header(verb, self.spec.name), lock_id=lock.lock_id, plan_sha256=lock.lock_id)
        return apply.run(steps, header, deploying.directory(self.root, self.spec.name), control=self.control)

    def entry(self, **more: str) -> Entry:
        """Of the history: the first lock, as it was verified."""
        reader = Deployed(
            **{
                "endpoint": self.endpoint,
                "model_id": self.model,
                "version": "1",
                "deployed_model": self.old,
                **more,
            }
        )
        return Entry(verb="apply", outcome="verified", lock_id=self.old_lock.lock_id, models={"reader": reader})

    def fast(self, **more: Any) -> list[Step] | None:
        return rollback.fast(self.spec, self.entry(), self.control, reject=self.new_lock.lock_id, **more)

    def split(self) -> dict[str, int]:
        return split_of(self.control.get_endpoint(self.endpoint))

    def ids(self) -> set[str]:
        return {str(each["id"]) for each in self.control.get_endpoint(self.endpoint).get("deployedModels", [])}


def fleet(lock: Lock, id_: str) -> Json:
    return {
        "id": id_,
        "displayName": provenance.deployed_name(lock, "reader"),
        "dedicatedResources": {"machineSpec": {"machineType": "n1-standard-4"}, "minReplicaCount": 1},
    }


class Trial:
    """Judges as a test wants, and says whom it was asked about."""

    def __init__(self, fault: VerificationError | None = None) -> None:
        self.fault = fault
        self.asked: list[tuple[str, str]] = []

    def smoke(self, name: str, deployed_model_id: str) -> None:
        self.asked.append((name, deployed_model_id))
        if self.fault is not None:
            raise self.fault


@pytest.fixture
def two(plane: PlaneServer, control: ControlPlane, tmp_path: Path) -> Two:
    return Two(plane, control, f"back-{next(NUMBERS)}", tmp_path)


def test_traffic_goes_back_to_the_verified_fleet_and_the_rejected_one_is_undeployed(
    two: Two, record_property: Any
) -> None:
    trial = Trial()
    assert rollback.rejected(two.entry(), two.control) == two.new_lock.lock_id

    began = time.perf_counter()
    steps = two.fast(trial=trial)
    assert steps is not None
    report = two.run("rollback", steps, two.old_lock)
    took = time.perf_counter() - began
    record_property("rollback_s", round(took, 2))
    print(f"the fast way back took {took:.2f} s, undeploying included")

    assert (two.split(), two.ids()) == ({two.old: 100}, {two.old})
    assert trial.asked == [("reader", two.old)]
    assert [each.kind for each in steps] == ["traffic", "smoke", "undeploy"]
    assert len(report.done) == 3


def test_rejected_fleet_stays_without_traffic_where_it_is_to_be_kept(two: Two) -> None:
    steps = two.fast(keep=True)
    assert steps is not None

    two.run("rollback", steps, two.old_lock)

    assert (two.split(), two.ids()) == ({two.old: 100}, {two.old, two.new})


def test_rejected_fleet_stays_deployed_if_the_old_one_does_not_answer_rightly(two: Two) -> None:
    steps = two.fast(trial=Trial(VerificationError("nothing but tokens")))
    assert steps is not None

    with pytest.raises(VerificationError, match="nothing but tokens"):
        two.run("rollback", steps, two.old_lock)

    assert two.ids() == {two.old, two.new}


def test_steps_are_the_same_when_a_rollback_is_gone_on_with_after_its_traffic_moved(two: Two) -> None:
    steps = two.fast()
    assert steps is not None
    two.control.set_traffic(two.endpoint, {two.old: 100})

    again = two.fast()

    assert again is not None
    assert [each.key for each in again] == [each.key for each in steps]


def test_there_is_no_fast_way_to_a_fleet_that_is_gone_or_is_another(two: Two) -> None:
    elsewhere = rollback.fast(two.spec, two.entry(endpoint="none"), two.control)
    other_version = rollback.fast(two.spec, two.entry(version="2"), two.control)
    other_lock = rollback.fast(two.spec, two.entry(deployed_model=two.new, version="2"), two.control)
    two.control.wait(two.control.undeploy_model(two.endpoint, two.old))

    assert two.fast() is None
    assert (elsewhere, other_version, other_lock) == (None, None, None)
    assert two.split() == {two.new: 100}


def test_there_is_no_fast_way_where_the_specification_has_other_models(two: Two) -> None:
    entry = two.entry()

    assert (
        rollback.fast(
            two.spec, replace(entry, models={**entry.models, "more": entry.models["reader"]}), two.control
        )
        is None
    )


def test_there_is_no_fast_way_to_a_fleet_that_is_down(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    real = two.control.get_endpoint

    def down(endpoint: str) -> Json:
        said = real(endpoint)
        for each in said["deployedModels"]:
            each["status"].pop("availableReplicaCount")
        return said

    monkeypatch.setattr(two.control, "get_endpoint", down)

    assert two.fast() is None


def test_fleet_of_somebody_else_loses_its_traffic_and_stays(two: Two, plane: PlaneServer) -> None:
    theirs = plane.deployed(
        two.endpoint,
        f"{plane.parent}/models/{two.model}@1",
        split={"0": 40, two.new: 60},
        displayName="by hand",
    )
    steps = two.fast()
    assert steps is not None

    two.run("rollback", steps, two.old_lock)

    assert (two.split(), two.ids()) == ({two.old: 100}, {two.old, theirs})


def test_traffic_of_all_models_moves_before_anything_is_undeployed() -> None:
    model = {"model": "google/medgemma-4b-it", "revision": "29" * 20}
    models = {name: {**model, "image": deploying.IMAGE, "machine": dict(deploy_plans.L4)} for name in ("a", "b")}
    spec = deploy_plans.spec(models=models)
    old, new = deploy_plans.lock(spec), deploy_plans.lock(spec, said="two")

    class Plane:
        """Both models' endpoints: the old fleet without traffic, the new one with all."""

        def get_endpoint(self, endpoint: str) -> Json:
            name = next(each for each in models if spec.endpoint_id(each) == endpoint)
            both = [
                {"id": id_, "model": f"models/{spec.model_id(name)}", "modelVersionId": id_,
                 "displayName": provenance.deployed_name(lock, name)}
                for id_, lock in (("1", old), ("2", new))
            ]  # fmt: skip
            return {"trafficSplit": {"2": 100}, "deployedModels": both}

    entry = Entry(
        verb="apply",
        outcome="verified",
        lock_id=old.lock_id,
        models={
            name: Deployed(
                endpoint=spec.endpoint_id(name), model_id=spec.model_id(name), version="1", deployed_model="1"
            )
            for name in models
        },
    )

    steps = rollback.fast(spec, entry, Plane(), trial=Trial())  # type: ignore[arg-type]

    assert steps is not None
    assert [each.kind for each in steps] == ["traffic"] * 2 + ["smoke"] * 2 + ["undeploy"] * 2
    assert {each.name.partition("/")[2] for each in steps if each.kind == "undeploy"} == {"2"}


def test_rollback_has_one_name_for_what_it_does() -> None:
    entry = Entry(verb="apply", outcome="verified", lock_id="a" * 64, at="2026-11-27T08:00:00Z")

    assert rollback.run_sha256(entry, keep=False) == rollback.run_sha256(entry, keep=False)
    assert rollback.run_sha256(entry, keep=False) != rollback.run_sha256(entry, keep=True)
