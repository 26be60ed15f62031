"""The batch jobs of one server: all that there are, and the pages of them that a caller asks for.

Source: Vertex AI REST reference, projects.locations.batchPredictionJobs.list.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import operator
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from medport.errors import InputError, NotFound, PreconditionFailed, QuotaExceeded
from medport.wire.vertex import filter_terms, rfc3339
from medport_local.serving.batch_jobs import JobRequest
from medport_local.serving.batch_state import Job
from medport_local.serving.batch_targets import Target

MAX_KEPT = 1000
"""Jobs. The oldest that is over makes room for a new one."""
MAX_PAGE = 100


class Jobs:
    """The jobs of one server, oldest first. In memory; what outlives it is a store's matter."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._ids = itertools.count(time.time_ns() // 1000)
        self._last = datetime.fromtimestamp(0, UTC)

    def make(self, parent: str, target: Target, request: JobRequest, *, tenant: str = "") -> Job:
        """A new job, not kept yet. No two have the same time to the millisecond: it is in their folder's name."""
        now = datetime.now(UTC)
        now = now.replace(microsecond=now.microsecond // 1000 * 1000)
        self._last = max(now, self._last + timedelta(milliseconds=1))
        return Job(
            id=str(next(self._ids)),
            parent=parent,
            target=target,
            request=request,
            created=self._last,
            tenant=tenant,
        )

    def displaced(self) -> Job | None:
        """The job that goes if one more is kept; none as long as there is room.

        Raises:
            QuotaExceeded: none of them is over.
        """
        if len(self._jobs) < MAX_KEPT:
            return None
        for job in self._jobs.values():
            if job.over:
                return job
        raise QuotaExceeded(f"{MAX_KEPT} jobs wait or run", remedy="wait, or cancel some", retry_after_s=60)

    def keep(self, job: Job) -> None:
        """Add one that is newer than all others."""
        displaced = self.displaced()
        if displaced is not None:
            del self._jobs[displaced.id]
        self._jobs[job.id] = job

    def restore(self, job: Job) -> None:
        """Add one from before a restart. Those that are made later get other ids and times, whatever the clock."""
        self._jobs[job.id] = job
        self._ids = itertools.count(max(time.time_ns() // 1000, int(job.id) + 1))
        self._last = max(self._last, job.created)

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
        """Those that are not over, the oldest first."""
        return [job for job in self._jobs.values() if not job.over]

    def check_over(self, job: Job) -> None:
        """Raise ``PreconditionFailed`` if a job may not be dropped yet."""
        if not job.over:
            raise PreconditionFailed(
                "the job is not over", field="batchPredictionJob", remedy="cancel it first, and wait until it is"
            )

    def forget(self, job: Job) -> None:
        """Drop one that is over; its files stay."""
        assert job.over
        self._jobs.pop(job.id, None)

    def page(self, parent: str, query: Mapping[str, str], *, may: Callable[[Job], bool]) -> tuple[list[Job], str]:
        """Some of the jobs of a project and location, newest first, and where the next ones begin.

        Args:
            query: ``filter``, ``orderBy``, ``pageSize`` and ``pageToken`` as they came; others mean nothing.
            may: whether the caller may know of a job.

        Raises:
            InputError: names the parameter.
        """
        fits = [_term(found) for found in filter_terms(query.get("filter", ""), _TERM, remedy=_TERMS)]
        key, descending = _order(query.get("orderBy", ""))
        most = min(_whole(query.get("pageSize", "")) or MAX_PAGE, MAX_PAGE)
        after = _place_of(query.get("pageToken", ""), query)
        found = [
            job
            for job in self._jobs.values()
            if job.parent == parent and may(job) and all(fit(job) for fit in fits)
        ]
        places = {job.id: (key(job), int(job.id)) for job in found}
        found.sort(key=lambda job: places[job.id], reverse=descending)
        if after is not None:
            passed = operator.lt if descending else operator.gt
            found = [job for job in found if passed(places[job.id], after)]
        if len(found) <= most:
            return found, ""
        last = places[found[most - 1].id]
        token = orjson.dumps([_asked(query), *last])
        return found[:most], base64.urlsafe_b64encode(token).decode().rstrip("=")


_KEYS: Mapping[str, Callable[[Job], str]] = {
    "create_time": lambda job: rfc3339(job.created),
    "update_time": lambda job: str(job.resource()["updateTime"]),
    "start_time": lambda job: str(job.resource().get("startTime", "")),
    "end_time": lambda job: str(job.resource().get("endTime", "")),
    "display_name": lambda job: job.request.display_name,
    "state": lambda job: job.state,
}


def _order(wanted: str) -> tuple[Callable[[Job], str], bool]:
    name, _, direction = wanted.strip().partition(" ")
    if not name:
        return _KEYS["create_time"], True
    key = _KEYS.get(_snake(name))
    direction = direction.strip() or "asc"
    if key is None or direction not in ("asc", "desc"):
        raise InputError(
            "is no order that is known here",
            field="orderBy",
            remedy=f"use one of {', '.join(_KEYS)}, and desc or asc",
        )
    return key, direction == "desc"


_TERM = re.compile(
    r"""labels\.(?P<has>[a-z0-9_-]{1,63}):\*
        |(?P<key>display_name|displayName|state|model|labels\.(?P<label>[a-z0-9_-]{1,63}))
            \s*(?P<sign>!?=)\s*(?P<quote>["']?)(?P<value>[^"']*)(?P=quote)
        |(?P<time>create_time|createTime|update_time|updateTime)
            \s*(?P<compared><=|>=|!=|=|<|>)\s*(?P<mark>["']?)(?P<moment>[0-9TtZz:.+-]{10,40})(?P=mark)""",
    re.VERBOSE,
)
_TERMS = (
    'use display_name="X", state="JOB_STATE_X", model="X", labels.KEY="VALUE", labels.KEY:* or '
    'create_time>"TIME", joined by AND'
)
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def _term(found: re.Match[str]) -> Callable[[Job], bool]:
    if found["has"]:
        return lambda job: found["has"] in job.request.labels
    if found["time"]:
        key, moment, compare = _KEYS[_snake(found["time"])], _moment(found["moment"]), _COMPARE[found["compared"]]
        return lambda job: compare(datetime.fromisoformat(key(job)), moment)

    def has(job: Job) -> str | None:
        if found["label"]:
            return job.request.labels.get(found["label"])
        return {"state": f"JOB_STATE_{job.state}", "model": job.request.model}.get(
            found["key"], job.request.display_name
        )

    return lambda job: _COMPARE[found["sign"]](has(job), found["value"])


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.upper())
    except ValueError:
        raise InputError("holds no time", field="filter", remedy='write it as "2026-01-31T12:00:00Z"') from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _place_of(token: str, query: Mapping[str, str]) -> tuple[str, int] | None:
    if not token:
        return None
    try:
        asked, key, id_ = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if asked == _asked(query) and isinstance(key, str) and isinstance(id_, int):
            return key, id_
    except (binascii.Error, ValueError, TypeError):
        pass
    raise InputError("is none that a page of this list ended with", field="pageToken", remedy="leave it out")


def _asked(query: Mapping[str, str]) -> str:
    """What a list is of; a place in one is none in another."""
    return f"{query.get('filter', '')}\n{query.get('orderBy', '')}"


def _whole(text: str) -> int:
    if text and not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise InputError("is not a whole number", field="pageSize", remedy=f"give 1 to {MAX_PAGE}")
    return int(text or 0)


def _snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda found: "_" + found[0].lower(), name)
