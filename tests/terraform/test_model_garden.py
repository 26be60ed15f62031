"""The Model Garden resource against a local control plane, with the traps that its README names."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.configurations import Cli
from support.plane_server import PlaneServer
from support.polling import wait_until

from medport_deploy.terraform.errors import Interrupted
from medport_deploy.terraform.root import Terraform
from medport_local.phantom import weights_dir

PHANTOM = json.loads((weights_dir("medsiglip") / "manifest.json").read_bytes())["repo_id"]
TEXT = """
provider "google" {
  project = "%(project)s"
  region  = "%(location)s"
}
resource "google_vertex_ai_endpoint_with_model_garden_deployment" "it" {
  location              = "%(location)s"
  hugging_face_model_id = "%(model)s"
  model_config {
    accept_eula        = true
    model_display_name = "quick start"
  }
  endpoint_config {
    endpoint_display_name      = "quick start"
    dedicated_endpoint_enabled = true
  }
  deploy_config {
    dedicated_resources {
      min_replica_count = 1
      max_replica_count = %(most)s
      machine_spec { machine_type = "g2-standard-24" }
    }
  }
}
output "endpoint" { value = google_vertex_ai_endpoint_with_model_garden_deployment.it.endpoint }
"""


@pytest.fixture
def cli(plane: PlaneServer, reached: dict[str, str], tmp_path: Path) -> Cli:
    cli = Cli(tmp_path, reached)
    write(cli, plane)
    cli("init")
    return cli


def write(cli: Cli, plane: PlaneServer, *, model: str = PHANTOM, most: int = 1) -> None:
    values = {**plane.line["control_plane"], "model": model, "most": most}
    (cli.directory / "main.tf").write_text(TEXT % values)


def made(cli: Cli) -> str:
    return str(cli("output", "-raw", "endpoint").out)


def test_deployed_model_answers_scales_in_place_and_goes_but_for_its_model(cli: Cli, plane: PlaneServer) -> None:
    cli("apply", "-auto-approve")

    endpoint = made(cli)
    (deployed,) = plane.endpoint(endpoint)["deployedModels"]
    answer = plane.ok("POST", f"/endpoints/{endpoint}:predict", {"instances": [{"text": "normal lungs"}]})
    assert answer["deployedModelId"] == deployed["id"]
    assert cli("plan", "-detailed-exitcode", codes=(0, 2)).code == 0

    write(cli, plane, most=2)
    plan = cli.plan()
    cli("apply", "-auto-approve")
    assert [each["change"]["actions"] for each in plan["resource_changes"]] == [["update"]]
    (scaled,) = plane.endpoint(endpoint)["deployedModels"]
    assert (scaled["id"], scaled["dedicatedResources"]["maxReplicaCount"]) == (deployed["id"], 2)

    model = deployed["model"].rpartition("/")[2]
    cli("destroy", "-auto-approve")
    assert plane.call("GET", f"/endpoints/{endpoint}").status_code == 404
    assert plane.ok("GET", f"/models/{model}")["displayName"] == "quick start"


def test_endpoint_that_is_gone_is_not_missed(cli: Cli, plane: PlaneServer) -> None:
    cli("apply", "-auto-approve")
    endpoint = made(cli)
    (deployed,) = plane.endpoint(endpoint)["deployedModels"]
    plane.succeeded(plane.ok("POST", f"/endpoints/{endpoint}:undeployModel", {"deployedModelId": deployed["id"]}))
    plane.succeeded(plane.ok("DELETE", f"/endpoints/{endpoint}"))

    said = cli("plan", "-detailed-exitcode", codes=(0, 2))

    assert said.code == 0


def test_stopped_creation_leaves_an_endpoint_that_terraform_does_not_know(
    plane: PlaneServer, cli: Cli, reached: dict[str, str]
) -> None:
    terraform = Terraform(cli.directory, environment=reached)
    plan = terraform.plan(cli.directory / "create.tfplan")

    with ThreadPoolExecutor(1) as pool:
        applying = pool.submit(terraform.apply, plan)
        wait_until(lambda: bool(plane.ok("GET", "/endpoints").get("endpoints")), 60, step_s=0.02)
        terraform.cancel.set()
        with pytest.raises(Interrupted):
            applying.result(60)

    (orphan,) = plane.ok("GET", "/endpoints")["endpoints"]
    assert cli("state", "list").out == ""
    wait_until(lambda: bool(plane.endpoint(orphan["name"].rpartition("/")[2]).get("deployedModels")), 90)


def test_failed_creation_is_forgotten_and_import_is_no_way_back(cli: Cli, plane: PlaneServer) -> None:
    write(cli, plane, model="example/not-here")

    said = cli("apply", "-auto-approve", "-no-color", codes=(1,))

    assert "Error creating" in said.err
    assert cli("state", "list").out == ""
    name = f"{plane.parent}/endpoints/1"
    address = "google_vertex_ai_endpoint_with_model_garden_deployment.it"
    assert "doesn't support import" in cli("import", "-no-color", address, name, codes=(1,)).err
