"""Settings → models → ASGI app; listening, starting and draining."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from medport import _extras
from medport_local.fixed_models import FixedModels
from medport_local.serving import observe
from medport_local.serving.audit import AuditLog
from medport_local.serving.endpoints import Threads
from medport_local.serving.exchange import Door, http_error, unrouted
from medport_local.serving.fetch import Fetcher
from medport_local.serving.guard import Guard
from medport_local.serving.keyring import KeyRing
from medport_local.serving.lifecycle import Lifecycle
from medport_local.serving.protocol import Protocol
from medport_local.serving.routes import Api, Route, starlette_routes
from medport_local.serving.token_calls import TokenCalls
from medport_local.serving.traces import Traces
from medport_local.settings import Settings as Settings
from medport_local.settings import phantom_snapshots as phantom_snapshots

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from medport_local.controlled_models import ControlledModels

MAX_FETCHES = 16
"""At once, over all requests."""


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    """Callers must show a certificate that one of these authorities signed."""


def create_app(settings: Settings, *, tracer_provider: TracerProvider | None = None) -> Starlette:
    """The ASGI app; models start and drain in its lifespan.

    ``app.state.models`` holds what is served, ``app.state.guard`` the keys and the state of life. Where the models
    are given, ``app.state.engines`` maps a family to its engine, ``app.state.standing`` to what it runs on and may
    take, ``app.state.deployed`` an endpoint's id to its names and snapshot. The lifespan raises ConfigError and
    VerificationError as ``FixedModels.start`` and ``ControlledModels.start`` do, and ConfigError if the audit log
    cannot be written.

    Args:
        tracer_provider: OpenTelemetry's, for a span of each request; no spans without one.

    Raises:
        ConfigError: the file of keys cannot be read, ``batch_dir`` is none, or opentelemetry is not installed.
    """
    hosts = (settings.advertised,) if settings.advertised else ()
    guard = Guard(keys=KeyRing(settings.api_key, settings.keys_file, hosts=hosts))
    fetcher = Fetcher(settings.allow_fetch)
    models: FixedModels | ControlledModels
    if settings.control_plane is None:
        models = FixedModels(settings, fetcher)
    else:
        from medport_local.controlled_models import ControlledModels

        models = ControlledModels(settings, settings.control_plane, fetcher, guard.lifecycle)
    metrics = observe.metrics_if_installed(models.running, guard.lifecycle)
    traces = Traces(tracer_provider) if tracer_provider is not None else None
    guard.observers = tuple(observer for observer in (metrics, traces) if observer is not None)

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
            await models.start(threads)
            if isinstance(models, FixedModels):
                guard.lifecycle.start()
            else:
                app.router.routes[:] = starlette_routes(models.altered(table()), guard)
            yield
        finally:
            await models.close()
            threads.decode.shutdown(wait=False, cancel_futures=True)
            threads.fetch.shutdown(wait=False, cancel_futures=True)
            fetcher.close()
            if guard.audit is not None:
                await asyncio.to_thread(guard.audit.close)

    def table() -> tuple[Route, ...]:
        return (
            *Api(models.fleet, guard.lifecycle).table(settings.container),
            *models.table(),
            *TokenCalls(guard.keys).table(),
            Route("GET", "/metrics", observe.route(metrics), "metrics", "metrics"),
        )

    # The calls of a control plane come with its state, which is opened when it starts.
    routes = starlette_routes(table(), guard) if isinstance(models, FixedModels) else []
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: http_error})
    app.router.default = Door("-", unrouted, None, guard)
    # The router would make the target from the Host header, which is the caller's word.
    app.router.redirect_slashes = False
    app.state.models = models
    app.state.guard = guard
    if isinstance(models, FixedModels):
        app.state.engines = models.engines
        app.state.standing = models.standing
        app.state.deployed = models.deployed
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
    with _extras.importing():
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
