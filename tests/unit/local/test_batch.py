"""Batch jobs on the real server: rows in, rows out, each checked; places, states and ends."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.polling import wait_until

from medport.errors import ConfigError, InputError, MedportError
from medport.wire.vertex import ModelResource, pins_from_model
from medport_local import inprocess
from medport_local.app import Settings
from medport_local.engine.engine import EngineLimits
from medport_local.serving import batch_files
from medport_local.serving.batch_files import BatchFiles, Plan, take
from medport_local.serving.batch_list import MAX_KEPT, Jobs
from medport_local.serving.batch_rows import MAX_ROW_BYTES, checked
from medport_local.serving.fetch import Fetcher

ROOT = "projects/local/locations/europe-west4"
JOBS = f"/v1/{ROOT}/batchPredictionJobs"
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
LONG = {**CHAT, "max_tokens": 400, "ignore_eos": True}
ENDED = ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED")
INPUT, OUTPUT = "inputConfig.gcsSource.uris[0]", "outputConfig.gcsDestination.outputUriPrefix"


def serving(gemma: Path, siglip: Path, folder: Path) -> inprocess.Server:
    settings = Settings(
        snapshots={"medgemma": gemma, "medsiglip": siglip},
        advertised="gpu01:8443",
        engine_limits=EngineLimits(max_running=2, max_queue=1),
        allow_fetch=("gs://allowed/in",),
        batch_dir=folder,
        drain_s=1.0,
    )
    running = inprocess.Server(settings, socket.create_server(("127.0.0.1", 0)), None)
    running.wait_until_ready()
    return running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def http(gemma_folder: Path, siglip_folder: Path, folder: Path) -> Iterator[httpx.Client]:
    with (
        serving(gemma_folder, siglip_folder, folder) as running,
        httpx.Client(base_url=running.base_url, timeout=30) as client,
    ):
        yield client


def body(source: str, model: str = "medgemma", **changes: object) -> dict[str, Any]:
    return {
        "displayName": "test",
        "model": f"{ROOT}/models/{model}@1",
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [source]}},
        "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "out"}},
        **changes,
    }


def reading(uri: str) -> dict[str, Any]:
    return {"inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [uri]}}}


def writing(prefix: str) -> dict[str, Any]:
    return {"outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": prefix}}}


def write(folder: Path, name: str, *rows: object) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n")
    return name


def submit(http: httpx.Client, wanted: dict[str, Any]) -> dict[str, Any]:
    answer = http.post(JOBS, json=wanted)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def shown(http: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"/v1/{job['name']}").json()
    return found


def finished(http: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    wait_until(lambda: shown(http, job)["state"] in ENDED, 60)
    return shown(http, job)


def run(http: httpx.Client, wanted: dict[str, Any]) -> dict[str, Any]:
    return finished(http, submit(http, wanted))


def files(folder: Path, job: dict[str, Any]) -> list[str]:
    return sorted(path.name for path in (folder / job["outputInfo"]["gcsOutputDirectory"]).iterdir())


def lines(folder: Path, job: dict[str, Any], pattern: str = "prediction.results-*") -> list[dict[str, Any]]:
    found = sorted((folder / job["outputInfo"]["gcsOutputDirectory"]).glob(pattern))
    return [json.loads(line) for file in found for line in file.read_text().splitlines()]


def counts(job: dict[str, Any]) -> tuple[str, str, str]:
    stats = job["completionStats"]
    return stats["successfulCount"], stats["failedCount"], stats["incompleteCount"]


# Rows


@pytest.mark.parametrize("model", ["medgemma", "medgemma-dicom", "medgemma-shared"])
def test_chat_rows_are_completions_and_never_a_key_of_one(http: httpx.Client, folder: Path, model: str) -> None:
    rows = [{**CHAT, "max_tokens": i} for i in range(1, 8)]

    job = run(http, body(write(folder, "chat.jsonl", *rows), model))

    assert job["state"] == "JOB_STATE_SUCCEEDED"
    assert counts(job) == ("7", "0", "0")
    assert "partialFailures" not in job
    assert files(folder, job) == ["prediction.results-00000-of-00001"]
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


def test_readers_of_the_published_notebooks_find_what_they_look_for(http: httpx.Client, folder: Path) -> None:
    raw = {"prompt": "hello", "max_tokens": 3, "raw_response": True}
    name = write(folder, "notebook.jsonl", CHAT, raw)

    job = run(http, body(name, modelParameters={"resultForm": "container"}))

    chat, prompt = (line["prediction"]["predictions"] for line in lines(folder, job))
    assert chat["choices"][0]["message"]["role"] == "assistant"
    assert isinstance(prompt[0], str)


def test_row_that_fails_is_an_error_and_the_others_are_answered(http: httpx.Client, folder: Path) -> None:
    bad = {"image": {"input_bytes": "AAAA"}}
    name = write(folder, "mixed.jsonl", {"text": "a"}, "no json", bad, {"words": 1}, "[1]", {"text": "b"})

    job = run(http, body(name, "medsiglip"))

    assert job["state"] == "JOB_STATE_SUCCEEDED"
    assert counts(job) == ("2", "4", "0")
    assert job["partialFailures"] == [{"code": 3, "message": "4 rows: INVALID_ARGUMENT"}]
    assert [line["instance"] for line in lines(folder, job)] == [{"text": "a"}, {"text": "b"}]
    assert files(folder, job) == [
        "prediction.errors_stats-00000-of-00001",
        "prediction.results-00000-of-00001",
    ]
    errors = lines(folder, job, "prediction.errors_stats-*")
    assert [line["instance"] for line in errors] == [None, bad, {"words": 1}, None]
    assert errors[0]["error"]["message"].startswith("row 2: ")
    assert "UNHANDLED_GENERIC_BYTES_ERROR" in errors[1]["error"]["message"]
    assert {(line["error"]["code"], line["error"]["status"]) for line in errors} == {(400, "INVALID_ARGUMENT")}


@pytest.mark.parametrize("model", ["medgemma", "medgemma-dicom"])
def test_chat_rows_that_fail_are_errors_in_either_dialect(http: httpx.Client, folder: Path, model: str) -> None:
    broken = {"messages": [{"role": "nobody", "content": "x"}]}
    unreadable = {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
            }
        ]
    }

    job = run(http, body(write(folder, "bad-chats.jsonl", broken, CHAT, unreadable), model))

    assert counts(job) == ("1", "2", "0")
    errors = lines(folder, job, "prediction.errors_stats-*")
    assert [line["instance"] for line in errors] == [broken, unreadable]
    assert all(len(line["error"]["message"]) > 10 for line in errors)


def test_instance_comes_back_byte_for_byte(http: httpx.Client, folder: Path) -> None:
    deep = '{"text": "a", "extra": ' + "[" * 300 + "]" * 300 + "}"  # deeper than a serialiser writes
    large = '{"text":"a\\u00e9", "n": 123456789012345678901234567890}'
    plain = '{  "text":"a\\u00e9"  }'

    job = run(http, body(write(folder, "bytes.jsonl", deep, large, plain), "medsiglip"))

    def written(name: str) -> list[str]:
        return (folder / job["outputInfo"]["gcsOutputDirectory"] / name).read_text().splitlines()

    (result,) = written("prediction.results-00000-of-00001")
    errors = written("prediction.errors_stats-00000-of-00001")
    assert result.startswith(f'{{"instance":{plain},"prediction":')
    assert [line.split(',"error":')[0] for line in errors] == [f'{{"instance":{deep}', f'{{"instance":{large}']


def test_row_that_is_too_large_is_skipped_and_the_next_is_read(http: httpx.Client, folder: Path) -> None:
    large = json.dumps({"text": "x" * (MAX_ROW_BYTES + 10)})

    job = run(http, body(write(folder, "large.jsonl", large, {"text": "b"}), "medsiglip"))

    assert counts(job) == ("1", "1", "0")
    (error,) = lines(folder, job, "prediction.errors_stats-*")
    assert error["instance"] is None
    assert error["error"]["message"].startswith(f"row 1: is over {MAX_ROW_BYTES} bytes")
    assert [line["instance"] for line in lines(folder, job)] == [{"text": "b"}]


def test_rows_of_other_editors_are_read(http: httpx.Client, folder: Path) -> None:
    (folder / "windows.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n   \n{"text": "b"}')

    job = run(http, body("windows.jsonl", "medsiglip"))

    assert [line["instance"]["text"] for line in lines(folder, job)] == ["a", "b"]


def test_raw_prompt_with_several_answers_is_told_so(http: httpx.Client, folder: Path) -> None:
    raw = {"prompt": "hello", "max_tokens": 3, "raw_response": True, "n": 2, "temperature": 1.0}

    job = run(http, body(write(folder, "n.jsonl", raw, {**raw, "n": 1})))

    (error,) = lines(folder, job, "prediction.errors_stats-*")
    assert error["error"]["message"].startswith("n: ")
    assert counts(job) == ("1", "1", "0")


def test_full_queue_fails_no_row(http: httpx.Client, folder: Path) -> None:
    wide = {**CHAT, "n": 3, "temperature": 1.0, "max_tokens": 20}  # as many as run and wait at once
    busy = threading.Event()

    def online() -> None:
        while not busy.is_set():
            http.post("/v1/chat/completions", json={**LONG, "model": "medgemma", "max_tokens": 60})

    others = [threading.Thread(target=online) for _ in range(2)]
    for other in others:
        other.start()
    job = submit(http, body(write(folder, "wide.jsonl", wide, wide)))
    busy.wait(0.5)
    waiting = shown(http, job)
    busy.set()
    for other in others:
        other.join()
    ended = finished(http, job)

    assert counts(waiting)[1] == "0"
    assert counts(ended) == ("2", "0", "0")


def test_row_that_never_fits_is_an_error_and_holds_up_nobody(http: httpx.Client, folder: Path) -> None:
    job = run(http, body(write(folder, "never.jsonl", {**CHAT, "n": 16, "temperature": 1.0}, CHAT)))

    (error,) = lines(folder, job, "prediction.errors_stats-*")
    assert error["error"]["status"] == "INVALID_ARGUMENT"
    assert counts(job) == ("1", "1", "0")


class _Served:
    dialect = "vllm"


@pytest.mark.parametrize(
    "answer",
    [
        {"predictions": {"id": "chatcmpl-1", "choices": [{}]}},
        {"predictions": ["id"]},
        {"predictions": [{"embedding": [1.0]}]},
        {"predictions": [{"choices": []}]},
        {"predictions": [{"choices": None}]},
        {"predictions": []},
        {"predictions": [{"choices": [{}]}, {"choices": [{}]}]},
        {"predictions": [{"error": {"message": "bad", "object": "error"}}]},
        {"error": "bad"},
        {},
    ],
)
def test_answer_of_another_form_never_counts_as_a_result(answer: dict[str, Any]) -> None:
    with pytest.raises(MedportError):
        checked(answer, _Served(), CHAT)  # type: ignore[arg-type]


# Files


def test_which_bytes_gave_the_rows_stands_beside_them(http: httpx.Client, folder: Path) -> None:
    job = run(http, body(write(folder, "chat.jsonl", CHAT), "medgemma"))

    results = folder / job["outputInfo"]["gcsOutputDirectory"]
    said = json.loads((results.parent / f"{results.name.replace('prediction', 'provenance')}.json").read_text())
    model = http.get(f"/v1/{job['model']}").json()
    pins = pins_from_model(ModelResource.model_validate(model))
    assert {key: said[key] for key in pins.as_dict()} == pins.as_dict()
    assert said["snapshot_sha256"]
    assert said["job"] == job["name"]
    assert said["model"] == job["model"]
    assert said["deployed_model_id"] == model["deployedModels"][0]["deployedModelId"]


def test_many_rows_go_into_several_files_in_order(
    http: httpx.Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_files, "SHARD_ROWS", 400)
    rows = [{"text": f"row {i}"} if i != 900 else {"words": i} for i in range(1000)]

    job = run(http, body(write(folder, "long.jsonl", *rows), "medsiglip"))

    assert [line["instance"] for line in lines(folder, job)] == [row for row in rows if "text" in row]
    assert files(folder, job) == [
        "prediction.errors_stats-00002-of-00003",
        *(f"prediction.results-0000{i}-of-00003" for i in range(3)),
    ]


def test_large_rows_are_cut_into_files_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_files, "SHARD_BYTES", 100)
    (tmp_path / "rows.jsonl").write_text("\n".join("x" * size for size in (40, 40, 40, 300, 10, 90)))

    assert BatchFiles(Fetcher(), tmp_path).plan(["rows.jsonl"], lambda: False).rows == [2, 1, 1, 2]


def test_star_stands_for_a_part_of_a_name(http: httpx.Client, folder: Path) -> None:
    (folder / "in" / "more").mkdir(parents=True)
    for name in ("part-2.jsonl", "part-1.jsonl", "part-3.txt", ".part-4.jsonl", "more/part-5.jsonl"):
        write(folder / "in", name, {"text": name})
    (folder / "in" / "part-6.jsonl").symlink_to(folder / "in" / "part-1.jsonl")

    def texts(pattern: str) -> list[str]:
        return [line["instance"]["text"] for line in lines(folder, run(http, body(pattern, "medsiglip")))]

    assert texts("in/part-*.jsonl") == ["part-1.jsonl", "part-2.jsonl"]
    assert texts(f"file://{folder}/in/**.jsonl") == ["more/part-5.jsonl", "part-1.jsonl", "part-2.jsonl"]


def test_addresses_of_local_files_may_be_escaped(http: httpx.Client, folder: Path) -> None:
    write(folder, "with space.jsonl", {"text": "a"})

    job = run(http, body(f"file://{folder}/with%20space.jsonl", "medsiglip", **writing(f"file://{folder}/out")))

    found = Path(job["outputInfo"]["gcsOutputDirectory"].removeprefix("file://"))
    assert found.parent == folder / "out"
    assert len((found / "prediction.results-00000-of-00001").read_text().splitlines()) == 1


@pytest.mark.parametrize("content", ["", "\n\n", None], ids=["empty", "blank", "missing"])
def test_job_without_rows_fails_and_says_so(http: httpx.Client, folder: Path, content: str | None) -> None:
    (folder / "canary.jsonl").unlink(missing_ok=True)
    if content is not None:
        (folder / "canary.jsonl").write_text(content)

    job = run(http, body("canary.jsonl"))

    assert job["state"] == "JOB_STATE_FAILED"
    assert job["error"]["code"] == 3
    assert "inputConfig.gcsSource.uris" in job["error"]["message"]
    assert "canary" not in job["error"]["message"]


def test_pattern_that_names_no_file_fails(http: httpx.Client) -> None:
    job = run(http, body("nothing-*"))

    assert job["state"] == "JOB_STATE_FAILED"
    assert "names no file" in job["error"]["message"]


def test_job_without_one_result_has_not_succeeded(http: httpx.Client, folder: Path) -> None:
    job = run(http, body(write(folder, "none.jsonl", "no json", {"words": "canary"}), "medsiglip"))

    assert job["state"] == "JOB_STATE_FAILED"
    assert counts(job) == ("0", "2", "0")
    assert "none of 2 rows" in job["error"]["message"]
    assert "canary" not in job["error"]["message"]
    assert len(lines(folder, job, "prediction.errors_stats-*")) == 2


def test_input_that_changes_while_it_is_read_fails_the_job(
    http: httpx.Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / write(folder, "growing.jsonl", {"text": "a"})
    plan = BatchFiles.plan

    def grows(self: BatchFiles, *arguments: Any) -> Plan:
        found = plan(self, *arguments)
        with path.open("a") as file:
            file.write('{"text": "b"}\n')
        return found

    monkeypatch.setattr(BatchFiles, "plan", grows)
    job = run(http, body("growing.jsonl", "medsiglip"))

    assert job["state"] == "JOB_STATE_FAILED"
    assert "changed while it was read" in job["error"]["message"]


def test_place_that_cannot_be_written_fails_before_the_first_row(http: httpx.Client, folder: Path) -> None:
    (folder / "taken").write_text("a file")

    job = run(http, body(write(folder, "one.jsonl", {"text": "a"}), "medsiglip", **writing("taken")))

    assert job["state"] == "JOB_STATE_FAILED"
    assert "cannot be made" in job["error"]["message"]
    assert counts(job) == ("0", "0", "1")


def test_links_pipes_and_folders_are_no_input(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "secret"
    inside.mkdir()
    outside.mkdir()
    (outside / "rows.jsonl").write_text("{}\n")
    (inside / "link.jsonl").symlink_to(outside / "rows.jsonl")
    (inside / "folder").symlink_to(outside)
    os.mkfifo(inside / "pipe")
    places = BatchFiles(Fetcher(), inside)

    for name in (
        "link.jsonl",
        "folder/rows.jsonl",
        "folder/*",
        "../secret/rows.jsonl",
        str(outside / "rows.jsonl"),
    ):
        with pytest.raises(InputError, match="outside"):
            take(places.rows([name]))
    for name in ("pipe", "."):
        with pytest.raises(InputError, match=r"not a file|cannot be read"):
            take(places.rows([name]))
    with pytest.raises(InputError, match="outside"):
        places.output("folder/prediction/x")
    assert sorted(path.name for path in outside.iterdir()) == ["rows.jsonl"]


def test_file_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    places = BatchFiles(Fetcher(), tmp_path)
    kept, dropped = places.output("a/kept"), places.output("a/dropped")

    kept.write(b"1\n")
    dropped.write(b"1\n")
    assert not any(path.name in ("kept", "dropped") for path in (tmp_path / "a").iterdir())
    kept.commit()
    kept.discard()
    dropped.discard()

    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]


def test_without_a_directory_only_buckets_are_taken(tmp_path: Path) -> None:
    places = BatchFiles(Fetcher(("gs://bucket",)), None)

    places.check(["gs://bucket/a"], "gs://bucket/c")
    with pytest.raises(InputError, match="--batch-dir"):
        places.check([str(tmp_path / "a")], "gs://bucket/c")
    with pytest.raises(ConfigError, match="batch-dir"):
        BatchFiles(Fetcher(), tmp_path / "missing")


# States


def test_job_can_be_cancelled_and_keeps_what_it_has(http: httpx.Client, folder: Path) -> None:
    rows = [CHAT] * 3 + [LONG] * 100
    job = submit(http, body(write(folder, "slow.jsonl", *rows)))

    assert job["state"] == "JOB_STATE_PENDING"
    wait_until(lambda: int(counts(shown(http, job))[0]) >= 3, 60)
    assert shown(http, job)["state"] == "JOB_STATE_RUNNING"
    assert http.delete(f"/v1/{job['name']}").status_code == 400
    assert http.post(f"/v1/{job['name']}:cancel", json={}).json() == {}
    ended = finished(http, job)
    assert ended["state"] == "JOB_STATE_CANCELLED"
    done, failed, left = (int(count) for count in counts(ended))
    assert (3 <= done < 50, failed, done + left) == (True, 0, 103)
    assert len(lines(folder, ended)) == done
    assert list((folder / "out").rglob(".part-*")) == []
    assert http.post(f"/v1/{job['name']}:cancel", json={}).json() == {}
    assert http.delete(f"/v1/{job['name']}").json()["done"] is True
    assert http.get(f"/v1/{job['name']}").status_code == 404


def test_third_job_waits_and_can_be_cancelled_while_it_does(http: httpx.Client, folder: Path) -> None:
    source = write(folder, "slow.jsonl", *[LONG] * 50)
    running = [submit(http, body(source)) for _ in range(2)]
    wait_until(lambda: all(shown(http, job)["state"] == "JOB_STATE_RUNNING" for job in running))

    waiting = submit(http, body(source, displayName="third"))
    assert shown(http, waiting)["state"] == "JOB_STATE_PENDING"
    http.post(f"/v1/{waiting['name']}:cancel", json={})
    assert shown(http, waiting)["state"] == "JOB_STATE_CANCELLED"
    for job in running:
        http.post(f"/v1/{job['name']}:cancel", json={})
        assert finished(http, job)["state"] == "JOB_STATE_CANCELLED"


def test_server_that_stops_ends_its_jobs_and_leaves_no_part_of_a_file(
    gemma_folder: Path, siglip_folder: Path, tmp_path: Path
) -> None:
    source = write(tmp_path, "slow.jsonl", CHAT, *[LONG] * 50)
    with (
        serving(gemma_folder, siglip_folder, tmp_path) as running,
        httpx.Client(base_url=running.base_url, timeout=30) as client,
    ):
        job = submit(client, body(source))
        wait_until(lambda: counts(shown(client, job))[0] != "0", 60)

    (result,) = (tmp_path / "out").rglob("*results*")
    assert all(json.loads(line)["prediction"]["choices"] for line in result.read_text().splitlines())
    assert result.read_text().endswith("\n")
    assert list(tmp_path.rglob(".part-*")) == []


def test_model_that_answers_no_more_fails_the_job_and_not_each_row(
    gemma_folder: Path, siglip_folder: Path, tmp_path: Path
) -> None:
    source = write(tmp_path, "texts.jsonl", *[{"text": "a"}] * 50)
    with (
        serving(gemma_folder, siglip_folder, tmp_path) as running,
        httpx.Client(base_url=running.base_url, timeout=30) as client,
    ):
        running.app.state.engines["medsiglip"].close()
        job = run(client, body(source, "medsiglip"))

    assert job["state"] == "JOB_STATE_FAILED"
    assert job["error"]["code"] == 14
    assert counts(job) == ("0", "0", "50")


def test_jobs_are_listed_by_page_and_filter(http: httpx.Client, folder: Path) -> None:
    source = write(folder, "one.jsonl", {"text": "a"})
    made = [
        run(http, body(source, "medsiglip", displayName=f"page {i}", labels={"set": "pages"})) for i in range(3)
    ]

    def page(**query: str) -> dict[str, Any]:
        found: dict[str, Any] = http.get(f"/v1beta1/{ROOT}/batchPredictionJobs", params=query).json()
        return found

    first = page(filter='labels.set="pages"', pageSize="2")
    second = page(filter='labels.set="pages"', pageSize="2", pageToken=first["nextPageToken"])
    names = [job["name"] for each in (first, second) for job in each["batchPredictionJobs"]]
    assert names == [job["name"] for job in reversed(made)]
    assert "nextPageToken" not in second
    one = page(filter='display_name="page 1" AND state="JOB_STATE_SUCCEEDED"')["batchPredictionJobs"]
    assert [job["name"] for job in one] == [made[1]["name"]]
    for query in ({"filter": "colour=red"}, {"pageSize": "many"}, {"pageToken": "-1"}):
        assert page(**query)["error"]["details"][0]["metadata"]["field"] == next(iter(query))


def test_jobs_are_listed_in_the_order_that_is_asked_for(http: httpx.Client, folder: Path) -> None:
    source = write(folder, "one.jsonl", {"text": "a"})
    made = {
        name: run(http, body(source, "medsiglip", displayName=name, labels={"set": "order"}))
        for name in ("beta", "alpha", "gamma")
    }

    def names(**query: str) -> list[str]:
        found: list[str] = []
        token = ""
        while True:
            asked = {"filter": "labels.set:*", "pageSize": "2", "pageToken": token, **query}
            page = http.get(JOBS, params={key: value for key, value in asked.items() if value}).json()
            found += [job["displayName"] for job in page["batchPredictionJobs"] if job["labels"]["set"] == "order"]
            token = page.get("nextPageToken", "")
            if not token:
                return found

    assert names(orderBy="display_name") == ["alpha", "beta", "gamma"]
    assert names(orderBy="displayName desc") == ["gamma", "beta", "alpha"]
    assert names(orderBy="createTime") == ["beta", "alpha", "gamma"]
    assert names() == names(orderBy="create_time desc") == ["gamma", "alpha", "beta"]
    middle = made["alpha"]["createTime"]
    assert names(filter=f'labels.set="order" AND create_time>="{middle}"') == ["gamma", "alpha"]
    assert names(filter=f'labels.set="order" AND create_time<"{middle}"') == ["beta"]
    assert (
        http.get(JOBS, params={"orderBy": "colour"}).json()["error"]["details"][0]["metadata"]["field"]
        == "orderBy"
    )


def test_place_in_one_list_is_none_in_another(http: httpx.Client, folder: Path) -> None:
    source = write(folder, "one.jsonl", {"text": "a"})
    for _ in range(2):
        run(http, body(source, "medsiglip", labels={"set": "token"}))
    first = http.get(JOBS, params={"filter": 'labels.set="token"', "pageSize": "1"}).json()

    for query in ({}, {"filter": 'labels.set="token"', "orderBy": "display_name"}):
        answer = http.get(JOBS, params={**query, "pageToken": first["nextPageToken"]})
        assert answer.status_code == 400
        assert answer.json()["error"]["details"][0]["metadata"]["field"] == "pageToken"


def test_oldest_job_that_is_over_makes_room(http: httpx.Client, folder: Path) -> None:
    jobs = Jobs()
    made = [jobs.make(ROOT, None, None) for _ in range(MAX_KEPT + 1)]  # type: ignore[arg-type]

    for job in made:
        jobs.keep(job)
        job.standing = job.standing.over_with(None, stopped=False)

    assert jobs.find(ROOT, made[1].id) is made[1]
    with pytest.raises(MedportError):
        jobs.find(ROOT, made[0].id)
    assert len({job.created for job in made}) == len(made)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": f"{ROOT}/models/other"}, "model"),
        ({"model": f"{ROOT}/models/medgemma@7"}, "model"),
        ({"model": "medgemma"}, "model"),
        ({"model": ""}, "model"),
        ({"endpoint": f"{ROOT}/endpoints/medgemma"}, "model"),
        ({"model": "", "endpoint": f"{ROOT}/endpoints/other"}, "endpoint"),
        ({"displayName": ""}, "displayName"),
        ({"inputConfig": {"instancesFormat": "csv", "gcsSource": {"uris": ["a"]}}}, "inputConfig.instancesFormat"),
        ({"inputConfig": {"instancesFormat": "jsonl"}}, "inputConfig.gcsSource"),
        ({"inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": []}}}, "inputConfig.gcsSource.uris"),
        ({"inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["a"]}, "speed": {}}},
         "inputConfig.speed"),
        ({"outputConfig": {"predictionsFormat": "csv", "gcsDestination": {"outputUriPrefix": "a"}}},
         "outputConfig.predictionsFormat"),
        ({"speed": 1}, "speed"),
        ({"dedicatedResources": {"speed": 1}}, "dedicatedResources.speed"),
        ({"modelParameters": {"x": 1}}, "modelParameters.x"),
        ({"model": f"{ROOT}/models/medsiglip", "modelParameters": {"resultForm": "container"}},
         "modelParameters.resultForm"),
        (reading("../x"), INPUT),
        (reading("file:///etc/passwd"), INPUT),
        (reading("file://elsewhere/x"), INPUT),
        (reading("https://allowed/x"), INPUT),
        (reading("a\0b"), INPUT),
        (reading("gs://other/in/a.jsonl"), INPUT),
        (reading("gs://allowed/elsewhere/*"), INPUT),
        (writing("/tmp/x"), OUTPUT),
        (writing("../x"), OUTPUT),
        (writing("gs://allowed/elsewhere"), OUTPUT),
        (writing("out/*"), OUTPUT),
    ],
)  # fmt: skip
def test_job_that_cannot_be_is_refused_by_name(http: httpx.Client, changes: dict[str, Any], field: str) -> None:
    answer = http.post(JOBS, json={**body("a.jsonl"), **changes})

    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["details"][0]["metadata"]["field"] == field


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"speed": 1}, "Unknown name \"speed\" at 'batch_prediction_job': Cannot find field."),
        (
            {"dedicatedResources": {"machineSpec": {"bogusKey": 1}}},
            "Unknown name \"bogusKey\" at 'batch_prediction_job.dedicated_resources.machine_spec'",
        ),
        (
            {"input_config": {"instances_format": "jsonl", "gcsSource": {}, "x": 1}, "inputConfig": None},
            "Unknown name \"x\" at 'batch_prediction_job.input_config'",
        ),
    ],
)
def test_unknown_field_is_told_in_googles_words(http: httpx.Client, changes: dict[str, Any], said: str) -> None:
    wanted = {**body("a.jsonl"), **changes}

    error = http.post(JOBS, json={key: value for key, value in wanted.items() if value}).json()["error"]

    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    assert f"Invalid JSON payload received. {said}" in error["message"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"encryptionSpec": {"kmsKeyName": "k"}}, "encryptionSpec"),
        ({"generateExplanation": True}, "generateExplanation"),
        ({"inputConfig": {"instancesFormat": "bigquery", "bigquerySource": {}}}, "inputConfig.bigquerySource"),
    ],
)
def test_what_only_vertex_has_is_refused_as_not_here(
    http: httpx.Client, changes: dict[str, Any], field: str
) -> None:
    answer = http.post(JOBS, json={**body("a.jsonl"), **changes})

    assert answer.status_code == 501
    assert answer.json()["error"]["details"][0]["metadata"]["field"] == field


def test_job_of_another_project_is_not_found(http: httpx.Client) -> None:
    path = "/v1/projects/other/locations/europe-west4/batchPredictionJobs"

    assert http.post(path, json=body("a.jsonl")).status_code == 404
    assert http.get(path).json() == {"batchPredictionJobs": []}


def test_what_the_real_client_sends_is_taken_and_shown_again(http: httpx.Client, folder: Path) -> None:
    resources = {
        "machineSpec": {"machineType": "g2-standard-24", "acceleratorType": 11, "acceleratorCount": 2},
        "startingReplicaCount": 1,
        "maxReplicaCount": 1,
    }
    wanted = body(
        write(folder, "one.jsonl", CHAT),
        model="",
        endpoint=f"{ROOT}/endpoints/medgemma",
        dedicatedResources=resources,
        manualBatchTuningParameters={"batchSize": 4},
    )
    wanted |= {"model": "", "labels": {"a": "b"}, "serviceAccount": "x@y"}

    job = submit(http, wanted)

    assert {key: job[key] for key in wanted if key != "model"} == {k: v for k, v in wanted.items() if k != "model"}
    assert job["name"].rpartition("/")[2].isdecimal()
    assert finished(http, job)["state"] == "JOB_STATE_SUCCEEDED"


def test_nothing_of_a_row_is_in_a_log(http: httpx.Client, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    rows = ({"text": "canary"}, {"canary": 1}, "canary", {"image": {"gcs_uri": "gs://canary/canary"}})

    job = run(http, body(write(folder, "canary.jsonl", *rows), "medsiglip"))

    assert counts(job) == ("1", "3", "0")
    assert "canary" not in json.dumps({key: job[key] for key in job if key != "inputConfig"})
    assert "canary" not in caplog.text
    assert f"batch job {job['name'].rpartition('/')[2]}: SUCCEEDED, 1 of 4 rows, 3 errors" in caplog.text
