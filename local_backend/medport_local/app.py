"""Settings → engines → ASGI app; listening, starting and draining."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from medport.errors import ConfigError
from medport_local import phantom
from medport_local.control.resources import PLANS, VERSION, Deployed, Resources, check_location
from medport_local.engine.embedder import Embedder, EmbedderLimits
from medport_local.engine.engine import Engine, EngineLimits
from medport_local.opening import ModelOptions, Opened, open_model
from medport_local.serving import observe
from medport_local.serving.audit import AuditLog
from medport_local.serving.batch import Batches
from medport_local.serving.batch_files import BatchFiles
from medport_local.serving.endpoints import DEDICATED, SHARED, Dialect, Served, Threads
from medport_local.serving.exchange import Door, http_error, unrouted
from medport_local.serving.fetch import Fetcher
from medport_local.serving.guard import Guard
from medport_local.serving.keys import KeyRing
from medport_local.serving.lifecycle import Lifecycle
from medport_local.serving.protocol import Protocol
from medport_local.serving.routes import Api, ContainerRoutes, Route, starlette_routes
from medport_local.serving.traces import Traces
from medport_local.snapshot import Family, Snapshot, open_snapshot
from medport_local.standing import Standing

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

FAMILIES: tuple[Family, ...] = ("medgemma", "medsiglip")
MAX_FETCHES = 16
"""At once, over all requests."""
_PROJECT = re.compile(r"[a-z0-9][a-z0-9.:-]{0,62}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one server serves, and under which names."""

    snapshots: Mapping[str, Path | Snapshot] = field(default_factory=lambda: phantom_snapshots())
    """Model directory by family, ``medgemma``, ``medsiglip``, or one of them; or a snapshot that is verified."""
    lock_id: str | None = None
    """Of the lock that the snapshots were held against (``selection``): it stands in every result's provenance."""
    image_digest: str | None = None
    """sha256 of the container image that this runs in, 64 hex digits."""
    project: str = "local"
    location: str = "europe-west4"
    """A real region's name: Google's client refuses others."""
    api_key: str | None = field(default=None, repr=False)
    """It may do everything. With neither it nor ``keys_file``, everybody who can connect may ask."""
    keys_file: Path | None = None
    """Named keys and what each may do, as ``medport keys`` writes them; read again when it changes."""
    audit_dir: Path | None = None
    """Where a line about each request to a model is kept; see ``serving.chain``."""
    advertised: str | None = None
    """``host:port`` by which clients reach the server, shown as ``dedicatedEndpointDns``."""
    models: ModelOptions = field(default_factory=ModelOptions)
    """On which device, in which dtype, by which engine and with which adapters."""
    engine_limits: EngineLimits = field(default_factory=EngineLimits)
    embedder_limits: EmbedderLimits = field(default_factory=EmbedderLimits)
    allow_fetch: Sequence[str] = ()
    """Hosts, buckets and DICOM stores that images may be fetched from; see ``serving.fetch``. None by default."""
    batch_dir: Path | None = None
    """Where batch jobs may read and write beside buckets; nowhere by default."""
    container: ContainerRoutes | None = None
    """Be one model's custom container as well: predictions and health at these paths too."""
    dialects: tuple[Dialect, ...] = ("vllm", "dicom", "medsiglip")
    """Which endpoints there are: a container has one."""
    drain_s: float = 10.0
    """How long running requests may go on when the server stops."""
    drain_grace_s: float = 0.0
    """How long before that health says no while requests are still served: a load balancer's time to turn away."""

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
        if self.models.adapters and "medgemma" not in self.snapshots:
            raise ConfigError(
                "there is no MedGemma to adapt", field="adapter", remedy="give --snapshot medgemma=DIR"
            )


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    """Callers must show a certificate that one of these authorities signed."""


def phantom_snapshots() -> dict[str, Path]:
    """The stand-ins that ship with the package."""
    return {family: phantom.weights_dir(family) for family in FAMILIES}


