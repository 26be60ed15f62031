"""`model.batch_predict` and `BatchPredictionJob`, with a real Cloud Storage server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.api_core import exceptions
from google.cloud import aiplatform
from support.client_calls import call
from support.gcs import Emulator
from support.polling import wait_until
from support.wire import text

from .conftest import BUCKET, MACHINE, fresh


@pytest.fixture(autouse=True)
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("google.cloud.aiplatform.jobs._JOB_WAIT_TIME", 0.2)  # of 5 seconds between looks


def source(bucket: Emulator, *rows: object) -> str:
    name = f"{fresh('in')}.jsonl"
    bucket.upload(
        BUCKET, name, "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()
    )
    return f"gs://{BUCKET}/{name}"


def options(uri: str, **more: object) -> dict[str, Any]:
    return {
        "job_display_name": fresh("nightly"),
        "gcs_source": uri,
        "gcs_destination_prefix": f"gs://{BUCKET}/out",
        **MACHINE,
        **more,
    }


def lines(job: Any, kind: str) -> list[dict[str, Any]]:
    blobs = [blob for blob in job.iter_outputs() if blob.name.rpartition("/")[2].startswith(kind)]
    return [json.loads(line) for blob in blobs for line in blob.download_as_bytes().splitlines()]


@call("Model.batch_predict(gcs_source=, gcs_destination_prefix=), BatchPredictionJob.iter_outputs()")
def test_each_row_is_answered(bucket: Emulator, model: aiplatform.Model) -> None:
    row = text("Describe this X-ray.", max_tokens=2)

    job = model.batch_predict(**options(source(bucket, row, row)))

    assert job.state.name == "JOB_STATE_SUCCEEDED"
    assert job.completion_stats.successful_count == 2
    assert [line["instance"] for line in lines(job, "prediction.results")] == [row, row]


@call("Model.batch_predict() with a row that is broken")
def test_bad_row_is_reported_and_the_others_are_answered(bucket: Emulator, model: aiplatform.Model) -> None:
    good = text("Describe this X-ray.", max_tokens=2)

    job = model.batch_predict(**options(source(bucket, good, "{no json", good)))

    assert job.state.name == "JOB_STATE_SUCCEEDED"
    assert (job.completion_stats.successful_count, job.completion_stats.failed_count) == (2, 1)
    assert len(lines(job, "prediction.errors")) == 1


@call("BatchPredictionJob.submit(), .list(filter=), .cancel(), .delete()")
def test_life_of_a_job(bucket: Emulator, model: aiplatform.Model) -> None:
    rows = [text("Describe this X-ray.", max_tokens=200) for _ in range(200)]
    job = aiplatform.BatchPredictionJob.submit(model_name=model.resource_name, **options(source(bucket, *rows)))

    listed = [
        each.resource_name
        for each in aiplatform.BatchPredictionJob.list(filter=f'display_name="{job.display_name}"')
    ]
    job.cancel()
    wait_until(lambda: aiplatform.BatchPredictionJob(job.resource_name).state.name == "JOB_STATE_CANCELLED", 60)
    job.delete()

    assert listed == [job.resource_name]
    with pytest.raises(exceptions.NotFound):
        aiplatform.BatchPredictionJob(job.resource_name)


@call("BatchPredictionJob.create(model_name=) of a version")
def test_version_of_a_model_is_asked(bucket: Emulator, model: aiplatform.Model) -> None:
    uri = source(bucket, text("Describe this X-ray.", max_tokens=2))

    job = aiplatform.BatchPredictionJob.create(model_name=f"{model.resource_name}@2", **options(uri))

    assert job.state.name == "JOB_STATE_SUCCEEDED"
    assert job.gca_resource.model_version_id == "2"


@call("Model.batch_predict() of a model that is not there", "refused", "404 NOT_FOUND")
def test_model_that_is_not_there_is_not_found(bucket: Emulator) -> None:
    with pytest.raises(exceptions.NotFound):
        aiplatform.BatchPredictionJob.submit(model_name="nobody", **options(source(bucket, {})))


@call("Model.batch_predict(bigquery_source=)", "refused", "jsonl on Cloud Storage or a directory")
def test_tables_are_refused(model: aiplatform.Model) -> None:
    given = {**options(""), "gcs_source": None, "bigquery_source": "bq://radiology.reports.week"}

    with pytest.raises(exceptions.GoogleAPICallError, match=r"(?i)bigquery|gcs|jsonl"):
        aiplatform.BatchPredictionJob.submit(model_name=model.resource_name, **given)
