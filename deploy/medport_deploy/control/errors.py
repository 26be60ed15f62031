"""What goes wrong between us and the control plane, as errors of ours.

Google's REST client raises by HTTP status alone: every 400 is a bad request. The status in the envelope says more,
and our own server says which class it means. What the network and google-auth raise is translated too.

Source: google/rpc/code.proto; Vertex AI's published error messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from medport import _extras
from medport.errors import (
    AlreadyExists,
    AuthError,
    Conflict,
    ConnectionFailed,
    Forbidden,
    InputError,
    MedportError,
    NotFound,
    NotReady,
    PreconditionFailed,
    ProtocolError,
    QuotaExceeded,
    ServerError,
    Timeout,
    Unsupported,
    class_for,
)
from medport.wire.vertex import ERROR_DOMAIN, RPC_CODES, error_from

Json = dict[str, Any]
_LONGEST = 600
_SECRET = re.compile(r"(?i)\b(?:bearer\s+\S+|ya29\.\S+|eyJ[\w-]+\.[\w.-]+)")
# "FAILED_PRECONDITION: Vertex AI Service Agent service-N@… does not have permission to access Artifact Registry
# repository projects/P/locations/L/repositories/R", from users' reports. Said of one that is not there, too.
_NOT_PULLED = re.compile(
    r"(?P<agent>service-\d+@gcp-sa-aiplatform[a-z-]*)\S* does not have permission to access Artifact Registry"
    r"(?: repository projects/(?P<project>[^/\s]+)/locations/(?P<location>[^/\s]+)/repositories/(?P<name>[\w-]+))?"
)
_STATUSES = {code: status for status, code in RPC_CODES.items()}
_KINDS: Mapping[str, type[MedportError]] = {
    "CANCELLED": Conflict, "UNKNOWN": ServerError, "INVALID_ARGUMENT": InputError, "DEADLINE_EXCEEDED": Timeout,
    "NOT_FOUND": NotFound, "ALREADY_EXISTS": AlreadyExists, "PERMISSION_DENIED": Forbidden,
    "RESOURCE_EXHAUSTED": QuotaExceeded, "FAILED_PRECONDITION": PreconditionFailed, "ABORTED": Conflict,
    "OUT_OF_RANGE": InputError, "UNIMPLEMENTED": Unsupported, "INTERNAL": ServerError, "UNAVAILABLE": NotReady,
    "DATA_LOSS": ServerError, "UNAUTHENTICATED": AuthError,
}  # fmt: skip
_RENEW = "renew the credential"
_REMEDIES: Mapping[type[MedportError], str] = {
    AuthError: f"{_RENEW}, then run the same command again: it goes on where it stopped",
    Forbidden: "ask for the role; an image is read by the Vertex AI service agent, which needs"
    " roles/artifactregistry.reader on its repository",
    QuotaExceeded: "ask for more of the quota that is named, or deploy with strategy: recreate, which needs one"
    " fleet only",
    NotReady: "no machine is free: try again later, or name another machine type or location",
    Timeout: "look at the container's log; give the model version a longer deploymentTimeout",
    PreconditionFailed: "see what the resource is doing: medport deploy status",
    ServerError: "run the same command again: it goes on where it stopped",
}


@contextmanager
def translated(doing: str, *, renew: str = _RENEW) -> Iterator[None]:
    """Raise as ours what a call of Google's client raises.

    Args:
        doing: what the call was for, such as ``deploy a model``; begins the message.
        renew: how this credential is renewed, in the words of a remedy.
    """
    try:
        yield
    except MedportError:
        raise
    except Exception as fault:
        found = error_of(fault, doing)
        if found is None:
            raise
        if found.remedy == _REMEDIES[AuthError]:
            found.remedy = found.remedy.replace(_RENEW, renew)
        raise found from fault


def error_of(fault: Exception, doing: str) -> MedportError | None:
    """The error of ours for what Google's client, google-auth or requests raised; ``None`` if it is neither's."""
    called = _extras.load("google.api_core.exceptions", extra="deploy")
    requests = _extras.load("requests.exceptions", extra="deploy")
    auth = _extras.load("google.auth.exceptions", extra="deploy")
    if isinstance(fault, auth.TransportError) and isinstance(fault.__cause__, requests.RequestException):
        fault = fault.__cause__
    if isinstance(fault, called.GoogleAPICallError):
        return _answered(fault, doing)
    if isinstance(fault, requests.SSLError):
        refused = ConnectionFailed(
            f"{doing}: the certificate of {_host(fault)} is not trusted",
            field="target.ca_file",
            remedy="give the file of its authority",
        )
        refused.retryable = False
        return refused
    if isinstance(fault, requests.Timeout):
        return Timeout(f"{doing}: no answer in time from {_host(fault)}", remedy=_REMEDIES[ServerError])
    if isinstance(fault, requests.JSONDecodeError):
        return ProtocolError(f"{doing}: the answer is no JSON", field="target.url", remedy="check the address")
    if isinstance(fault, requests.RequestException | auth.TransportError):
        return ConnectionFailed(
            f"{doing}: {_host(fault)} could not be reached",
            field="target",
            remedy="check the address and the network",
        )
    if isinstance(fault, auth.GoogleAuthError):
        return _not_refreshed(str(fault), doing)
    if type(fault).__module__.startswith("google.protobuf"):
        return ProtocolError(f"{doing}: the answer cannot be read", field="target.url", remedy="check the address")
    return None


def operation_error(error: Mapping[str, Any], doing: str) -> MedportError:
    """What an operation ended with: a ``google.rpc.Status``.

    ``UNAVAILABLE`` is a shortage of machines here: the server itself did answer.
    """
    status = _STATUSES.get(int(error.get("code", 2)), "UNKNOWN")
    return _made(_KINDS[status], clean(str(error.get("message", ""))) or status, doing)


def clean(message: str) -> str:
    """A message without what may be a credential, at a length for one line."""
    line = _SECRET.sub("***", " ".join(message.split()))
    return "" if line.startswith("<") else line[:_LONGEST]


def _answered(fault: Any, doing: str) -> MedportError:
    response = fault.response
    http = int(getattr(response, "status_code", None) or fault.code or 500)
    after = _seconds(getattr(response, "headers", {}).get("Retry-After"))
    body = _envelope(getattr(response, "content", b""))
    details = body.get("details")
    if any(each.get("domain") == ERROR_DOMAIN for each in details if isinstance(each, dict)) if details else False:
        found = error_from(http, response.content, retry_after_s=after)
        found.message = f"{doing}: {clean(found.message)}"
        found.args = (found.message,)
        if type(found) is AuthError:
            # Theirs says how to send a key, and that is not the user's to do.
            found.remedy = _REMEDIES[AuthError]
        return found
    kind = class_for(http)
    # 503 is the server's own trouble in an answer, though a shortage of machines in an operation.
    if body.get("status") in _KINDS and http < 500:
        kind = _KINDS[body["status"]]
    elif http == 403:
        kind = Forbidden
    elif http == 499:
        kind = Conflict
    found = _made(kind, clean(str(body.get("message", ""))) or f"HTTP {http}", doing)
    found.retry_after_s = after
    if isinstance(found, AuthError):
        found.renewable = http == 401
    return found


def _made(kind: type[MedportError], message: str, doing: str) -> MedportError:
    remedy = _REMEDIES.get(kind)
    if found := _NOT_PULLED.search(message):
        remedy = _grant(found)
    elif "server exited" in message:
        remedy = "read the container's log, which the message names; the old fleet still serves"
    return kind(f"{doing}: {message}", remedy=remedy)


def _grant(found: re.Match[str]) -> str:
    where = (
        f" {found['name']} --project {found['project']} --location {found['location']}" if found["name"] else ""
    )
    return (
        "check that the image's repository is there, then let Vertex AI read it: gcloud artifacts repositories"
        f" add-iam-policy-binding{where or ' REPOSITORY'}"
        f" --member serviceAccount:{found['agent']}.iam.gserviceaccount.com --role roles/artifactregistry.reader"
    )


def _host(fault: Exception) -> str:
    """Who was asked, with the port where one is named."""
    url = getattr(getattr(fault, "request", None), "url", None)
    return urlsplit(str(url)).netloc.rpartition("@")[2] if url else "the server"


def _not_refreshed(said: str, doing: str) -> MedportError:
    if "short-lived token" in said:
        return AuthError(
            f"{doing}: the credential was refused because of its time",
            field="target.auth",
            remedy="set this machine's clock right",
        )
    return AuthError(
        f"{doing}: there is no credential, or it has expired", field="target.auth", remedy=_REMEDIES[AuthError]
    )


def _envelope(content: bytes) -> Json:
    try:
        body = json.loads(content)
    except ValueError:
        return {}
    body = body[0] if isinstance(body, list) and body else body
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.strip().isdigit() else None
