"""Batch jobs on the disk: in order, whole, and one in another's place in a single step."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from medport.errors import NotFound
from medport_local.control import operations
from medport_local.control.batch_store import KeptJobs
from medport_local.control.database import Database

PARENT = "projects/1/locations/europe-west4"
KIND = "type.googleapis.com/google.cloud.aiplatform.v1beta1.DeleteOperationMetadata"


def name(number: int) -> str:
    return f"{PARENT}/batchPredictionJobs/{number}"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "state", {})
    yield opened
    opened.close()


def test_jobs_come_back_as_they_were_and_in_their_order(database: Database, tmp_path: Path) -> None:
    async def before() -> None:
        store = KeptJobs(database)
        for number in (7, 30, 4):
            await store.insert(name(number), {"state": "PENDING", "n": number})
        await store.update(name(30), {"state": "RUNNING", "n": 30})
        await store.close()

    asyncio.run(before())
    database.close()
    again = Database(tmp_path / "state", {})

    assert KeptJobs(again).kept() == [
        (name(7), {"state": "PENDING", "n": 7}),
        (name(30), {"state": "RUNNING", "n": 30}),
        (name(4), {"state": "PENDING", "n": 4}),
    ]
    again.close()


def test_new_job_takes_anothers_place_in_one_step(database: Database) -> None:
    async def work() -> None:
        store = KeptJobs(database)
        await store.insert(name(1), {})

        await store.insert(name(2), {}, instead_of=name(1))

        assert [each for each, _ in store.kept()] == [name(2)]
        with pytest.raises(Exception, match="already exists"):
            await store.insert(name(2), {}, instead_of=name(2) + "0")
        assert [each for each, _ in store.kept()] == [name(2)]
        await store.close()

    asyncio.run(work())


def test_writes_that_overlap_are_made_in_the_order_in_which_they_began(database: Database) -> None:
    async def work() -> None:
        store = KeptJobs(database)
        await store.insert(name(1), {"n": -1})

        await asyncio.gather(*(store.update(name(1), {"n": n}) for n in range(20)))

        assert store.kept() == [(name(1), {"n": 19})]
        await store.close()

    asyncio.run(work())


def test_deletion_is_an_operation_that_can_be_looked_at_later(database: Database) -> None:
    async def work() -> None:
        store = KeptJobs(database)
        await store.insert(name(1), {})

        answer = await store.delete(name(1), api="v1beta1", caller="ann")

        assert answer["done"] is True
        assert answer["name"].startswith(f"{name(1)}/operations/")
        assert answer["metadata"]["@type"] == KIND
        assert answer["response"] == {"@type": "type.googleapis.com/google.protobuf.Empty"}
        with database.reading() as tx:
            kept = operations.get(tx, answer["name"])
        assert kept.shown() == answer
        assert kept.caller == "ann"
        assert store.kept() == []
        with pytest.raises(NotFound):
            await store.delete(name(1), api="v1", caller="")
        await store.close()

    asyncio.run(work())


def test_late_word_of_a_job_that_was_dropped_does_not_bring_it_back(database: Database) -> None:
    async def work() -> None:
        store = KeptJobs(database)
        await store.insert(name(1), {})
        await store.delete(name(1), api="v1", caller="")

        await store.update(name(1), {"state": "SUCCEEDED"})

        assert store.kept() == []
        await store.close()

    asyncio.run(work())


def test_close_waits_for_what_is_being_written(database: Database) -> None:
    async def work() -> None:
        store = KeptJobs(database)
        writing = [asyncio.ensure_future(store.insert(name(n), {})) for n in range(10)]
        await asyncio.sleep(0)

        await store.close()

        assert len(store.kept()) == 10
        await asyncio.gather(*writing)

    asyncio.run(work())
