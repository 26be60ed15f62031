"""One request and its answer: errors become envelopes, and a caller who leaves stops the work.

Each door checks the key for its route's action, and for the endpoint where the path names one. A handler that
learns only later which endpoint it is about must ask ``permit``; if it forgets, its answer is kept back.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from medport.errors import InputError, MedportError, NotFound, ServerError, Timeout, row_of
from medport.wire import sse
from medport.wire.vertex import COLD_START, ColdStart, error_body
from medport_local.serving import guard as guards
from medport_local.serving.guard import Guard
from medport_local.serving.identity import ANYONE, Principal
from medport_local.serving.lifecycle import Lifecycle
from medport_local.serving.outcome import Facts
from medport_local.serving.verbs import Action
from medport_local.serving.visit import CLIENT_CLOSED, Visit, feed

T = TypeVar("T")

logger = logging.getLogger(__name__)


class ClientGone(Exception):
    """The caller closed the connection; nobody waits for an answer."""


class JSON(Response):
    """JSON by orjson, NumPy arrays included."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def error_response(error: MedportError) -> Response:
    """The envelope and status of an error."""
    if isinstance(error, ColdStart):
        return PlainTextResponse(
            COLD_START, status_code=429
        )  # Vertex's own: no envelope, and not its usual status
    response = JSON(error_body(error), status_code=row_of(error).http)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    return response


@dataclass(slots=True, eq=False)
class Exchange:
    """A request as a handler sees it."""

    scope: Scope
    receive: Receive
    headers: guards.Headers
    request_id: str
    deadline: float | None = None
    """In the event loop's time."""
    answer_headers: dict[str, str] = field(default_factory=dict)
    principal: Principal = ANYONE
    """Whose key it is."""
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    """The server's, for the handlers of health."""
    facts: Facts = field(default_factory=Facts)
    """For the handler to fill in, as soon as it knows; ``facts.deployed_model`` before it asks an engine."""
    render_error: Callable[[MedportError], Response] = error_response
    """How an error of the handler is answered. Dialects with another form of error set their own."""
    started: float = field(default_factory=time.monotonic)
    """In the event loop's time, which is the monotonic clock."""
    first_token_at: float | None = None
    body_digest: hmac.HMAC | None = None
    """Is fed with the body if the request is audited."""
    bytes_in: int = 0
    body_broken: bool = False
    """Something of the body may still be on its way: the connection cannot be used again."""
    scope_checked: bool = False
    """Whether anyone asked if the key is for what the request is about."""
    held: ExitStack = field(default_factory=ExitStack)
    """What is given back when the request is over, however it ends, its stream included."""

    @property
    def tenant(self) -> str:
        """The name of the key, by which engines keep callers apart; ``""`` where the server has no keys."""
        return "" if self.principal is ANYONE else self.principal.name

    @property
    def path(self) -> Mapping[str, str]:
        """The path's parameters."""
        params: Mapping[str, str] = self.scope.get("path_params", {})
        return params

    async def json(self, *, limit: int = guards.MAX_BODY_BYTES) -> dict[str, object]:
        """The body, read once.

        Args:
            limit: bytes; less for an endpoint on the shared host.

        Raises:
            RequestTooLarge: it is over ``limit``.
            InputError: it is compressed, cut, too slow or no JSON object.
            Timeout: the deadline passed.
        """
        return guards.parse_json(await self.body(limit=limit))

    async def body(self, *, limit: int = guards.MAX_BODY_BYTES) -> bytes:
        """The body as it came, read once. Raises as ``json`` does."""
        self.body_broken = True
        data = await self.within(guards.read_body(self.headers, self.receive, limit=limit))
        self.body_broken = False
        self.bytes_in = len(data)
        if self.body_digest is not None:
            await feed(self.body_digest, data)
        return data

    def bound(self, seconds: float) -> None:
        """Answer within ``seconds`` of the request's begin, or sooner if the caller wants it sooner."""
        latest = self.started + seconds
        self.deadline = latest if self.deadline is None else min(self.deadline, latest)

    def permit(self, endpoint: str) -> None:
        """Go on only if the key is for this endpoint. To be called before anything is done or told about it.

        Raises:
            Forbidden: it is not.
        """
        self.scope_checked = True
        self.principal.check_model(endpoint)

    def may(self, endpoint: str) -> bool:
        """Whether the key is for this endpoint; for lists, which leave out what it is not for."""
        self.scope_checked = True
        return self.principal.may(endpoint)

    def permit_any(self) -> None:
        """Say that the answer is about no endpoint, such as the list of routes."""
        self.scope_checked = True

    def first_token(self) -> None:
        """Note the time of the answer's first token; later calls do nothing."""
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()

    async def within(self, work: Awaitable[T]) -> T:
        """Await ``work`` until the request's deadline.

        Raises:
            Timeout: it passed; ``work`` is cancelled.
        """
        try:
            async with asyncio.timeout_at(self.deadline) as limit:
                return await work
        except TimeoutError:
            if not limit.expired():
                raise
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