def create_app(settings: Settings, *, tracer_provider: TracerProvider | None = None) -> Starlette:
    """The ASGI app; engines start and drain in its lifespan.

    ``app.state.engines`` maps a family to its engine, ``app.state.standing`` to what it runs on and may take,
    ``app.state.deployed`` an endpoint's id to its names and snapshot; ``app.state.guard`` holds its keys and its
    state of life. The lifespan raises ConfigError and VerificationError as ``open_snapshot`` and ``open_model``
    do, and ConfigError if the audit log cannot be written.

    Args:
        tracer_provider: OpenTelemetry's, for a span of each request; no spans without one.

    Raises:
        ConfigError: the file of keys cannot be read, ``batch_dir`` is none, or opentelemetry is not installed.
    """
    served: dict[str, Served] = {}
    deployed: dict[str, Deployed] = {}
    engines: dict[str, Engine | Embedder] = {}
    standing: dict[str, Standing] = {}
    guard = Guard(keys=KeyRing(settings.api_key, settings.keys_file))
    metrics = observe.metrics_if_installed(lambda: engines, guard.lifecycle)
    traces = Traces(tracer_provider) if tracer_provider is not None else None
    guard.observers = tuple(observer for observer in (metrics, traces) if observer is not None)
    fetcher = Fetcher(settings.allow_fetch)
    batches = Batches(served, BatchFiles(fetcher, settings.batch_dir))
    api = Api(served, Resources(deployed, advertised=settings.advertised), guard.lifecycle, batches)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        threads = Threads(
            # Few: each may hold one whole decoded image.
            decode=ThreadPoolExecutor(
                max_workers=min(4, os.cpu_count() or 1), thread_name_prefix="medport-decode"
            ),
            fetch=ThreadPoolExecutor(max_workers=MAX_FETCHES, thread_name_prefix="medport-fetch"),
        )
        try:
            # First: a log that cannot be written should not cost the loading of a model.
            if settings.audit_dir is not None:
                guard.audit = await asyncio.to_thread(AuditLog, settings.audit_dir)
            for name, source in settings.snapshots.items():
                opened = await asyncio.to_thread(_open, name, source, settings)
                engines[name], standing[name] = opened.engine, opened.standing
                for plan in PLANS[opened.snapshot.family]:
                    if plan.dialect not in settings.dialects:
                        continue
                    deployed[plan.endpoint_id] = each = Deployed(
                        plan=plan,
                        snapshot=opened.snapshot,
                        adapters=opened.standing.adapters,
                        lock_id=settings.lock_id,
                        image_digest=settings.image_digest,
                        project=settings.project,
                        location=settings.location,
                        since=datetime.now(UTC),
                    )
                    served[plan.endpoint_id] = _served(each, opened.engine, threads, fetcher, settings)
            guard.lifecycle.start()
            yield
        finally:
            await batches.close()
            for engine in engines.values():
                await asyncio.to_thread(engine.close)
            threads.decode.shutdown(wait=False, cancel_futures=True)
            threads.fetch.shutdown(wait=False, cancel_futures=True)
            fetcher.close()
            if guard.audit is not None:
                await asyncio.to_thread(guard.audit.close)

    app = Starlette(
        routes=starlette_routes(
            (
                *api.table(settings.container),
                Route("GET", "/metrics", observe.route(metrics), "metrics", "metrics"),
            ),
            guard,
        ),
        lifespan=lifespan,
        exception_handlers={HTTPException: http_error},
    )
    app.router.default = Door("-", unrouted, None, guard)
    # The router would make the target from the Host header, which is the caller's word.
    app.router.redirect_slashes = False
    app.state.engines = engines
    app.state.standing = standing
    app.state.deployed = deployed
    app.state.guard = guard
    return app


async def serve(
    settings: Settings,
    listener: socket.socket,
    *,
    stop: asyncio.Event,
    on_ready: Callable[[Starlette], None],
    tls: Tls | None = None,
    tracer_provider: TracerProvider | None = None,
) -> None:
    """Load the models, serve on a bound socket until ``stop`` is set, drain.

    Draining: health says no at once; after ``drain_grace_s`` new requests are refused with 503 while the socket
    still listens; when the running ones are done, or after ``drain_s``, it closes.

    ``on_ready`` is called once the models are loaded and the socket listens.

    Raises:
        ConfigError, VerificationError: a snapshot cannot be served.
    """
    app = create_app(settings, tracer_provider=tracer_provider)
    lifecycle: Lifecycle = app.state.guard.lifecycle
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        loop="asyncio",
        # Run here instead, so that a failure comes out as what it is and not as a line in uvicorn's log.
        lifespan="off",
        log_config=None,
        proxy_headers=False,
        server_header=False,
        # For what is written but not yet taken; running requests were waited for before.
        timeout_graceful_shutdown=1,
        ssl_certfile=tls.certificate if tls else None,
        ssl_keyfile=tls.key if tls else None,
        ssl_ca_certs=str(tls.client_ca) if tls and tls.client_ca else None,
        ssl_cert_reqs=ssl.CERT_REQUIRED if tls and tls.client_ca else ssl.CERT_NONE,
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
                lifecycle.drain()
                await asyncio.wait({running}, timeout=settings.drain_grace_s)
                lifecycle.refuse()
                await lifecycle.idle(settings.drain_s)
        finally:
            waiting.cancel()
            server.should_exit = True
            await running


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


def _open(name: str, source: Path | Snapshot, settings: Settings) -> Opened:
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


def _served(
    deployed: Deployed, engine: Engine | Embedder, threads: Threads, fetcher: Fetcher, settings: Settings
) -> Served:
    return Served(
        endpoint_id=deployed.endpoint_id,
        dialect=deployed.plan.dialect,
        engine=engine,
        threads=threads,
        fetcher=fetcher,
        deployed_model_id=deployed.deployed_model_id,
        model=deployed.model_name,
        model_version_id=VERSION,
        model_display_name=deployed.snapshot.model_id,
        pins=deployed.pins,
        adapters=deployed.adapters,
        bounds=DEDICATED if deployed.plan.dedicated else SHARED,
        lists=settings.container is not None and settings.container.lists,
        since=int(deployed.since.timestamp()),
    )
