"""One request and its answer: errors become envelopes, a caller who leaves stops the work, a line goes to the log.

The log holds method, route template, status, milliseconds, sizes and request id. No path, query, prompt or pixel.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from medport.errors import InputError, MedportError, NotFound, ServerError, Timeout, row_of
from medport.wire import sse
from medport.wire.vertex import REQUEST_ID_HEADER, error_body
from medport_local.serving import guard

T = TypeVar("T")
Check = Callable[[guard.Headers], None]

logger = logging.getLogger(__name__)
access = logging.getLogger("medport_local.access")

_CLIENT_CLOSED = 499


class ClientGone(Exception):
    """The caller closed the connection; nobody waits for an answer."""


@dataclass(slots=True, eq=False)
class Exchange:
    """A request as a handler sees it."""

    scope: Scope
    receive: Receive
    headers: guard.Headers
    request_id: str
    deadline: float | None = None
    """In the event loop's time."""
    answer_headers: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Mapping[str, str]:
        """The path's parameters."""
        params: Mapping[str, str] = self.scope.get("path_params", {})
        return params

    async def json(self) -> dict[str, object]:
        """The body, read once."""
        return await self.within(guard.read_json(self.headers, self.receive))

    async def within(self, work: Awaitable[T]) -> T:
        """Await ``work`` until the request's deadline.

        Raises:
            Timeout: it passed; ``work`` is cancelled.
        """
        try:
            async with asyncio.timeout_at(self.deadline):
                return await work
        except TimeoutError:
            raise Timeout("the request's deadline passed", remedy="allow more time or fewer tokens") from None

    async def attended(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work`` while the caller is there and the deadline has not passed. Call after ``json``.

        Raises:
            ClientGone: the caller left; ``work`` is cancelled.
            Timeout: the deadline passed; ``work`` is cancelled.
        """
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._gone())
        try:
            await self.within(asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED))
            if not task.done():
                raise ClientGone
            return task.result()
        finally:
            await _cancelled(task, gone)

    async def _gone(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass


class JSON(Response):
    """JSON by orjson, NumPy arrays included."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """An answer that streams: one server-sent event for each JSON value, then ``[DONE]``."""

    values: AsyncGenerator[object, None]
    close: Callable[[], None]
    """Called in the end whatever happened, also if ``values`` was never begun."""


Handler = Callable[[Exchange], Awaitable[Response | Events]]


class Door:
    """An ASGI application around one handler of the route table."""

    def __init__(self, template: str, handler: Handler, checks: tuple[Check, ...]) -> None:
        self._template = template
        self._handler = handler
        self._checks = checks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        exchange = Exchange(scope, receive, headers, guard.request_id(headers))
        record = _Record(scope["method"], self._template, exchange, send)
        try:
            await self._answer(exchange, record.send)
        except asyncio.CancelledError:
            record.status = record.status or _CLIENT_CLOSED
            raise
        finally:
            record.log()

    async def _answer(self, exchange: Exchange, send: Send) -> None:
        try:
            for check in self._checks:
                check(exchange.headers)
            if (seconds := guard.timeout_s(exchange.headers)) is not None:
                exchange.deadline = asyncio.get_running_loop().time() + seconds
            answer = await self._handler(exchange)
        except ClientGone:
            return
        except MedportError as error:
            answer = error_response(error)
        except Exception as fault:
            answer = error_response(_unexpected(fault, exchange.request_id))
        if isinstance(answer, Events):
            await _stream(exchange, answer, send)
        else:
            await answer(exchange.scope, exchange.receive, send)


def error_response(error: MedportError) -> Response:
    """The envelope and status of an error."""
    response = JSON(error_body(error), status_code=row_of(error).http)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    return response


async def unrouted(exchange: Exchange) -> Response:
    """The answer where no route matches."""
    raise NotFound("there is no such route", remedy="see the list of routes in the documentation")


async def http_error(request: Any, error: Exception) -> Response:
    """What the router itself refuses, in the same envelope."""
    assert isinstance(error, HTTPException)
    door_error: MedportError = NotFound("there is no such route")
    if error.status_code == 405:
        door_error = InputError("this route does not take that method", field="method")
    return JSON(error_body(door_error), status_code=error.status_code, headers=error.headers)


async def _stream(exchange: Exchange, events: Events, send: Send) -> None:
    try:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _stream_events(exchange, events, send)
    finally:
        events.close()


async def _stream_events(exchange: Exchange, events: Events, send: Send) -> None:
    async def write() -> None:
        async with aclosing(events.values) as values:
            async for value in values:
                data = sse.encode(orjson.dumps(value))
                await send({"type": "http.response.body", "body": data, "more_body": True})

    last = sse.encode(sse.DONE)
    try:
        await exchange.attended(write())
    except ClientGone:
        return
    except MedportError as error:
        last = sse.encode(orjson.dumps(error_body(error)))
    except Exception as fault:
        last = sse.encode(orjson.dumps(error_body(_unexpected(fault, exchange.request_id))))
    await send({"type": "http.response.body", "body": last, "more_body": False})


def _unexpected(fault: Exception, request_id: str) -> ServerError:
    # The type and where it was raised; never its message, which may quote the request.
    trace, place = fault.__traceback__, "?"
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    logger.error("request %s: %s at %s", request_id, type(fault).__name__, place)
    return ServerError(f"the server failed (request {request_id})", remedy="try again; if it lasts, see its log")


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        if not task.done():
            task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError, Exception):
            await task


class _Record:
    """Adds the standing headers to an answer, and writes its line into the access log."""

    def __init__(self, method: str, template: str, exchange: Exchange, send: Send) -> None:
        self.status = 0
        self._method = method
        self._template = template
        self._exchange = exchange
        self._send = send
        self._started = time.monotonic()
        self._sent_bytes = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in {
                REQUEST_ID_HEADER: self._exchange.request_id,
                **self._exchange.answer_headers,
            }.items():
                headers[name] = value
        elif message["type"] == "http.response.body":
            self._sent_bytes += len(message.get("body", b""))
        await self._send(message)

    def log(self) -> None:
        declared = self._exchange.headers.get("content-length", "")
        access.info(
            "%s %s %d %.0f ms, in %s out %d bytes, request %s",
            self._method,
            self._template,
            self.status or _CLIENT_CLOSED,
            (time.monotonic() - self._started) * 1e3,
            declared if declared.isdecimal() else "?",
            self._sent_bytes,
            self._exchange.request_id,
        )
