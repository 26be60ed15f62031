"""The local root, for real: terraform makes, sees, changes and removes endpoints of a local control plane."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.configurations import Cli, copied
from support.plane_server import KEY, PlaneServer
from support.provider import attached, reaching

from medport_deploy.terraform.errors import TerraformError
from medport_deploy.terraform.root import PlanOutcome, Terraform
from medport_local.phantom import weights_dir

Json = dict[str, Any]
ID = "4100000001"
ADDRESS = 'module.endpoint["chest"].google_vertex_ai_endpoint.this'
PROVISIONED = {"goog-terraform-provisioned": "true"}
SIGLIP = json.loads((weights_dir("medsiglip") / "manifest.json").read_bytes())["repo_id"]


Rooted = Callable[..., Terraform]


@pytest.fixture
def root(plane: PlaneServer, reached: dict[str, str], tmp_path: Path) -> Rooted:
    """The local root in a directory of its own, with these variables and this environment."""
    directory = copied(tmp_path) / "roots" / "local"

    def make(environment: dict[str, str] | None = None, **variables: Any) -> Terraform:
        endpoint = {"id": ID, "display_name": "Chest X-ray", "labels": {"model": "medsiglip"}}
        line = plane.line["control_plane"]
        named = {"project_id": line["project"], "location": line["location"], "endpoints": {"chest": endpoint}}
        made = Terraform(directory, environment=environment or reached, variables={**named, **variables})
        made.init()
        return made

    return make


def planned(terraform: Terraform, **options: Any) -> PlanOutcome:
    return terraform.plan(terraform.directory / "test.tfplan", **options)


def applied(terraform: Terraform, **options: Any) -> None:
    terraform.apply(planned(terraform, **options))


def actions(outcome: PlanOutcome) -> list[tuple[str, str]]:
    return [(each.address, each.action) for each in outcome.planned]


def refreshed(terraform: Terraform) -> set[str]:
    """The attributes of endpoints that are no longer as terraform left them."""
    cli = Cli(terraform.directory, terraform.environment)
    (terraform.directory / "some.auto.tfvars.json").write_text(json.dumps(dict(terraform.variables)))
    both = [each["change"] for each in cli.plan("-refresh-only").get("resource_drift", [])]
    return {name for each in both for name in each["after"] if each["before"].get(name) != each["after"].get(name)}


def patch(plane: PlaneServer, mask: str, body: Json) -> None:
    plane.ok("PATCH", f"/endpoints/{ID}?updateMask={mask}", body)


def test_endpoint_that_terraform_made_is_the_planes_and_a_second_plan_changes_nothing(
    root: Rooted, plane: PlaneServer
) -> None:
    terraform = root()

    applied(terraform)

    found = plane.endpoint(ID)
    assert found["displayName"] == "Chest X-ray"
    assert found["labels"] == {"model": "medsiglip", **PROVISIONED}
    assert found["dedicatedEndpointEnabled"] is True
    assert "trafficSplit" not in found
    assert not planned(terraform).changes
    assert terraform.drift() == ()
    handed_over = terraform.output()["medport"]["endpoints"]["chest"]
    assert found["dedicatedEndpointDns"] in json.dumps(handed_over)


def test_key_of_the_server_is_in_no_state_and_no_plan(root: Rooted) -> None:
    terraform = root()
    outcome = planned(terraform)
    shown = json.dumps(terraform.show(outcome))

    terraform.apply(outcome)

    kept = "".join(file.read_text() for file in terraform.directory.glob("*.tfstate*"))
    assert "Chest X-ray" in kept
    assert KEY not in kept + shown


def test_change_by_hand_is_drift_that_the_next_apply_puts_right(root: Rooted, plane: PlaneServer) -> None:
    terraform = root()
    applied(terraform)
    patch(plane, "displayName", {"displayName": "by hand"})

    drifted, outcome = terraform.drift(), planned(terraform)

    assert [each.address for each in drifted] == [ADDRESS]
    assert actions(outcome) == [(ADDRESS, "update")]
    terraform.apply(outcome)
    assert plane.endpoint(ID)["displayName"] == "Chest X-ray"
    assert terraform.drift() == ()


def test_update_leaves_the_labels_of_others(root: Rooted, plane: PlaneServer) -> None:
    applied(root())
    patch(plane, "labels", {"labels": {**plane.endpoint(ID)["labels"], "owner": "radiology"}})

    terraform = root(endpoints={"chest": {"id": ID, "labels": {"stage": "test"}}})

    applied(terraform)
    assert plane.endpoint(ID)["labels"] == {"stage": "test", "owner": "radiology", **PROVISIONED}
    assert not planned(terraform).changes


def test_update_changes_the_fields_of_its_mask_alone(root: Rooted, plane: PlaneServer) -> None:
    applied(root())
    limit = {"clientConnectionConfig": {"inferenceTimeout": "900s"}}
    body = {"endpoint": {"name": f"{plane.parent}/endpoints/{ID}", **limit}}
    plane.succeeded(plane.ok("POST", f"/endpoints/{ID}:update", body))
    before = plane.endpoint(ID)

    applied(root(endpoints={"chest": {"id": ID, "display_name": "new", "labels": {"model": "medsiglip"}}}))

    after = plane.endpoint(ID)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed - {"etag", "updateTime"} == {"displayName"}
    assert after["clientConnectionConfig"] == {"inferenceTimeout": "900s"}


def test_field_that_is_taken_out_is_cleared(root: Rooted, plane: PlaneServer) -> None:
    endpoint = {"id": ID, "description": "of the radiology department"}
    applied(root(endpoints={"chest": endpoint}))
    assert plane.endpoint(ID)["description"] == "of the radiology department"

    applied(root(endpoints={"chest": {**endpoint, "description": ""}}))

    assert "description" not in plane.endpoint(ID)


def test_inference_timeout_is_changed_by_a_call_that_changes_nothing_else(
    root: Rooted, plane: PlaneServer
) -> None:
    applied(root())
    body = {"endpoint": {"name": f"{plane.parent}/endpoints/{ID}", "displayName": "other"}}

    refused = plane.call("POST", f"/endpoints/{ID}:update", body)

    assert refused.status_code == 400
    assert plane.endpoint(ID)["displayName"] == "Chest X-ray"


def test_deployment_timeout_and_traffic_are_no_drift_and_keep_the_endpoint_from_going(
    root: Rooted, plane: PlaneServer
) -> None:
    terraform = root()
    applied(terraform)
    id_ = plane.deployed(ID, plane.upload("siglip", SIGLIP))
    assert plane.endpoint(ID)["trafficSplit"] == {id_: 100}

    outcome, moved = planned(terraform), refreshed(terraform)

    # A refresh tells what moved, all of it medport's own; nothing of that is a change to make.
    assert not outcome.changes
    assert moved <= {"deployed_models", "traffic_split", "etag", "update_time"}
    assert "deployed_models" in moved
    with pytest.raises(TerraformError, match="400"):
        applied(terraform, destroy=True)
    assert plane.endpoint(ID)["trafficSplit"] == {id_: 100}


def test_endpoint_that_somebody_deleted_is_made_again(root: Rooted, plane: PlaneServer) -> None:
    terraform = root()
    applied(terraform)
    plane.succeeded(plane.ok("DELETE", f"/endpoints/{ID}"))

    outcome = planned(terraform)

    assert actions(outcome) == [(ADDRESS, "create")]
    terraform.apply(outcome)
    assert plane.endpoint(ID)["displayName"] == "Chest X-ray"


def test_taken_id_is_refused_and_the_owners_endpoint_stays(root: Rooted, plane: PlaneServer) -> None:
    plane.create(ID, labels={"owner": "somebody"})
    terraform = root()

    with pytest.raises(TerraformError, match="409"):
        applied(terraform)

    assert plane.endpoint(ID)["labels"] == {"owner": "somebody"}
    assert actions(planned(terraform)) == [(ADDRESS, "create")]


def test_imported_endpoint_gets_our_labels_and_is_clean_then(root: Rooted, plane: PlaneServer) -> None:
    plane.create(ID, displayName="Chest X-ray", labels={"owner": "somebody"})
    terraform = root()
    line = plane.line["control_plane"]
    id_ = f"projects/{line['project']}/locations/{line['location']}/endpoints/{ID}"
    block = f'import {{\n  to = module.endpoint["chest"].google_vertex_ai_endpoint.this\n  id = "{id_}"\n}}\n'
    (terraform.directory / "import.tf").write_text(block)

    outcome = planned(terraform)

    assert [action for _, action in actions(outcome)] == ["update"]
    terraform.apply(outcome)
    assert plane.endpoint(ID)["labels"] == {"owner": "somebody", "model": "medsiglip", **PROVISIONED}
    assert not planned(terraform).changes


def test_destroyed_root_leaves_nothing_and_destroying_again_does_nothing(root: Rooted, plane: PlaneServer) -> None:
    terraform = root()
    applied(terraform)

    applied(terraform, destroy=True)

    assert plane.call("GET", f"/endpoints/{ID}").status_code == 404
    assert planned(terraform, destroy=True).planned == ()


def test_endpoint_that_is_gone_can_be_destroyed(root: Rooted, plane: PlaneServer) -> None:
    terraform = root()
    applied(terraform)
    outcome = planned(terraform, destroy=True)
    plane.succeeded(plane.ok("DELETE", f"/endpoints/{ID}"))

    terraform.apply(outcome)

    assert planned(terraform, destroy=True).planned == ()


def test_protected_endpoint_is_not_destroyed_until_an_apply_lifts_it(root: Rooted, plane: PlaneServer) -> None:
    protected = root(deletion_protection=True)
    applied(protected)

    with pytest.raises(TerraformError, match="PREVENT"):
        applied(protected, destroy=True)

    assert plane.endpoint(ID)["displayName"] == "Chest X-ray"
    lifted = root(deletion_protection=False)
    applied(lifted)
    applied(lifted, destroy=True)
    assert plane.call("GET", f"/endpoints/{ID}").status_code == 404


def test_other_number_is_a_replacement_that_the_plan_shows(root: Rooted, plane: PlaneServer) -> None:
    applied(root())
    terraform = root(endpoints={"chest": {"id": "4100000002"}})

    outcome = planned(terraform)

    assert actions(outcome) == [(ADDRESS, "replace")]
    terraform.apply(outcome)
    assert plane.call("GET", f"/endpoints/{ID}").status_code == 404
    assert plane.endpoint("4100000002")["displayName"] == "chest"


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_both_versions_of_the_api_take_an_endpoint_through_its_life(
    root: Rooted, plane: PlaneServer, schema: Path, version: str
) -> None:
    with attached(schema, reaching(plane.url, plane.line["ca_file"], KEY, version=version)) as variables:
        terraform = root(variables)

        applied(terraform)

        assert not planned(terraform).changes
        applied(terraform, destroy=True)
    assert plane.call("GET", f"/endpoints/{ID}").status_code == 404


def test_refused_key_is_an_error_that_does_not_hold_it(root: Rooted, plane: PlaneServer, schema: Path) -> None:
    with attached(schema, reaching(plane.url, plane.line["ca_file"], "an-other-key-of-some-length")) as variables:
        terraform = root(variables)

        with pytest.raises(TerraformError, match="401") as refused:
            applied(terraform)

    assert "an-other-key" not in str(refused.value)
    assert plane.ok("GET", "/endpoints").get("endpoints", []) == []


WRITTEN = """
provider "google" {
  project = "%(project)s"
  region  = "%(location)s"
}
resource "google_vertex_ai_endpoint" "this" {
  name         = "4100000003"
  display_name = "logged"
  location     = "%(location)s"
  %(more)s
}
"""


def written(directory: Path, reached: dict[str, str], values: Json) -> Cli:
    """Terraform in a directory that has one endpoint."""
    (directory / "main.tf").write_text(WRITTEN % values)
    cli = Cli(directory, reached)
    cli("init")
    return cli


def test_project_may_be_its_number(plane: PlaneServer, reached: dict[str, str], tmp_path: Path) -> None:
    line = plane.line["control_plane"]
    cli = written(tmp_path, reached, {**line, "project": line["project_number"], "more": ""})

    cli("apply", "-auto-approve")

    assert cli("plan", "-detailed-exitcode", codes=(0, 2)).code == 0
    assert plane.endpoint("4100000003")["displayName"] == "logged"


def test_configuration_that_sets_the_region_would_replace_what_it_imports(
    plane: PlaneServer, reached: dict[str, str], tmp_path: Path
) -> None:
    line = plane.line["control_plane"]
    plane.create("4100000003", displayName="logged")
    cli = written(tmp_path, reached, {**line, "more": f'region = "{line["location"]}"'})
    name = f"projects/{line['project']}/locations/{line['location']}/endpoints/4100000003"
    cli("import", "google_vertex_ai_endpoint.this", name)

    (change,) = cli.plan()["resource_changes"]

    assert change["change"]["actions"] == ["delete", "create"]
    assert change["change"]["replace_paths"] == [["region"]]


KEY_AND_LOG = """
  encryption_spec { kms_key_name = "projects/p/locations/l/keyRings/r/cryptoKeys/k" }
  predict_request_response_logging_config {
    enabled       = true
    sampling_rate = 0.1
    bigquery_destination { output_uri = "bq://p.d.t" }
  }
"""


@pytest.mark.parametrize("more", [KEY_AND_LOG, 'network = "projects/123/global/networks/n"', 'description = ""'])
def test_plane_tells_back_exactly_what_was_sent(
    plane: PlaneServer, reached: dict[str, str], tmp_path: Path, more: str
) -> None:
    cli = written(tmp_path, reached, {**plane.line["control_plane"], "more": more})

    cli("apply", "-auto-approve")

    assert cli("plan", "-detailed-exitcode", codes=(0, 2)).code == 0
