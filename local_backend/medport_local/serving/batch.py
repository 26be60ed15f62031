"""The batch prediction jobs of one server: begun, cancelled, gone on with after a restart.

What a caller was told of a job was on the disk before, where there is one for it: see ``batch_store``.

Source: Vertex AI REST reference, projects.locations.batchPredictionJobs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from medport.errors import InputError, MedportError, ServerError
from medport_local.serving import batch_jobs
from medport_local.serving.batch_files import BatchFiles
from medport_local.serving.batch_list import Jobs
from medport_local.serving.batch_state import Job, Standing, from_kept
from medport_local.serving.batch_store import Forgetful, JobStore
from medport_local.serving.batch_targets import Targets
from medport_local.serving.batch_work import Places, Work

JOBS_AT_ONCE = 2
MAX_BODY_BYTES = 256 * 1024
"""Of a job's request: it is kept and shown again."""
_CLOSE_S = 5.0
_AGAIN_S = 5.0
"""Between attempts to write down how a job ended."""

logger = logging.getLogger(__name__)


class Batches:
    """The jobs of one server. Belongs to its event loop.

    Args:
        store: where jobs outlive the server; by default they end with it.
    """

    def __init__(self, targets: Targets, files: BatchFiles, store: JobStore | None = None) -> None:
        self.jobs = Jobs()
        self._targets = targets
        self._files = files
        self._store = store or Forgetful()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._making = asyncio.Lock()
        self._running = asyncio.Semaphore(JOBS_AT_ONCE)
        self._places = Places()
        # Of their own: files that are slow to read hold up no request.
        self._threads = ThreadPoolExecutor(max_workers=2 * JOBS_AT_ONCE, thread_name_prefix="medport-batch")

    def parent(self, project: str, location: str) -> str:
        """See ``Targets.parent``."""
        return self._targets.parent(project, location)

    def scope(self, model: str, endpoint: str) -> str:
        """See ``Targets.scope``."""
        return self._targets.scope(model, endpoint)

    def read(self, body: Mapping[str, object], parent: str, *, tenant: str = "") -> Job:
        """A job as it is asked for, not begun.

        Args:
            tenant: on whose behalf its rows are asked.

        Raises:
            InputError, Unsupported: names the field.
            NotFound: there is no such model or endpoint.
        """
        request = batch_jobs.read(body)
        if bool(request.model) == bool(request.endpoint):
            raise InputError("give a model, or an endpoint", field="model", remedy="give one of the two")
        target = self._targets.find(parent, request.model, request.endpoint)
        batch_jobs.check_form(request, target.dialect)
        _, at, version = request.model.partition("@")
        names = {"model": f"{target.model}{at}{version}"} if request.model else {"endpoint": target.endpoint}
        request = request.model_copy(update=names)
        self._files.check(
            request.input_config.gcs_source.uris, request.output_config.gcs_destination.output_uri_prefix
        )
        return self.jobs.make(parent, target, request, tenant=tenant)

    async def start(self, job: Job) -> None:
        """Keep it and queue it.

        Raises:
            QuotaExceeded: there are too many jobs.
            NotReady, ServerError: as ``JobStore.insert``. There is no job then.
        """
        async with self._making:
            displaced = self.jobs.displaced()
            await self._store.insert(job.name, job.kept(), instead_of=displaced.name if displaced else None)
            self.jobs.keep(job)
        self._queue(job)

    async def resume(self) -> None:
        """Go on with what was under way when the server ended. Call before the first request.

        Raises:
            NotReady, ServerError: the store cannot be read.
        """
        for name, kept in await asyncio.to_thread(self._store.kept):
            self.jobs.restore(from_kept(name, kept))
        for job in self.jobs.running():
            if job.stopped():
                await self._move(job, job.standing.over_with(None, stopped=True))
            else:
                logger.info("batch job %s goes on: %d of its files are whole", job.id, len(job.finished))
                self._queue(job)

    async def cancel(self, job: Job) -> None:
        """Stop at the next rows; a job that is over stays as it is. Raises as ``JobStore.update``."""
        async with job.changing:
            if job.state == "PENDING":
                await self._move(job, job.standing.over_with(None, stopped=True))
                job.stop.set()
                self._tasks[job.id].cancel()
            elif job.state == "RUNNING":
                await self._move(job, job.standing.cancelling())
                job.stop.set()

    async def forget(self, job: Job, *, api: str, caller: str) -> Mapping[str, Any]:
        """Drop a job that is over, and give the operation that says so; its files stay.

        Raises:
            PreconditionFailed: it is not over.
            NotReady, ServerError: as ``JobStore.delete``.
        """
        self.jobs.check_over(job)
        operation = await self._store.delete(job.name, api=api, caller=caller)
        self.jobs.forget(job)
        return operation

    async def close(self) -> None:
        """Stop what is under way. Where jobs outlive the server they stay as they are, else they are cancelled and
        write what they have."""
        tasks = list(self._tasks.values())
        if self._store.durable:
            for task in tasks:
                task.cancel()
        else:
            for job in self.jobs.running():
                await self.cancel(job)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_CLOSE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._store.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _queue(self, job: Job) -> None:
        task = asyncio.get_running_loop().create_task(self._run(job))
        self._tasks[job.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(job.id))

    async def _run(self, job: Job) -> None:
        async with self._running:
            await self._written(job, lambda: job.standing.begun())
            error = await self._outcome(job)
            await self._written(job, lambda: job.standing.over_with(error, stopped=job.stopped()))
        logger.info(
            "batch job %s: %s, %d of %d rows, %d errors", job.id, job.state, job.succeeded, job.rows, job.failed
        )

    async def _outcome(self, job: Job) -> MedportError | None:
        source = self._targets.source(job.name, job.target)
        try:
            try:
                await Work(job, source, self._files, self._places, self._threads, self._note).done()
            finally:
                await source.close()
        except MedportError as fault:
            return fault
        except Exception as fault:
            logger.error("batch job %s: %s", job.id, type(fault).__name__)
            return ServerError("the server failed", remedy="see its log")
        return _nothing_came(job)

    async def _note(self, job: Job) -> None:
        """Write down how far it is. If that fails nothing is lost: files that are whole are found again."""
        try:
            async with job.changing:
                await self._store.update(job.name, job.kept())
        except MedportError as fault:
            logger.warning("batch job %s: its progress is not written: %s", job.id, type(fault).__name__)

    async def _move(self, job: Job, standing: Standing) -> None:
        """Into another state, which is on the disk before anybody sees it."""
        await self._store.update(job.name, job.kept(standing))
        job.standing = standing

    async def _written(self, job: Job, standing: Callable[[], Standing]) -> None:
        """As ``_move``, however long the disk takes to come back."""
        while True:
            try:
                async with job.changing:
                    return await self._move(job, standing())
            except MedportError as fault:
                logger.error("batch job %s: its state is not written: %s", job.id, type(fault).__name__)
                await asyncio.sleep(_AGAIN_S)


def _nothing_came(job: Job) -> MedportError | None:
    """A job without one result has not succeeded, whatever its rows' errors say."""
    if job.stopped() or job.succeeded or not job.rows:
        return None
    return InputError(f"none of {job.rows} rows could be answered", remedy="see prediction.errors_stats-*")
