"""Who may come in, and how much they may bring: API key, body size, deadline, request id."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import uuid
from collections.abc import Mapping

import orjson
from starlette.types import Receive

from medport.errors import AuthError, InputError, RequestTooLarge
from medport.wire.vertex import REQUEST_ID_HEADER, TIMEOUT_HEADER

MAX_BODY_BYTES = 10 * 1024 * 1024
"""10 MiB: Vertex says 10 MB for a dedicated endpoint; what fits there fits here."""
_DRAIN_BYTES = 8 * MAX_BODY_BYTES
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:~-]{1,128}")
_MAX_TIMEOUT_S = 24 * 3600.0

Headers = Mapping[str, str]
"""Names in lower case."""


class KeyCheck:
    """Compares the caller's key with the server's in constant time. Without a server key everyone may come in."""

    def __init__(self, api_key: str | None) -> None:
        # Hashes have one length, so that not even the key's length can be measured.
        self._digest = hashlib.sha256(api_key.encode()).digest() if api_key else None

    def __call__(self, headers: Headers) -> None:
        """Raise ``AuthError`` unless the key is right.

        ``Authorization: Bearer KEY`` or ``x-goog-api-key: KEY``.
        """
        if self._digest is None:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-goog-api-key", "")
        if not hmac.compare_digest(hashlib.sha256(given.encode()).digest(), self._digest):
            raise AuthError(
                "the API key is wrong" if given else "this server wants an API key",
                remedy="send it as: Authorization: Bearer KEY",
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


async def read_json(headers: Headers, receive: Receive, *, limit: int = MAX_BODY_BYTES) -> dict[str, object]:
    """The request's body as a JSON object.

    Raises:
        RequestTooLarge: it is over ``limit`` bytes, as declared or as counted.
        InputError: it is compressed, cut, or no JSON object.
    """
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise InputError("compressed bodies are not taken", field="Content-Encoding", remedy="send plain JSON")
    declared = headers.get("content-length", "")
    size = int(declared) if declared.isdecimal() else 0
    data: bytes | None = None
    if size <= limit:
        data = await _body(receive, limit)
    elif size <= _DRAIN_BYTES and "expect" not in headers:
        await _body(receive, 0)
    if data is None:
        raise RequestTooLarge(
            f"the request is over {limit} bytes", field="body", remedy="send fewer or smaller images"
        )
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise InputError("the body is not a JSON object", field="body", remedy="send application/json")
    return body


async def _body(receive: Receive, limit: int) -> bytes | None:
    """The body; ``None`` if it is over ``limit``.

    What is over is read on for a while and dropped: who is cut off in mid-sentence sees a broken connection and
    not the answer that says why.
    """
    chunks: list[bytes] = []
    size, more = 0, True
    while more and size <= _DRAIN_BYTES:
        message = await receive()
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
