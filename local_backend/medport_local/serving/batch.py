"""Batch prediction jobs: JSON lines in, JSON lines out, a row for a row.

A job reads its input twice: to count the rows, for the names of the files of results tell how many there are, and
to answer them. Rows are answered some at a time and written in the order of the input; online requests come first.
A file of results appears as a whole, and the errors of its rows in another beside it: whatever ends a job, all of
what it has written is good.

Source: Vertex AI REST reference, projects.locations.batchPredictionJobs.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, TypeVar

import orjson

from medport.errors import InputError, MedportError, NotFound, ServerError
from medport.wire import checked
from medport_local.engine.embedder import Embedder
from medport_local.serving import batch_rows
from medport_local.serving.batch_files import READ, BatchFiles, Line, Output, take
from medport_local.serving.batch_jobs import Job, JobRequest, Jobs
from medport_local.serving.batch_rows import Answered
from medport_local.serving.endpoints import Served

T = TypeVar("T")

JOBS_AT_ONCE = 2
MAX_BODY_BYTES = 256 * 1024
"""Of a job's request: it is kept and shown again."""
_EMBEDDINGS_AT_ONCE = 16
_AHEAD = 4
"""Rows begun or waiting for their turn, for each that may run: one that takes long holds up no others at once."""
_AHEAD_BYTES = 32 * 1024 * 1024
_FLUSH_BYTES = 1024 * 1024
_CLOSE_S = 5.0

logger = logging.getLogger(__name__)


