"""A server whose models are given when it starts, and are the same all its life."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from medport.errors import ConfigError
from medport_local.control.resources import PLANS, VERSION, Deployed, Resources
from medport_local.serving.batch import Batches
from medport_local.serving.batch_calls import BatchCalls
from medport_local.serving.batch_files import BatchFiles
from medport_local.serving.batch_targets import StandingTargets
from medport_local.serving.endpoints import DEDICATED, SHARED, Served, Threads
from medport_local.serving.fetch import Fetcher
from medport_local.serving.fleet import StandingFleet
from medport_local.serving.resource_calls import ResourceCalls
from medport_local.serving.routes import Route
from medport_local.settings import Settings
from medport_local.snapshot import Snapshot, open_snapshot

if TYPE_CHECKING:
    from medport_local.engine.embedder import Embedder
    from medport_local.engine.protocol import Engine
    from medport_local.opening import Opened
    from medport_local.standing import Standing

logger = logging.getLogger(__name__)


class FixedModels:
    """The models of ``Settings.snapshots``, and the read half of a control plane that shows them."""

    def __init__(self, settings: Settings, fetcher: Fetcher) -> None:
        self._settings = settings
        self._fetcher = fetcher
        self._served: dict[str, Served] = {}
        self.deployed: dict[str, Deployed] = {}
        """By endpoint id."""
        self.engines: dict[str, Engine | Embedder] = {}
        """By family."""
        self.standing: dict[str, Standing] = {}
        self.fleet = StandingFleet(settings.project, settings.location, self._served)
        self._batches = Batches(StandingTargets(self._served), BatchFiles(fetcher, settings.batch_dir))

    def table(self) -> tuple[Route, ...]:
        """The calls about resources and jobs."""
        resources = Resources(self.deployed, advertised=self._settings.advertised)
        return (*ResourceCalls(resources).table(), *BatchCalls(self._batches).table())

    def running(self) -> Mapping[str, Engine | Embedder]:
        """The engines, for metrics."""
        return self.engines

    async def start(self, threads: Threads) -> None:
        """Load the models.

        Raises:
            ConfigError, VerificationError: as ``open_snapshot`` and ``open_model``.
        """
        settings = self._settings
        for name, source in settings.snapshots.items():
            opened = await asyncio.to_thread(open_one, name, source, settings)
            self.engines[name], self.standing[name] = opened.engine, opened.standing
            for plan in PLANS[opened.snapshot.family]:
                if plan.dialect not in settings.dialects:
                    continue
                self.deployed[plan.endpoint_id] = each = Deployed(
                    plan=plan,
                    snapshot=opened.snapshot,
                    adapters=opened.standing.adapters,
                    lock_id=settings.lock_id,
                    image_digest=settings.image_digest,
                    project=settings.project,
                    location=settings.location,
                    since=datetime.now(UTC),
                )
                self._served[plan.endpoint_id] = self._of(each, opened.engine, threads)

    async def close(self) -> None:
        """End jobs and engines."""
        await self._batches.close()
        for engine in self.engines.values():
            await asyncio.to_thread(engine.close)

    def _of(self, deployed: Deployed, engine: Engine | Embedder, threads: Threads) -> Served:
        container = self._settings.container
        return Served(
            endpoint_id=deployed.endpoint_id,
            dialect=deployed.plan.dialect,
            engine=engine,
            threads=threads,
            fetcher=self._fetcher,
            deployed_model_id=deployed.deployed_model_id,
            model=deployed.model_name,
            model_version_id=VERSION,
            model_display_name=deployed.snapshot.model_id,
            pins=deployed.pins,
            adapters=deployed.adapters,
            bounds=DEDICATED if deployed.plan.dedicated else SHARED,
            lists=container is not None and container.lists,
            since=int(deployed.since.timestamp()),
        )


def open_one(name: str, source: Path | Snapshot, settings: Settings) -> Opened:
    """Load one model.

    Raises:
        ConfigError, VerificationError: as ``open_snapshot`` and ``open_model``; or it is of another family.
    """
    # Here and not above: it loads torch.
    from medport_local.opening import open_model

    # The weights are hashed as they are loaded: reading them twice would take twice as long.
    snapshot = source if isinstance(source, Snapshot) else open_snapshot(source, defer_weights=True)
    if snapshot.family != name:
        raise ConfigError(
            f"the snapshot for {name} is a {snapshot.family}",
            field="snapshot",
            remedy=f"give --snapshot {snapshot.family}=DIR",
        )
    opened = open_model(
        snapshot,
        settings.models,
        engine_limits=settings.engine_limits,
        embedder_limits=settings.embedder_limits,
    )
    logger.info("%s is ready: %s, sha256 %.12s", name, snapshot.model_id, snapshot.snapshot_sha256)
    return opened
