"""Batch prediction jobs as resources: what state one is in, how it is shown, and how it is kept.

Source: Vertex AI REST reference, projects.locations.batchPredictionJobs.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from medport.errors import InputError, MedportError, row_of
from medport.wire.vertex import RPC_CODES, Pins, rfc3339
from medport_local.serving.batch_jobs import JobRequest
from medport_local.serving.batch_targets import Target
from medport_local.serving.endpoints import Served

Json = dict[str, Any]
State: TypeAlias = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLING", "CANCELLED"]
"""``PARTIALLY_SUCCEEDED`` is never used: Google's client does not take it for an end, and would wait for ever."""

_OVER = ("SUCCEEDED", "FAILED", "CANCELLED")
_RESULT = ""
"""Under which results are counted among the statuses of errors."""
_SAME = ("model", "snapshot_sha256")
"""What makes two answers one model's, wherever it is deployed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What of a job changes seldom, and is on the disk before it is told."""

    state: State = "PENDING"
    started: datetime | None = None
    ended: datetime | None = None
    error: Json | None = None
    """google.rpc.Status."""

    @property
    def over(self) -> bool:
        return self.state in _OVER

    def begun(self) -> Standing:
        """It runs; since when it did before, if a restart interrupted it."""
        return replace(self, state="RUNNING", started=self.started or datetime.now(UTC))

    def cancelling(self) -> Standing:
        """It was told to stop."""
        return replace(self, state="CANCELLING")

    def over_with(self, error: MedportError | None, *, stopped: bool) -> Standing:
        """It is over, in the state that follows from what happened."""
        if error is not None:
            said = {"code": RPC_CODES.get(row_of(error).status, 2), "message": str(error)}
            return replace(self, state="FAILED", ended=datetime.now(UTC), error=said)
        return replace(self, state="CANCELLED" if stopped else "SUCCEEDED", ended=datetime.now(UTC))


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """One job. Belongs to the event loop, but for ``stopped``."""

    id: str
    parent: str
    """``projects/…/locations/…``."""
    target: Target
    request: JobRequest
    created: datetime
    tenant: str = ""
    """The name of the key that asked for it."""
    standing: Standing = field(default_factory=Standing)
    updated: datetime | None = None
    folder: str | None = None
    """Where the results are, once there may be some."""
    plan: list[int] = field(default_factory=list)
    """Rows of each file of results, once the input was read."""
    digest: str = ""
    """Of the whole input, by which a job that goes on knows that it is the same."""
    finished: list[dict[str, int]] = field(default_factory=list)
    """Of each file of results that is whole: how many rows by status, results under ``""``."""
    answering: list[Json] = field(default_factory=list)
    """Which bytes gave the answers; one entry, but for an endpoint whose split names several models."""
    counts: Counter[str] = field(default_factory=Counter)
    """Of all rows whose lines are written, as ``finished``."""
    restored: bool = False
    """It was begun before the server was."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while ``standing`` moves."""

    @property
    def name(self) -> str:
        return f"{self.parent}/batchPredictionJobs/{self.id}"

    @property
    def state(self) -> State:
        return self.standing.state

    @property
    def over(self) -> bool:
        return self.standing.over

    @property
    def rows(self) -> int:
        return sum(self.plan)

    @property
    def succeeded(self) -> int:
        return self.counts[_RESULT]

    @property
    def failures(self) -> Counter[str]:
        """Rows without a result, by status."""
        return Counter({status: count for status, count in self.counts.items() if status != _RESULT})

    @property
    def failed(self) -> int:
        return self.failures.total()

    @property
    def moment(self) -> str:
        """When it was made, as the names of folders have it. No two jobs of a server have the same."""
        return self.created.strftime("%Y_%m_%dT%H_%M_%S_%f")[:-3] + "Z"

    def stopped(self) -> bool:
        """Whether it is to end before its last row. For any thread."""
        return self.stop.is_set()

    def count(self, status: str | None) -> None:
        """Count a row whose line is written: a result, or the status of its error."""
        self.counts[_RESULT if status is None else status] += 1
        self.updated = datetime.now(UTC)

    def close_file(self, counts: Mapping[str, int]) -> None:
        """Note that the next file of results is whole."""
        self.finished.append({status: count for status, count in counts.items() if count})

    def answered_by(self, served: Served) -> bool:
        """Note whose the answers are; whether that was not known.

        Raises:
            InputError: the job asks one model version, and that means other bytes than when it began.
        """
        entry = {
            "model": f"{served.model}@{served.model_version_id}",
            "deployed_model_id": served.deployed_model_id,
            **served.pins.as_dict(),
        }
        if any(all(known[key] == entry[key] for key in _SAME) for known in self.answering):
            return False
        if self.answering and self.target.model:
            raise InputError(
                "the model version means other bytes than when the job began",
                field="model",
                remedy="make a job again: rows of two models do not belong into one folder",
            )
        self.answering.append(entry)
        return True

    def provenance(self) -> Json:
        """Which bytes answer its rows, and since when: the content of ``provenance-….json`` beside the results."""
        started = {"started": rfc3339(self.standing.started or self.created)}
        if len(self.answering) == 1:
            return {"job": self.name, **self.answering[0], **started}
        return {"job": self.name, "endpoint": self.target.endpoint, "models": self.answering, **started}

    def resource(self) -> Json:
        """The BatchPredictionJob as Vertex shows it."""
        standing = self.standing
        times = (self.created, standing.started, self.updated, standing.ended)
        shown: Json = {
            **self.request.model_dump(by_alias=True, exclude_unset=True),
            "name": self.name,
            "state": f"JOB_STATE_{standing.state}",
            "createTime": rfc3339(self.created),
            "updateTime": rfc3339(max(filter(None, times))),
            "completionStats": {
                "successfulCount": str(self.succeeded),
                "failedCount": str(self.failed),
                "incompleteCount": str(max(0, self.rows - self.succeeded - self.failed)),
            },
        }
        if self.target.version:
            shown["modelVersionId"] = self.target.version
        if standing.started is not None:
            shown["startTime"] = rfc3339(standing.started)
        if standing.ended is not None:
            shown["endTime"] = rfc3339(standing.ended)
        if self.folder is not None:
            shown["outputInfo"] = {"gcsOutputDirectory": self.folder}
        if self.failures:
            shown["partialFailures"] = [
                {"code": RPC_CODES.get(status, 2), "message": f"{count} rows: {status}"}
                for status, count in self.failures.most_common(20)
            ]
        if standing.error is not None:
            shown["error"] = standing.error
        return shown

    def kept(self, standing: Standing | None = None) -> Json:
        """All of it in JSON, for ``from_kept``. Of a job that goes on, rows count by whole files.

        Args:
            standing: what is about to be its standing.
        """
        now = standing or self.standing
        return {
            "parent": self.parent,
            "target": {**asdict(self.target), "pins": asdict(self.target.pins)},
            "request": self.request.model_dump(by_alias=True, exclude_unset=True),
            "created": rfc3339(self.created),
            "tenant": self.tenant,
            "state": now.state,
            "started": now.started and rfc3339(now.started),
            "ended": now.ended and rfc3339(now.ended),
            "error": now.error,
            "folder": self.folder,
            "plan": self.plan,
            "digest": self.digest,
            "finished": self.finished,
            "answering": self.answering,
            # A job that is over goes nowhere: all that it has is kept.
            "counts": dict(self.counts) if now.over else None,
        }


def from_kept(name: str, kept: Json) -> Job:
    """The job that ``Job.kept`` wrote."""
    target = Target(**{**kept["target"], "pins": Pins(**kept["target"]["pins"])})
    job = Job(
        id=name.rpartition("/")[2],
        parent=kept["parent"],
        target=target,
        request=JobRequest.model_validate(kept["request"]),
        created=datetime.fromisoformat(kept["created"]),
        tenant=kept["tenant"],
        standing=Standing(
            state=kept["state"], started=_time(kept["started"]), ended=_time(kept["ended"]), error=kept["error"]
        ),
        folder=kept["folder"],
        plan=kept["plan"],
        digest=kept["digest"],
        finished=kept["finished"],
        answering=kept["answering"],
        restored=True,
    )
    for counts in [kept["counts"]] if kept["counts"] is not None else job.finished:
        job.counts.update(counts)
    if job.state == "CANCELLING":
        job.stop.set()
    return job


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
