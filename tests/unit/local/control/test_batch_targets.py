"""How batch jobs come by engines: borrowed where a model is deployed, started for them where it is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.no_engines import NoEngine, NoEngines

from medport.errors import (
    Forbidden,
    InputError,
    MedportError,
    NotFound,
    NotReady,
    PreconditionFailed,
    VerificationError,
)
from medport_local.control import deployed, records
from medport_local.control.batch_targets import BatchTargets
from medport_local.control.database import Database, Transaction
from medport_local.control.deployed import Deployment
from medport_local.control.fleet import Fleet
from medport_local.control.host import Intent
from medport_local.control.project import Project

PROJECT = Project("clinic", "europe-west4", "123456789012")
PARENT = PROJECT.parent
MODEL, ENDPOINT = f"{PARENT}/models/m", f"{PARENT}/endpoints/e"


@dataclass(frozen=True)
class Asked:
    id: str
    model: str
    version: str
    endpoint: str


def version_of(tx: Transaction, model: str, version: str | None) -> dict[str, Any]:
    aliases = {None: "1", "default": "1"}
    record = records.get(tx, f"{model}@{aliases.get(version, version)}", field="model")
    return {**record.body, "name": model, "etag": "7", "deployedModels": []}


class Site:
    """A control plane's parts below its calls."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(folder, {})
        self.host = NoEngines()
        self.fleet: Fleet[NoEngine] = Fleet(PROJECT, self.database)
        self.targets = BatchTargets(
            PROJECT, self.database, self.fleet, self.host, asked=Asked, version_of=version_of, wait_s=0.3
        )
        with self.database.writing() as tx:
            records.insert(tx, MODEL, "model", PARENT, {})
            for version in ("1", "2"):
                body = {"versionId": version, "displayName": "M", "labels": {"v": version}}
                records.insert(tx, f"{MODEL}@{version}", "version", MODEL, body)
            records.insert(tx, ENDPOINT, "endpoint", PARENT, {})

    def deploy(self, id_: str, version: str, state: deployed.State = "READY", *, share: int = 0) -> None:
        """A deployed model as the disk has it; its engine runs if it is READY."""
        intent = Intent(
            endpoint=ENDPOINT, deployed_model_id=id_, model=MODEL, model_version_id=version, display_name="d"
        )
        row = Deployment(
            endpoint=ENDPOINT, id=id_, model=MODEL, state=state, body={}, intent=intent, operation="o"
        )
        with self.database.writing() as tx:
            deployed.insert(tx, row)
            if share:
                records.update(tx, records.get(tx, ENDPOINT), {"trafficSplit": {id_: share}})
        if state == "READY":
            self.fleet.install(ENDPOINT, id_, self.host.start(intent, lambda: False))
        self.fleet.reread(ENDPOINT)

    def undeploy(self, id_: str) -> None:
        with self.database.writing() as tx:
            row = deployed.find(tx, ENDPOINT, id_)
            assert row is not None
            deployed.delete(tx, row)
        self.fleet.reread(ENDPOINT)
        engine = self.fleet.remove(ENDPOINT, id_)
        if engine is not None:
            self.host.stop(engine)

    def model(self, version: str) -> Asked:
        return self.targets.find(PARENT, f"{MODEL}@{version}", "")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "state")
    yield made
    made.database.close()


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


# Whom a job asks


@pytest.mark.parametrize(
    ("written", "version"),
    [
        (f"{MODEL}@2", "2"),
        (f"{MODEL}@default", "1"),
        (MODEL, "1"),
        (f"projects/clinic/locations/europe-west4/models/m@{2}", "2"),
    ],
)
def test_model_is_found_by_version_alias_and_either_name_of_the_project(
    site: Site, written: str, version: str
) -> None:
    assert site.targets.find(PARENT, written, "") == Asked(id="m", model=MODEL, version=version, endpoint="")


