"""Batch jobs that outlive their server: what is kept, what goes on, and what is refused while the disk fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.gcs import Emulator, gcs_emulator

from medport.errors import MedportError, NotFound, NotReady, PreconditionFailed, QuotaExceeded
from medport.wire.vertex import Pins
from medport_local.control.batch_store import KeptJobs
from medport_local.control.database import Database
from medport_local.engine.embedder import Embedder
from medport_local.engine.loading import load_siglip
from medport_local.serving import batch, batch_files, batch_list
from medport_local.serving.batch import Batches
from medport_local.serving.batch_files import BatchFiles
from medport_local.serving.batch_state import Job, from_kept
from medport_local.serving.batch_targets import Lease, Source, StandingTargets, Target
from medport_local.serving.endpoints import Served, Threads
from medport_local.serving.fetch import Fetcher
from medport_local.snapshot import open_snapshot

PARENT = "projects/1/locations/europe-west4"


@pytest.fixture(scope="module")
def served(siglip_folder: Path) -> Iterator[Served]:
    engine = Embedder(load_siglip(open_snapshot(siglip_folder)))
    yield Served(
        endpoint_id="medsiglip",
        dialect="medsiglip",
        engine=engine,
        threads=Threads(decode=ThreadPoolExecutor(1), fetch=ThreadPoolExecutor(1)),
        fetcher=Fetcher(),
        deployed_model_id="1",
        model=f"{PARENT}/models/medsiglip",
        model_version_id="1",
        model_display_name="toy",
        pins=Pins(snapshot_sha256="a" * 64),
    )
    engine.close()


class Gate(StandingTargets):
    """Rows are let through one by one as the test says, and then all."""

    def __init__(self, served: Served) -> None:
        super().__init__({served.endpoint_id: served})
        self.rows = asyncio.Semaphore(0)
        self.fault: MedportError | None = None

    def let(self, rows: int) -> None:
        for _ in range(rows):
            self.rows.release()

    def source(self, job: str, target: Target) -> Source:
        return _Gated(self, super().source(job, target))


class _Gated:
    def __init__(self, gate: Gate, inner: Source) -> None:
        self._gate, self._inner, self._first = gate, inner, True

    @property
    def key(self) -> Any:
        return self._inner.key

    async def enter(self) -> Lease:
        if self._first:
            self._first = False
        else:
            await self._gate.rows.acquire()
        if self._gate.fault is not None:
            raise self._gate.fault
        return await self._inner.enter()

    async def close(self) -> None:
        await self._inner.close()


class Site:
    """One directory of jobs and of their state."""

    def __init__(self, folder: Path, served: Served) -> None:
        self.folder, self.served = folder, served
        (folder / "files").mkdir()

    @asynccontextmanager
    async def server(
        self, served: Served | None = None, files: BatchFiles | None = None
    ) -> AsyncIterator[tuple[Batches, Gate]]:
        database = Database(self.folder / "state", {})
        gate = Gate(served or self.served)
        batches = Batches(gate, files or BatchFiles(Fetcher(), self.folder / "files"), KeptJobs(database))
        await batches.resume()
        try:
            yield batches, gate
        finally:
            await batches.close()
            database.close()

    def write(self, rows: list[Any]) -> None:
        (self.folder / "files" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def results(self, kind: str = "results") -> list[dict[str, Any]]:
        found = sorted((self.folder / "files" / "out").rglob(f"prediction.{kind}-*"))
        return [json.loads(line) for path in found for line in path.read_text().splitlines()]


@pytest.fixture
def site(tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(batch_files, "SHARD_ROWS", 4)
    made = Site(tmp_path, served)
    made.write([{"text": f"row {i}"} for i in range(10)])
    return made


def request(**changes: object) -> dict[str, Any]:
    return {
        "displayName": "night",
        "model": f"{PARENT}/models/medsiglip@1",
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["rows.jsonl"]}},
        "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "out"}},
        **changes,
    }


async def begun(batches: Batches, **changes: object) -> Job:
    job = batches.read(request(**changes), PARENT, tenant="ann")
    await batches.start(job)
    return job


async def until(batches: Batches, job: Job, *states: str) -> Job:
    """The job as this server has it, once it is in one of the states."""
    for _ in range(4000):
        found = batches.jobs.find(PARENT, job.id)
        if found.state in states:
            return found
        await asyncio.sleep(0.005)
    raise AssertionError(f"stays {found.state}")


async def when(true: Any) -> None:
    for _ in range(4000):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("did not come true")


def test_server_that_stops_leaves_its_jobs_running_and_the_next_one_ends_them(site: Site) -> None:
    async def scenario() -> None:
        async with site.server() as (batches, gate):
            job = await begun(batches, labels={"set": "a"})
            gate.let(5)
            await when(lambda: job.succeeded == 5)
            started = job.standing.started
        assert len(site.results()) == 4

        async with site.server() as (batches, gate):
            again = batches.jobs.find(PARENT, job.id)
            assert (again.state, again.succeeded, again.standing.started) == ("RUNNING", 4, started)
            gate.let(6)  # no more: the four that are written are not asked again
            ended = await until(batches, job, "SUCCEEDED")
            assert (ended.succeeded, ended.failed, ended.tenant) == (10, 0, "ann")
            assert ended.resource()["labels"] == {"set": "a"}

        assert [line["instance"]["text"] for line in site.results()] == [f"row {i}" for i in range(10)]
        assert list(site.folder.rglob(".part-*")) == []

    asyncio.run(scenario())


def test_job_over_buckets_goes_on_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"row {i}"} if i != 1 else {"words": i} for i in range(10)]

    async def scenario(bucket: Emulator) -> None:
        files = BatchFiles(Fetcher(("gs://nightly",)), None)
        places = {
            "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["gs://nightly/in/*.jsonl"]}},
            "outputConfig": {
                "predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "gs://nightly/out"},
            },
        }  # fmt: skip
        async with site.server(files=files) as (batches, gate):
            job = await begun(batches, **places)
            gate.let(5)
            await when(lambda: len(job.finished) == 1)
            # As if the server had died before it noted that the file is whole.
            kept = {**job.kept(), "finished": []}
        database = Database(site.folder / "state", {})
        store = KeptJobs(database)
        await store.update(job.name, kept)
        await store.close()
        database.close()

        async with site.server(files=files) as (batches, gate):
            gate.let(6)
            ended = await until(batches, job, "SUCCEEDED")
            assert (ended.succeeded, dict(ended.failures)) == (9, {"INVALID_ARGUMENT": 1})

        names = [name.rpartition("/")[2] for name in bucket.names("nightly") if "/prediction.results-" in name]
        assert names == [f"prediction.results-0000{i}-of-00003" for i in range(3)]
        written = [bucket.download("nightly", name) for name in bucket.names("nightly") if "results-" in name]
        found = [json.loads(line)["instance"] for data in written for line in data.splitlines()]
        assert found == [row for row in rows if "text" in row]

    with gcs_emulator("nightly") as bucket:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
        bucket.upload("nightly", "in/rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        asyncio.run(scenario(bucket))


def test_job_that_is_over_is_shown_after_a_restart_as_it_was(site: Site) -> None:
    async def scenario() -> None:
        site.write([{"text": "a"}, {"words": 1}, {"text": "b"}])
        async with site.server() as (batches, gate):
            gate.let(100)
            job = await until(batches, await begun(batches), "SUCCEEDED")
            before = job.resource()

        async with site.server() as (batches, gate):
            assert batches.jobs.find(PARENT, job.id).resource() == {**before, "updateTime": before["endTime"]}

        assert before["partialFailures"] == [{"code": 3, "message": "1 rows: INVALID_ARGUMENT"}]
        (error,) = site.results("errors_stats")
        assert error["row"] == 2

    asyncio.run(scenario())


def test_job_that_was_being_cancelled_ends_cancelled(site: Site) -> None:
    async def scenario() -> None:
        async with site.server() as (batches, gate):
            job = await begun(batches)
            gate.let(2)
            await when(lambda: job.succeeded == 2)
            # As it is on the disk the moment after a caller was told that it is being cancelled.
            await batches._store.update(job.name, job.kept(job.standing.cancelling()))

        async with site.server() as (batches, gate):
            again = batches.jobs.find(PARENT, job.id)
            assert again.state == "CANCELLED"
            assert again.standing.ended is not None

        async with site.server() as (batches, gate):
            assert batches.jobs.find(PARENT, job.id).state == "CANCELLED"

    asyncio.run(scenario())


def test_job_that_waits_is_begun_by_the_next_server(site: Site) -> None:
    async def scenario() -> None:
        async with site.server() as (batches, gate):
            jobs = [await begun(batches, displayName=f"{i}") for i in range(batch.JOBS_AT_ONCE + 1)]
            await when(lambda: sum(job.state == "RUNNING" for job in jobs) == batch.JOBS_AT_ONCE)
            assert jobs[-1].state == "PENDING"

        async with site.server() as (batches, gate):
            gate.let(1000)
            for job in jobs:
                assert (await until(batches, job, "SUCCEEDED")).succeeded == 10

    asyncio.run(scenario())


@pytest.mark.parametrize("change", ["a row differs", "a row more", "gone"])
def test_input_that_changed_while_no_server_ran_fails_the_job(site: Site, change: str) -> None:
    async def scenario() -> None:
        async with site.server() as (batches, gate):
            job = await begun(batches)
            gate.let(6)
            await when(lambda: job.succeeded == 6)

        rows = [{"text": f"row {i}"} for i in range(10)]
        site.write(
            {"a row differs": [*rows[:9], {"text": "x"}], "a row more": [*rows, {"text": "x"}]}.get(change, [])
        )
        if change == "gone":
            (site.folder / "files" / "rows.jsonl").unlink()
        async with site.server() as (batches, gate):
            gate.let(100)
            ended = await until(batches, job, "FAILED", "SUCCEEDED")
            assert ended.state == "FAILED"
            assert ended.standing.error is not None
            assert "inputConfig.gcsSource.uris" in ended.standing.error["message"]
        assert len(site.results()) == 4

    asyncio.run(scenario())


def test_model_that_means_other_bytes_than_before_fails_the_job(site: Site) -> None:
    async def scenario() -> None:
        async with site.server() as (batches, gate):
            job = await begun(batches)
            gate.let(6)
            await when(lambda: job.succeeded == 6)

        async with site.server(replace(site.served, pins=Pins(snapshot_sha256="b" * 64))) as (batches, gate):
            gate.let(100)
            ended = await until(batches, job, "FAILED", "SUCCEEDED")
            assert ended.standing.error is not None
            assert "other bytes" in ended.standing.error["message"]

    asyncio.run(scenario())


def test_model_that_is_gone_fails_the_job_with_the_reason(site: Site) -> None:
    async def scenario() -> None:
        async with site.server() as (batches, gate):
            job = await begun(batches)
            gate.let(6)
            await when(lambda: job.succeeded == 6)

        async with site.server() as (batches, gate):
            gate.fault = NotFound("there is no such version", field="model")
            gate.let(100)
            ended = await until(batches, job, "FAILED", "SUCCEEDED")
            assert ended.standing.error == {"code": 5, "message": "model: there is no such version"}

    asyncio.run(scenario())


def test_file_that_a_dying_job_left_in_part_is_made_anew(site: Site) -> None:
    async def scenario() -> None:
        async with site.server() as (batches, gate):
            job = await begun(batches)
            gate.let(5)
            await when(lambda: job.succeeded == 5)
            assert job.folder is not None
            folder = site.folder / "files" / job.folder
        # A job that was stopping writes what it has under the file's name: it is not whole.
        (folder / "prediction.results-00001-of-00003").write_text('{"instance":{"text":"row 4"},"prediction":1}\n')
        (folder / "prediction.errors_stats-00001-of-00003").write_text('{"error":{"status":"INTERNAL"}}\n')
        (folder / ".part-1234").write_text("x")

        async with site.server() as (batches, gate):
            gate.let(100)
            ended = await until(batches, job, "SUCCEEDED")
            assert (ended.succeeded, ended.failed) == (10, 0)

        assert [line["instance"]["text"] for line in site.results()] == [f"row {i}" for i in range(10)]
        assert site.results("errors_stats") == []
        assert list(folder.glob(".part-*")) == []

    asyncio.run(scenario())


def test_job_is_refused_and_not_there_if_it_cannot_be_written(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with site.server() as (batches, gate):
            with monkeypatch.context() as patch:
                patch.setattr(Database, "_commit", _full)
                with pytest.raises(NotReady, match="full"):
                    await begun(batches)
            assert batches.jobs.running() == []
            gate.let(100)
            job = await until(batches, await begun(batches), "SUCCEEDED")

        async with site.server() as (batches, gate):
            assert [each.id for each in batches.jobs.page(PARENT, {}, may=bool)[0]] == [job.id]

    asyncio.run(scenario())


def test_cancelling_that_cannot_be_written_is_refused_and_the_job_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with site.server() as (batches, gate):
            job = await begun(batches)
            gate.let(2)
            await when(lambda: job.succeeded == 2)
            with monkeypatch.context() as patch:
                patch.setattr(Database, "_commit", _full)
                with pytest.raises(NotReady):
                    await batches.cancel(job)
            assert job.state == "RUNNING"
            gate.let(100)
            await until(batches, job, "SUCCEEDED")

    asyncio.run(scenario())


def test_end_of_a_job_is_told_only_once_it_is_on_the_disk(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_AGAIN_S", 0.01)

    async def scenario() -> None:
        async with site.server() as (batches, gate):
            job = await begun(batches)
            gate.let(9)
            await when(lambda: job.succeeded == 9)
            with monkeypatch.context() as patch:
                patch.setattr(Database, "_commit", _full)
                gate.let(1)
                await when(lambda: job.succeeded == 10)
                await asyncio.sleep(0.1)
                assert job.state == "RUNNING"
            await until(batches, job, "SUCCEEDED")

        async with site.server() as (batches, gate):
            assert batches.jobs.find(PARENT, job.id).state == "SUCCEEDED"

    asyncio.run(scenario())


def _full(self: Database) -> None:
    raise NotReady("the disk of the state is full")


def test_oldest_job_that_is_over_makes_room_on_the_disk_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_list, "MAX_KEPT", 2)

    async def scenario() -> None:
        site.write([{"text": "a"}])
        async with site.server() as (batches, gate):
            gate.let(2)
            jobs = [await until(batches, await begun(batches), "SUCCEEDED") for _ in range(2)]
            jobs += [await begun(batches), await begun(batches)]
            with pytest.raises(QuotaExceeded):
                await begun(batches)

        async with site.server() as (batches, gate):
            kept, _ = batches.jobs.page(PARENT, {}, may=bool)
            assert [each.id for each in kept] == [jobs[3].id, jobs[2].id]

    asyncio.run(scenario())


def test_job_that_is_deleted_stays_so(site: Site) -> None:
    async def scenario() -> None:
        async with site.server() as (batches, gate):
            job = await begun(batches)
            with pytest.raises(PreconditionFailed, match="not over"):
                await batches.forget(job, api="v1", caller="")
            gate.let(100)
            await until(batches, job, "SUCCEEDED")
            await batches.forget(job, api="v1", caller="")

        async with site.server() as (batches, gate):
            assert batches.jobs.page(PARENT, {}, may=bool) == ([], "")
        assert len(site.results()) == 10

    asyncio.run(scenario())


def test_ids_and_times_grow_over_restarts_though_the_clock_goes_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with site.server() as (batches, _):
            first = await begun(batches)
        monkeypatch.setattr(batch_list.time, "time_ns", lambda: 1_000_000)

        async with site.server() as (batches, _):
            second = await begun(batches)

        assert int(second.id) > int(first.id)

    asyncio.run(scenario())


def test_what_is_kept_reads_back_as_the_same_job(served: Served) -> None:
    targets = StandingTargets({"medsiglip": served})
    batches = Batches(targets, BatchFiles(Fetcher(("gs://bucket",)), None))
    wanted = request(
        inputConfig={"instancesFormat": "jsonl", "gcsSource": {"uris": ["gs://bucket/x"]}},
        outputConfig={"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "gs://bucket/y"}},
        manual_batch_tuning_parameters={"batch_size": 4},
    )
    job = batches.read(wanted, PARENT, tenant="ann")
    job.plan, job.digest, job.folder = [3, 1], "d", "gs://bucket/y/z"
    job.answered_by(served)
    job.close_file({"": 2, "INTERNAL": 1, "NOT_FOUND": 0})
    job.counts.update(job.finished[0])

    kept = json.loads(json.dumps(job.kept(job.standing.begun())))
    again = from_kept(job.name, kept)

    assert again.kept() == kept
    assert again.target == job.target
    assert again.resource()["manualBatchTuningParameters"] == {"batchSize": 4}
    assert (again.succeeded, dict(again.failures)) == (2, {"INTERNAL": 1})
