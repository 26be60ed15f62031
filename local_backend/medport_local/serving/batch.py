"""Batch prediction jobs: JSON lines in, JSON lines out, a row for a row.

Each row is asked for and answered by itself, in the list form: an object that is walked as a list gives a row
``{"prediction": "id"}``, which is how a job can succeed with nothing in it. So every answer is checked to be one
of its model's before it counts. Rows wait for online requests: a full queue is waited for, never a row's error.

Jobs are in memory: a server that stops cancels them. What a job has written stays; no file is ever half written.

Source: Vertex AI REST reference, projects.locations.batchPredictionJobs.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import orjson
from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from medport.errors import InputError, MedportError, NotFound, QuotaExceeded, row_of
from medport.wire import Deferred, checked
from medport_local.serving import container
from medport_local.serving.batch_files import BatchFiles
from medport_local.serving.endpoints import Served
from medport_local.serving.outcome import Facts

T = TypeVar("T")
State: TypeAlias = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLING", "CANCELLED"]

ROWS_AT_ONCE = 4
JOBS_AT_ONCE = 2
MAX_JOBS = 1000
SHARD_ROWS = 1000
MAX_ROW_BYTES = 10 * 1024 * 1024
_OVER = ("SUCCEEDED", "FAILED", "CANCELLED")

logger = logging.getLogger(__name__)


class _Camel(Deferred):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class GcsSource(_Camel):
    uris: Annotated[list[str], Field(min_length=1, max_length=1000)]


class InputConfig(_Camel):
    instances_format: Literal["jsonl"]
    gcs_source: GcsSource


class GcsDestination(_Camel):
    output_uri_prefix: Annotated[str, Field(min_length=1, max_length=1024)]


class OutputConfig(_Camel):
    predictions_format: Literal["jsonl"]
    gcs_destination: GcsDestination


class JobRequest(_Camel):
    """A BatchPredictionJob as it is asked for. Resources and tuning are taken and mean nothing here."""

    display_name: Annotated[str, Field(min_length=1, max_length=128)]
    model: str = ""
    endpoint: str = ""
    input_config: InputConfig
    output_config: OutputConfig
    labels: dict[str, str] = Field(default_factory=dict)
    dedicated_resources: dict[str, Any] | None = None
    manual_batch_tuning_parameters: dict[str, Any] | None = None
    service_account: str | None = None
    disable_container_logging: bool = False
    generate_explanation: Literal[False] = False
    model_parameters: None = None
    """Parameters belong into each row."""


@dataclass(slots=True, eq=False)
class Row:
    """Who asks, when nobody waits at a connection."""

    deadline: float | None = None
    facts: Facts = field(default_factory=Facts)
    answer_headers: dict[str, str] = field(default_factory=dict)

    async def attended(self, work: Coroutine[Any, Any, T]) -> T:
        return await work

    def first_token(self) -> None:
        pass


@dataclass(slots=True, eq=False)
class Job:
    """One job."""

    id: str
    parent: str
    served: Served
    request: JobRequest
    created: datetime
    state: State = "PENDING"
    started: datetime | None = None
    ended: datetime | None = None
    output: str | None = None
    error: MedportError | None = None
    succeeded: int = 0
    failed: int = 0
    rows: int = 0
    task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return f"{self.parent}/batchPredictionJobs/{self.id}"

    def resource(self) -> dict[str, Any]:
        """The BatchPredictionJob as Vertex shows it."""
        request = self.request.model_dump(by_alias=True, exclude_unset=True)
        shown: dict[str, Any] = {
            **request,
            "name": self.name,
            "state": f"JOB_STATE_{self.state}",
            "createTime": _rfc3339(self.created),
            "updateTime": _rfc3339(self.ended or self.started or self.created),
            "modelVersionId": self.served.model_version_id,
            "completionStats": {
                "successfulCount": str(self.succeeded),
                "failedCount": str(self.failed),
                "incompleteCount": str(max(0, self.rows - self.succeeded - self.failed)),
            },
        }
        if self.started is not None:
            shown["startTime"] = _rfc3339(self.started)
        if self.ended is not None:
            shown["endTime"] = _rfc3339(self.ended)
        if self.output is not None:
            shown["outputInfo"] = {"gcsOutputDirectory": self.output}
        if self.error is not None:
            shown["error"] = {"code": 3, "message": str(self.error)}
        return shown


class Batches:
    """The jobs of one server. Belongs to its event loop."""

    def __init__(self, served: Mapping[str, Served], files: BatchFiles) -> None:
        self._served = served
        self._files = files
        self._jobs: dict[str, Job] = {}
        self._places = asyncio.Semaphore(JOBS_AT_ONCE)
        self._ids = itertools.count(time.time_ns() // 1000)

    def read(self, body: Mapping[str, object], parent: str) -> Job:
        """A job as it is asked for, not begun.

        Raises:
            InputError: names the field.
            NotFound: there is no such model or endpoint.
            QuotaExceeded: there are too many jobs.
        """
        request = checked(JobRequest, {key: value for key, value in body.items() if value not in (None, "", {})})
        served = self._target(request)
        self._files.check(
            request.input_config.gcs_source.uris, request.output_config.gcs_destination.output_uri_prefix
        )
        if len(self._jobs) >= MAX_JOBS:
            raise QuotaExceeded(f"there are {MAX_JOBS} jobs", remedy="delete jobs that are over", retry_after_s=60)
        return Job(str(next(self._ids)), parent, replace(served, lists=True), request, datetime.now(UTC))

    def start(self, job: Job) -> None:
        """Queue it."""
        self._jobs[job.id] = job
        job.task = asyncio.get_running_loop().create_task(self._run(job))

    def all(self, parent: str) -> Sequence[Job]:
        """The jobs of a project and location, newest first."""
        return [job for job in reversed(self._jobs.values()) if job.parent == parent]

    def find(self, parent: str, id: str) -> Job:
        """One job.

        Raises:
            NotFound: there is none of that id.
        """
        job = self._jobs.get(id)
        if job is None or job.parent != parent:
            raise NotFound("there is no such job", field="batchPredictionJob", remedy="list the jobs")
        return job

    def cancel(self, job: Job) -> None:
        """Stop at the next rows; a job that is over stays as it is."""
        if job.state not in _OVER and job.task is not None:
            job.state = "CANCELLING"
            job.task.cancel()

    def delete(self, job: Job) -> None:
        """Forget a job that is over.

        Raises:
            InputError: it is not over.
        """
        if job.state not in _OVER:
            raise InputError("the job is not over", field="batchPredictionJob", remedy="cancel it first")
        del self._jobs[job.id]

    async def close(self) -> None:
        """Cancel what is under way."""
        tasks = [job.task for job in self._jobs.values() if job.task is not None and not job.task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _target(self, request: JobRequest) -> Served:
        if bool(request.model) == bool(request.endpoint):
            raise InputError("give a model, or an endpoint", field="model", remedy="give one of the two")
        wanted = (request.model or request.endpoint).partition("@")[0]
        for served in self._served.values():
            endpoint = served.model.replace("/models/", "/endpoints/")
            if wanted in (served.model, endpoint):
                return served
        field = "model" if request.model else "endpoint"
        raise NotFound("this is not served here", field=field, remedy="give the resource name of what is served")

    async def _run(self, job: Job) -> None:
        try:
            async with self._places:
                job.state, job.started = "RUNNING", datetime.now(UTC)
                await self._work(job)
            job.state = "SUCCEEDED"
        except asyncio.CancelledError:
            job.state = "CANCELLED"
        except MedportError as error:
            job.state, job.error = "FAILED", error
        except Exception as fault:
            logger.error("job %s: %s", job.id, type(fault).__name__)
            job.state, job.error = "FAILED", MedportError("the server failed", remedy="see its log")
        finally:
            job.ended = datetime.now(UTC)

    async def _work(self, job: Job) -> None:
        config = job.request.input_config.gcs_source
        lines = await self._blocking(job, self._files.lines, config.uris)
        if not lines:
            raise InputError(
                "holds no rows", field="inputConfig.gcsSource.uris", remedy="write one instance a line"
            )
        job.rows = len(lines)
        moment = job.created.strftime("%Y_%m_%dT%H_%M_%S_%f")[:-3] + "Z"
        prefix = job.request.output_config.gcs_destination.output_uri_prefix.rstrip("/")
        folder = f"{prefix}/prediction-{job.served.endpoint_id}-{moment}"
        job.output = folder
        shards = math.ceil(len(lines) / SHARD_ROWS)
        errors: list[bytes] = []
        for i in range(shards):
            part = lines[i * SHARD_ROWS : (i + 1) * SHARD_ROWS]
            good, bad = await self._shard(job, part)
            errors += bad
            name = f"{folder}/prediction.results-{i:05}-of-{shards:05}"
            await self._blocking(job, self._files.write, name, b"".join(good))
        if errors:
            name = f"{folder}/prediction.errors_stats-00000-of-00001"
            await self._blocking(job, self._files.write, name, b"".join(errors))

    async def _shard(self, job: Job, lines: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        """The result lines and the error lines, each in the order of the rows."""
        places = asyncio.Semaphore(ROWS_AT_ONCE)

        async def one(line: bytes) -> tuple[bool, bytes]:
            async with places:
                good, written = await _answer(job.served, line)
            job.succeeded += good
            job.failed += not good
            return good, written

        tasks = [asyncio.ensure_future(one(line)) for line in lines]
        try:
            done = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return [line for good, line in done if good], [line for good, line in done if not good]

    def _blocking(self, job: Job, work: Any, *arguments: Any) -> Awaitable[Any]:
        return job.served.threads.fetching(work, *arguments)


async def _answer(served: Served, line: bytes) -> tuple[bool, bytes]:
    """One row's line, and whether it is a result."""
    instance: object = None
    try:
        if len(line) > MAX_ROW_BYTES:
            raise InputError(f"is over {MAX_ROW_BYTES} bytes", field="row", remedy="send fewer or smaller images")
        try:
            instance = orjson.loads(line)
        except orjson.JSONDecodeError:
            raise InputError("is not JSON", field="row", remedy="write one JSON object a line") from None
        prediction = _checked(await _asked(served, instance), served, instance)
    except MedportError as error:
        row = row_of(error)
        said = {"code": row.http, "message": str(error), "status": row.status}
        return False, _line({"instance": instance, "error": said})
    return True, _line({"instance": instance, "prediction": prediction})


