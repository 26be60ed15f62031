"""Plans of a real control plane: what it says stands is read through Google's client, and nothing is guessed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import deploying
from support.plane_server import KEY, PlaneServer, plane_server
from support.planned import deploy, lock_of, spec_bytes

from medport.errors import PreconditionFailed
from medport_deploy import names
from medport_deploy.control.plane import ControlPlane
from medport_deploy.plan import file as plan_file
from medport_deploy.plan import making as plans
from medport_deploy.plan import reality
from medport_deploy.plan.making import Plan
from medport_deploy.spec import reading as specs


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaneServer]:
    with plane_server(tmp_path_factory.mktemp("plane")) as server:
        yield server


@pytest.fixture(scope="module")
def control(server: PlaneServer) -> Iterator[ControlPlane]:
    with deploying.plane(server.url, server.line["ca_file"], KEY) as control:
        yield control


def planned(control: ControlPlane, data: bytes, said: str = "") -> Plan:
    spec = specs.parse(data)
    return plans.make(spec, lock_of(spec, said), control, spec_bytes=data)


def changed(plan: Plan) -> dict[str, str]:
    return {row.address: row.action for row in plan.rows if row.changes}


def test_plan_is_done_when_what_it_says_was_done(
    server: PlaneServer, control: ControlPlane, tmp_path: Path
) -> None:
    data = spec_bytes(server.url, "first")

    before = planned(control, data)
    id_ = deploy(control, data, tmp_path)
    after = planned(control, data)

    assert list(changed(before)) == [
        "endpoint.reader",
        "version.reader",
        "deployed_model.reader",
        "traffic.reader",
    ]
    assert before.rows[2].after["id"] == id_
    assert (after.exit_code, changed(after)) == (0, {})
    assert after.cost.notes == ("a local target: nothing is billed for it here",)


def test_what_somebody_changes_by_hand_is_in_the_plan_and_stops_an_earlier_one(
    server: PlaneServer, control: ControlPlane, tmp_path: Path
) -> None:
    data = spec_bytes(server.url, "hand")
    spec = specs.parse(data)
    id_ = deploy(control, data, tmp_path)
    made = planned(control, data, "another lock")
    plan_file.save(tmp_path / "plan.json", made)
    endpoint = spec.endpoint_id("reader")
    response = server.succeeded(
        server.ok(
            "POST",
            f"/endpoints/{endpoint}:deployModel",
            {
                "deployedModel": {
                    "model": f"{server.parent}/models/{spec.model_id('reader')}",
                    "displayName": "by hand",
                    "dedicatedResources": {
                        "machineSpec": {"machineType": "n1-standard-4"},
                        "minReplicaCount": 1,
                    },
                },
                "trafficSplit": {"0": 30, id_: 70},
            },
        )
    )
    other = str(response["deployedModel"]["id"])

    found = planned(control, data)

    assert found.rows[-2].before == {id_: 70, other: 30}
    assert changed(found) == {"traffic.reader": "traffic"}
    assert found.rows[-1].address == f"deployed_model.reader/{other}"
    assert "not deployed by medport" in found.rows[-1].why
    with pytest.raises(PreconditionFailed, match="what stands for reader changed"):
        plan_file.load(
            tmp_path / "plan.json",
            spec_bytes=data,
            lock=lock_of(spec, "another lock"),
            found=reality.read(control, spec),
            medport=made.medport,
        )


def test_plan_that_nothing_has_moved_is_taken(server: PlaneServer, control: ControlPlane, tmp_path: Path) -> None:
    data = spec_bytes(server.url, "still")
    spec = specs.parse(data)
    deploy(control, data, tmp_path)
    made = planned(control, data, "another lock")
    plan_file.save(tmp_path / "plan.json", made)

    loaded = plan_file.load(
        tmp_path / "plan.json",
        spec_bytes=data,
        lock=lock_of(spec, "another lock"),
        found=reality.read(control, spec),
        medport=made.medport,
    )

    assert loaded.plan == made
    assert changed(made)["version.reader"] == "create"
    assert made.rows[1].why == "the same bytes, under another lock"


def test_endpoint_that_is_no_more_in_the_specification_is_found_by_its_label(
    server: PlaneServer, control: ControlPlane, tmp_path: Path
) -> None:
    deploy(control, spec_bytes(server.url, "moved"), tmp_path)
    later = spec_bytes(server.url, "moved", model={"endpoint": {"id": "elsewhere"}})

    plan = planned(control, later)

    assert plan.rows[-1].address == f"endpoint/{names.endpoint_id('moved', 'reader')}"
    assert "sweep" in plan.rows[-1].why
