"""The work of one batch job: JSON lines in, JSON lines out, a row for a row.

A job reads its input twice: to count the rows, for the names of the files of results tell how many there are, and
to answer them. Rows are answered some at a time and written in the order of the input; online requests come first.
A file of results appears as a whole, and the errors of its rows in another beside it: whatever ends a job, all of
what it has written is good. The file of errors comes first, so that a file of results is the sign that both are
whole; a job that was interrupted goes on with the first that is missing.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from concurrent.futures import Executor
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import orjson

from medport.errors import InputError, MedportError, NotReady
from medport_local.serving import batch_jobs, batch_rows
from medport_local.serving.batch_files import READ, BatchFiles, Line, Output, skip, take
from medport_local.serving.batch_rows import Answered
from medport_local.serving.batch_state import Job
from medport_local.serving.batch_targets import Source
from medport_local.serving.endpoints import Served

T = TypeVar("T")

_EMBEDDINGS_AT_ONCE = 16
_AHEAD = 4
"""Rows begun or waiting for their turn, for each that may run: one that takes long holds up no others at once."""
_AHEAD_BYTES = 32 * 1024 * 1024
_FLUSH_BYTES = 1024 * 1024


class Places:
    """How many rows may be asked at once, of all jobs that ask the same."""

    def __init__(self) -> None:
        self._places: dict[Hashable, tuple[asyncio.Semaphore, int]] = {}

    def of(self, key: Hashable, served: Served) -> tuple[asyncio.Semaphore, int]:
        """The places of a source, and how many they are: what leaves room for online requests."""
        if served.embedder is not None:
            at_once = min(served.embedder.limits.max_batch, _EMBEDDINGS_AT_ONCE)
        else:
            at_once = max(1, served.generator.limits.max_running // 2)
        found = self._places.get(key)
        if found is None or found[1] != at_once:
            found = self._places[key] = asyncio.Semaphore(at_once), at_once
        return found


class Work:
    """One job's, from its first row to its last, or from where it was interrupted.

    Args:
        note: writes down how far the job is; called once it is planned and after each file.
    """

    def __init__(
        self,
        job: Job,
        source: Source,
        files: BatchFiles,
        places: Places,
        threads: Executor,
        note: Callable[[Job], Awaitable[None]],
    ) -> None:
        self._job = job
        self._source = source
        self._files = files
        self._places = places
        self._threads = threads
        self._note = note

    async def done(self) -> None:
        """Answer all rows, or as many as come until the job is stopped.

        Raises:
            InputError: the input cannot be read or the output not written; what was whole before stays.
            MedportError: no model answers, and why.
        """
        job = self._job
        uris = job.request.input_config.gcs_source.uris
        interrupted = job.restored
        plan = await self._blocking(self._files.plan, uris, job.stopped)
        if job.stopped():
            return
        if not plan.rows:
            raise InputError("holds no rows", field=READ, remedy="write one instance a line")
        if job.digest and job.digest != plan.digest:
            raise _changed()
        job.plan, job.digest = plan.rows, plan.digest
        prefix = job.request.output_config.gcs_destination.output_uri_prefix.rstrip("/")
        name = f"{job.target.id}-{job.moment}"
        job.folder = f"{prefix}/prediction-{name}"
        # Beside the folder: Google's client takes every file in it for one of rows.
        self._told_in = f"{prefix}/provenance-{name}.json"
        await self._blocking(self._files.make, job.folder)
        await self._first_engine()
        await self._note(job)
        if interrupted:
            await self._count_whole_files()
        first = len(job.finished)
        asked = sum(plan.rows[:first])
        async with aclosing(self._answers(uris, asked)) as answers:
            for i in range(first, len(plan.rows)):
                fault = await self._file(i, answers, again=interrupted and i == first)
                if job.stopped():
                    return
                if fault is not None:
                    raise fault
                await self._note(job)
            async for _ in answers:
                raise _changed()

    async def _first_engine(self) -> None:
        """See that there is one before anything is read, and write down whose the answers will be."""
        lease = await self._source.enter()
        try:
            batch_jobs.check_form(self._job.request, lease.served.dialect)
            self._turns, self._at_once = self._places.of(self._source.key, lease.served)
            self._job.answered_by(lease.served)
            await self._say_whose()
        finally:
            lease.release()

    async def _say_whose(self) -> None:
        """Write down which bytes give the results: a row has no room for it, and files outlive the job."""
        said = orjson.dumps(self._job.provenance(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        self._said = len(self._job.answering)
        await self._blocking(self._write, self._told_in, said)

    def _write(self, name: str, data: bytes) -> None:
        output = self._files.output(name)
        try:
            output.write(data)
            output.commit()
        finally:
            output.discard()

    async def _count_whole_files(self) -> None:
        """Add to what is known those that were finished and not noted any more."""
        job = self._job
        for i in range(len(job.finished), len(job.plan)):
            results = await self._blocking(self._files.lines_of, self._name("results", i))
            if results is None:
                return
            errors = await self._blocking(self._files.lines_of, self._name("errors_stats", i)) or []
            if len(results) + len(errors) != job.plan[i]:
                return  # of a job that was ending when the server did
            counts = Counter(batch_rows.status_of(line) for line in errors)
            for status, count in (("", len(results)), *counts.items()):
                job.counts[status] += count
            job.close_file({"": len(results), **counts})

    async def _file(self, i: int, answers: AsyncGenerator[Answered, None], *, again: bool) -> MedportError | None:
        """Write the next rows' answers into one file, or into two; fewer, and why, if no more come.

        Args:
            again: it may have been begun before. Its file of errors may be there then, and is replaced even if
                there are no errors this time.
        """
        job = self._job
        before = Counter(job.counts)
        results = _Lines(await self._output("results", i))
        errors: _Lines | None = None
        fault: MedportError | None = None
        try:
            if again and await self._blocking(self._files.lines_of, self._name("errors_stats", i)) is not None:
                errors = _Lines(await self._output("errors_stats", i))
            for _ in range(job.plan[i]):
                try:
                    answered = await anext(answers)
                except StopAsyncIteration:
                    fault = _changed()
                    break
                except MedportError as error:
                    fault = error
                    break
                if answered.status is not None and errors is None:
                    errors = _Lines(await self._output("errors_stats", i))
                lines = results if answered.status is None or errors is None else errors
                if lines.add(answered.line):
                    await self._blocking(lines.flush)
                job.count(answered.status)
            if len(job.answering) > self._said:
                await self._say_whose()
            for each in filter(None, (errors, results)):
                await self._blocking(each.commit)
        finally:
            for each in filter(None, (errors, results)):
                each.output.discard()
        if fault is None and not job.stopped():
            job.close_file(job.counts - before)
        return fault

    async def _answers(self, uris: list[str], asked: int) -> AsyncGenerator[Answered, None]:
        """The rows' answers in their order, from the one after ``asked``; until the job is stopped.

        Raises:
            InputError: the input cannot be read any more.
            MedportError: no model answers any more.
        """
        job, at_once = self._job, self._at_once
        rows = self._files.rows(uris)
        stop = asyncio.ensure_future(job.stop.wait())
        window: deque[tuple[asyncio.Task[Answered], int]] = deque()
        block: deque[Line] = deque()
        more, held, number = True, 0, asked
        try:
            await self._blocking(skip, rows, asked, job.stopped)
            while not job.stopped():
                if not block and more and len(window) < _AHEAD * at_once:
                    block.extend(await self._blocking(take, rows))
                    more = bool(block)
                while block and len(window) < _AHEAD * at_once:
                    size = len(block[0] or b"")
                    if window and held + size > _AHEAD_BYTES:
                        break
                    number, held = number + 1, held + size
                    window.append((asyncio.create_task(self._answer(number, block.popleft())), size))
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
                rows.close()

    async def _answer(self, number: int, line: Line) -> Answered:
        async with self._turns:
            for last in (False, True):
                lease = await self._source.enter()
                try:
                    return await self._asked(lease.served, number, line)
                except NotReady:
                    # Its engine is gone; another may have the model.
                    if last:
                        raise
                finally:
                    lease.release()
        raise AssertionError("the last attempt returns or raises")

    async def _asked(self, served: Served, number: int, line: Line) -> Answered:
        self._job.answered_by(served)
        form = self._job.request.in_container_form
        return await batch_rows.answer(
            replace(served, lists=True), number, line, tenant=self._job.tenant, container_form=form
        )

    async def _output(self, kind: str, i: int) -> Output:
        return await self._blocking(self._files.output, self._name(kind, i))

    def _name(self, kind: str, i: int) -> str:
        return f"{self._job.folder}/prediction.{kind}-{i:05}-of-{len(self._job.plan):05}"

    async def _blocking(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *arguments))


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


def _changed() -> InputError:
    return InputError("changed while it was read", field=READ, remedy="start again when nobody writes to it")
