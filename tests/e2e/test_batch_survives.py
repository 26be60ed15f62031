"""Batch jobs on ``medport serve --control-plane``: models deployed or not, and servers that die in between."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from support import forked
from support.polling import wait_until

from medport_local.phantom import weights_dir

PARENT = "projects/clinic/locations/europe-west4"
ENDED = ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED")
IMAGE = "medport/server@sha256:" + "ab" * 32
LARGE = 9
"""Rows of 4 MB: eight of them fill a file of results."""
ROWS = 700
"""They take longer than what is done meanwhile."""


class Server:
    """One process of it."""

    def __init__(self, folder: Path) -> None:
        command = ["medport_local.cli", "serve", "--json", "--port", "0"]
        command += ["--project", "clinic", "--control-plane", str(folder / "state")]
        command += ["--batch-dir", str(folder / "files")]
        self.log = (folder / "log").open("ab")
        self.process = forked.Process(*command, stderr=self.log)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (folder / "log").read_text()[-3000:]
        self.http = httpx.Client(base_url=json.loads(line)["url"], timeout=60)

    def end(self, sign: signal.Signals) -> None:
        self.http.close()
        self.process.send_signal(sign)
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()


class Site:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "files").mkdir()
        self.server = Server(folder)

    def restart(self, sign: signal.Signals) -> None:
        self.server.end(sign)
        self.server = Server(self.folder)

    def call(self, method: str, path: str, body: object = None, *, api: str = "v1") -> dict[str, Any]:
        answer = self.server.http.request(method, f"/{api}/{path}", json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def done(self, operation: dict[str, Any]) -> dict[str, Any]:
        """The response of a long-running operation."""

        def ended() -> bool:
            operation.update(self.call("GET", operation["name"]))
            return bool(operation["done"])

        wait_until(lambda: operation["done"] or ended(), 60, step_s=0.05)
        assert "error" not in operation, operation
        response: dict[str, Any] = operation["response"]
        return response

    def upload(self, family: str) -> str:
        manifest = orjson.loads((weights_dir(family) / "manifest.json").read_bytes())
        env = [{"name": "MEDPORT_SNAPSHOT_SHA256", "value": manifest["snapshot_sha256"]}]
        spec = {"imageUri": IMAGE, "env": env, "predictRoute": "/predict", "healthRoute": "/health"}
        model = {"displayName": family, "containerSpec": spec}
        made = self.done(self.call("POST", f"{PARENT}/models:upload", {"model": model}))
        return str(made["model"])

    def write(self, rows: int, *, large: int = 0) -> None:
        spaces = " " * 4_000_000
        text = "".join(f'{{"text": "row {i}"{spaces if i < large else ""}}}\n' for i in range(rows))
        (self.folder / "files" / "rows.jsonl").write_text(text)

    def submit(self, out: str, *, api: str = "v1", **target: str) -> dict[str, Any]:
        wanted = {
            "displayName": "night",
            "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["rows.jsonl"]}},
            "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": out}},
            **target,
        }
        return self.call("POST", f"{PARENT}/batchPredictionJobs", wanted, api=api)

    def shown(self, job: dict[str, Any]) -> dict[str, Any]:
        return self.call("GET", job["name"])

    def ended(self, job: dict[str, Any]) -> dict[str, Any]:
        wait_until(lambda: self.shown(job)["state"] in ENDED, 120, step_s=0.05)
        return self.shown(job)

    def results(self, out: str) -> list[dict[str, Any]]:
        files = sorted((self.folder / "files" / out).rglob("prediction.results-*"))
        return [json.loads(line) for path in files for line in path.read_text().splitlines()]

    def provenance(self, out: str) -> dict[str, Any]:
        (path,) = (self.folder / "files" / out).glob("provenance-*")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def deploy(self, endpoint: str, model: str, split: dict[str, int]) -> str:
        deployed = {"model": model, "dedicatedResources": {"machineSpec": {"machineType": "n1-standard-4"}}}
        body = {"deployedModel": deployed, "trafficSplit": split}
        made = self.done(self.call("POST", f"{endpoint}:deployModel", body))
        return str(made["deployedModel"]["id"])


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    if made.server.process.poll() is None:
        made.server.end(signal.SIGTERM)
    assert "Traceback" not in (tmp_path / "log").read_text()


def vectors(lines: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    return np.array([line["prediction"]["embedding"] for line in lines])


def test_job_of_a_server_that_is_killed_goes_on_and_ends_as_if_undisturbed(site: Site) -> None:
    model = site.upload("medsiglip")
    site.write(ROWS, large=LARGE)
    undisturbed = site.ended(site.submit("calm", model=f"{model}@1"))
    assert undisturbed["state"] == "JOB_STATE_SUCCEEDED", undisturbed

    job = site.submit("killed", model=f"{model}@1")
    folder = site.folder / "files" / "killed"
    wait_until(lambda: len(list(folder.rglob("prediction.results-*"))) == 1, 120)
    (whole,) = folder.rglob("prediction.results-*")
    before = (whole.read_bytes(), whole.stat().st_ino)
    site.restart(signal.SIGKILL)
    ended = site.ended(job)

    assert ended["state"] == "JOB_STATE_SUCCEEDED", ended
    assert ended["completionStats"] == {
        "successfulCount": str(ROWS), "failedCount": "0", "incompleteCount": "0",
    }  # fmt: skip
    assert (whole.read_bytes(), whole.stat().st_ino) == before
    calm, killed = site.results("calm"), site.results("killed")
    assert [line["instance"] for line in killed] == [line["instance"] for line in calm]
    # Who is embedded together is chance, and changes the last bits.
    np.testing.assert_allclose(vectors(killed), vectors(calm), atol=1e-5)
    assert list(folder.rglob(".part-*")) == []


def test_job_of_a_server_that_is_told_to_stop_goes_on_too_and_a_cancelled_one_does_not(site: Site) -> None:
    model = site.upload("medsiglip")
    site.write(ROWS)
    going, cancelled = (site.submit(out, model=model) for out in ("going", "cancelled"))
    wait_until(lambda: all(site.shown(job)["state"] == "JOB_STATE_RUNNING" for job in (going, cancelled)), 60)

    site.call("POST", f"{cancelled['name']}:cancel", {})
    site.restart(signal.SIGTERM)

    assert site.ended(cancelled)["state"] == "JOB_STATE_CANCELLED"
    assert site.ended(going)["state"] == "JOB_STATE_SUCCEEDED"
    assert len(site.results("going")) == ROWS
    names = [each["name"] for each in site.call("GET", f"{PARENT}/batchPredictionJobs")["batchPredictionJobs"]]
    assert names == [cancelled["name"], going["name"]]
    operation = site.call("DELETE", cancelled["name"])
    assert site.call("GET", operation["name"]) == operation


def test_deployed_model_answers_for_a_job_and_may_be_undeployed_under_it(site: Site) -> None:
    model = site.upload("medsiglip")
    endpoint = site.done(site.call("POST", f"{PARENT}/endpoints", {"displayName": "e"}))["name"]
    id_ = site.deploy(endpoint, model, {"0": 100})
    site.write(20_000)

    def answered() -> int:
        return int(site.shown(job)["completionStats"]["successfulCount"])

    job = site.submit("out", model=model)
    wait_until(lambda: answered() > 100, 60)
    site.done(site.call("POST", f"{endpoint}:undeployModel", {"deployedModelId": id_}))
    before = answered()
    wait_until(lambda: answered() > before + 100, 60)
    site.call("POST", f"{job['name']}:cancel", {})
    ended = site.ended(job)

    assert ended["state"] == "JOB_STATE_CANCELLED"
    assert ended["completionStats"]["failedCount"] == "0"
    assert site.provenance("out")["deployed_model_id"] == id_


def test_rows_of_an_endpoint_are_shared_out_by_its_split(site: Site) -> None:
    models = [site.upload("medsiglip") for _ in range(2)]
    endpoint = site.done(site.call("POST", f"{PARENT}/endpoints", {"displayName": "e"}))["name"]
    first = site.deploy(endpoint, models[0], {"0": 100})
    second = site.deploy(endpoint, models[1], {"0": 50, first: 50})
    site.write(40)

    ended = site.ended(site.submit("out", api="v1beta1", endpoint=endpoint))

    assert ended["state"] == "JOB_STATE_SUCCEEDED", ended
    assert "modelVersionId" not in ended
    said = site.provenance("out")
    assert said["endpoint"] == endpoint
    assert {each["deployed_model_id"] for each in said["models"]} == {first, second}
    assert {each["model"] for each in said["models"]} == {f"{model}@1" for model in models}


def test_job_whose_model_was_deleted_while_no_server_ran_fails_and_says_so(site: Site) -> None:
    model = site.upload("medsiglip")
    site.write(ROWS)
    job = site.submit("out", model=model)
    wait_until(lambda: site.shown(job)["state"] == "JOB_STATE_RUNNING", 60)
    site.done(site.call("DELETE", model))

    site.restart(signal.SIGKILL)
    ended = site.ended(job)

    assert ended["state"] == "JOB_STATE_FAILED"
    assert ended["error"]["code"] == 5
    assert "model" in ended["error"]["message"]


def test_snapshot_that_is_not_there_fails_the_job_and_not_the_server(site: Site) -> None:
    env = [{"name": "MEDPORT_SNAPSHOT_SHA256", "value": "0" * 64}]
    spec = {"imageUri": IMAGE, "env": env, "predictRoute": "/predict", "healthRoute": "/health"}
    model = {"displayName": "nothing", "containerSpec": spec}
    name = site.done(site.call("POST", f"{PARENT}/models:upload", {"model": model}))["model"]
    site.write(2)

    ended = site.ended(site.submit("out", model=name))

    assert ended["state"] == "JOB_STATE_FAILED"
    assert ended["error"]["message"]
    assert os.kill(site.server.process.pid, 0) is None


@pytest.mark.parametrize("number", [False, True])
def test_project_is_written_by_id_or_number_and_answered_by_number(site: Site, number: bool) -> None:
    model = site.upload("medsiglip")
    parent = model.partition("/models/")[0]
    site.write(1)
    written = parent if number else PARENT

    job = site.submit("out", model=f"{written}/models/{model.rpartition('/')[2]}")

    assert job["name"].startswith(f"{parent}/batchPredictionJobs/")
    assert job["model"].startswith(f"{parent}/models/")
    id_ = job["name"].rpartition("/")[2]
    assert site.call("GET", f"{written}/batchPredictionJobs/{id_}")["name"] == job["name"]
    site.ended(job)
