"""A server whose models are uploaded and deployed by its callers: a control plane, and engines for what it has.

Health is well once every model that was deployed before a restart is loaded again, or is known not to come up. The
control plane answers before that, and requests to a model that is still being loaded are told to come back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medport.errors import NotReady
from medport_local.control import deployed
from medport_local.control.batch_store import KeptJobs
from medport_local.control.batch_targets import BatchTargets
from medport_local.control.database import Database
from medport_local.control.faults import Faults
from medport_local.control.plane import LOADING, Plane, PlaneSettings
from medport_local.control.project import Project
from medport_local.control_routes import routes_of
from medport_local.hosting import EngineHost, HostOptions
from medport_local.serving.batch import Batches
from medport_local.serving.batch_calls import BatchCalls
from medport_local.serving.batch_files import BatchFiles
from medport_local.serving.batch_targets import Target
from medport_local.serving.endpoints import Served, Threads
from medport_local.serving.faults import with_faults
from medport_local.serving.fetch import Fetcher
from medport_local.serving.lifecycle import Lifecycle
from medport_local.serving.routes import Route
from medport_local.settings import ControlPlane, Settings
from medport_local.shelf import Shelf

if TYPE_CHECKING:
    from medport_local.control.fleet import Fleet

_LOOK_S = 0.1

logger = logging.getLogger(__name__)


class ControlledModels:
    """What one server's control plane deploys.

    Args:
        lifecycle: is told when the models of an earlier run are loaded.
    """

    def __init__(self, settings: Settings, plane: ControlPlane, fetcher: Fetcher, lifecycle: Lifecycle) -> None:
        self._settings = settings
        self._given = plane
        self._fetcher = fetcher
        self._lifecycle = lifecycle
        self.project = Project(settings.project, settings.location, plane.project_number)
        # Early: a store that cannot be used should not be found out by the first deployment.
        self._shelf = Shelf(plane.store, plane.model_dirs)
        self._faults = Faults() if plane.allow_faults else None
        self._batch_files = BatchFiles(fetcher, settings.batch_dir)
        self._batches: Batches | None = None
        self._database: Database | None = None
        self._plane: Plane[Served] | None = None
        self._recovering: asyncio.Task[None] | None = None

    @property
    def fleet(self) -> Fleet[Served]:
        """Once it is started."""
        return self._started.fleet

    def table(self) -> tuple[Route, ...]:
        """The control plane's calls, once it is started."""
        assert self._batches is not None, "the control plane is not started"
        return (*routes_of(self._started.rows(), self.project), *BatchCalls(self._batches).table())

    def altered(self, table: tuple[Route, ...]) -> tuple[Route, ...]:
        """The whole server's routes with the faults that an operator may order, if any may be."""
        return table if self._faults is None else with_faults(table, self._faults)

    def running(self) -> Mapping[str, Any]:
        """The engines, for metrics."""
        if self._plane is None:
            return {}
        served = self._plane.fleet.engines()
        return {f"{each.endpoint_id}/{each.deployed_model_id}": each.engine for each in served}

    async def start(self, threads: Threads) -> None:
        """Open the state and go on from it; what was deployed is loaded in the background.

        Raises:
            ConfigError: the state cannot be used, or is another project's.
        """
        await asyncio.to_thread(self._open, threads)
        assert self._batches is not None
        await self._batches.resume()
        self._recovering = asyncio.create_task(self._recovered())

    async def close(self) -> None:
        """Stop the engines; what is deployed stays so."""
        if self._recovering is not None:
            self._recovering.cancel()
            await asyncio.wait({self._recovering})
        if self._batches is not None:
            await self._batches.close()
        if self._plane is not None:
            await asyncio.to_thread(self._plane.close)
        if self._database is not None:
            await asyncio.to_thread(self._database.close)

    @property
    def _started(self) -> Plane[Served]:
        assert self._plane is not None, "the control plane is not started"
        return self._plane

    def _open(self, threads: Threads) -> None:
        settings, given, project = self._settings, self._given, self.project
        about = {"project": project.id, "project-number": project.number, "location": project.location}
        self._database = Database(given.directory, about)
        options = HostOptions(
            models=settings.models,
            engine_limits=settings.engine_limits,
            embedder_limits=settings.embedder_limits,
            image_digest=settings.image_digest,
        )
        host = EngineHost(self._shelf, threads, self._fetcher, options)
        self._plane = Plane(
            project,
            self._database,
            host,
            advertised=settings.advertised,
            available=self._shelf.known,
            settings=PlaneSettings(require_digest=given.require_digest, garden_image=given.garden_image),
            faults=self._faults,
        )
        self._plane.start()
        targets = BatchTargets(
            project, self._database, self._plane.fleet, host, asked=Target, version_of=self._plane.version_of
        )
        self._batches = Batches(targets, self._batch_files, KeptJobs(self._database))

    async def _recovered(self) -> None:
        while await asyncio.to_thread(self._loads_again):
            await asyncio.sleep(_LOOK_S)
        self._lifecycle.start()
        logger.info("what was deployed before is loaded")

    def _loads_again(self) -> bool:
        assert self._database is not None
        try:
            with self._database.reading() as transaction:
                return any(each.last_error == LOADING for each in deployed.every(transaction))
        except NotReady:
            return True
