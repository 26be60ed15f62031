"""Batch prediction jobs as resources: what one is asked for with, its state, and where all of them are kept.

They are in memory, and so end with the server. ``Jobs`` is all that would have to be another to keep them.

Source: Vertex AI REST reference, projects.locations.batchPredictionJobs.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from medport.errors import InputError, MedportError, NotFound, QuotaExceeded, row_of
from medport.wire import Deferred, Whole
from medport.wire.vertex import filter_terms, rfc3339
from medport_local.serving.endpoints import Served

State: TypeAlias = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLING", "CANCELLED"]
"""``PARTIALLY_SUCCEEDED`` is never used: Google's client does not take it for an end, and would wait for ever."""

MAX_KEPT = 1000
"""Jobs. The oldest that is over makes room for a new one."""
MAX_PAGE = 100
MAX_LABELS = 64
_OVER = ("SUCCEEDED", "FAILED", "CANCELLED")
# google.rpc.Code, as far as the table of errors has it.
_RPC = {
    "CANCELLED": 1, "UNKNOWN": 2, "INVALID_ARGUMENT": 3, "DEADLINE_EXCEEDED": 4, "NOT_FOUND": 5,
    "PERMISSION_DENIED": 7, "RESOURCE_EXHAUSTED": 8, "FAILED_PRECONDITION": 9, "INTERNAL": 13, "UNAVAILABLE": 14,
    "UNAUTHENTICATED": 16,
}  # fmt: skip


class _Camel(Deferred):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class GcsSource(_Camel):
    uris: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=2048)]], Field(min_length=1, max_length=1000)
    ]


class InputConfig(_Camel):
    instances_format: Literal["jsonl"]
    gcs_source: GcsSource


class GcsDestination(_Camel):
    output_uri_prefix: Annotated[str, Field(min_length=1, max_length=1024)]


class OutputConfig(_Camel):
    predictions_format: Literal["jsonl"]
    gcs_destination: GcsDestination


class ReservationAffinity(_Camel):
    reservation_affinity_type: Whole | str = 0
    key: str = ""
    values: list[str] = Field(default_factory=list, max_length=100)


class MachineSpec(_Camel):
    machine_type: str = ""
    accelerator_type: Whole | str = 0
    accelerator_count: Whole = 0
    gpu_partition_size: str = ""
    tpu_topology: str = ""
    reservation_affinity: ReservationAffinity | None = None


class BatchDedicatedResources(_Camel):
    machine_spec: MachineSpec | None = None
    starting_replica_count: Whole = 0
    max_replica_count: Whole = 0
    spot: bool = False


class ManualBatchTuningParameters(_Camel):
    batch_size: Whole = 0


class ModelParameters(_Camel):
    """Ours: parameters of the model itself belong into each row."""

    result_form: Literal["row", "container"] = "row"
    """``container``: what the container answered to the row, ``{"predictions": …}``, and not the row's part of
    it. That is what readers look for that were written for the published notebooks of MedGemma."""


class JobRequest(_Camel):
    """A BatchPredictionJob as it is asked for. Resources and tuning are taken and mean nothing here."""

    display_name: Annotated[str, Field(min_length=1, max_length=128)]
    model: str = ""
    endpoint: str = ""
    input_config: InputConfig
    output_config: OutputConfig
    labels: Annotated[dict[str, str], Field(max_length=MAX_LABELS)] = Field(default_factory=dict)
    dedicated_resources: BatchDedicatedResources | None = None
    manual_batch_tuning_parameters: ManualBatchTuningParameters | None = None
    service_account: str | None = None
    disable_container_logging: bool = False
    generate_explanation: Literal[False] = False
    model_parameters: ModelParameters | None = None

    @property
    def in_container_form(self) -> bool:
        return self.model_parameters is not None and self.model_parameters.result_form == "container"


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """One job. Belongs to the event loop, but for ``stopped``."""

    id: str
    parent: str
    """``projects/…/locations/…``."""
    served: Served
    request: JobRequest
    created: datetime
    tenant: str = ""
    """The name of the key that asked for it."""
    state: State = "PENDING"
    started: datetime | None = None
    updated: datetime | None = None
    ended: datetime | None = None
    folder: str | None = None
    """Where the results are, once there may be some."""
    error: MedportError | None = None
    rows: int = 0
    succeeded: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Rows without a result, by status."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        return f"{self.parent}/batchPredictionJobs/{self.id}"

    @property
    def over(self) -> bool:
        return self.state in _OVER

    @property
    def failed(self) -> int:
        return self.failures.total()

    def stopped(self) -> bool:
        """Whether it is to end before its last row. For any thread."""
        return self.stop.is_set()

    def begin(self) -> None:
        self.state, self.started = "RUNNING", datetime.now(UTC)

    def count(self, status: str | None) -> None:
        """Count a row whose line is written: a result, or the status of its error."""
        if status is None:
            self.succeeded += 1
        else:
            self.failures[status] += 1
        self.updated = datetime.now(UTC)

    def end(self, error: MedportError | None = None) -> None:
        """It is over, in the state that follows from what happened."""
        self.ended = datetime.now(UTC)
        self.error = error
        if error is not None:
            self.state = "FAILED"
        else:
            self.state = "CANCELLED" if self.stopped() else "SUCCEEDED"

    def provenance(self) -> dict[str, Any]:
        """Which bytes answer its rows, and since when: the content of ``provenance-….json`` beside the results."""
        served = self.served
        return {
            "job": self.name,
            "model": f"{served.model}@{served.model_version_id}",
            "deployed_model_id": served.deployed_model_id,
            **served.pins.as_dict(),
            "started": rfc3339(self.started or self.created),
        }

    def resource(self) -> dict[str, Any]:
        """The BatchPredictionJob as Vertex shows it."""
        shown: dict[str, Any] = {
            **self.request.model_dump(by_alias=True, exclude_unset=True),
            "name": self.name,
            "state": f"JOB_STATE_{self.state}",
            "createTime": rfc3339(self.created),
            "updateTime": rfc3339(self.ended or self.updated or self.started or self.created),
            "modelVersionId": self.served.model_version_id,
            "completionStats": {
                "successfulCount": str(self.succeeded),
                "failedCount": str(self.failed),
                "incompleteCount": str(max(0, self.rows - self.succeeded - self.failed)),
            },
        }
        if self.started is not None:
            shown["startTime"] = rfc3339(self.started)
        if self.ended is not None:
            shown["endTime"] = rfc3339(self.ended)
        if self.folder is not None:
            shown["outputInfo"] = {"gcsOutputDirectory": self.folder}
        if self.failures:
            shown["partialFailures"] = [
                {"code": _RPC.get(status, 2), "message": f"{count} rows: {status}"}
                for status, count in self.failures.most_common(20)
            ]
        if self.error is not None:
            shown["error"] = {"code": _RPC.get(row_of(self.error).status, 2), "message": str(self.error)}
        return shown


