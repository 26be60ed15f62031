"""Google's own client submits batch jobs here and reads their results, through a real Cloud Storage server."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from support.gcs import Emulator, gcs_emulator

from medport_local import inprocess
from medport_local.app import Settings

aiplatform = pytest.importorskip("google.cloud.aiplatform")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
BUCKET = "batch-jobs"


@pytest.fixture(scope="module")
def bucket() -> Iterator[Emulator]:
    with gcs_emulator(BUCKET) as emulator, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", emulator.url)
        yield emulator


@pytest.fixture(scope="module")
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


@pytest.mark.parametrize("model", ["medgemma", "medsiglip"])
def test_batch_predict_and_iterate_over_the_outputs(
    server: inprocess.Server, bucket: Emulator, model: str
) -> None:
    chat = {
        "@requestFormat": "chatCompletions",
        "messages": [{"role": "user", "content": "Describe."}],
        "max_tokens": 4,
    }
    rows = [chat, chat] if model == "medgemma" else [{"text": "a"}, {"text": "b"}]
    bucket.upload(BUCKET, f"{model}.jsonl", "\n".join(json.dumps(row) for row in rows).encode())

    job = aiplatform.Model(model).batch_predict(
        job_display_name="nightly",
        gcs_source=f"gs://{BUCKET}/{model}.jsonl",
        gcs_destination_prefix=f"gs://{BUCKET}/out",
        instances_format="jsonl",
        predictions_format="jsonl",
        machine_type="n1-standard-4",
        sync=True,
    )

    assert job.state.name == "JOB_STATE_SUCCEEDED"
    assert job.completion_stats.successful_count == 2
    found = [
        name for name in bucket.names(BUCKET) if "prediction.results" in name and f"prediction-{model}" in name
    ]
    lines = [json.loads(line) for name in found for line in bucket.download(BUCKET, name).splitlines()]
    key = "choices" if model == "medgemma" else "embedding"
    assert [key in line["prediction"] for line in lines] == [True, True]
    assert sum(1 for _ in job.iter_outputs()) == 1
    assert job.resource_name in [each.resource_name for each in aiplatform.BatchPredictionJob.list()]
    job.delete()
    assert job.resource_name not in [each.resource_name for each in aiplatform.BatchPredictionJob.list()]
