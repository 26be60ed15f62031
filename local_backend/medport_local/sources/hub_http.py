"""Requests to a hub: its token only for itself, redirects judged one by one, broken downloads gone on with.

The connections are huggingface_hub's own, so that a client factory, proxies and certificates that were set for it
hold here too. Its redirects are not used: they would carry on to plain http.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from typing import Any, TypeVar

import tenacity
from pydantic import SecretStr

from medport._extras import load
from medport.errors import ConfigError, ConnectionFailed, ProtocolError
from medport_local.quiet import quiet
from medport_local.sources.hub_answers import (
    Again,
    Explain,
    accepted,
    already_there,
    broken,
    is_untrusted,
    other_size,
    storage_refusal,
    untrusted,
)
from medport_local.sources.redirects import Redirects, Resolver, endless, unusable
from medport_local.sources.source import Changed

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_ATTEMPTS = 6
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 30.0
_CONNECT_TIMEOUT_S, _SILENCE_TIMEOUT_S = 10.0, 30.0
_MAX_REDIRECTS = 5
_MAX_JSON_BYTES = 4 * 2**20
"""Parsed, JSON takes some 30 times its size; a listing of 10,000 files has 3 MB."""
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer whose first bytes have arrived."""

    response: Any
    first: bytes
    rest: Iterator[bytes]
    etag: str | None


