"""Doors of the serving layer on a real socket, with handlers of the test's own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Route

from medport_local.serving.exchange import Door, Handler, unrouted
from medport_local.serving.guard import Guard
from medport_local.serving.protocol import Protocol
from medport_local.serving.verbs import Action

from .polling import wait_until
from .running import LoopThread

Table = Mapping[str, tuple[Handler, Action | None]]


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def serving(
    loop: LoopThread, table: Table, guard: Guard | None = None, *, protocol: type[Protocol] = Protocol
) -> Iterator[tuple[str, int]]:
    """``{"POST /path": (handler, action)}`` on a loopback port; gives host and port."""
    routes: list[BaseRoute] = []
    for key, (handler, action) in table.items():
        method, path = key.split(" ")
        routes.append(Route(path, Door(path, handler, action, guard), methods=[method]))
    with serving_routes(loop, routes, guard, protocol=protocol) as address:
        yield address


@contextmanager
def serving_routes(
    loop: LoopThread,
    routes: Sequence[BaseRoute],
    guard: Guard | None = None,
    *,
    protocol: type[Protocol] = Protocol,
) -> Iterator[tuple[str, int]]:
    """Routes on a loopback port; gives host and port."""
    app = Starlette(routes=routes)
    app.router.default = Door("-", unrouted, None, guard)
    app.router.redirect_slashes = False
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=protocol, ws="none", loop="asyncio", lifespan="off", log_config=None,
        timeout_graceful_shutdown=1, server_header=False,
    )  # fmt: skip
    server = _Server(config)
    task = asyncio.run_coroutine_threadsafe(server.serve(sockets=[listener]), loop.loop)
    wait_until(lambda: server.started or task.done())
    try:
        yield listener.getsockname()
    finally:
        server.should_exit = True
        task.result(10)
