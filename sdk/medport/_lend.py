"""Our pools, lent to the client of another package: it says what is asked, this module where and as whom.

So that package's requests go by the same TLS settings, proxies and sockets as ours, and carry a credential that
is put on at the last moment and for one origin alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import httpx

from medport._call import Request
from medport._http import CONNECT_TIMEOUT_S, AsyncHttp, Http
from medport.errors import MedportError, PolicyError

# Of a borrower's request: set anew here, or a stranger's business that its environment variables bring in.
_PLAIN = {"accept-encoding": "identity"}  # no decompression bomb
_REPLACED = {"host", "authorization", "cookie", "openai-organization", "openai-project"}


class Loan(Protocol):
    """Lends a pool to the client of another package. That client says what; this says where, and as whom."""

    def aim(self, rest: str) -> tuple[Http, Request]:
        """The pool to use, and the address and credential for what is ``rest`` below the client's base URL."""
        ...

    def renew(self) -> bool:
        """After a 401: whether there is a new credential, worth one more try."""
        ...

    def lost(self) -> None:
        """The endpoint is no longer where it was."""
        ...


class AsyncLoan(Protocol):
    """The same for asyncio."""

    async def aim(self, rest: str) -> tuple[AsyncHttp, Request]: ...
    async def renew(self) -> bool: ...
    def lost(self) -> None: ...


def lent(loan: Loan, base_url: str) -> httpx.Client:
    """A client of the HTTP library that sends only below ``base_url``, over the pool that ``loan`` lends.

    It follows no redirect, knows no proxy of its own, and a request for any other place is a PolicyError: the
    credential is put on after that check.
    """
    return httpx.Client(transport=_Lent(loan, httpx.URL(base_url)), headers=_PLAIN, trust_env=False)


def alent(loan: AsyncLoan, base_url: str) -> httpx.AsyncClient:
    """``lent`` for asyncio."""
    return httpx.AsyncClient(transport=_AsyncLent(loan, httpx.URL(base_url)), headers=_PLAIN, trust_env=False)


class _Lent(httpx.BaseTransport):
    """Closing it leaves the pool, which is not its own, as it is."""

    def __init__(self, loan: Loan, base: httpx.URL) -> None:
        self._loan, self._base = loan, base

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._send(request)
        if answer.status_code == 401 and _can_be_sent_twice(request) and self._loan.renew():
            answer.close()
            answer = self._send(request)
        return answer

    def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            pool, aimed = self._loan.aim(_below(self._base, request.url))
            answer = pool.forward(_aimed(request, aimed))
        except (MedportError, httpx.ConnectError) as fault:
            raise _passing(fault, request, self._loan.lost) from fault
        if answer.status_code == 404:
            self._loan.lost()
        return answer


class _AsyncLent(httpx.AsyncBaseTransport):
    def __init__(self, loan: AsyncLoan, base: httpx.URL) -> None:
        self._loan, self._base = loan, base

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await self._send(request)
        if answer.status_code == 401 and _can_be_sent_twice(request) and await self._loan.renew():
            await answer.aclose()
            answer = await self._send(request)
        return answer

    async def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            pool, aimed = await self._loan.aim(_below(self._base, request.url))
            answer = await pool.forward(_aimed(request, aimed))
        except (MedportError, httpx.ConnectError) as fault:
            raise _passing(fault, request, self._loan.lost) from fault
        if answer.status_code == 404:
            self._loan.lost()
        return answer


def _can_be_sent_twice(request: httpx.Request) -> bool:
    return isinstance(request.stream, httpx.ByteStream)


def _below(base: httpx.URL, url: httpx.URL) -> str:
    """What of ``url`` follows ``base``, with its query."""
    path, start = url.raw_path.decode(), base.raw_path.decode().rstrip("/")
    if (url.scheme, url.host, url.port) != (base.scheme, base.host, base.port) or not path.startswith(f"{start}/"):
        raise PolicyError(
            "this client speaks to its endpoint alone",
            field="url",
            remedy="use a client of your own for other hosts",
        )
    return path.removeprefix(start)


def _aimed(request: httpx.Request, aimed: Request) -> httpx.Request:
    url = httpx.URL(aimed.url)
    headers = [(name, value) for name, value in request.headers.multi_items() if name not in _REPLACED]
    extensions = dict(request.extensions)
    timeout = dict(extensions.get("timeout") or {})
    connect_s = timeout.get("connect")
    timeout["connect"] = CONNECT_TIMEOUT_S if connect_s is None else min(CONNECT_TIMEOUT_S, connect_s)
    extensions["timeout"] = timeout
    if aimed.server_name:
        extensions["sni_hostname"] = aimed.server_name
    return httpx.Request(
        request.method,
        url,
        headers=[("host", aimed.server_name or url.netloc.decode()), *headers, *aimed.headers.items()],
        stream=request.stream,
        extensions=extensions,
    )


def _passing(fault: Exception, request: httpx.Request, lost: Callable[[], None]) -> Exception:
    """A fault that may pass is the HTTP library's own, so that the borrower tries again; others stay ours."""
    if isinstance(fault, httpx.ConnectError):
        lost()
        return fault
    if isinstance(fault, MedportError) and fault.retryable:
        return httpx.ConnectError(str(fault), request=request)
    return fault