class HubConnection:
    """Asks one hub.

    Args:
        endpoint: ``https://HOST``; plain http is for a mirror on this machine or one that needs no token.
        token: sent to the endpoint's origin alone.
        explain: what a refusal means.
        session: a client of the library that huggingface_hub uses; its own if none.
        resolve: gives a name's addresses, to judge redirects by.
        sleep: waits between attempts.

    Raises:
        ConfigError: the endpoint or the token cannot be one.
    """

    def __init__(
        self,
        endpoint: str,
        token: SecretStr | None,
        *,
        explain: Explain,
        session: Any = None,
        resolve: Resolver = socket.getaddrinfo,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._redirects = Redirects(endpoint, resolve=resolve)
        self._token = token
        self._check_token()
        self._explain = explain
        self._given_session = session
        self._sleep = sleep

    def json(self, url: str, *, attempts: int | None = None) -> Any:
        """What the hub's API says.

        Args:
            attempts: how often to ask a hub that is busy or fails; six times if ``None``.

        Raises:
            ProtocolError: it is no JSON, or more than 4 MiB of it.
            MedportError: it refuses, or cannot be reached.
        """
        data = self.whole(url, limit=_MAX_JSON_BYTES, attempts=attempts)
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise ProtocolError(
                "the answer is no JSON", field="endpoint", remedy="check HF_ENDPOINT: a login page, perhaps"
            ) from None

    def whole(self, url: str, *, limit: int, attempts: int | None = None) -> bytes:
        """A small body.

        Args:
            limit: of it, in bytes.
            attempts: as for ``json``.

        Raises:
            ProtocolError: it is larger than ``limit`` bytes, or packed.
            MedportError: the hub refuses, or cannot be reached.
        """

        def attempt() -> bytes:
            response = self._open(url, {})
            try:
                if response.status_code != 200:
                    raise ProtocolError("the answer is a part of what was asked for", field="endpoint")
                data = bytearray()
                for piece in response.iter_raw():
                    data += piece
                    if len(data) > limit:
                        raise ProtocolError(f"an answer is larger than {limit / 2**20:.0f} MiB", field="endpoint")
                return bytes(data)
            except self._http.TransportError as fault:
                raise Again(broken(fault)) from None
            finally:
                response.close()

        return self._patiently(attempt, attempts)

    def stream(self, url: str, *, name: str, offset: int, size_bytes: int) -> Iterator[bytes]:
        """The bytes of a file from ``offset`` to its end, over as many connections as it takes.

        Raises:
            Changed: a later connection gives another file than the first.
            VerificationError: it is longer or shorter than ``size_bytes``.
            MedportError: the hub refuses, or connection after connection brings nothing.
        """
        position, etag = offset, None
        while position < size_bytes:
            answer = self._patiently(partial(self._begin, url, name, position, size_bytes, etag))
            etag = answer.etag or etag
            try:
                for data in _after(answer):
                    position += len(data)
                    if position > size_bytes:
                        raise other_size(name, "longer")
                    yield data
            except self._http.TransportError as fault:
                logger.info("%s: the connection broke after %d bytes (%s)", name, position, type(fault).__name__)
            finally:
                answer.response.close()

    @property
    def _session(self) -> Any:
        # Each time anew: huggingface_hub closes its own and makes another when a connection cannot be made.
        given = self._given_session
        return load("huggingface_hub", extra="local").get_session() if given is None else given

    @cached_property
    def _http(self) -> Any:
        # httpx, or its successor from huggingface_hub 2 on; what is used here is called the same in both.
        return import_module(type(self._session).__module__.partition(".")[0])

    def _begin(self, url: str, name: str, position: int, size_bytes: int, etag: str | None) -> _Answer:
        headers = {}
        if position:
            headers["range"] = f"bytes={position}-"
            if etag is not None:
                headers["if-range"] = etag
        response = self._open(url, headers)
        try:
            skip = already_there(response, name, position, size_bytes)
            found = response.headers.get("etag", "")
            if etag is not None and found and found != etag:
                raise Changed(name)
            rest = response.iter_raw()
            # Only now has the attempt brought anything.
            first = _past(rest, skip)
        except self._http.TransportError as fault:
            response.close()
            raise Again(broken(fault)) from None
        except BaseException:
            response.close()
            raise
        # A weak one does not speak of bytes (RFC 9110, 13.1.5).
        return _Answer(response, first, rest, found if found.startswith('"') else None)

    def _open(self, url: str, headers: Mapping[str, str]) -> Any:
        """One attempt: the answer behind however many redirects, its status one of ``_ANSWERS``."""
        session = self._session
        sent = {"accept-encoding": "identity", "user-agent": "medport", **headers}
        for _ in range(_MAX_REDIRECTS + 1):
            try:
                request = session.build_request(
                    "GET", url, headers=sent, timeout=(_CONNECT_TIMEOUT_S, *[_SILENCE_TIMEOUT_S] * 3)
                )
            except (self._http.InvalidURL, UnicodeError):
                raise unusable() from None
            signing = self._sign if self._token is not None and self._redirects.is_hub(url) else None
            try:
                with quiet():
                    response = session.send(request, stream=True, auth=signing, follow_redirects=False)
            except self._http.TransportError as fault:
                if is_untrusted(fault):
                    raise untrusted() from None
                raise Again(broken(fault)) from None
            except UnicodeError:  # a name that no resolver takes
                raise unusable() from None
            except OSError as fault:  # its offline mode among them
                raise broken(fault) from None
            if not response.has_redirect_location:
                return accepted(response, self._explain if self._redirects.is_hub(url) else storage_refusal)
            location = response.headers["location"]
            response.close()
            url = self._redirects.target(url, location)
        raise endless()

    def _patiently(self, attempt: Callable[[], _T], attempts: int | None = None) -> _T:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Again),
            stop=tenacity.stop_after_attempt(attempts or _ATTEMPTS),
            wait=_wait,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except Again as last:
            last.error.attempts = attempts or _ATTEMPTS
            raise last.error from None

    def _sign(self, request: Any) -> Any:
        # At the last moment, so that the token is in no variable of any frame but the library's own headers,
        # which do not show it.
        assert self._token is not None
        request.headers["authorization"] = f"Bearer {self._token.get_secret_value()}"
        return request

    def _check_token(self) -> None:
        if self._token is None:
            return
        # A library's error about a malformed header would show it.
        if _TOKEN.fullmatch(self._token.get_secret_value()) is None:
            raise ConfigError(
                "is empty or holds blanks, line ends or other than ASCII",
                field="token",
                remedy="give the token alone",
            )
        scheme, host, _ = self._redirects.hub
        if scheme == "http" and host not in ("localhost", "127.0.0.1", "::1"):
            raise ConfigError(
                "a token is not sent over plain http",
                field="endpoint",
                remedy="give https://HOST, or leave out --token-env",
            )


def _past(pieces: Iterator[bytes], skip: int) -> bytes:
    """The first bytes behind ``skip`` others."""
    for piece in pieces:
        if len(piece) > skip:
            return piece[skip:]
        skip -= len(piece)
    raise Again(ConnectionFailed("the answer ends early", field="endpoint", remedy="run the same again later"))


def _after(answer: _Answer) -> Iterator[bytes]:
    yield answer.first
    yield from answer.rest


def _wait(state: tenacity.RetryCallState) -> float:
    fault = state.outcome.exception() if state.outcome else None
    asked = fault.error.retry_after_s if isinstance(fault, Again) else None
    own = tenacity.wait_exponential_jitter(_FIRST_WAIT_S, _LONGEST_WAIT_S, jitter=_FIRST_WAIT_S)(state)
    return max(own, asked or 0.0)
