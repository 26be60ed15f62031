"""ASGI applications on loopback ports, run by uvicorn in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import uvicorn

from .certificates import Certificate
from .polling import wait_until

T = TypeVar("T")


class LoopThread:
    """An event loop in a thread; coroutines are run on it from outside."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 60) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def close(self) -> None:
        async def end() -> None:
            await self.loop.shutdown_asyncgens()
            await self.loop.shutdown_default_executor()

        self.run(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def running(
    loop: LoopThread,
    apps: Mapping[int, Callable[..., Any]],
    listeners: Mapping[int, tuple[socket.socket, Certificate]],
) -> Iterator[None]:
    """Serve ``apps[port]`` over TLS on each listener."""
    servers = []
    for port, (listener, certificate) in listeners.items():
        config = uvicorn.Config(
            apps[port], http="h11", ws="none", loop="asyncio", lifespan="off", log_config=None, access_log=False,
            timeout_graceful_shutdown=1, ssl_certfile=certificate.certificate, ssl_keyfile=certificate.key,
        )  # fmt: skip
        server = _Server(config)
        servers.append((server, asyncio.run_coroutine_threadsafe(server.serve(sockets=[listener]), loop.loop)))
    try:
        for server, task in servers:
            wait_until(lambda server=server, task=task: server.started or task.done())  # type: ignore[misc]
        yield
    finally:
        for server, _ in servers:
            server.should_exit = True
        for _, task in servers:
            task.result(10)