def _as_event(value: object) -> bytes:
    return sse.encode(orjson.dumps(value))


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """An answer that streams: by default one server-sent event for each JSON value, then ``[DONE]``."""

    values: AsyncGenerator[object, None]
    close: Callable[[], None]
    """Called in the end whatever happened, also if ``values`` was never begun."""
    media_type: str = "text/event-stream; charset=utf-8"
    encode: Callable[[object], bytes] = _as_event
    """One value, or the envelope of an error, as bytes."""
    last: bytes | None = sse.encode(sse.DONE)
    """What follows the last value, unless an error did."""


Handler = Callable[[Exchange], Awaitable[Response | Events]]


class Door:
    """An ASGI application around one handler of the route table.

    Args:
        template: the route's path with its parameters' names; the only form in which a path is logged.
        action: what the key must be allowed; ``None`` needs no key, and is for health alone.
        guard: the server's own; ``None`` lets everyone in and tells nobody.
        verb: Google's name of the permission; a key that has it needs no action.
    """

    def __init__(
        self,
        template: str,
        handler: Handler,
        action: Action | None,
        guard: Guard | None = None,
        *,
        verb: str = "",
    ) -> None:
        self.action: Action | None = action
        self._verb = verb
        self._template = template
        self._handler = handler
        self._guard = guard or Guard()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        exchange = Exchange(scope, receive, headers, guards.request_id(headers), lifecycle=self._guard.lifecycle)
        visit = Visit(self._guard, self.action, self._template, exchange, send, verb=self._verb)
        try:
            await self._answer(exchange, visit)
        except asyncio.CancelledError:
            visit.status = visit.status or CLIENT_CLOSED
            raise
        finally:
            with exchange.held:
                visit.end()

    async def _answer(self, exchange: Exchange, visit: Visit) -> None:
        answer: Response | Events
        try:
            visit.enter()
            answer = await self._handler(exchange)
            self._check_asked(exchange, answer)
        except ClientGone:
            return
        except Exception as fault:
            answer = _refusal(exchange, visit.error_of(fault), visit)
        if isinstance(answer, Events):
            await _stream(exchange, answer, visit)
        else:
            await _whole(exchange, answer, visit)

    def _check_asked(self, exchange: Exchange, answer: Response | Events) -> None:
        # What metrics tell is about all endpoints; that is what the action says.
        if self.action in (None, "metrics") or exchange.scope_checked:
            return
        if isinstance(answer, Events):
            answer.close()
        logger.error("%s answers without asking whether the key is for its endpoint", self._template)
        raise ServerError("the answer was kept back: the route did not check the key's scope")


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


def _refusal(exchange: Exchange, error: MedportError, visit: Visit) -> Response:
    try:
        return exchange.render_error(error)
    except Exception as fault:
        return error_response(visit.error_of(fault))


async def _whole(exchange: Exchange, answer: Response, visit: Visit) -> None:
    try:
        await visit.seal(bytes(answer.body), answer.status_code)
    except MedportError as error:
        answer = error_response(visit.error_of(error))
    await answer(exchange.scope, exchange.receive, visit.send)


async def _stream(exchange: Exchange, events: Events, visit: Visit) -> None:
    try:
        try:
            visit.begin()
        except MedportError as error:
            refusal = error_response(visit.error_of(error))
            await refusal(exchange.scope, exchange.receive, visit.send)
            return
        headers = [(b"content-type", events.media_type.encode()), (b"cache-control", b"no-store")]
        await visit.send({"type": "http.response.start", "status": 200, "headers": headers})
        await _stream_events(exchange, events, visit)
    finally:
        events.close()


async def _stream_events(exchange: Exchange, events: Events, visit: Visit) -> None:
    async def write() -> None:
        async with aclosing(events.values) as values:
            async for value in values:
                data = events.encode(value)
                visit.hash(data)
                await visit.send({"type": "http.response.body", "body": data, "more_body": True})

    last = events.last or b""
    try:
        await exchange.attended(write())
    except ClientGone:
        return
    except Exception as fault:
        last = events.encode(error_body(visit.error_of(fault)))
    try:
        visit.hash(last)
        visit.record(200)
    except MedportError as error:
        last = events.encode(error_body(visit.error_of(error)))
    await visit.send({"type": "http.response.body", "body": last, "more_body": False})


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not complain that nobody did
