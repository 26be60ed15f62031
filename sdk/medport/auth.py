"""Credentials: header values for the origins of one backend, refreshed ahead of their end."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Protocol

import orjson

from medport import _extras, _http
from medport.errors import AuthError, ConfigError, MedportError

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
TOKEN_TIMEOUT_S = 20.0


class Credential(Protocol):
    """What authenticates a request. ``headers`` may block for a token; async code calls it in a thread."""

    @property
    def may_block(self) -> bool: ...

    def headers(self) -> Mapping[str, str]: ...

    def renew(self) -> bool:
        """After a 401: fetch a new token whatever the clock says. False: there is none to be had."""
        ...


class NoCredential:
    """For the in-process server, which nobody else can reach, and for open servers."""

    may_block = False

    def headers(self) -> Mapping[str, str]:
        return {}

    def renew(self) -> bool:
        return False


class ApiKey:
    """A key of a local server, sent as ``Authorization: Bearer``."""

    may_block = False

    def __init__(self, key: str) -> None:
        if not key or not key.isascii() or any(c.isspace() for c in key):
            raise ConfigError("the API key is empty or holds blanks or non-ASCII characters", field="api_key")
        self._headers = {"authorization": f"Bearer {key}"}

    def headers(self) -> Mapping[str, str]:
        return self._headers

    def renew(self) -> bool:
        return False


class GoogleCredential:
    """Google's own credentials: a service-account or workload-identity file, or the application default.

    A token with more than 225 s left is fresh. Between 225 s and 0 it is still sent while one background
    thread fetches the next; after that a request waits for the one fetch. ``refresh`` and ``apply`` are used
    rather than ``before_request``, which would also ask Google where the account may be used, off the policy.

    Source: google-auth, ``google.auth.credentials.TokenState``.
    """

    def __init__(self, *, file: str | None = None, ca_file: str | None = None) -> None:
        self._file = file
        self._ca_file = ca_file
        self._lock = threading.Lock()
        self._refreshing = threading.Event()
        self._loaded: Any = None

    @property
    def may_block(self) -> bool:
        return self._loaded is None or self._loaded.token_state.name == "INVALID"

    def headers(self) -> Mapping[str, str]:
        state = None if self._loaded is None else self._loaded.token_state.name
        if state == "STALE":
            self._refresh_behind()
        elif state != "FRESH":
            with self._lock:
                if self._loaded is None or self._loaded.token_state.name == "INVALID":
                    self._refresh()
        headers: dict[str, str] = {}
        self._loaded.apply(headers)
        return headers

    def renew(self) -> bool:
        with self._lock:
            self._refresh()
        return True

    def _refresh_behind(self) -> None:
        if self._refreshing.is_set():
            return
        self._refreshing.set()
        threading.Thread(target=self._refresh_quietly, name="medport-token", daemon=True).start()

    def _refresh_quietly(self) -> None:
        try:
            with self._lock:
                self._refresh()
        except MedportError:
            # The token in hand is still good; when it ends, the request that needs the next one gets the error.
            return
        finally:
            self._refreshing.clear()

    def _refresh(self) -> None:
        exceptions = _extras.load("google.auth.exceptions", extra="vertex")
        try:
            if self._loaded is None:
                self._loaded = _load(self._file)
            self._loaded.refresh(_transport(self._ca_file))
        except exceptions.DefaultCredentialsError as fault:
            raise AuthError(
                "no Google credentials were found",
                field="auth",
                remedy="run: gcloud auth application-default login, or set auth.credentials_file",
            ) from fault
        except exceptions.GoogleAuthError as fault:
            clock = " (the clock of this machine may be wrong)" if "short-lived" in str(fault) else ""
            error = AuthError(f"Google gave no token{clock}", field="auth", remedy="run: medport doctor")
            # google-auth calls a refused connection final; a token server that is down may come back.
            error.retryable = bool(fault.retryable) or isinstance(fault, exceptions.TransportError)
            raise error from fault


def _load(file: str | None) -> Any:
    if file is None:
        credentials, _ = _extras.load("google.auth", extra="vertex").default(scopes=[SCOPE])
        return credentials
    try:
        with open(file, "rb") as stream:
            info = orjson.loads(stream.read())
    except (OSError, orjson.JSONDecodeError) as fault:
        raise ConfigError("the credentials file cannot be read as JSON", field="auth.credentials_file") from fault
    if info.get("type") == "service_account":
        module = _extras.load("google.oauth2.service_account", extra="vertex")
        return module.Credentials.from_service_account_info(info, scopes=[SCOPE])
    credentials, _ = _extras.load("google.auth", extra="vertex").load_credentials_from_dict(info, scopes=[SCOPE])
    return credentials


def _transport(ca_file: str | None) -> Any:
    """google-auth's transport over our HTTP library, so that ``requests`` need not be loaded."""
    transport = _extras.load("google.auth.transport", extra="vertex")
    exceptions = _extras.load("google.auth.exceptions", extra="vertex")

    class Answer(transport.Response):  # type: ignore[misc, name-defined]
        def __init__(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
            self._parts = status, headers, data

        @property
        def status(self) -> int:
            return self._parts[0]

        @property
        def headers(self) -> Mapping[str, str]:
            return self._parts[1]

        @property
        def data(self) -> bytes:
            return self._parts[2]

    class Transport(transport.Request):  # type: ignore[misc, name-defined]
        def __call__(
            self,
            url: str,
            method: str = "GET",
            body: bytes | str | None = None,
            headers: Mapping[str, str] | None = None,
            timeout: float | None = None,
            **_: object,
        ) -> Answer:
            content = body.encode() if isinstance(body, str) else body
            try:
                parts = _http.fetch(method, url, content, dict(headers or {}), timeout or TOKEN_TIMEOUT_S, ca_file)
            except MedportError as fault:
                raise exceptions.TransportError(str(fault)) from fault
            return Answer(*parts)

    return Transport()
