"""A control plane as a program over TLS: what callers upload and deploy there is a real engine that answers."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.plane_server import KEY, PlaneServer, plane_server
from support.polling import wait_until
from support.stored import bring

import medport
from medport.wire.vertex import COLD_START, to_label
from medport_local.phantom import weights_dir
from medport_local.store import Store

Json = dict[str, Any]
GEMMA = json.loads((weights_dir("medgemma") / "manifest.json").read_bytes())
SIGLIP = json.loads((weights_dir("medsiglip") / "manifest.json").read_bytes())
LOCK = "5" * 64
TEXT = {"instances": [{"text": "normal lungs"}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaneServer]:
    with plane_server(tmp_path_factory.mktemp("plane")) as server:
        yield server


def predicted(server: PlaneServer, endpoint: str, body: Json = TEXT) -> Json:
    return server.ok("POST", f"/endpoints/{endpoint}:predict", body)


def share(server: PlaneServer, endpoint: str, requests: int) -> Counter[str]:
    """How many requests each deployed model answered."""
    return Counter(predicted(server, endpoint)["deployedModelId"] for _ in range(requests))


def ids(endpoint: Json) -> list[str]:
    return [each["id"] for each in endpoint["deployedModels"]]


def wait_for(ask: Callable[[], httpx.Response], status: int) -> httpx.Response:
    """The first answer of a status: the operation that leads to it is done in the background."""
    answers = [ask()]
    wait_until(lambda: answers[-1].status_code == status or bool(answers.append(ask())), 30)
    return answers[-1]


def chat(words: int, *, stream: bool = False) -> Json:
    return {
        "messages": [{"role": "user", "content": "Describe this X-ray."}],
        "max_tokens": words,
        "min_tokens": words,
        "ignore_eos": True,
        "stream": stream,
    }


def test_line_says_whose_names_the_server_has(server: PlaneServer) -> None:
    plane = server.line["control_plane"]

    assert set(server.line) == {"url", "ca_file", "control_plane"}
    assert (plane["project"], plane["location"]) == ("local", "europe-west4")
    assert plane["project_number"].isdigit()


def test_server_without_deployments_is_well_and_wants_a_key(server: PlaneServer) -> None:
    refused = server.http.get(f"/v1/{server.parent}/models", headers={"Authorization": ""})

    assert server.http.get("/health").text == "ok"
    assert refused.status_code == 401


def test_uploaded_and_deployed_model_answers_with_the_provenance_of_its_bytes(server: PlaneServer) -> None:
    labels = {"medport-snap": to_label(GEMMA["snapshot_sha256"]), "medport-lock": to_label(LOCK)}
    version = server.upload("gemma", GEMMA["repo_id"], labels=labels)
    server.create("chest", labels={"medport-family": "medgemma"})

    id_ = server.deployed("chest", version)

    with medport.Client(backend="local", url=server.url, ca_file=server.line["ca_file"], api_key=KEY) as client:
        answer = client.chat("Describe this X-ray.", max_tokens=8)
    source = answer.provenance
    assert answer.text
    assert (source.model_id, source.revision) == (GEMMA["repo_id"], GEMMA["revision"])
    assert (source.snapshot_sha256, source.lock_id) == (GEMMA["snapshot_sha256"], LOCK)
    assert (source.deployed_model_id, source.endpoint) == (id_, f"{server.parent}/endpoints/chest")
    assert source.image_digest is None
    shown = server.endpoint("chest")
    assert shown["trafficSplit"] == {id_: 100}
    assert shown["dedicatedEndpointDns"] == server.url.removeprefix("https://")


def test_answers_follow_the_traffic_split_and_each_says_who_gave_it(server: PlaneServer) -> None:
    first = server.upload("siglip", SIGLIP["repo_id"])
    second = server.upload("siglip", SIGLIP["repo_id"], parent="siglip", versionDescription="the second")
    server.create("split")
    one = server.deployed("split", first)

    two = server.deployed("split", second, split={"0": 20, one: 80})

    assert second.endswith("@2")
    assert share(server, "split", 20) == {one: 16, two: 4}
    answer = predicted(server, "split")
    assert answer["modelVersionId"] == {one: "1", two: "2"}[answer["deployedModelId"]]
    chosen = server.call("POST", f"/endpoints/split/deployedModels/{two}/invoke/predict", TEXT)
    assert chosen.headers["X-Vertex-AI-Deployed-Model-Id"] == two
    changed = {"trafficSplit": {one: 50, two: 50}}
    server.ok("PATCH", "/endpoints/split?updateMask=trafficSplit", changed)
    assert share(server, "split", 10) == {one: 5, two: 5}
    server.succeeded(
        server.ok("POST", "/endpoints/split:undeployModel", {"deployedModelId": one, "trafficSplit": {two: 100}})
    )
    assert share(server, "split", 4) == {two: 4}
    gone = server.call("POST", f"/endpoints/split/deployedModels/{one}/invoke/predict", TEXT)
    assert gone.status_code == 404


def test_stream_that_runs_is_finished_before_its_model_goes(server: PlaneServer) -> None:
    version = server.upload("streaming", GEMMA["repo_id"])
    server.create("streams")
    id_ = server.deployed("streams", version)
    path = f"/v1/{server.parent}/endpoints/streams/chat/completions"

    with server.http.stream("POST", path, json=chat(1500, stream=True)) as response:
        lines = response.iter_lines()
        next(lines)
        operation = server.ok("POST", "/endpoints/streams:undeployModel", {"deployedModelId": id_})
        refused = wait_for(lambda: server.call("POST", "/endpoints/streams/chat/completions", chat(1)), 400)
        drains = server.http.get(f"/ui/{operation['name']}").json()
        rest = [each for each in lines if each]

    assert "doesn't have traffic_split" in refused.json()["error"]["message"]
    assert drains["done"] is False
    assert rest[-1] == "data: [DONE]"
    assert "error" not in json.loads(rest[-2].removeprefix("data: "))
    server.succeeded(operation)
    assert server.endpoint("streams").get("deployedModels", []) == []


def test_caller_who_leaves_a_stream_does_not_keep_its_model(server: PlaneServer) -> None:
    version = server.upload("left", GEMMA["repo_id"])
    server.create("left")
    id_ = server.deployed("left", version)
    path = f"/v1/{server.parent}/endpoints/left/chat/completions"
    with server.http.stream("POST", path, json=chat(4000, stream=True)) as response:
        next(response.iter_lines())

    server.succeeded(server.ok("POST", "/endpoints/left:undeployModel", {"deployedModelId": id_}))


def test_endpoint_ends_a_request_after_its_own_inference_timeout(server: PlaneServer) -> None:
    version = server.upload("timed", GEMMA["repo_id"])
    server.create("timed", clientConnectionConfig={"inferenceTimeout": "600s"})
    server.deployed("timed", version)
    long = {"instances": [{"@requestFormat": "chatCompletions", **chat(3000), "stream": False}]}

    changed = {"endpoint": {"clientConnectionConfig": {"inferenceTimeout": "1s"}}}
    server.succeeded(server.ok("POST", "/endpoints/timed:update", changed))
    answer = server.call("POST", "/endpoints/timed:predict", long)

    assert answer.status_code == 504
    assert answer.json()["error"]["status"] == "DEADLINE_EXCEEDED"


def test_faults_cannot_be_ordered_from_a_server_that_does_not_allow_them(server: PlaneServer) -> None:
    assert server.http.get("/medport/v1/faults").status_code == 404


def test_ordered_fault_meets_a_deployment_and_a_prediction_and_is_gone(tmp_path: Path) -> None:
    with plane_server(tmp_path, "--allow-faults") as server:
        version = server.upload("siglip", SIGLIP["repo_id"])
        server.create("chest")
        rules = (
            {"times": 1, "deploy": {"failure": "quota"}},
            {"times": 1, "match": {"path": "*:predict"}, "http": {"status": 503, "text": "upstream"}},
        )
        for rule in rules:
            assert server.http.post("/medport/v1/faults", json=rule).status_code == 200

        refused = server.done(server.deploy("chest", version))
        id_ = server.deployed("chest", version)
        failed = server.call("POST", "/endpoints/chest:predict", TEXT)

        assert refused["error"]["code"] == 8
        assert (failed.status_code, failed.text) == (503, "upstream")
        assert predicted(server, "chest")["deployedModelId"] == id_


def test_sleeping_model_answers_the_cold_start_of_vertex_and_wakes(server: PlaneServer) -> None:
    version = server.upload("sleeper", SIGLIP["repo_id"])
    server.create("sleepy")
    resources = {
        "machineSpec": {"machineType": "g2-standard-24"},
        "minReplicaCount": 0,
        "maxReplicaCount": 1,
        "scaleToZeroSpec": {"minScaleupPeriod": "1s", "idleScaledownPeriod": "1s"},
    }
    server.deployed("sleepy", version, api="v1beta1", dedicatedResources=resources)
    path = f"/v1/{server.parent}/endpoints/sleepy:predict"

    wait_until(lambda: "Scaled to zero" in json.dumps(server.endpoint("sleepy")), 20)
    cold = server.http.post(path, json=TEXT)

    assert (cold.status_code, cold.text) == (429, COLD_START)
    assert cold.headers["content-type"].startswith("text/plain")
    wait_until(lambda: server.http.post(path, json=TEXT).status_code == 200, 60)


def test_snapshot_with_a_flipped_bit_is_an_error_of_the_operation_and_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    stored = bring(store, weights_dir("medsiglip"))
    shard = (stored.directory / "model.safetensors").resolve()
    shard.chmod(0o644)
    with shard.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    with plane_server(tmp_path, "--store", str(store.root)) as server:
        version = server.upload("broken", SIGLIP["repo_id"])
        server.create("chest")

        ended = server.done(server.deploy("chest", version))

        assert ended["error"]["code"] == 9
        assert "model.safetensors" in ended["error"]["message"]
        assert str(tmp_path) not in ended["error"]["message"]
        shown = server.endpoint("chest")
        assert "deployedModels" not in shown
        assert "trafficSplit" not in shown
        assert server.ok("GET", "/models/broken").get("deployedModels", []) == []
        assert server.http.get("/health").text == "ok"
        server.succeeded(server.ok("DELETE", "/endpoints/chest"))


def test_killed_server_goes_on_with_what_was_deployed(tmp_path: Path) -> None:
    with plane_server(tmp_path) as server:
        first = server.upload("siglip", SIGLIP["repo_id"])
        second = server.upload("siglip", SIGLIP["repo_id"], parent="siglip")
        server.create("chest")
        one = server.deployed("chest", first)
        two = server.deployed("chest", second, split={"0": 25, one: 75})
        vectors = predicted(server, "chest")["predictions"]
        before = server.endpoint("chest")
        server.create("late")
        operation = server.deploy("late", second)
        server.kill()

    with plane_server(tmp_path) as server:
        path = f"/v1/{server.parent}/endpoints/chest:predict"
        early = server.http.post(path, json=TEXT)
        assert early.status_code in (200, 503)
        wait_until(lambda: server.http.get("/health").text == "ok", 60)
        after = server.endpoint("chest")
        answered = server.succeeded(operation)

        assert after["trafficSplit"] == before["trafficSplit"] == {one: 75, two: 25}
        assert ids(after) == ids(before) == [one, two]
        assert share(server, "chest", 8) == {one: 6, two: 2}
        assert predicted(server, "chest")["predictions"] == vectors
        assert predicted(server, "late")["deployedModelId"] == answered["deployedModel"]["id"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--project-number", "12"), "state is of project-number"),
        (("--location", "us-central1"), "state is of location"),
        (("--snapshot", "medgemma=x"), "does not go with --control-plane"),
        (("--store", "nowhere"), "nowhere"),
        (("--model-dir", "nowhere"), "there is no directory nowhere"),
        (("--project-number", "twelve"), "is not a project number"),
    ],
)
def test_wrong_setting_ends_it_at_once_and_says_which(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    with plane_server(tmp_path):
        pass

    with pytest.raises(AssertionError, match=said), plane_server(tmp_path, *options):
        pass


def test_state_has_one_server_at_a_time(server: PlaneServer, tmp_path: Path) -> None:
    with (
        plane_server(tmp_path),
        pytest.raises(AssertionError, match="another server has this state"),
        plane_server(tmp_path),
    ):
        pass
