"""Batch jobs on the real server: rows in, rows out, each checked; places, states and ends."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from medport.errors import InputError
from medport_local import inprocess
from medport_local.app import Settings
from medport_local.engine.engine import EngineLimits
from medport_local.serving.batch import _checked
from medport_local.serving.batch_files import BatchFiles
from medport_local.serving.fetch import Fetcher

ROOT = "projects/local/locations/europe-west4"
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
ENDED = ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def http(gemma_folder: Path, siglip_folder: Path, folder: Path) -> Iterator[httpx.Client]:
    settings = Settings(
        snapshots={"medgemma": gemma_folder, "medsiglip": siglip_folder},
        advertised="gpu01:8443",
        engine_limits=EngineLimits(max_running=2, max_queue=1),
        batch_dir=folder,
        drain_s=1.0,
    )
    running = inprocess.Server(settings, socket.create_server(("127.0.0.1", 0)), None)
    running.wait_until_ready()
    with running, httpx.Client(base_url=running.base_url, timeout=30) as client:
        yield client


def body(source: str, model: str = "medgemma", **changes: object) -> dict[str, Any]:
    return {
        "displayName": "test",
        "model": f"{ROOT}/models/{model}@1",
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [source]}},
        "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "out"}},
        **changes,
    }


def write(folder: Path, name: str, *rows: object) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n")
    return name


def finished(http: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        shown: dict[str, Any] = http.get(f"/v1/{job['name']}").json()
        if shown["state"] in ENDED:
            return shown
        time.sleep(0.02)
    raise AssertionError("the job does not end")


def run(http: httpx.Client, wanted: dict[str, Any]) -> dict[str, Any]:
    answer = http.post(f"/v1/{ROOT}/batchPredictionJobs", json=wanted)
    assert answer.status_code == 200, answer.text
    return finished(http, answer.json())


def lines(folder: Path, job: dict[str, Any], pattern: str = "prediction.results-*") -> list[dict[str, Any]]:
    files = sorted((folder / job["outputInfo"]["gcsOutputDirectory"]).glob(pattern))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.parametrize("model", ["medgemma", "medgemma-dicom", "medgemma-shared"])
def test_chat_rows_are_completions_and_never_a_key_of_one(http: httpx.Client, folder: Path, model: str) -> None:
    rows = [{**CHAT, "max_tokens": i} for i in range(1, 8)]

    job = run(http, body(write(folder, "chat.jsonl", *rows), model))

    assert job["state"] == "JOB_STATE_SUCCEEDED"
    assert job["completionStats"] == {"successfulCount": "7", "failedCount": "0", "incompleteCount": "0"}
    found = lines(folder, job)
    assert [line["instance"] for line in found] == rows
    for i, line in enumerate(found, start=1):
        assert line["prediction"]["choices"][0]["message"]["role"] == "assistant"
        assert line["prediction"]["usage"]["completion_tokens"] <= i


def test_raw_prompts_and_embeddings_have_their_own_form(http: httpx.Client, folder: Path) -> None:
    raw = {"prompt": "hello", "max_tokens": 3, "raw_response": True}
    (line,) = lines(folder, run(http, body(write(folder, "raw.jsonl", raw))))
    assert isinstance(line["prediction"], str)

    job = run(http, body(write(folder, "texts.jsonl", {"text": "a"}, {"text": "b"}), "medsiglip"))
    assert [len(line["prediction"]["embedding"]) for line in lines(folder, job)] == [16, 16]


def test_row_that_fails_is_an_error_and_the_others_are_answered(http: httpx.Client, folder: Path) -> None:
    bad = {"image": {"input_bytes": "AAAA"}}
    name = write(folder, "mixed.jsonl", {"text": "a"}, "no json", bad, {"words": 1}, {"text": "b"})

    job = run(http, body(name, "medsiglip"))

    assert job["state"] == "JOB_STATE_SUCCEEDED"
    assert job["completionStats"] == {"successfulCount": "2", "failedCount": "3", "incompleteCount": "0"}
    assert [line["instance"] for line in lines(folder, job)] == [{"text": "a"}, {"text": "b"}]
    errors = lines(folder, job, "prediction.errors_stats-*")
    assert [line["instance"] for line in errors] == [None, bad, {"words": 1}]
    assert "UNHANDLED_GENERIC_BYTES_ERROR" in errors[1]["error"]["message"]


def test_full_queue_fails_no_row(http: httpx.Client, folder: Path) -> None:
    rows = [{**CHAT, "max_tokens": 60, "ignore_eos": True}] * 8

    job = run(http, body(write(folder, "many.jsonl", *rows)))

    assert job["completionStats"]["successfulCount"] == "8"


def test_many_rows_go_into_several_files_in_order(http: httpx.Client, folder: Path) -> None:
    rows = [{"text": f"row {i}"} for i in range(1500)]

    job = run(http, body(write(folder, "long.jsonl", *rows), "medsiglip"))

    assert [line["instance"] for line in lines(folder, job)] == rows
    names = sorted(path.name for path in (folder / job["outputInfo"]["gcsOutputDirectory"]).iterdir())
    assert names == ["prediction.results-00000-of-00002", "prediction.results-00001-of-00002"]


def test_star_stands_for_the_rest_of_a_name(http: httpx.Client, folder: Path) -> None:
    for i in (1, 2):
        write(folder, f"part-{i}.jsonl", {"text": f"{i}"})

    job = run(http, body("part-*", "medsiglip"))

    assert [line["instance"]["text"] for line in lines(folder, job)] == ["1", "2"]


def test_job_can_be_cancelled_listed_and_deleted(http: httpx.Client, folder: Path) -> None:
    rows = [{**CHAT, "max_tokens": 400, "ignore_eos": True}] * 200
    job = http.post(f"/v1/{ROOT}/batchPredictionJobs", json=body(write(folder, "slow.jsonl", *rows))).json()

    assert job["state"] == "JOB_STATE_PENDING"
    assert http.delete(f"/v1/{job['name']}").status_code == 400
    assert http.post(f"/v1/{job['name']}:cancel", json={}).json() == {}
    ended = finished(http, job)
    listed = http.get(f"/v1beta1/{ROOT}/batchPredictionJobs").json()["batchPredictionJobs"]
    assert ended["state"] == "JOB_STATE_CANCELLED"
    assert listed[0]["name"] == job["name"]
    assert list(folder.rglob(".part-*")) == []
    assert http.delete(f"/v1/{job['name']}").json()["done"] is True
    assert http.get(f"/v1/{job['name']}").status_code == 404


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": f"{ROOT}/models/other"}, "model"),
        ({"model": ""}, "model"),
        ({"displayName": ""}, "displayName"),
        ({"inputConfig": {"instancesFormat": "csv", "gcsSource": {"uris": ["a"]}}}, "inputConfig.instancesFormat"),
        ({"inputConfig": {"instancesFormat": "jsonl"}}, "inputConfig.gcsSource"),
        ({"speed": 1}, "speed"),
        ({"modelParameters": {"x": 1}}, "modelParameters"),
        ({"inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["../x"]}}},
         "inputConfig.gcsSource.uris"),
        ({"inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["file:///etc/passwd"]}}},
         "inputConfig.gcsSource.uris"),
        ({"outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "/tmp/x"}}},
         "outputConfig.gcsDestination.outputUriPrefix"),
    ],
)  # fmt: skip
def test_job_that_cannot_be_is_refused_by_name(http: httpx.Client, changes: dict[str, Any], field: str) -> None:
    answer = http.post(f"/v1/{ROOT}/batchPredictionJobs", json=body("a.jsonl", **changes))

    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["details"][0]["metadata"]["field"] == field


@pytest.mark.parametrize("content", ["", "\n\n", None], ids=["empty", "blank", "missing"])
def test_job_without_rows_fails_and_says_so(http: httpx.Client, folder: Path, content: str | None) -> None:
    (folder / "empty.jsonl").unlink(missing_ok=True)
    if content is not None:
        (folder / "empty.jsonl").write_text(content)

    job = run(http, body("empty.jsonl"))

    assert job["state"] == "JOB_STATE_FAILED"
    assert "inputConfig.gcsSource.uris" in job["error"]["message"]


def test_link_out_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "secret.jsonl"
    inside.mkdir()
    outside.write_text("{}\n")
    (inside / "link.jsonl").symlink_to(outside)

    with pytest.raises(InputError, match="outside"):
        BatchFiles(Fetcher(), inside).lines(["link.jsonl"])


def test_without_a_directory_only_buckets_are_taken(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--batch-dir"):
        BatchFiles(Fetcher(), None).check([str(tmp_path / "a")], "gs://b/c")


class _Served:
    dialect = "vllm"


@pytest.mark.parametrize(
    "answer",
    [
        {"predictions": {"id": "chatcmpl-1", "choices": []}},
        {"predictions": ["id"]},
        {"predictions": [{"embedding": [1.0]}]},
        {"predictions": []},
        {"predictions": [{"error": {"message": "bad", "object": "error"}}]},
        {"error": "bad"},
        {},
    ],
)
def test_answer_of_another_form_never_counts_as_a_result(answer: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        _checked(answer, _Served(), CHAT)  # type: ignore[arg-type]
