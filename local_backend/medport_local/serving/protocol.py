"""HTTP/1.1 as uvicorn speaks it, without its access log and with limits against slow and tiny senders."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from medport_local.serving.guard import MAX_HEAD_BYTES

HEAD_S = 20.0
"""A request's line and headers come within this; so does what is left of a body once its answer is sent."""
_MANY_PIECES = 4096
_MIN_PIECE_BYTES = 64


class Connection(h11.Connection):
    """Refuses a body in many tiny chunks: each costs its sender a few bytes, and us a turn of the parser."""

    _pieces = 0
    _bytes = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._pieces = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._pieces += 1
            self._bytes += len(event.data)
            if self._pieces > _MANY_PIECES and self._bytes < self._pieces * _MIN_PIECE_BYTES:
                raise h11.RemoteProtocolError("the chunks are too small")
        return event


class Protocol(H11Protocol):
    """One connection.

    uvicorn's own switch of its access log, which holds the query, is a logger that belongs to the whole process,
    and with it to whoever else runs uvicorn here.
    """

    head_s = HEAD_S

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False
        # The door's own limit, so that it does not depend on how a head was cut on its way.
        self.conn = Connection(h11.SERVER, MAX_HEAD_BYTES)
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _send_at_once(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watch()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close; at once if nothing is under way, without waiting for an idle TLS peer to say goodbye."""
        idle = self.cycle is None or self.cycle.response_complete
        super().shutdown()
        if idle and self.transport.get_write_buffer_size() == 0:
            self.transport.abort()

    def _watch(self) -> None:
        """Keep a timer while the caller owes us bytes that no handler waits for."""
        answered = self.cycle is None or self.cycle.response_complete
        # Between two requests uvicorn's own timer runs, until the first byte of the next.
        owes = answered and self.timeout_keep_alive_task is None
        if self.conn.their_state is h11.SEND_BODY and answered:
            owes = True
        if not owes:
            self._stop_watch()
        elif self._late is None:
            self._late = self.loop.call_later(self.head_s, self.transport.abort)

    def _stop_watch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def _send_at_once(transport: asyncio.Transport) -> None:
    """Switch Nagle's algorithm off: an answer's body would wait 40 ms for the acknowledgement of its head.

    asyncio does so only for sockets that name TCP as their protocol, and those of ``create_server`` do not.
    """
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
