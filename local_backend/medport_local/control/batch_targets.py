"""How batch jobs come by engines: a model version's, deployed or not, or an endpoint's by its traffic split.

An engine that serves the version anyway is borrowed, row by row, so that an undeployment waits for the rows under
way and no longer. Where none does, one is started for the job and stopped after it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Any, Generic, Protocol, TypeVar

from medport.errors import InputError, NotFound, NotReady
from medport_local.control import records
from medport_local.control.database import Database
from medport_local.control.deployed import Deployment, of_row
from medport_local.control.deployments import VersionOf
from medport_local.control.fleet import Fleet
from medport_local.control.host import Host, Intent
from medport_local.control.project import Project

WAIT_S = 600.0
"""For an engine that is loaded or woken for others."""
_LOOK_S = 0.5

logger = logging.getLogger(__name__)


class Asked(Protocol):
    """Whom a job asks; the names as they are kept."""

    @property
    def model(self) -> str:
        """Without a version; ``""`` for a job that asks an endpoint."""
        ...

    @property
    def version(self) -> str: ...

    @property
    def endpoint(self) -> str: ...


T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
A = TypeVar("A", bound=Asked)


class Lease(Protocol[T_co]):
    """An engine that is not stopped before it is released."""

    @property
    def served(self) -> T_co: ...
    def release(self) -> None: ...


class BatchTargets(Generic[T, A]):
    """Finds whom jobs ask.

    Args:
        asked: makes the value that jobs keep, of ``id``, ``model``, ``version`` and ``endpoint``.
        version_of: see ``deployments``.
        wait_s: how long a job waits for an engine that is started for others, before it starts its own.
    """

    def __init__(
        self,
        project: Project,
        database: Database,
        fleet: Fleet[T],
        host: Host[T],
        *,
        asked: Callable[..., A],
        version_of: VersionOf,
        wait_s: float = WAIT_S,
    ) -> None:
        self._project = project
        self._database = database
        self.fleet = fleet
        self._host = host
        self._asked = asked
        self._version_of = version_of
        self.wait_s = wait_s
        self._started: dict[tuple[str, str], _Started[T]] = {}

    def parent(self, project: str, location: str) -> str:
        """The project and location as names have them. Raises ``Forbidden`` and ``NotFound``."""
        self._project.check(project, location)
        return self._project.parent

    def scope(self, model: str, endpoint: str) -> str:
        """What a key must be for: the endpoint's id, or ``models/ID``.

        A model is no endpoint of the same id: a job that asks it may load any of its versions.
        """
        id_ = (model or endpoint).rpartition("/")[2].partition("@")[0]
        return f"models/{id_}" if model else id_

    def find(self, parent: str, model: str, endpoint: str) -> A:
        """Whom a job is about; one of ``model`` and ``endpoint`` is ``""``.

        Raises:
            NotFound, Forbidden: there is no such thing in this project and location.
            InputError: it is no name.
        """
        with self._database.reading() as transaction:
            if endpoint:
                name = self._project.canonical(endpoint, kind="endpoints", field="endpoint")
                found = records.get(transaction, name, field="endpoint")
                return self._asked(id=found.id, model="", version="", endpoint=name)
            wanted, at, version = model.partition("@")
            if "/" not in wanted or (at and not version):
                raise InputError(
                    "is not a resource name", field="model", remedy=f"write {parent}/models/ID@VERSION"
                )
            name = self._project.canonical(wanted, kind="models", field="model")
            version = str(self._version_of(transaction, name, version or None)["versionId"])
            return self._asked(id=name.rpartition("/")[2], model=name, version=version, endpoint="")

    def source(self, job: str, target: A) -> _OfEndpoint[T] | _OfVersion[T]:
        """Where the rows of one job come by an engine. Nothing is started yet."""
        if target.endpoint:
            return _OfEndpoint(self.fleet, target.endpoint, self.wait_s)
        return _OfVersion(self, target)

    def deployed(self, target: Asked) -> list[Deployment]:
        """Where a model version is deployed, or is being deployed."""
        with self._database.reading() as transaction:
            rows = transaction.all(
                "SELECT * FROM deployment WHERE model = ? AND state <> 'DRAINING' ORDER BY created, id",
                target.model,
            )
        return [each for each in map(of_row, rows) if each.intent.model_version_id == target.version]

    def started(self, target: Asked) -> _Started[T]:
        """What runs for jobs that ask this model version; it is begun by the first."""
        key = (target.model, target.version)
        if key not in self._started:
            self._started[key] = _Started(self._host, partial(self._intent, *key))
        return self._started[key]

    def ended(self, target: Asked) -> None:
        """What ran for jobs is about to be stopped: the next job starts another."""
        del self._started[target.model, target.version]

    def _intent(self, model: str, version_id: str) -> Intent:
        with self._database.reading() as transaction:
            version = self._version_of(transaction, model, version_id)
        parent, _, id_ = model.partition("/models/")
        return Intent(
            # What runs for jobs is known by its model's id, as if an endpoint of that name had it.
            endpoint=f"{parent}/endpoints/{id_}",
            deployed_model_id="",
            model=model,
            model_version_id=version_id,
            display_name=str(version.get("displayName", id_)),
            version={key: value for key, value in version.items() if key not in ("deployedModels", "etag")},
        )


class _OfEndpoint(Generic[T]):
    def __init__(self, fleet: Fleet[T], endpoint: str, wait_s: float) -> None:
        self._fleet = fleet
        self._endpoint = endpoint
        self._wait_s = wait_s

    @property
    def key(self) -> Hashable:
        return self._endpoint

    async def enter(self) -> Lease[T]:
        """By the traffic split. Waits for a model that is being loaded or sleeps.

        Raises:
            NotFound, PreconditionFailed: the endpoint is gone, or has no traffic split.
            NotReady: its model does not come up.
        """
        until = time.monotonic() + self._wait_s
        while True:
            try:
                return self._fleet.enter("-", "-", self._endpoint.rpartition("/")[2])
            except NotReady:
                if time.monotonic() >= until:
                    raise
            await asyncio.sleep(_LOOK_S)

    async def close(self) -> None:
        """Nothing was started."""


class _Own(Generic[T]):
    """The engine that was started for jobs."""

    __slots__ = ("served",)

    def __init__(self, served: T) -> None:
        self.served = served

    def release(self) -> None:
        """It stays until the jobs are over."""


class _Started(Generic[T]):
    """An engine that runs for jobs alone, or is being started; the last job that uses it stops it."""

    def __init__(self, host: Host[T], intent: Callable[[], Intent]) -> None:
        self._host = host
        self._given_up = Event()
        self.users = 0
        self._running = asyncio.create_task(asyncio.to_thread(self._start, intent))

    async def served(self) -> T:
        """The engine. Raises as ``Host.resolve`` and ``Host.start``, each time."""
        return await asyncio.shield(self._running)

    async def stop(self) -> None:
        """Stop it, or its being started."""
        self._given_up.set()
        try:
            served = await self._running
        except Exception as fault:
            logger.debug("no engine to stop: %s", type(fault).__name__)  # the jobs were told why
            return
        await asyncio.to_thread(self._host.stop, served)

    def _start(self, intent: Callable[[], Intent]) -> T:
        wanted = intent()
        wanted = replace(wanted, snapshot_sha256=self._host.resolve(wanted))
        logger.info("an engine is started for batch jobs: %s@%s", wanted.model, wanted.model_version_id)
        return self._host.start(wanted, self._given_up.is_set)


class _OfVersion(Generic[T]):
    def __init__(self, targets: BatchTargets[T, Any], target: Asked) -> None:
        self._targets = targets
        self._target = target
        self._own: _Started[T] | None = None

    @property
    def key(self) -> Hashable:
        return self._target.model, self._target.version

    async def enter(self) -> Lease[T]:
        """One that is deployed, or one that is started for jobs.

        Raises:
            NotFound: the model version is gone.
            VerificationError, ConfigError, QuotaExceeded, MedportError: as ``Host.resolve`` and ``Host.start``.
        """
        until = time.monotonic() + self._targets.wait_s
        while self._own is None:
            coming = False
            for deployment in self._targets.deployed(self._target):
                coming = True
                if deployment.standing:
                    try:
                        return self._targets.fleet.enter(
                            "-", "-", deployment.endpoint.rpartition("/")[2], deployment.id
                        )
                    except (NotFound, NotReady):
                        continue  # it was undeployed just now, sleeps or is being loaded
            if not coming or time.monotonic() >= until:
                self._own = self._targets.started(self._target)
                self._own.users += 1
            else:
                await asyncio.sleep(_LOOK_S)
        return _Own(await self._own.served())

    async def close(self) -> None:
        """Give up what was started, if no other job uses it."""
        if self._own is not None:
            self._own.users -= 1
            if not self._own.users:
                self._targets.ended(self._target)
                await self._own.stop()
