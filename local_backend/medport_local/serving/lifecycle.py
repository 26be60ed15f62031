"""Starting, ready, draining, refusing: where the server is in its life, and how many requests are under way."""

from __future__ import annotations

import asyncio

from medport.errors import NotReady


class Lifecycle:
    """One server's state. Belongs to its event loop; not thread-safe.

    ``starting`` → ``ready`` → ``draining`` (health says no, requests are still served, so that a load balancer can
    turn away in time) → ``refusing`` (new requests get 503, running ones finish).
    """

    def __init__(self) -> None:
        self._ready = False
        self._draining = False
        self._refusing = False
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def ready(self) -> bool:
        """Whether a load balancer should send requests."""
        return self._ready and not self._draining

    @property
    def draining(self) -> bool:
        """Whether the end has begun; running requests may still finish."""
        return self._draining

    @property
    def running(self) -> int:
        """Requests under way, probes of health not counted."""
        return self._running

    def start(self) -> None:
        """The engines are loaded."""
        self._ready = True

    def drain(self) -> None:
        """Health says no from now on."""
        self._draining = True

    def refuse(self) -> None:
        """New requests are refused from now on."""
        self._draining = self._refusing = True

    def check(self) -> None:
        """Raise ``NotReady`` while new requests are refused."""
        if self._refusing:
            raise NotReady("the server is stopping", remedy="try again, on another server", retry_after_s=5)

    def enter(self) -> None:
        """A request begins; each is followed by one ``leave``."""
        self._running += 1
        self._idle.clear()

    def leave(self) -> None:
        """It is over."""
        self._running -= 1
        if not self._running:
            self._idle.set()

    async def idle(self, within_s: float) -> bool:
        """Wait until nothing is under way; ``False`` if that took too long."""
        try:
            await asyncio.wait_for(self._idle.wait(), within_s)
        except TimeoutError:
            return False
        return True
