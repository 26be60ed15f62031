"""``medport endpoints`` and ``medport models`` on real servers: one of given models, and a control plane."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from medport_local import inprocess, phantom
from medport_local.settings import ControlPlane, Settings

MANIFEST = json.loads((phantom.weights_dir("medsiglip") / "manifest.json").read_text())
PARENT = "projects/local/locations/europe-west4"


@pytest.fixture(scope="module")
def fixed() -> Iterator[str]:
    """A server of the phantom MedSigLIP."""
    settings = Settings(snapshots={"medsiglip": phantom.weights_dir("medsiglip")})
    yield from _serving(settings)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A control plane with the phantom MedSigLIP deployed by its hash."""
    directory = tmp_path_factory.mktemp("plane")
    for url in _serving(Settings(control_plane=ControlPlane(directory=directory))):
        with httpx.Client(base_url=f"{url}/v1/{PARENT}", timeout=60) as http:
            environment = [{"name": "MEDPORT_SNAPSHOT_SHA256", "value": MANIFEST["snapshot_sha256"]}]
            model = {"displayName": "m", "versionAliases": ["default"],
                     "containerSpec": {"imageUri": "medport", "env": environment}}  # fmt: skip
            _done(http, "/models:upload", {"modelId": "embedder", "model": model})
            _done(http, "/endpoints?endpointId=chest", {"displayName": "chest"})
            resources = {"machineSpec": {"machineType": "g2-standard-24"}, "minReplicaCount": 1}
            wanted = {"model": f"{PARENT}/models/embedder", "displayName": "d", "dedicatedResources": resources}
            _done(http, "/endpoints/chest:deployModel", {"deployedModel": wanted, "trafficSplit": {"0": 100}})
        yield url


def _serving(settings: Settings) -> Iterator[str]:
    server = inprocess.Server(settings, socket.create_server(("127.0.0.1", 0)), None)
    server.wait_until_ready()
    with server:
        yield server.base_url


def _done(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    operation = http.post(path, json=body).raise_for_status().json()
    if not operation["done"]:
        waited = http.post(f"{http.base_url.join('/v1/')}{operation['name']}:wait", json={"timeout": "60s"})
        operation = waited.raise_for_status().json()
    assert "response" in operation, operation


def run(url: str, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "medport.cli", *command, "--url", url], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_server_whose_models_are_given_lists_them_with_their_pins(fixed: str) -> None:
    (endpoint,) = json.loads(run(fixed, "endpoints", "list", "--json"))["endpoints"]
    (model,) = json.loads(run(fixed, "models", "list", "--json"))["models"]

    (deployed,) = endpoint["deployed_models"]
    (version,) = model["versions"]
    assert deployed["pins"] == version["pins"]
    assert version["pins"]["snapshot_sha256"] == MANIFEST["snapshot_sha256"]
    assert version["deployed_to"][0]["deployed_model_id"] == deployed["id"]


def test_a_control_plane_lists_what_was_deployed_to_it(plane: str) -> None:
    (endpoint,) = json.loads(run(plane, "endpoints", "list", "--json"))["endpoints"]
    (model,) = json.loads(run(plane, "models", "list", "--json", "--filter", 'display_name="m"'))["models"]

    (deployed,) = endpoint["deployed_models"]
    assert (endpoint["id"], deployed["version"], deployed["traffic_percent"]) == ("chest", "1", 100)
    assert deployed["pins"]["snapshot_sha256"] == MANIFEST["snapshot_sha256"]
    assert (deployed["available_replicas"], deployed["model_readable"]) == (1, True)
    assert model["versions"][0]["deployed_to"][0]["deployed_model_id"] == deployed["id"]
    assert model["default_version"] == "1"


def test_people_read_the_same_in_tables(plane: str) -> None:
    listed, shown = run(plane, "endpoints", "list"), run(plane, "models", "show", "embedder")

    assert "embedder@1" in listed
    assert "100 %" in listed
    assert MANIFEST["snapshot_sha256"][:12] in listed
    assert MANIFEST["snapshot_sha256"] in shown
    assert "image digest: the image has a tag" in shown
