"""From the thread that generates to the event loop that asked: a request's events, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from medport.errors import MedportError
from medport_local.engine.sequence import Event


class Pending:
    """A handle whose events arrive in the event loop that made it.

    Args:
        id: the request's, unique in its engine.
        cancel: told the id when nobody listens any more; must not block.
    """

    def __init__(self, id: int, cancel: Callable[[int], None]) -> None:
        self.id = id
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | MedportError] = asyncio.Queue()
        self._cancel = cancel

    def deliver(self, event: Event | MedportError) -> None:
        """Hand on an event, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self._cancel(self.id)

    async def __aiter__(self) -> AsyncIterator[Event]:
        """The events; leaving early cancels the request."""
        try:
            while True:
                event = await self._events.get()
                if isinstance(event, MedportError):
                    raise event
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            self._cancel(self.id)
