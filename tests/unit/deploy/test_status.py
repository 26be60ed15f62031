"""How a deployment stands: whoever serves, whatever is open, and what to type; nothing is changed by looking."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support import deploying
from support.plane_server import PlaneServer
from support.planned import deploy, lock_of, spec_bytes

from medport import lock as locks
from medport_deploy import names, provenance
from medport_deploy.control.plane import ControlPlane
from medport_deploy.past import history, status
from medport_deploy.past.history import Deployed, Entry
from medport_deploy.past.status import Status
from medport_deploy.plan import reality
from medport_deploy.run.journal import Journal
from medport_deploy.run.run_lock import held
from medport_deploy.spec import reading as specs

NOW = datetime(2026, 11, 27, 8, tzinfo=UTC)


def read(control: ControlPlane, data: bytes, root: Path, *, locked: bool = True) -> Status:
    spec = specs.parse(data)
    lock = lock_of(spec) if locked else None
    return status.read(spec, lock, control, deploying.directory(root, spec.name), spec_bytes=data, now=NOW)


def text(found: Status) -> str:
    return "\n".join(line for line, _ in status.lines(found))


def verified(data: bytes, id_: str, said: str = "", **more: Any) -> Entry:
    spec = specs.parse(data)
    reader = Deployed(
        endpoint=spec.endpoint_id("reader"), model_id=spec.model_id("reader"), version="1", deployed_model=id_
    )
    lock = lock_of(spec, said)
    return Entry(verb="apply", outcome="verified", lock_id=lock.lock_id, models={"reader": reader}, **more)


def test_deployment_that_does_not_exist_yet_says_so_and_makes_no_files(
    plane: PlaneServer, control: ControlPlane, tmp_path: Path
) -> None:
    found = read(control, spec_bytes(plane.url, "none-yet"), tmp_path, locked=False)

    assert (found.models["reader"].exists, found.runs, found.drift, found.last_verified) == (False, (), None, None)
    assert "there is no endpoint" in text(found)
    assert "no lock yet" in text(found)
    assert list(tmp_path.iterdir()) == []


def test_what_serves_is_told_with_lock_revision_and_replicas(
    plane: PlaneServer, control: ControlPlane, tmp_path: Path
) -> None:
    data = spec_bytes(plane.url, "stat-serves")
    spec = specs.parse(data)
    lock = lock_of(spec)
    id_ = deploy(control, data, tmp_path)
    control.merge_aliases(spec.model_id("reader"), "1", [names.good_alias(lock.lock_id)])
    history.append(deploying.directory(tmp_path, spec.name), verified(data, id_))
    before = reality.read(control, spec)

    found = read(control, data, tmp_path)

    fleet = found.models["reader"].fleets[0]
    assert (fleet.id, fleet.percent, fleet.lock_id) == (id_, 100, lock.lock_id)
    assert (fleet.revision, fleet.up, fleet.wanted, fleet.verified) == (lock.models["reader"].revision, 1, 1, True)
    assert (found.drift, found.runs, found.back_to) == ((), (), None)
    assert f"100 %  {id_}  lock {lock.lock_id[:12]}" in text(found)
    assert "drift      none" in text(found)
    assert json.loads(json.dumps(found.as_dict()))["models"]["reader"]["fleets"][0]["percent"] == 100
    assert reality.read(control, spec) == before


def test_lock_that_does_not_hold_a_model_is_no_error_but_drift_is_not_looked_for(
    plane: PlaneServer, control: ControlPlane, tmp_path: Path
) -> None:
    data = spec_bytes(plane.url, "stat-other")
    spec = specs.parse(data)
    other = locks.checked({"version": 1})
    assert status.read(spec, None, control, tmp_path).unchecked == "there is no lock"
    deploy(control, data, tmp_path)

    found = status.read(spec, other, control, tmp_path)

    assert found.drift is None
    assert "drift      not looked for: models.reader: is not in the lock" in text(found)


def test_kept_fleet_the_way_back_and_drift_are_told(
    plane: PlaneServer, control: ControlPlane, tmp_path: Path
) -> None:
    data = spec_bytes(plane.url, "stat-kept")
    spec = specs.parse(data)
    id_ = deploy(control, data, tmp_path)
    model = f"{plane.parent}/models/{spec.model_id('reader')}"
    body = provenance.model_body(spec, lock_of(spec, "old"), "reader")
    made = plane.succeeded(plane.ok("POST", "/models:upload", {"model": body, "parentModel": model}))
    old = plane.deployed(
        spec.endpoint_id("reader"),
        f"{model}@{made['modelVersionId']}",
        displayName=provenance.deployed_name(lock_of(spec, "old"), "reader"),
    )
    directory = deploying.directory(tmp_path, spec.name)
    history.append(directory, verified(data, old, "old"))
    history.append(directory, verified(data, id_, retained={old: "2026-11-27T09:00:00.000000Z"}))

    found = read(control, data, tmp_path)

    assert [(each.id, each.percent) for each in found.models["reader"].fleets] == [(id_, 100), (old, 0)]
    assert found.models["reader"].fleets[1].kept_until == "2026-11-27T09:00:00.000000Z"
    assert found.back_to == lock_of(spec, "old").lock_id
    assert found.drift == ("reader version.good",)
    assert f"back to    lock {lock_of(spec, 'old').lock_id[:12]}: medport deploy rollback" in text(found)
    assert "reader version.good: medport deploy verify" in text(found)


@pytest.mark.parametrize("alive", [False, True])
def test_open_run_is_told_with_its_step_and_how_to_go_on(
    control: ControlPlane, plane: PlaneServer, tmp_path: Path, alive: bool
) -> None:
    data = spec_bytes(plane.url, "stat-open")
    directory = deploying.directory(tmp_path, "stat-open")
    at = Journal.create(directory, deploying.header("apply", "stat-open"))
    at.write("failed", step="traffic e", kind="traffic", name="e 1: 5 %", error="Timeout: no answer")
    who = {"pid": os.getpid() if alive else 2**22 + 1, "host": socket.gethostname(), "verb": "apply", "at": "now"}
    (directory / "run.lock").write_text(json.dumps(who))

    found = read(control, data, tmp_path)

    (run,) = found.runs
    assert (run.verb, run.step, run.state, run.error) == ("apply", "traffic e", "failed", "Timeout: no answer")
    assert run.working is alive
    assert ("wait for it" if alive else "medport deploy rollback") in text(found)
    at.end("swept")
    assert read(control, data, tmp_path).runs == ()


def test_looking_is_not_in_the_way_of_a_run(plane: PlaneServer, control: ControlPlane, tmp_path: Path) -> None:
    data = spec_bytes(plane.url, "stat-busy")
    directory = deploying.directory(tmp_path, "stat-busy")
    Journal.create(directory, deploying.header("apply", "stat-busy"))

    with held(directory, "apply"):
        found = read(control, data, tmp_path)

    assert found.runs[0].working
