"""Verification where Terraform makes the endpoint: its drift is found, and what medport moves there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import deploying
from support.configurations import copied
from support.plane_server import KEY, PlaneServer, plane_server
from support.planned import lock_of, spec_bytes
from support.provider import attached, reaching
from support.provider.needed import schema_or_skip

from medport_deploy import names, provenance
from medport_deploy.control.plane import ControlPlane
from medport_deploy.run import apply, vertex_steps
from medport_deploy.spec import reading as specs
from medport_deploy.terraform.root import Terraform
from medport_deploy.verify import checking as verify

ID = "4100000007"


@pytest.fixture(scope="module")
def environment(server: PlaneServer) -> Iterator[dict[str, str]]:
    """That attaches the real terraform to a provider which reaches the server."""
    schema = schema_or_skip()
    with attached(schema, reaching(server.url, server.line["ca_file"], KEY)) as variables:
        yield variables


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaneServer]:
    with plane_server(tmp_path_factory.mktemp("plane")) as server:
        yield server


@pytest.fixture(scope="module")
def control(server: PlaneServer) -> Iterator[ControlPlane]:
    with deploying.plane(server.url, server.line["ca_file"], KEY) as control:
        yield control


def test_what_terraform_owns_is_compared_by_terraform_and_what_medport_moves_is_no_drift(
    server: PlaneServer, control: ControlPlane, environment: dict[str, str], tmp_path: Path
) -> None:
    data = spec_bytes(server.url, "below", model={"endpoint": {"id": ID}}, terraform={"root": "roots/local"})
    spec = specs.parse(data)
    lock = lock_of(spec)
    line = server.line["control_plane"]
    root = Terraform(
        copied(tmp_path) / "roots" / "local",
        environment=environment,
        variables={
            "project_id": line["project"],
            "location": line["location"],
            "endpoints": {"reader": {"id": ID, "display_name": "Reader"}},
        },
    )
    root.init()
    root.apply(root.plan(tmp_path / "first.tfplan"))
    model, alias = spec.model_id("reader"), names.version_alias(lock.lock_id)
    body = {
        "id": names.deployed_model_id(lock.lock_id, spec.name, "reader"),
        "displayName": provenance.deployed_name(lock, "reader"),
        "dedicatedResources": {
            "machineSpec": {"machineType": "n1-standard-4"},
            "minReplicaCount": 1,
            "maxReplicaCount": 1,
        },
    }
    steps = [
        vertex_steps.version(control, spec.name, model, alias, provenance.model_body(spec, lock, "reader")),
        vertex_steps.deployed_model(control, ID, model, alias, body),
        vertex_steps.alias(control, model, alias, names.good_alias(lock.lock_id)),
    ]
    apply.run(
        steps, deploying.header("apply", spec.name), deploying.directory(tmp_path, spec.name), control=control
    )

    clean = verify.check(spec, lock, control, spec_bytes=data, terraform=root)
    server.ok("PATCH", f"/endpoints/{ID}?updateMask=displayName", {"displayName": "by hand"})
    drifted = verify.check(spec, lock, control, spec_bytes=data, terraform=root)
    unasked = verify.check(spec, lock, control, spec_bytes=data)

    assert clean.findings == ()
    assert {each.check: each.found for each in clean.passed}["terraform"] == "no changes"
    address = 'module.endpoint["reader"].google_vertex_ai_endpoint.this'
    assert [(each.check, each.expected, each.found) for each in drifted.findings] == [
        (
            "terraform",
            {"resource": address, "display_name": "Reader"},
            {"resource": address, "display_name": "by hand"},
        )
    ]
    assert unasked.exit_code == 0
    assert "not asked for" in {each.why for each in unasked.skipped if each.check == "terraform"}
    assert list(tmp_path.rglob("*.tfplan")) == []
