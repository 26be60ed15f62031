"""The only module that knows the HTTP library: pools, TLS, byte streams, and its faults as our errors.

Its transports are used and not its clients. A client follows redirects, keeps cookies, reads credentials out of
URLs and merges every request with its defaults: nothing here wants that, and it is a fifth of a short call.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar
from urllib.request import getproxies, proxy_bypass

import httpx

from medport._call import Deadline, Reply, Request
from medport.errors import AuthError, ConfigError, ConnectionFailed, MedportError, ProtocolError, Timeout
from medport.wire.vertex import REQUEST_ID_HEADER, error_from

CONNECT_TIMEOUT_S = 10.0
MAX_REPLY_BYTES = 256 * 1024 * 1024
MAX_CONNECTIONS = 64
_LIMITS = httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS)
_COMMON = {"user-agent": "medport", "accept": "*/*", "accept-encoding": "identity"}  # no decompression bomb
_FAULTS = (httpx.TransportError, httpx.InvalidURL)
_Pool = TypeVar("_Pool", httpx.HTTPTransport, httpx.AsyncHTTPTransport)


@dataclass(frozen=True, slots=True)
class Channel:
    """How to reach a backend's hosts: a Unix socket or the network, and whom to trust."""

    socket_path: str | None = None
    ca_file: str | None = None
    use_environment: bool = False
    """Take proxies from the environment. Never for a local server: its traffic stays inside."""


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """The system's trust store (``SSL_CERT_FILE`` included), or only ``ca_file``.

    Raises:
        ConfigError: ``ca_file`` cannot be read or holds no certificate.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as fault:
        raise ConfigError(
            "the CA file cannot be read", field="ca_file", remedy="give a PEM file that exists"
        ) from fault
    if ca_file is None and not context.get_ca_certs():  # a Python built apart from the system's store
        context = httpx.create_ssl_context()
    return context


class _Routes(Generic[_Pool]):
    """The pool of connections a request takes: straight to its host, or through a proxy of the environment."""

    def __init__(self, channel: Channel, make: type[_Pool]) -> None:
        tls = tls_context(channel.ca_file)
        self._direct: _Pool = make(verify=tls, limits=_LIMITS, uds=channel.socket_path)
        proxies = _proxies() if channel.use_environment else {}
        self._proxied: dict[str, _Pool] = {
            scheme: make(verify=tls, limits=_LIMITS, proxy=url) for scheme, url in proxies.items()
        }

    def of(self, url: httpx.URL) -> _Pool:
        proxied = self._proxied.get(url.scheme)
        return self._direct if proxied is None or proxy_bypass(url.host) else proxied

    def __iter__(self) -> Iterator[_Pool]:
        yield self._direct
        yield from self._proxied.values()


def _proxies() -> dict[str, str]:
    """By scheme, from the environment, or from the system's settings where it has some."""
    found = getproxies()
    named = {scheme: url for scheme in ("http", "https") if (url := found.get(scheme) or found.get("all"))}
    return {scheme: url if "://" in url else f"http://{url}" for scheme, url in named.items()}


class Http:
    """Blocking requests over one pool. Safe to share between threads."""

    def __init__(self, channel: Channel) -> None:
        self._routes = _Routes(channel, httpx.HTTPTransport)

    def forward(self, request: httpx.Request) -> httpx.Response:
        """One exchange of a borrowing client over this pool (see ``_lend``)."""
        return self._routes.of(request.url).handle_request(request)

    def send(self, request: Request, deadline: Deadline) -> Reply:
        try:
            built = _build(request, deadline)
            answer = self._routes.of(built.url).handle_request(built)
            try:
                body = b"".join(_bounded(answer.iter_raw(), deadline))
            finally:
                answer.close()
        except _FAULTS as fault:
            raise _error(fault) from fault
        return _checked(_head(answer), body)

    @contextmanager
    def stream(self, request: Request, deadline: Deadline) -> Iterator[tuple[Reply, Iterator[bytes]]]:
        """The head of the answer and its bytes as they come. Leaving closes the connection."""
        try:
            built = _build(request, deadline)
            answer = self._routes.of(built.url).handle_request(built)
            try:
                yield _head(answer), answer.iter_raw()
            finally:
                answer.close()
        except _FAULTS as fault:
            raise _error(fault) from fault

    @contextmanager
    def open(self, request: Request, deadline: Deadline) -> Iterator[tuple[Reply, Iterator[bytes]]]:
        """As ``stream``, but an error status is raised before the first byte is handed on."""
        with self.stream(request, deadline) as (head, chunks):
            if head.status != 200:
                _checked(head, b"".join(_bounded(chunks, deadline)))
            yield head, _bounded(chunks, deadline)

    def close(self) -> None:
        for pool in self._routes:
            pool.close()


