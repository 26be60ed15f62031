"""What stands at every door: who may come in, how much they may bring, how long they may take.

Each route of the table names its action; ``None`` is open and stands for health, and for the one that gives
tokens. A key is checked by the door of the route itself, never by looking at a URL or a Host header.
"""

from __future__ import annotations

import asyncio
import math
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import orjson
from starlette.types import Message, Receive, Scope

from medport.errors import AuthError, InputError, RequestTooLarge
from medport.wire.vertex import REQUEST_ID_HEADER, TIMEOUT_HEADER
from medport_local.serving.audit import AuditLog
from medport_local.serving.identity import Principal
from medport_local.serving.keyring import KeyRing
from medport_local.serving.lifecycle import Lifecycle
from medport_local.serving.limits import Limiter
from medport_local.serving.outcome import Observer
from medport_local.serving.verbs import CHANGES, Action

MAX_BODY_BYTES = 10 * 1024 * 1024
"""10 MiB: Vertex says 10 MB for a dedicated endpoint; what fits there fits here."""
MAX_COMMAS = 150_000
"""In a body, those in texts included. The longest prompt has 128 K tokens; checking millions of list items would
hold up everybody for seconds."""
MAX_HEAD_BYTES = 32 * 1024
"""Request line and headers. A Google token has 2 KiB at most, a traced request a few more."""
STALL_S = 30.0
"""A body that brings nothing for so long is given up."""
MIN_BYTES_PER_S = 4096
"""So is one that comes slower than this on the whole: a byte every few seconds is no caller, but an attack."""
_DRAIN_BYTES = 8 * MAX_BODY_BYTES
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:~-]{1,128}")
_MAX_TIMEOUT_S = 24 * 3600.0
_IN_QUERY = re.compile(rb"(?:^|&)(?:key|access_token)=")

Headers = Mapping[str, str]
"""Names in lower case."""
AUDITED: frozenset[str] = CHANGES | {"infer"}
"""The actions that the audit log tells of, and that count against a key's rate."""


@dataclass(slots=True, kw_only=True, eq=False)
class Guard:
    """One server's keys, limits and witnesses. What is not given lets everything pass or sees nothing."""

    keys: KeyRing = field(default_factory=KeyRing)
    limiter: Limiter = field(default_factory=Limiter)
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    audit: AuditLog | None = None
    observers: tuple[Observer, ...] = ()
    """Each is told of every request when it is over."""

    def identify(self, headers: Headers, query: bytes) -> Principal:
        """Who asks.

        Raises:
            NotReady: the server is stopping.
            AuthError: the key or token is missing, unknown or expired.
            Forbidden: the token is good, and for something else.
        """
        self.lifecycle.check()
        token = _token(headers)
        if not token and self.keys.guarded and _IN_QUERY.search(query):
            raise AuthError(
                "keys are not taken from a URL, because URLs end up in logs",
                remedy="take that one for known to others, and send a new one in a header: x-goog-api-key",
            )
        return self.keys.identify(token)

    def admit(self, principal: Principal, action: Action) -> Callable[[], None]:
        """Let somebody in who may do what they ask. Cheap, and nothing is read of the body.

        Returns:
            what to call when the request is over.

        Raises:
            NotReady: the audit log cannot be written.
            QuotaExceeded: the key has used up its rate, or all of its places.
        """
        if action not in AUDITED:
            # Looking at resources is cheap and is done by clients on their own: it costs nobody their rate.
            return _nothing
        if self.audit is not None:
            self.audit.check()
        return self.limiter.enter(principal.name, principal.rate, principal.concurrent)


def check_head(scope: Scope) -> None:
    """Raise ``InputError`` if the request's line and headers are larger than any real client's.

    uvicorn's own limit counts what is incomplete: a head that arrives in one piece passes it.
    """
    size = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
    size += sum(len(name) + len(value) for name, value in scope["headers"])
    if size > MAX_HEAD_BYTES:
        raise InputError(
            f"the headers are over {MAX_HEAD_BYTES} bytes", field="headers", remedy="send the data in the body"
        )


def request_id(headers: Headers) -> str:
    """The caller's request id if it is a harmless token, else a new one."""
    given = headers.get(REQUEST_ID_HEADER.lower(), "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def timeout_s(headers: Headers) -> float | None:
    """Seconds the caller will wait; ``None`` if it does not say."""
    given = headers.get(TIMEOUT_HEADER.lower())
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _MAX_TIMEOUT_S:
        raise InputError("is not a number of seconds", field=TIMEOUT_HEADER, remedy="send a number above 0")
    return seconds


def parse_json(data: bytes) -> dict[str, object]:
    """Raise ``InputError`` unless ``data`` is a JSON object of a size that can be looked at in good time."""
    if data.count(b",") > MAX_COMMAS:
        raise InputError(
            f"the body has more than {MAX_COMMAS} entries", field="body", remedy="send several requests"
        )
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise InputError("the body is not a JSON object", field="body", remedy="send application/json")
    return body


async def read_body(headers: Headers, receive: Receive, *, limit: int = MAX_BODY_BYTES) -> bytes:
    """The request's body as it came.

    Raises:
        RequestTooLarge: it is over ``limit`` bytes, as declared or as counted.
        InputError: it is compressed, cut, or too slow.
    """
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise InputError("compressed bodies are not taken", field="Content-Encoding", remedy="send plain JSON")
    declared = headers.get("content-length", "")
    # Digits without end are a size as well, and int() refuses more than some thousand of them.
    size = int(declared) if declared.isdecimal() and len(declared) < 20 else len(declared) and _DRAIN_BYTES + 1
    data: bytes | None = None
    if size <= limit:
        data = await _body(receive, limit)
    elif size <= _DRAIN_BYTES and "expect" not in headers:
        await _body(receive, 0)
    if data is None:
        raise RequestTooLarge(
            f"the request is over {limit} bytes", field="body", remedy="send fewer or smaller images"
        )
    return data


async def _body(receive: Receive, limit: int) -> bytes | None:
    """The body; ``None`` if it is over ``limit``.

    What is over is read on for a while and dropped: who is cut off in mid-sentence sees a broken connection and
    not the answer that says why.
    """
    chunks: list[bytes] = []
    size, more = 0, True
    started = asyncio.get_running_loop().time()
    while more and size <= _DRAIN_BYTES:
        message = await _in_time(receive(), started + STALL_S + size / MIN_BYTES_PER_S)
        if message["type"] == "http.disconnect":
            raise InputError("the body ended early", field="body")
        chunk = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(chunk)
        if size > limit:
            chunks.clear()
        elif chunk:
            chunks.append(chunk)
    return b"".join(chunks) if size <= limit else None


async def _in_time(message: Awaitable[Message], until: float) -> Message:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout_at(min(until, loop.time() + STALL_S)):
            return await message
    except TimeoutError:
        raise InputError("the body came too slowly", field="body", remedy="send it without pauses") from None


def _token(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-goog-api-key", "")


def _nothing() -> None:
    pass
