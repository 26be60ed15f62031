"""The only module that knows the HTTP library: pools, TLS, byte streams, and its faults as our errors."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from medport._call import Deadline, Reply, Request
from medport.errors import ConfigError, ConnectionFailed, MedportError, ProtocolError, Timeout
from medport.wire.vertex import REQUEST_ID_HEADER, error_from

CONNECT_TIMEOUT_S = 10.0
MAX_REPLY_BYTES = 256 * 1024 * 1024
MAX_CONNECTIONS = 64
_COMMON = {"user-agent": "medport", "accept-encoding": "identity"}  # identity: no decompression bomb


@dataclass(frozen=True, slots=True)
class Channel:
    """How to reach a backend's hosts: a Unix socket or the network, and whom to trust."""

    socket_path: str | None = None
    ca_file: str | None = None
    use_environment: bool = False
    """Take proxies from the environment. Never for a local server: its traffic stays inside."""


def _options(channel: Channel) -> dict[str, Any]:
    return {
        "trust_env": channel.use_environment,
        "follow_redirects": False,  # a redirect must not carry a request, or a token, to another origin
        "limits": httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
        "headers": _COMMON,
    }


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


class Http:
    """Blocking requests over one pool. Safe to share between threads."""

    def __init__(self, channel: Channel) -> None:
        transport = httpx.HTTPTransport(uds=channel.socket_path) if channel.socket_path else None
        verify = tls_context(channel.ca_file)
        self._client = httpx.Client(transport=transport, verify=verify, **_options(channel))

    def send(self, request: Request, deadline: Deadline) -> Reply:
        with self.stream(request, deadline) as (head, chunks):
            body = b"".join(_bounded(chunks, deadline))
        return _checked(head, body)

    @contextmanager
    def stream(self, request: Request, deadline: Deadline) -> Iterator[tuple[Reply, Iterator[bytes]]]:
        """The head of the answer and its bytes as they come. Leaving closes the connection."""
        with _faults_as_errors():
            built = _build(self._client, request, deadline)
            answer = self._client.send(built, stream=True)
            try:
                yield _head(answer), answer.iter_raw()
            finally:
                answer.close()

    def open(self, request: Request, deadline: Deadline) -> AbstractContextManager[tuple[Reply, Iterator[bytes]]]:
        """As ``stream``, but an error status is raised before the first byte is handed on."""
        return self._open(request, deadline)

    @contextmanager
    def _open(self, request: Request, deadline: Deadline) -> Iterator[tuple[Reply, Iterator[bytes]]]:
        with self.stream(request, deadline) as (head, chunks):
            if head.status != 200:
                _checked(head, b"".join(_bounded(chunks, deadline)))
            yield head, chunks

    def close(self) -> None:
        self._client.close()


class AsyncHttp:
    """The same for asyncio."""

    def __init__(self, channel: Channel) -> None:
        transport = httpx.AsyncHTTPTransport(uds=channel.socket_path) if channel.socket_path else None
        verify = tls_context(channel.ca_file)
        self._client = httpx.AsyncClient(transport=transport, verify=verify, **_options(channel))

    async def send(self, request: Request, deadline: Deadline) -> Reply:
        async with self.stream(request, deadline) as (head, chunks):
            body = b"".join([chunk async for chunk in _abounded(chunks, deadline)])
        return _checked(head, body)

    @asynccontextmanager
    async def stream(
        self, request: Request, deadline: Deadline
    ) -> AsyncIterator[tuple[Reply, AsyncIterator[bytes]]]:
        with _faults_as_errors():
            built = _build(self._client, request, deadline)
            answer = await self._client.send(built, stream=True)
            try:
                yield _head(answer), answer.aiter_raw()
            finally:
                await answer.aclose()

    def open(
        self, request: Request, deadline: Deadline
    ) -> AbstractAsyncContextManager[tuple[Reply, AsyncIterator[bytes]]]:
        return self._open(request, deadline)

    @asynccontextmanager
    async def _open(
        self, request: Request, deadline: Deadline
    ) -> AsyncIterator[tuple[Reply, AsyncIterator[bytes]]]:
        async with self.stream(request, deadline) as (head, chunks):
            if head.status != 200:
                _checked(head, b"".join([chunk async for chunk in _abounded(chunks, deadline)]))
            yield head, chunks

    async def close(self) -> None:
        await self._client.aclose()


def _build(client: httpx.Client | httpx.AsyncClient, request: Request, deadline: Deadline) -> httpx.Request:
    left = deadline.remaining_s()
    if left <= 0:
        raise Timeout("the deadline passed before the request was sent", remedy="give a longer timeout_s")
    timeout = {"connect": min(CONNECT_TIMEOUT_S, left), "read": left, "write": left, "pool": left}
    extensions: dict[str, Any] = {"timeout": timeout}
    headers = dict(request.headers)
    if request.server_name:
        extensions["sni_hostname"] = request.server_name
        headers["host"] = request.server_name
    return client.build_request(
        request.method, request.url, headers=headers, content=request.content, extensions=extensions
    )


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


@contextmanager
def _faults_as_errors() -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as fault:
        where = "connecting" if isinstance(fault, httpx.ConnectTimeout) else "waiting for the answer"
        raise Timeout(f"the time ran out while {where}", remedy="give a longer timeout_s") from fault
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as fault:
        raise ConfigError("this is not a URL a server can have", field="url") from fault
    except httpx.ConnectError as fault:
        raise _connect_error(fault) from fault
    except httpx.TransportError as fault:
        raise ConnectionFailed(
            "the connection broke before the answer was complete", remedy="try again"
        ) from fault


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
    with _faults_as_errors(), httpx.Client(verify=tls_context(ca_file), timeout=timeout_s) as client:
        answer = client.request(method, url, content=body, headers=headers)
    return answer.status_code, dict(answer.headers), answer.content