async def _asked(served: Served, instance: object) -> Mapping[str, object]:
    while True:
        try:
            return await container.predict(Row(), served, {"instances": [instance]})
        except QuotaExceeded as busy:
            await asyncio.sleep(min(busy.retry_after_s or 1.0, 10.0))


def _checked(body: Mapping[str, object], served: Served, instance: object) -> object:
    """The row's prediction, if it is one of the model's.

    Raises:
        InputError: it is an error, or something else than this model answers.
    """
    predictions = body.get("predictions")
    if "error" in body or not isinstance(predictions, list) or len(predictions) != 1:
        raise InputError(_said(body.get("error")), field="row")
    (prediction,) = predictions
    if isinstance(prediction, str) and isinstance(instance, Mapping) and "prompt" in instance:
        return prediction
    if not isinstance(prediction, Mapping) or "error" in prediction:
        raise InputError(_said(prediction.get("error") if isinstance(prediction, Mapping) else None), field="row")
    keys = ("embedding", "patch_embeddings") if served.dialect == "medsiglip" else ("choices",)
    if not any(key in prediction for key in keys):
        raise InputError("the answer is none of this model's", field="row")
    return prediction


def _said(error: object) -> str:
    if isinstance(error, Mapping):
        error = " ".join(str(error[key]) for key in ("code", "description", "message") if key in error)
    return str(error or "the answer is none of this model's")


def _line(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
