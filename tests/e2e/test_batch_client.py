"""Google's own client submits batch jobs here and reads their results, through a real Cloud Storage server."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from support.gcs import Emulator, gcs_emulator
from support.polling import wait_until

from medport_local import inprocess
from medport_local.app import Settings

aiplatform = pytest.importorskip("google.cloud.aiplatform")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
BUCKET = "batch-jobs"
CHAT = {
    "@requestFormat": "chatCompletions",
    "messages": [{"role": "user", "content": "Describe."}],
    "max_tokens": 4,
}


@pytest.fixture(scope="module")
def bucket() -> Iterator[Emulator]:
    with gcs_emulator(BUCKET) as emulator, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", emulator.url)
        patch.setattr("google.cloud.aiplatform.jobs._JOB_WAIT_TIME", 0.2)  # of 5 seconds between looks
        yield emulator


@pytest.fixture(scope="module", autouse=True)
def server(bucket: Emulator) -> Iterator[inprocess.Server]:
    listener = socket.create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()
    settings = Settings(advertised=f"{host}:{port}", allow_fetch=(f"gs://{BUCKET}",), drain_s=1.0)
    running = inprocess.Server(settings, listener, None)
    running.wait_until_ready()
    with running:
        from google.auth.credentials import AnonymousCredentials

        aiplatform.init(
            project="local",
            location="europe-west4",
            api_endpoint=running.base_url,
            api_transport="rest",
            credentials=AnonymousCredentials(),
        )
        yield running


def upload(bucket: Emulator, name: str, *rows: object) -> str:
    bucket.upload(BUCKET, name, "\n".join(json.dumps(row) for row in rows).encode())
    return f"gs://{BUCKET}/{name}"


def options(source: str, **more: object) -> dict[str, Any]:
    return {
        "gcs_source": source,
        "gcs_destination_prefix": f"gs://{BUCKET}/out",
        "instances_format": "jsonl",
        "predictions_format": "jsonl",
        "machine_type": "g2-standard-24",
        "accelerator_type": "NVIDIA_L4",
        "accelerator_count": 2,
        **more,
    }


def lines(job: Any, kind: str = "prediction.results") -> list[dict[str, Any]]:
    blobs = [blob for blob in job.iter_outputs() if blob.name.rpartition("/")[2].startswith(kind)]
    return [json.loads(line) for blob in blobs for line in blob.download_as_bytes().splitlines()]


def test_a_model_predicts_a_batch_of_chats(bucket: Emulator) -> None:
    source = upload(bucket, "chats.jsonl", CHAT, CHAT)

    job = aiplatform.Model("medgemma").batch_predict(job_display_name="nightly", **options(source))

    assert job.state.name == "JOB_STATE_SUCCEEDED"
    assert job.completion_stats.successful_count == 2
    assert job.output_info.gcs_output_directory.startswith(f"gs://{BUCKET}/out/prediction-medgemma-")
    assert [line["instance"] for line in lines(job)] == [CHAT, CHAT]
    assert all(line["prediction"]["choices"][0]["message"]["content"] for line in lines(job))
    assert sum(1 for _ in job.iter_outputs()) == 1


def test_the_published_notebook_reads_its_results(bucket: Emulator) -> None:
    source = upload(bucket, "notebook.jsonl", CHAT)

    job = aiplatform.Model("medgemma").batch_predict(
        job_display_name="notebook", **options(source, model_parameters={"resultForm": "container"})
    )

    (line,) = lines(job)
    assert line["prediction"]["predictions"]["choices"][0]["message"]["content"]


def test_a_job_over_several_objects_tells_its_errors_apart(bucket: Emulator) -> None:
    upload(bucket, "texts/2.jsonl", {"text": "b"}, {"words": 1})
    upload(bucket, "texts/1.jsonl", {"text": "a"})
    upload(bucket, "texts/ignored.txt", {"text": "c"})

    job = aiplatform.BatchPredictionJob.create(
        job_display_name="texts",
        model_name=aiplatform.Model("medsiglip").versioned_resource_name,
        **options(f"gs://{BUCKET}/texts/*.jsonl"),
    )

    assert job.state.name == "JOB_STATE_SUCCEEDED"
    assert (job.completion_stats.successful_count, job.completion_stats.failed_count) == (2, 1)
    assert [status.code for status in job.partial_failures] == [3]
    assert [line["instance"]["text"] for line in lines(job)] == ["a", "b"]
    assert all(len(line["prediction"]["embedding"]) > 8 for line in lines(job))
    (error,) = lines(job, "prediction.errors_stats")
    assert error["instance"] == {"words": 1}
    assert error["error"]["status"] == "INVALID_ARGUMENT"


def test_a_job_that_fails_raises_and_says_why(bucket: Emulator) -> None:
    job = aiplatform.BatchPredictionJob.submit(
        job_display_name="missing",
        model_name=aiplatform.Model("medgemma").versioned_resource_name,
        **options(f"gs://{BUCKET}/canary.jsonl"),
    )

    with pytest.raises(RuntimeError, match="no such object") as caught:
        job.wait_for_completion()

    assert f"gs://{BUCKET}" in str(caught.value)
    assert "canary.jsonl" not in job.error.message


def test_a_bucket_that_is_not_allowed_is_refused_at_once() -> None:
    from google.api_core.exceptions import BadRequest

    with pytest.raises(BadRequest, match=r"inputConfig\.gcsSource\.uris.*--allow-fetch gs://elsewhere"):
        aiplatform.BatchPredictionJob.submit(
            job_display_name="elsewhere",
            model_name=aiplatform.Model("medgemma").versioned_resource_name,
            **options("gs://elsewhere/rows.jsonl"),
        )


def test_a_job_is_listed_cancelled_and_deleted(bucket: Emulator) -> None:
    long = {**CHAT, "max_tokens": 300, "ignore_eos": True}
    job = aiplatform.BatchPredictionJob.submit(
        job_display_name="long",
        model_name=aiplatform.Model("medgemma").versioned_resource_name,
        labels={"set": "long"},
        **options(upload(bucket, "long.jsonl", *[long] * 500)),
    )

    wait_until(lambda: job.state.name == "JOB_STATE_RUNNING")
    listed = aiplatform.BatchPredictionJob.list(filter='labels.set="long" AND state="JOB_STATE_RUNNING"')
    assert [each.resource_name for each in listed] == [job.resource_name]
    job.cancel()
    wait_until(lambda: job.state.name == "JOB_STATE_CANCELLED")
    assert job.completion_stats.incomplete_count > 0
    job.delete()

    assert aiplatform.BatchPredictionJob.list(filter='display_name="long"') == []