def test_endpoint_is_found_though_nothing_is_deployed_there(site: Site) -> None:
    written = "projects/clinic/locations/europe-west4/endpoints/e"

    assert site.targets.find(PARENT, "", written) == Asked(id="e", model="", version="", endpoint=ENDPOINT)


@pytest.mark.parametrize(
    ("model", "endpoint", "error"),
    [
        (f"{MODEL}@9", "", NotFound),
        (f"{PARENT}/models/other", "", NotFound),
        (f"{MODEL}@", "", InputError),
        ("m", "", InputError),
        (ENDPOINT, "", InputError),
        ("projects/other/locations/europe-west4/models/m", "", Forbidden),
        ("projects/clinic/locations/us-east1/models/m", "", NotFound),
        ("", f"{PARENT}/endpoints/other", NotFound),
        ("", MODEL, InputError),
    ],
)
def test_what_is_not_there_is_refused_by_its_field(
    site: Site, model: str, endpoint: str, error: type[MedportError]
) -> None:
    with pytest.raises(error) as caught:
        site.targets.find(PARENT, model, endpoint)

    assert caught.value.field in ("model", "endpoint", "project", "location")


# A model version


def test_deployed_version_is_borrowed_and_nothing_is_started(site: Site) -> None:
    site.deploy("1", "1", share=100)
    site.deploy("2", "2")

    async def job() -> None:
        source = site.targets.source("job", site.model("2"))

        lease = await source.enter()

        assert lease.served.key == ("e", "2")
        assert not site.fleet.drain(ENDPOINT, "2", 0.01, lambda: False)
        lease.release()
        assert site.fleet.drain(ENDPOINT, "2", 0.01, lambda: False)
        await source.close()

    run(job)
    assert site.host.keys() == ["e/1", "e/2"]


def test_version_that_is_not_deployed_gets_an_engine_for_as_long_as_the_job(site: Site) -> None:
    site.deploy("1", "1", share=100)

    async def job() -> None:
        source = site.targets.source("job", site.model("2"))

        lease = await source.enter()
        again = await source.enter()

        intent = lease.served.intent
        assert again.served is lease.served
        assert (intent.model, intent.model_version_id, intent.display_name) == (MODEL, "2", "M")
        assert intent.version == {"versionId": "2", "displayName": "M", "labels": {"v": "2"}, "name": MODEL}
        assert intent.snapshot_sha256 == site.host.resolve(intent)
        lease.release()
        again.release()
        assert site.host.keys() == ["e/1", "m/"]
        await source.close()

    run(job)
    assert site.host.keys() == ["e/1"]


def test_jobs_of_one_version_share_the_engine_and_the_last_stops_it(site: Site) -> None:
    async def job() -> None:
        first, second = (site.targets.source(name, site.model("1")) for name in ("a", "b"))

        one, two = await asyncio.gather(first.enter(), second.enter())

        assert one.served is two.served
        await first.close()
        assert site.host.keys() == ["m/"]
        await second.close()
        assert site.host.keys() == []
        third = site.targets.source("c", site.model("1"))
        assert (await third.enter()).served is not one.served
        await third.close()

    run(job)


def test_model_that_is_undeployed_in_mid_job_goes_on_in_an_engine_of_its_own(site: Site) -> None:
    site.deploy("1", "1", share=100)

    async def job() -> None:
        source = site.targets.source("job", site.model("1"))
        (await source.enter()).release()
        site.undeploy("1")

        lease = await source.enter()

        assert lease.served.key == ("m", "")
        await source.close()

    run(job)
    assert site.host.keys() == []


def test_job_waits_for_a_model_that_is_being_deployed(site: Site) -> None:
    site.deploy("1", "1", "LOADING")

    async def job() -> None:
        source = site.targets.source("job", site.model("1"))
        waiting = asyncio.create_task(source.enter())
        await asyncio.sleep(0.05)
        site.undeploy("1")
        site.deploy("2", "1")

        assert (await waiting).served.key == ("e", "2")
        await source.close()

    site.targets.wait_s = 30
    run(job)
    assert site.host.keys() == ["e/2"]