class Batches:
    """The jobs of one server. Belongs to its event loop."""

    def __init__(self, served: Mapping[str, Served], files: BatchFiles) -> None:
        self._served = served
        self._files = files
        self.jobs = Jobs()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(JOBS_AT_ONCE)
        self._turns: dict[int, tuple[asyncio.Semaphore, int]] = {}
        """By engine: rows that may run at once, of all jobs together, and how many that is."""

    def read(self, body: Mapping[str, object], parent: str, *, tenant: str = "") -> Job:
        """A job as it is asked for, not begun.

        Args:
            tenant: on whose behalf its rows are asked.

        Raises:
            InputError: names the field.
            NotFound: there is no such model or endpoint.
            QuotaExceeded: there are too many jobs.
        """
        request = checked(JobRequest, {key: value for key, value in body.items() if value not in (None, "", {})})
        served = self._target(request, parent)
        if request.in_container_form and served.dialect == "medsiglip":
            raise InputError("is for chats", field="modelParameters.resultForm", remedy="leave it out")
        self._files.check(
            request.input_config.gcs_source.uris, request.output_config.gcs_destination.output_uri_prefix
        )
        return self.jobs.make(parent, replace(served, lists=True), request, tenant=tenant)

    def start(self, job: Job) -> None:
        """Queue it."""
        self.jobs.keep(job)
        task = asyncio.get_running_loop().create_task(self._run(job))
        self._tasks[job.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(job.id))

    def cancel(self, job: Job) -> None:
        """Stop at the next rows; a job that is over stays as it is."""
        if job.over:
            return
        job.stop.set()
        if job.state == "RUNNING":
            job.state = "CANCELLING"
        elif job.state == "PENDING":
            job.end()
            self._tasks[job.id].cancel()

    async def close(self) -> None:
        """Cancel what is under way, and let it write what it has."""
        tasks = list(self._tasks.values())
        for job in self.jobs.running():
            self.cancel(job)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_CLOSE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _target(self, request: JobRequest, parent: str) -> Served:
        if bool(request.model) == bool(request.endpoint):
            raise InputError("give a model, or an endpoint", field="model", remedy="give one of the two")
        wanted, _, version = (request.model or request.endpoint).partition("@")
        for served in self._served.values():
            name = served.model if request.model else served.model.replace("/models/", "/endpoints/")
            versions = ("", "default", served.model_version_id) if request.model else ("",)
            if wanted == name and name.startswith(f"{parent}/") and version in versions:
                return served
        raise NotFound(
            "this is not served here, in this project and location",
            field="model" if request.model else "endpoint",
            remedy="give the resource name of what is served",
        )

    async def _run(self, job: Job) -> None:
        async with self._places:
            job.begin()
            error: MedportError | None = None
            try:
                await self._work(job)
            except MedportError as fault:
                error = fault
            except Exception as fault:
                logger.error("batch job %s: %s", job.id, type(fault).__name__)
                error = ServerError("the server failed", remedy="see its log")
            finally:
                job.end(error or _nothing_came(job))
                logger.info(
                    "batch job %s: %s, %d of %d rows, %d errors",
                    job.id, job.state, job.succeeded, job.rows, job.failed,
                )  # fmt: skip

    async def _work(self, job: Job) -> None:
        uris = job.request.input_config.gcs_source.uris
        plan = await self._blocking(job, self._files.plan, uris, job.stopped)
        if job.stopped():
            return
        if not plan:
            raise InputError("holds no rows", field=READ, remedy="write one instance a line")
        job.rows = sum(plan)
        moment = job.created.strftime("%Y_%m_%dT%H_%M_%S_%f")[:-3] + "Z"
        prefix = job.request.output_config.gcs_destination.output_uri_prefix.rstrip("/")
        name = f"{job.served.endpoint_id}-{moment}"
        job.folder = f"{prefix}/prediction-{name}"
        await self._blocking(job, self._files.make, job.folder)
        # Beside the folder: Google's client takes every file in it for one of rows.
        await self._blocking(job, self._say_whose, job, f"{prefix}/provenance-{name}.json")
        async with aclosing(self._answers(job, self._files.rows(uris))) as answers:
            for i, rows in enumerate(plan):
                fault = await self._shard(job, f"{i:05}-of-{len(plan):05}", rows, answers)
                if job.stopped():
                    return
                if fault is not None:
                    raise fault
            async for _ in answers:
                raise _changed()

    def _say_whose(self, job: Job, name: str) -> None:
        """Write down which bytes give the results: a row has no room for it, and files outlive the job."""
        output = self._files.output(name)
        try:
            output.write(orjson.dumps(job.provenance(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
            output.commit()
        finally:
            output.discard()

    async def _shard(
        self, job: Job, part: str, rows: int, answers: AsyncGenerator[Answered, None]
    ) -> MedportError | None:
        """Write the next ``rows`` answers into one file, or into two; fewer, and why, if no more come."""
        results = _Lines(await self._output(job, f"prediction.results-{part}"))
        errors: _Lines | None = None
        fault: MedportError | None = None
        try:
            for _ in range(rows):
                try:
                    answered = await anext(answers)
                except StopAsyncIteration:
                    fault = _changed()
                    break
                except MedportError as error:
                    fault = error
                    break
                if answered.status is not None and errors is None:
                    errors = _Lines(await self._output(job, f"prediction.errors_stats-{part}"))
                lines = results if answered.status is None or errors is None else errors
                if lines.add(answered.line):
                    await self._blocking(job, lines.flush)
                job.count(answered.status)
            for each in filter(None, (results, errors)):
                await self._blocking(job, each.commit)
        finally:
            for each in filter(None, (results, errors)):
                each.output.discard()
        return fault

    async def _answers(self, job: Job, rows: Iterator[Line]) -> AsyncGenerator[Answered, None]:
        """The rows' answers in their order; until the job is stopped.

        Raises:
            InputError: the input cannot be read any more.
            NotReady: the model answers no more.
        """
        turns, at_once = self._turns_of(job.served)
        stop = asyncio.ensure_future(job.stop.wait())
        window: deque[tuple[asyncio.Task[Answered], int]] = deque()
        block: deque[Line] = deque()
        more, held, number = True, 0, 0
        try:
            while not job.stopped():
                if not block and more and len(window) < _AHEAD * at_once:
                    block.extend(await self._blocking(job, take, rows))
                    more = bool(block)
                while block and len(window) < _AHEAD * at_once:
                    size = len(block[0] or b"")
                    if window and held + size > _AHEAD_BYTES:
                        break
                    number, held = number + 1, held + size
                    window.append((asyncio.create_task(_answer(job, number, block.popleft(), turns)), size))
                if not window:
                    return
                first, size = window[0]
                if not first.done():
                    await asyncio.wait({first, stop}, return_when=asyncio.FIRST_COMPLETED)
                if first.done():
                    window.popleft()
                    held -= size
                    yield first.result()
        finally:
            left = [stop, *(task for task, _ in window)]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            with suppress(ValueError):  # still read from in a thread, where it ends by itself
                rows.close()  # type: ignore[attr-defined]

    def _turns_of(self, served: Served) -> tuple[asyncio.Semaphore, int]:
        key = id(served.engine)
        if key not in self._turns:
            if isinstance(served.engine, Embedder):
                at_once = min(served.engine.limits.max_batch, _EMBEDDINGS_AT_ONCE)
            else:
                at_once = max(1, served.engine.limits.max_running // 2)
            self._turns[key] = asyncio.Semaphore(at_once), at_once
        return self._turns[key]

    async def _output(self, job: Job, name: str) -> Output:
        return await self._blocking(job, self._files.output, f"{job.folder}/{name}")

    async def _blocking(self, job: Job, work: Callable[..., T], *arguments: Any) -> T:
        return await job.served.threads.fetching(work, *arguments)


class _Lines:
    """What goes into one file, some of it not written yet."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self._waiting: list[bytes] = []
        self._size = 0

    def add(self, line: bytes) -> bool:
        """Whether it is time to ``flush``."""
        self._waiting.append(line)
        self._size += len(line)
        return self._size > _FLUSH_BYTES

    def flush(self) -> None:
        data = b"".join(self._waiting)
        self._waiting, self._size = [], 0
        self.output.write(data)

    def commit(self) -> None:
        self.flush()
        self.output.commit()


async def _answer(job: Job, number: int, line: Line, turns: asyncio.Semaphore) -> Answered:
    async with turns:
        return await batch_rows.answer(
            job.served, number, line, tenant=job.tenant, container_form=job.request.in_container_form
        )


def _nothing_came(job: Job) -> MedportError | None:
    """A job without one result has not succeeded, whatever its rows' errors say."""
    if job.stopped() or job.succeeded or not job.rows:
        return None
    return InputError(f"none of {job.rows} rows could be answered", remedy="see prediction.errors_stats-*")


def _changed() -> MedportError:
    return InputError("changed while it was read", field=READ, remedy="start again when nobody writes to it")