class Jobs:
    """The jobs of one server, oldest first."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._ids = itertools.count(time.time_ns() // 1000)
        self._last = datetime.fromtimestamp(0, UTC)

    def make(self, parent: str, served: Served, request: JobRequest, *, tenant: str = "") -> Job:
        """A new job, not kept yet. No two have the same time to the millisecond, which is in their folder's name.

        Raises:
            QuotaExceeded: too many jobs are not over.
        """
        if sum(not job.over for job in self._jobs.values()) >= MAX_KEPT:
            raise QuotaExceeded(f"{MAX_KEPT} jobs wait or run", remedy="wait, or cancel some", retry_after_s=60)
        now = datetime.now(UTC)
        now = now.replace(microsecond=now.microsecond // 1000 * 1000)
        self._last = max(now, self._last + timedelta(milliseconds=1))
        return Job(
            id=str(next(self._ids)),
            parent=parent,
            served=served,
            request=request,
            created=self._last,
            tenant=tenant,
        )

    def keep(self, job: Job) -> None:
        if len(self._jobs) >= MAX_KEPT:
            oldest = next(job for job in self._jobs.values() if job.over)
            del self._jobs[oldest.id]
        self._jobs[job.id] = job

    def find(self, parent: str, id: str) -> Job:
        """One job.

        Raises:
            NotFound: there is none of that id.
        """
        job = self._jobs.get(id)
        if job is None or job.parent != parent:
            raise NotFound("there is no such job", field="batchPredictionJob", remedy="list the jobs")
        return job

    def running(self) -> Sequence[Job]:
        """Those that are not over."""
        return [job for job in self._jobs.values() if not job.over]

    def forget(self, job: Job) -> None:
        """Drop a job that is over; its files stay.

        Raises:
            InputError: it is not over.
        """
        if not job.over:
            raise InputError("the job is not over", field="batchPredictionJob", remedy="cancel it first")
        del self._jobs[job.id]

    def page(
        self,
        parent: str,
        *,
        may: Callable[[str], bool],
        wanted: str = "",
        size: str = "",
        token: str = "",
    ) -> tuple[Sequence[Job], str]:
        """Some of the jobs of a project and location, newest first, and where the next ones begin.

        Args:
            may: whether the caller may know of an endpoint's jobs.
            wanted, size, token: ``filter``, ``pageSize`` and ``pageToken`` as they came.

        Raises:
            InputError: names the parameter.
        """
        fits = [_term(found) for found in filter_terms(wanted, _TERM, remedy=_TERMS)]
        most = min(_whole(size, "pageSize") or MAX_PAGE, MAX_PAGE)
        before = _whole(token, "pageToken")
        found: list[Job] = []
        for job in reversed(self._jobs.values()):
            if job.parent != parent or (before and int(job.id) >= before) or not may(job.served.endpoint_id):
                continue
            if not all(fit(job) for fit in fits):
                continue
            if len(found) == most:
                return found, found[-1].id
            found.append(job)
        return found, ""


_TERM = re.compile(
    r"""(?P<key>display_name|displayName|state|model|labels\.(?P<label>[a-z0-9_-]{1,63}))
        \s*(?P<not>!?)=\s*(?P<quote>["']?)(?P<value>[^"']*)(?P=quote)""",
    re.VERBOSE,
)
_TERMS = 'use display_name="X", state="JOB_STATE_X", model="X" or labels.KEY="VALUE", joined by AND'


def _term(found: re.Match[str]) -> Callable[[Job], bool]:
    def has(job: Job) -> str | None:
        if found["label"]:
            return job.request.labels.get(found["label"])
        return {"state": f"JOB_STATE_{job.state}", "model": job.request.model}.get(
            found["key"], job.request.display_name
        )

    return lambda job: (has(job) == found["value"]) != bool(found["not"])


def _whole(text: str, field: str) -> int:
    if text and not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise InputError("is not a number from before", field=field, remedy="leave it out")
    return int(text or 0)
