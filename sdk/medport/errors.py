"""Every error medport raises, and the one table that says how each travels.

    MedportError
    ├── ConfigError              a setting is wrong, unknown or missing
    ├── PolicyError              the policy forbids it; nothing was sent
    ├── InputError               the request itself is wrong; sending it again will not help
    │   ├── ImageError           an image cannot be read or used
    │   │   └── DicomError       … and it is a DICOM object
    │   └── RequestTooLarge      larger than the endpoint takes
    ├── AuthError                the credential is missing, wrong or not allowed
    │   └── Forbidden            it is known, and not for this
    ├── NotFound                 no such endpoint, model or route
    ├── PreconditionFailed       the resource is not in a state that allows it
    ├── Conflict                 somebody else changed it in between; read it again
    │   └── AlreadyExists        the name is taken
    ├── Unsupported              the server knows the call and does not offer it
    ├── QuotaExceeded            too many requests; wait
    ├── NotReady                 the endpoint is cold, starting or has no model yet; wait
    ├── ServerError              the server failed
    ├── Timeout                  the deadline passed
    ├── ConnectionFailed         the server could not be reached, or the connection broke
    ├── ProtocolError            an answer came that cannot be read
    └── VerificationError        bytes or pins are not the approved ones

A message says what is wrong, ``field`` where, ``remedy`` what to do. None of them ever holds pixels, prompts
or file contents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class MedportError(Exception):
    """The root of all medport errors.

    Attributes:
        message: what is wrong, in one sentence; never content.
        field: the argument, key or file part at fault, such as ``images[0]``; ``None`` if there is none.
        remedy: what the caller can do about it.
        backend: the profile that answered, once a request was made.
        request_id: the id under which the server logged the request.
        retry_after_s: seconds the server asked to wait.
        attempts: how many times the request was sent.
    """

    retryable: bool = False

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        remedy: str | None = None,
        backend: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        attempts: int = 0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.remedy = remedy
        self.backend = backend
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.attempts = attempts

    def __str__(self) -> str:
        said = self.field and re.search(rf"(?<!\w){re.escape(self.field)}(?!\w)", self.message)
        place = f"{self.field}: " if self.field and not said else ""
        cure = f" ({self.remedy})" if self.remedy else ""
        return f"{place}{self.message}{cure}"


class ConfigError(MedportError):
    """A setting is wrong, unknown or missing."""


class PolicyError(MedportError):
    """The configured policy forbids it. Nothing was sent."""


class InputError(MedportError):
    """The request itself is wrong."""


class ImageError(InputError):
    """An image cannot be read or used."""


class DicomError(ImageError):
    """A DICOM object cannot be read or used as an image."""


class RequestTooLarge(InputError):
    """The request is larger than the endpoint takes."""


class AuthError(MedportError):
    """The credential is missing, wrong, expired or not allowed to do this."""

    renewable: bool = False
    """The server did not know the credential (HTTP 401): one that can be renewed is worth a second try."""


class Forbidden(AuthError):
    """The credential is known, and not for this model or action. Another try will not help; another key may."""


class NotFound(MedportError):
    """There is no such endpoint, model or route."""


class PreconditionFailed(MedportError):
    """The resource is not in a state that allows it, such as an endpoint that still has models."""


class Conflict(MedportError):
    """Somebody else changed the resource in between (a stale etag). Read it again, then decide."""


class AlreadyExists(Conflict):
    """The name is taken."""


class Unsupported(MedportError):
    """This server knows the call and does not offer it."""


class QuotaExceeded(MedportError):
    """Too many requests for the quota or the queue; wait and try again."""

    retryable = True


class NotReady(MedportError):
    """The endpoint is cold, scaled to zero, starting, or has no model with traffic."""

    retryable = True


class ServerError(MedportError):
    """The server failed while answering."""

    retryable = True


class Timeout(MedportError):
    """The deadline passed before an answer came."""

    retryable = True


class ConnectionFailed(MedportError):
    """The server could not be reached, its certificate is not trusted, or the connection broke."""

    retryable = True


class ProtocolError(MedportError):
    """An answer came that cannot be read: HTML for JSON, a cut body, NaN in an embedding."""


class VerificationError(MedportError):
    """Bytes, digests or pins are not the approved ones. Nothing was loaded or served."""


@dataclass(frozen=True, slots=True)
class Row:
    """How one error class travels: its HTTP status, google.rpc status and code, reason and exit code."""

    error: type[MedportError]
    http: int
    status: str
    exit_code: int

    @property
    def reason(self) -> str:
        """The name under which the class stands in ``error.details[].reason``, e.g. ``IMAGE_ERROR``."""
        name = self.error.__name__
        return "".join("_" + c if c.isupper() and i else c for i, c in enumerate(name)).upper()


EXIT_FAILED = 1
EXIT_CHANGES = 2
EXIT_USAGE = 64
EXIT_INTERRUPTED = 130

# HTTP ↔ google.rpc follows google/rpc/code.proto; the classes that share a status are told apart by `reason`.
TABLE: tuple[Row, ...] = (
    Row(InputError, 400, "INVALID_ARGUMENT", EXIT_FAILED),
    Row(ImageError, 400, "INVALID_ARGUMENT", EXIT_FAILED),
    Row(DicomError, 400, "INVALID_ARGUMENT", EXIT_FAILED),
    Row(RequestTooLarge, 413, "INVALID_ARGUMENT", EXIT_FAILED),
    Row(ConfigError, 400, "FAILED_PRECONDITION", EXIT_USAGE),
    Row(PolicyError, 403, "PERMISSION_DENIED", EXIT_FAILED),
    Row(AuthError, 401, "UNAUTHENTICATED", EXIT_FAILED),
    Row(Forbidden, 403, "PERMISSION_DENIED", EXIT_FAILED),
    Row(NotFound, 404, "NOT_FOUND", EXIT_FAILED),
    Row(PreconditionFailed, 400, "FAILED_PRECONDITION", EXIT_FAILED),
    Row(Conflict, 409, "ABORTED", EXIT_FAILED),
    Row(AlreadyExists, 409, "ALREADY_EXISTS", EXIT_FAILED),
    Row(Unsupported, 501, "UNIMPLEMENTED", EXIT_FAILED),
    Row(QuotaExceeded, 429, "RESOURCE_EXHAUSTED", EXIT_FAILED),
    Row(NotReady, 503, "UNAVAILABLE", EXIT_FAILED),
    Row(ServerError, 500, "INTERNAL", EXIT_FAILED),
    Row(Timeout, 504, "DEADLINE_EXCEEDED", EXIT_FAILED),
    Row(ConnectionFailed, 503, "UNAVAILABLE", EXIT_FAILED),
    Row(ProtocolError, 502, "UNKNOWN", EXIT_FAILED),
    Row(VerificationError, 400, "FAILED_PRECONDITION", EXIT_FAILED),
    Row(MedportError, 500, "INTERNAL", EXIT_FAILED),
)

_BY_CLASS: Mapping[type[MedportError], Row] = {row.error: row for row in TABLE}
_BY_REASON: Mapping[str, type[MedportError]] = {row.reason: row.error for row in TABLE}
# What a bare status means when no reason came along, as from a server that is not ours.
_BY_HTTP: Mapping[int, type[MedportError]] = {
    400: InputError, 401: AuthError, 403: AuthError, 404: NotFound, 405: NotFound, 408: Timeout,
    409: Conflict, 411: InputError, 413: RequestTooLarge, 415: InputError, 422: InputError,
    429: QuotaExceeded, 500: ServerError, 501: Unsupported, 502: ServerError, 503: ServerError, 504: Timeout,
}  # fmt: skip


def row_of(error: MedportError | type[MedportError]) -> Row:
    """The table row of an error or of its nearest listed ancestor."""
    kind = error if isinstance(error, type) else type(error)
    return next(_BY_CLASS[ancestor] for ancestor in kind.__mro__ if ancestor in _BY_CLASS)


def class_for(http: int, reason: str | None = None) -> type[MedportError]:
    """The error class for an HTTP status, made exact by the ``reason`` our own server sends."""
    if reason is not None and reason in _BY_REASON:
        return _BY_REASON[reason]
    return _BY_HTTP.get(http, ServerError if http >= 500 else InputError)


def errors_dict(error: MedportError) -> dict[str, Any]:
    """An error for JSON: type, message, field, remedy, request_id, retryable."""
    return {
        "type": type(error).__name__,
        "message": error.message,
        "field": error.field,
        "remedy": error.remedy,
        "backend": error.backend,
        "request_id": error.request_id,
        "retryable": error.retryable,
    }
