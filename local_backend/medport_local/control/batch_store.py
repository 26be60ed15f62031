"""Batch prediction jobs on the disk: each is a resource whose body its own side writes and reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

from medport.errors import NotFound
from medport_local.control import records
from medport_local.control.asks import Api, Ask
from medport_local.control.database import Database, Transaction
from medport_local.control.operations import Kind, Operations

T = TypeVar("T")
Json = dict[str, Any]

DELETE = Kind("deleteBatchPredictionJob", "DeleteOperationMetadata", None)


class KeptJobs:
    """The jobs of one server in its database. Belongs to its event loop."""

    durable = True

    def __init__(self, database: Database) -> None:
        self._database = database
        self._operations = Operations(database)
        self._operations.register(DELETE)
        # One thread: what is begun first is written first.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="medport-jobs")

    def kept(self) -> Sequence[tuple[str, Json]]:
        """Names and contents, in the order in which they were made. Raises as ``Database.reading``."""
        with self._database.reading() as transaction:
            rows = transaction.all("SELECT * FROM resource WHERE kind = 'batchPredictionJob' ORDER BY place")
            return [(record.name, record.body) for record in map(records.of_row, rows)]

    async def insert(self, name: str, job: Json, *, instead_of: str | None = None) -> None:
        """Keep a new one; in the same transaction drop the one whose place it takes.

        Raises:
            NotReady, ServerError: as ``Database.writing``. Nothing was changed.
        """

        def work(transaction: Transaction) -> None:
            if instead_of is not None:
                records.delete(transaction, instead_of)
            records.insert(transaction, name, "batchPredictionJob", name.partition("/batch")[0], job)

        await self._write(work)

    async def update(self, name: str, job: Json) -> None:
        """Replace one; does nothing if it was dropped. Raises as ``insert``."""

        def work(transaction: Transaction) -> None:
            record = records.find(transaction, name)
            if record is not None:
                records.update(transaction, record, job)

        await self._write(work)

    async def delete(self, name: str, *, api: str, caller: str) -> Json:
        """Drop one, and give the operation that says so: it is done. Raises as ``insert``, and ``NotFound``."""

        def work(transaction: Transaction) -> Json:
            if records.find(transaction, name) is None:
                raise NotFound("there is no such job", field="batchPredictionJob", remedy="list the jobs")
            records.delete(transaction, name)
            ask = Ask(api=cast("Api", api), caller=caller)
            begun = self._operations.begin(transaction, ask, DELETE, name, {"name": name})
            return self._operations.finish(transaction, begun.name, {}).shown()

        return await self._write(work)

    async def close(self) -> None:
        """Wait until all is written."""
        await asyncio.to_thread(self._thread.shutdown)

    async def _write(self, work: Callable[[Transaction], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._database.write, work)
