"""The whole local server on a loopback port, with all its settings, in a loop of the tests' own."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from medport_local.app import Settings, Tls, serve

from .polling import wait_until
from .running import LoopThread

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider


@dataclass(frozen=True)
class LocalServer:
    """A server that runs."""

    url: str
    app: Any
    stop: asyncio.Event
    task: Any

    def client(
        self, key: str | None = None, *, headers: dict[str, str] | None = None, **more: Any
    ) -> httpx.Client:
        headers = {**(headers or {}), **({"Authorization": f"Bearer {key}"} if key else {})}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, **more)


@contextmanager
def local_server(
    loop: LoopThread,
    settings: Settings,
    *,
    tls: Tls | None = None,
    tracer_provider: TracerProvider | None = None,
) -> Iterator[LocalServer]:
    """Serve until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    stop = asyncio.Event()
    apps: list[Any] = []
    task = asyncio.run_coroutine_threadsafe(
        serve(settings, listener, stop=stop, on_ready=apps.append, tls=tls, tracer_provider=tracer_provider),
        loop.loop,
    )
    try:
        wait_until(lambda: bool(apps) or task.done(), 60)
        if task.done():
            task.result()
        yield LocalServer(f"{'https' if tls else 'http'}://127.0.0.1:{port}", apps[0], stop, task)
    finally:
        loop.loop.call_soon_threadsafe(stop.set)
        try:
            task.result(30)
        finally:
            listener.close()


def client_context(ca_file: str, certificate: tuple[str, str] | None = None) -> ssl.SSLContext:
    """What a caller trusts, and shows."""
    context = ssl.create_default_context(cafile=ca_file)
    if certificate is not None:
        context.load_cert_chain(*certificate)
    return context
