"""Settings → engines → ASGI app; listening, starting and draining."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from medport.errors import ConfigError
from medport_local import phantom
from medport_local.control.resources import VERSION, Deployed, Resources, check_location
from medport_local.engine.embedder import Embedder, EmbedderLimits
from medport_local.engine.engine import Engine, EngineLimits, TorchEngine
from medport_local.engine.loading import load_gemma, load_siglip
from medport_local.serving.endpoints import Served
from medport_local.serving.exchange import Door, http_error, unrouted
from medport_local.serving.guard import KeyCheck
from medport_local.serving.routes import Api, starlette_routes
from medport_local.snapshot import Family, Snapshot, open_snapshot

FAMILIES: tuple[Family, ...] = ("medgemma", "medsiglip")
_PROJECT = re.compile(r"[a-z0-9][a-z0-9.:-]{0,62}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one server serves, and under which names."""

    snapshots: Mapping[str, Path] = field(default_factory=lambda: phantom_snapshots())
    """Model directory by family, which is also the endpoint's id: ``medgemma``, ``medsiglip``, or one of them."""
    project: str = "local"
    location: str = "europe-west4"
    """A real region's name: Google's client refuses others."""
    api_key: str | None = field(default=None, repr=False)
    """Without one, everybody who can connect may ask."""
    advertised: str | None = None
    """``host:port`` by which clients reach the server, shown as ``dedicatedEndpointDns``."""
    device: str | None = None
    """``"cpu"``, ``"cuda"``, ``"cuda:1"``; by default CUDA where there is one."""
    engine_limits: EngineLimits = field(default_factory=EngineLimits)
    embedder_limits: EmbedderLimits = field(default_factory=EmbedderLimits)
    drain_s: float = 10.0
    """How long running requests may go on when the server stops."""

    def __post_init__(self) -> None:
        check_location(self.location)
        if not _PROJECT.fullmatch(self.project):
            raise ConfigError("is not a project id", field="project", remedy="use small letters, digits and -")
        if not self.snapshots:
            raise ConfigError("nothing to serve", field="snapshot", remedy="give --snapshot medgemma=DIR")
        for name in self.snapshots:
            if name not in FAMILIES:
                raise ConfigError(
                    f"{name!s:.40} is not a model family", field="snapshot", remedy=f"use {' or '.join(FAMILIES)}"
                )


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files."""

    certificate: Path
    key: Path


def phantom_snapshots() -> dict[str, Path]:
    """The stand-ins that ship with the package."""
    return {family: phantom.weights_dir(family) for family in FAMILIES}


def create_app(settings: Settings) -> Starlette:
    """The ASGI app; engines start and drain in its lifespan.

    ``app.state.engines`` maps a family to its engine, ``app.state.deployed`` to its names and snapshot. The
    lifespan raises ConfigError and VerificationError as ``open_snapshot`` does.
    """
    served: dict[str, Served] = {}
    deployed: dict[str, Deployed] = {}
    engines: dict[str, Engine | Embedder] = {}
    api = Api(served, Resources(deployed, advertised=settings.advertised))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # Few: each may hold one whole decoded image.
        workers = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1), thread_name_prefix="medport-decode")
        try:
            for name, directory in settings.snapshots.items():
                snapshot, engine = await asyncio.to_thread(_open, name, directory, settings)
                engines[name] = engine
                deployed[name] = each = Deployed(
                    endpoint_id=name,
                    snapshot=snapshot,
                    project=settings.project,
                    location=settings.location,
                    since=datetime.now(UTC),
                )
                served[name] = _served(each, engine, workers)
            yield
        finally:
            for engine in engines.values():
                await asyncio.to_thread(engine.close)
            workers.shutdown(wait=False, cancel_futures=True)

    app = Starlette(
        routes=starlette_routes(api.table(), KeyCheck(settings.api_key)),
        lifespan=lifespan,
        exception_handlers={HTTPException: http_error},
    )
    app.router.default = Door("-", unrouted, ())
    app.state.engines = engines
    app.state.deployed = deployed
    return app


async def serve(
    settings: Settings,
    listener: socket.socket,
    *,
    stop: asyncio.Event,
    on_ready: Callable[[Starlette], None],
    tls: Tls | None = None,
) -> None:
    """Load the models, serve on a bound socket until ``stop`` is set, drain.

    ``on_ready`` is called once the models are loaded and the socket listens.

    Raises:
        ConfigError, VerificationError: a snapshot cannot be served.
    """
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        loop="asyncio",
        # Run here instead, so that a failure comes out as what it is and not as a line in uvicorn's log.
        lifespan="off",
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        ssl_certfile=tls.certificate if tls else None,
        ssl_keyfile=tls.key if tls else None,
    )
    server = _Server(config)
    async with app.router.lifespan_context(app):
        running = asyncio.ensure_future(server.serve(sockets=[listener]))
        waiting = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait(
                {running, asyncio.ensure_future(server.ready.wait())}, return_when="FIRST_COMPLETED"
            )
            if not running.done():
                on_ready(app)
                await asyncio.wait({running, waiting}, return_when="FIRST_COMPLETED")
        finally:
            waiting.cancel()
            server.should_exit = True
            await running


class _Protocol(H11Protocol):
    """HTTP/1.1 without uvicorn's access log, which holds the query.

    Its own switch is a logger that belongs to the whole process, and with it to whoever else runs uvicorn here.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False

    def shutdown(self) -> None:
        """Close; at once if nothing is under way, without waiting for an idle TLS peer to say goodbye."""
        idle = self.cycle is None or self.cycle.response_complete
        super().shutdown()
        if idle and self.transport.get_write_buffer_size() == 0:
            self.transport.abort()


class _Server(uvicorn.Server):
    """uvicorn without signal handlers: a library has no business with its host's signals."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _open(name: str, directory: Path, settings: Settings) -> tuple[Snapshot, Engine | Embedder]:
    snapshot = open_snapshot(directory)
    if snapshot.family != name:
        raise ConfigError(
            f"the snapshot for {name} is a {snapshot.family}",
            field="snapshot",
            remedy=f"give --snapshot {snapshot.family}=DIR",
        )
    engine: Engine | Embedder
    if snapshot.family == "medgemma":
        gemma = load_gemma(snapshot, device=settings.device)
        engine = TorchEngine(gemma, snapshot, limits=settings.engine_limits)
    else:
        engine = Embedder(load_siglip(snapshot, device=settings.device), limits=settings.embedder_limits)
    logger.info("%s is ready: %s, sha256 %.12s", name, snapshot.model_id, snapshot.snapshot_sha256)
    return snapshot, engine


def _served(deployed: Deployed, engine: Engine | Embedder, workers: ThreadPoolExecutor) -> Served:
    return Served(
        engine=engine,
        deployed_model_id=deployed.deployed_model_id,
        model=deployed.model_name,
        model_version_id=VERSION,
        model_display_name=deployed.snapshot.model_id,
        workers=workers,
    )
