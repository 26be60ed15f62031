"""What an answer of a hub means: bytes, a reason to try again, or an error with its remedy."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from medport._extras import load
from medport.errors import (
    ConnectionFailed,
    MedportError,
    ProtocolError,
    QuotaExceeded,
    ServerError,
    Timeout,
    VerificationError,
    class_for,
)

_MAX_ASKED_WAIT_S = 300.0
"""Of a ``Retry-After``; whoever is asked to wait longer is told so instead."""
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_ANSWERS = frozenset({200, 206, 416})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")

Explain = Callable[[int, Mapping[str, str]], MedportError]
"""The error that a refusal's status and headers mean."""


class Again(Exception):
    """An attempt failed in a way that another may not."""

    def __init__(self, error: MedportError) -> None:
        super().__init__(type(error).__name__)
        self.error = error


def accepted(response: Any, explain: Explain) -> Any:
    """An answer that has bytes in it, or says that there are none where they were asked for.

    Raises:
        Again: the hub is busy or fails.
        ProtocolError: the bytes are packed.
        MedportError: it refuses.
    """
    status, headers = response.status_code, response.headers
    packed = headers.get("content-encoding", "identity").lower() != "identity"
    if status in _ANSWERS and not packed:
        return response
    response.close()
    if status in _ANSWERS:
        raise ProtocolError(
            "the answer came packed, although that was not asked for",
            field="endpoint",
            remedy="let the proxy before this machine pass files as they are",
        )
    if status not in _TRY_AGAIN:
        raise explain(status, headers)
    error: MedportError = ServerError(f"the hub fails (HTTP {status})", field="endpoint", remedy="try later")
    if status == 429:
        error = QuotaExceeded("the hub asks to wait", field="endpoint", remedy="try later, or with a token")
    error.retry_after_s = _asked_wait_s(headers)
    if (error.retry_after_s or 0) > _MAX_ASKED_WAIT_S:
        raise error
    raise Again(error)


def already_there(response: Any, name: str, position: int, size_bytes: int) -> int:
    """How many bytes at an answer's beginning were read before, where bytes from ``position`` on were asked for.

    Raises:
        VerificationError: the whole file has another size than ``size_bytes``.
        ProtocolError: it is another part of it.
    """
    if response.status_code == 416:
        raise other_size(name, "shorter")
    if response.status_code == 206:
        said = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if said is None or not position or int(said[1]) != position:
            raise ProtocolError(f"{name}: the answer is another part than was asked for", field=name)
        if said[3] not in ("*", str(size_bytes)):
            raise other_size(name, "longer" if int(said[3]) > size_bytes else "shorter")
        return 0
    length = response.headers.get("content-length", "")
    if length.isdigit() and int(length) != size_bytes:
        raise other_size(name, "longer" if int(length) > size_bytes else "shorter")
    return position


def _asked_wait_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer asks to wait: by ``Retry-After``, or by the hub's rate limit if that is used up."""
    after = headers.get("retry-after", "").strip()
    if after.isdigit() and len(after) < 10:
        return float(after)
    limit = load("huggingface_hub.utils", extra="local").parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None


def broken(fault: Exception) -> MedportError:
    """The error for a connection that could not be made or broke. Says the kind of fault, and no address."""
    name = type(fault).__name__
    if "Timeout" in name:
        return Timeout("the hub does not answer in time", field="endpoint", remedy="run the same again later")
    return ConnectionFailed(
        f"the hub cannot be read ({name})",
        field="endpoint",
        remedy="let this machine reach it (HF_HUB_OFFLINE=0), or name a directory, gs://… or a bundle instead",
    )


def storage_refusal(status: int, headers: Mapping[str, str]) -> MedportError:
    """The error for a host that the hub redirected to and that refuses: no token was sent there."""
    return class_for(status)(
        f"where the hub stores its files, they are refused (HTTP {status})",
        field="endpoint",
        remedy="run the same again; if it stays so, let this machine reach the hub's storage hosts",
    )


def other_size(name: str, how: str) -> VerificationError:
    """The error for a file that is ``longer`` or ``shorter`` than its size in the listing."""
    return VerificationError(f"{name}: is {how} than the hub listed", field=name, remedy="try again later")


def is_untrusted(fault: BaseException | None) -> bool:
    """Whether a connection was refused because of the other side's certificate: another attempt is no use."""
    while fault is not None:
        if isinstance(fault, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(fault):
            return True
        fault = fault.__cause__ or fault.__context__
    return False


def untrusted() -> ConnectionFailed:
    """The error for a certificate that nobody trusted here has signed."""
    return ConnectionFailed(
        "the hub's certificate is not trusted here",
        field="endpoint",
        remedy="let SSL_CERT_FILE name the certificates of whoever ends TLS before this machine",
    )