def test_sleeping_model_is_woken_for_a_job(site: Site) -> None:
    site.deploy("1", "1", "ASLEEP", share=100)
    intent = Intent(endpoint=ENDPOINT, deployed_model_id="1", model=MODEL, model_version_id="1", display_name="d")
    site.fleet.wanted = lambda endpoint, id_: site.fleet.install(endpoint, id_, site.host.start(intent, bool))

    async def job() -> None:
        source = site.targets.source("job", site.model("1"))

        assert (await source.enter()).served.key == ("e", "1")
        await source.close()

    site.targets.wait_s = 30
    run(job)
    assert site.host.notes == ["started e/1"]


def test_job_does_not_wait_for_ever_for_what_does_not_come(site: Site) -> None:
    site.deploy("1", "1", "LOADING")

    async def job() -> None:
        source = site.targets.source("job", site.model("1"))

        assert (await source.enter()).served.key == ("m", "")
        await source.close()

    run(job)


def test_version_that_is_gone_tells_the_job_so(site: Site) -> None:
    async def job() -> None:
        target = site.model("2")
        with site.database.writing() as tx:
            records.delete(tx, f"{MODEL}@2")
        source = site.targets.source("job", target)

        with pytest.raises(NotFound, match="models/m@2"):
            await source.enter()
        await source.close()

    run(job)
    assert site.host.notes == []


def test_engine_that_does_not_start_tells_every_row_the_same(site: Site) -> None:
    site.host.failures["*"] = VerificationError("the snapshot is another")

    async def job() -> None:
        source = site.targets.source("job", site.model("1"))

        for _ in range(2):
            with pytest.raises(VerificationError, match="another"):
                await source.enter()
        await source.close()
        site.host.failures.clear()
        later = site.targets.source("job", site.model("1"))
        assert (await later.enter()).served.key == ("m", "")
        await later.close()

    run(job)


@pytest.mark.parametrize("heedless", [False, True])
def test_job_that_ends_while_its_engine_starts_leaves_none_behind(site: Site, heedless: bool) -> None:
    site.host.heedless = heedless
    site.host.hold()

    async def job() -> None:
        source = site.targets.source("job", site.model("1"))
        row = asyncio.create_task(source.enter())
        await asyncio.to_thread(site.host.starting.acquire)
        row.cancel()
        closing = asyncio.create_task(source.close())
        await asyncio.sleep(0.05)
        site.host.let_go()
        await closing

    run(job)
    assert site.host.keys() == []


# An endpoint


def test_rows_of_an_endpoint_follow_its_split(site: Site) -> None:
    site.deploy("1", "1")
    site.deploy("2", "2")
    with site.database.writing() as tx:
        records.update(tx, records.get(tx, ENDPOINT), {"trafficSplit": {"1": 75, "2": 25}})
    site.fleet.reread(ENDPOINT)
    answered: list[str] = []

    async def job() -> None:
        source = site.targets.source("job", site.targets.find(PARENT, "", ENDPOINT))
        for _ in range(8):
            lease = await source.enter()
            answered.append(lease.served.key[1])
            lease.release()
        await source.close()

    run(job)
    assert sorted(answered) == ["1"] * 6 + ["2"] * 2


def test_endpoint_without_traffic_ends_the_job_and_one_that_loads_only_after_a_while(site: Site) -> None:
    async def job() -> None:
        source = site.targets.source("job", site.targets.find(PARENT, "", ENDPOINT))
        with pytest.raises(PreconditionFailed, match="traffic_split"):
            await source.enter()
        site.deploy("1", "1", "ASLEEP", share=100)
        with pytest.raises(NotReady):
            await source.enter()

    run(job)