class AsyncHttp:
    """The same for asyncio."""

    def __init__(self, channel: Channel) -> None:
        self._routes = _Routes(channel, httpx.AsyncHTTPTransport)

    async def forward(self, request: httpx.Request) -> httpx.Response:
        return await self._routes.of(request.url).handle_async_request(request)

    async def send(self, request: Request, deadline: Deadline) -> Reply:
        try:
            built = _build(request, deadline)
            answer = await self._routes.of(built.url).handle_async_request(built)
            try:
                body = b"".join([chunk async for chunk in _abounded(answer.aiter_raw(), deadline)])
            finally:
                await answer.aclose()
        except _FAULTS as fault:
            raise _error(fault) from fault
        return _checked(_head(answer), body)

    @asynccontextmanager
    async def stream(
        self, request: Request, deadline: Deadline
    ) -> AsyncIterator[tuple[Reply, AsyncIterator[bytes]]]:
        try:
            built = _build(request, deadline)
            answer = await self._routes.of(built.url).handle_async_request(built)
            try:
                yield _head(answer), answer.aiter_raw()
            finally:
                await answer.aclose()
        except _FAULTS as fault:
            raise _error(fault) from fault

    @asynccontextmanager
    async def open(
        self, request: Request, deadline: Deadline
    ) -> AsyncIterator[tuple[Reply, AsyncIterator[bytes]]]:
        async with self.stream(request, deadline) as (head, chunks):
            if head.status != 200:
                _checked(head, b"".join([chunk async for chunk in _abounded(chunks, deadline)]))
            yield head, _abounded(chunks, deadline)

    async def close(self) -> None:
        for pool in self._routes:
            await pool.aclose()


_url = lru_cache(maxsize=256)(httpx.URL)  # parsing one takes longer than all else in _build


def _build(request: Request, deadline: Deadline) -> httpx.Request:
    left = deadline.remaining_s()
    if left <= 0:
        raise Timeout("the deadline passed before the request was sent", remedy="give a longer timeout_s")
    timeout = {"connect": min(CONNECT_TIMEOUT_S, left), "read": left, "write": left, "pool": left}
    extensions: dict[str, Any] = {"timeout": timeout}
    url = _url(request.url)
    headers = {"host": request.server_name or url.netloc.decode(), **_COMMON, **request.headers}
    if request.server_name:
        extensions["sni_hostname"] = request.server_name
    if request.content is not None:
        headers["content-length"] = str(len(request.content))
    stream = _Stream(request.content or ())
    return httpx.Request(request.method, url, headers=headers, stream=stream, extensions=extensions)


class _Stream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body as both kinds of transport read it."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


def _head(answer: httpx.Response) -> Reply:
    return Reply(answer.status_code, {k.lower(): v for k, v in answer.headers.items()}, b"")


def _checked(head: Reply, body: bytes) -> Reply:
    if head.status == 200:
        return Reply(200, head.headers, body)
    if 300 <= head.status < 400:
        raise ProtocolError(
            f"the server answered HTTP {head.status} and wants the request elsewhere",
            remedy="set the profile's url to where the server really is; redirects are not followed",
        )
    error = error_from(head.status, body, retry_after_s=_retry_after(head.headers.get("retry-after")))
    error.request_id = head.headers.get(REQUEST_ID_HEADER.lower())
    if isinstance(error, AuthError):
        error.renewable = head.status == 401
    raise error


def _retry_after(value: str | None) -> float | None:
    """Seconds. The HTTP-date form is not sent by any of the servers spoken to here; it is ignored."""
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None


def _bounded(chunks: Iterator[bytes], deadline: Deadline) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        _check_progress(size, deadline)
        yield chunk


async def _abounded(chunks: AsyncIterator[bytes], deadline: Deadline) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        _check_progress(size, deadline)
        yield chunk


def _check_progress(size_bytes: int, deadline: Deadline) -> None:
    if size_bytes > MAX_REPLY_BYTES:
        raise ProtocolError(f"the answer is larger than {MAX_REPLY_BYTES >> 20} MiB")
    if deadline.remaining_s() < 0:
        raise Timeout("the deadline passed while the answer was read", remedy="give a longer timeout_s")


def _error(fault: Exception) -> MedportError:
    if isinstance(fault, httpx.TimeoutException):
        where = "connecting" if isinstance(fault, httpx.ConnectTimeout) else "waiting for the answer"
        return Timeout(f"the time ran out while {where}", remedy="give a longer timeout_s")
    if isinstance(fault, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return ConfigError("this is not a URL a server can have", field="url")
    if isinstance(fault, httpx.ConnectError):
        return _connect_error(fault)
    return ConnectionFailed("the connection broke before the answer was complete", remedy="try again")


def _connect_error(fault: BaseException) -> MedportError:
    cause: BaseException | None = fault
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            reason = getattr(cause, "verify_message", "") or cause.reason or "handshake failed"
            error = ConnectionFailed(
                f"the server's certificate is not trusted ({reason})",
                field="ca_file",
                remedy="set ca_file to the CA that signed it",
            )
            error.retryable = False
            return error
        cause = cause.__cause__ or cause.__context__
    return ConnectionFailed(
        "the server cannot be reached", field="url", remedy="check that it runs and that the address is right"
    )


def fetch(
    method: str, url: str, body: bytes | None, headers: dict[str, str], timeout_s: float, ca_file: str | None
) -> tuple[int, dict[str, str], bytes]:
    """One plain exchange of a token server: any status is an answer."""
    try:
        with (
            httpx.Client(verify=tls_context(ca_file), timeout=timeout_s) as client,
            client.stream(method, url, content=body, headers={**_COMMON, **headers}) as answer,
        ):
            content = b"".join(_bounded(answer.iter_raw(), Deadline.after(timeout_s)))
    except _FAULTS as fault:
        raise _error(fault) from fault
    return answer.status_code, dict(answer.headers), content
