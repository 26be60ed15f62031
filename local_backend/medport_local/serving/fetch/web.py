"""http(s): the one guarded way out of this server. The other libraries are given it as their transport.

httpx's request and response, without its client: a client follows redirects, keeps cookies, reads credentials and
proxies out of URLs, .netrc and the environment, and unpacks what is encoded. Nothing here wants that. Each request
has a connection of its own, so that what was verified or sent for one host or one credential serves no other.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import httpcore
import httpx

from medport_local.serving.fetch.address import Lookup, Permit
from medport_local.serving.fetch.allow import AllowList
from medport_local.serving.fetch.dialling import PinnedBackend
from medport_local.serving.fetch.errand import Errand
from medport_local.serving.fetch.target import Target, follow, parse

REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = {"user-agent": "medport", "accept": "*/*"}
_OURS = {
    "host",
    "accept-encoding",
    "connection",
    "cookie",
    "proxy-authorization",
    "content-length",
    "transfer-encoding",
}


class Web:
    """Sends requests to judged addresses, and reads files from allowed hosts. Safe to share between threads."""

    def __init__(self, allow: AllowList, lookup: Lookup, tls: ssl.SSLContext, *, max_redirects: int) -> None:
        self._allow = allow
        self._lookup = lookup
        self._tls = tls
        self._max_redirects = max_redirects

    def read(self, url: str, errand: Errand, token: str | None) -> bytes:
        """The file behind a URL, following a few redirects to hosts that are allowed themselves.

        Args:
            token: sent to the first origin only, and only where it cannot be overheard.

        Raises:
            FetchError: in all cases in which there is no such file.
        """
        target = self.target(url, errand)
        if token is not None and not target.keeps_secrets:
            raise errand.unauthorised("a credential is not sent over plain http", "use https, or send none")
        for _ in range(self._max_redirects + 1):
            permit = self._allow.host(target)
            if permit is None:
                raise not_allowed(target, errand)
            headers = _HEADERS if token is None else {**_HEADERS, "authorization": f"Bearer {token}"}
            response = self.send("GET", target, permit, errand, headers)
            try:
                if response.status_code not in REDIRECTS:
                    return _file(response, target, errand)
                onward = _redirected(response, target, errand)
            finally:
                response.close()
            if onward.origin != target.origin:
                token = None  # for good: a host that sends us back must not choose what it is shown for
            target = onward
        raise errand.refused(f"was redirected more than {self._max_redirects} times", "give the final address")

    def target(self, url: str, errand: Errand) -> Target:
        try:
            return parse(url)
        except ValueError as fault:
            raise errand.refused(str(fault), "give a plain https URL") from None

    def send(
        self,
        method: str,
        target: Target,
        permit: Permit,
        errand: Errand,
        headers: Mapping[str, str],
        content: bytes = b"",
    ) -> httpx.Response:
        """One request over a connection of its own, which ends with the response: close it.

        The body comes as it is sent (never unpacked), at most ``errand.max_bytes`` of it, until the deadline.

        Raises:
            FetchError: also from the response's stream.
        """
        sent = {name: value for name, value in headers.items() if name.lower() not in _OURS}
        sent |= {"host": target.netloc, "accept-encoding": "identity", "connection": "close"}
        if content or method != "GET":
            sent["content-length"] = str(len(content))
        url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
        connection = httpcore.HTTPConnection(
            url.origin, ssl_context=self._tls, network_backend=PinnedBackend(permit, errand, self._lookup)
        )
        try:
            answer = connection.handle_request(
                httpcore.Request(method, url, headers=list(sent.items()), content=content)
            )
        except _FAULTS as fault:
            connection.close()
            raise _failed(fault, target, errand) from None
        except BaseException:
            connection.close()
            raise
        body = _Body(cast(Iterable[bytes], answer.stream), connection, target, errand)
        response = httpx.Response(answer.status, headers=answer.headers, stream=body)
        if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            response.close()
            raise errand.refused(f"{target.host} sent a packed body", "let that server send files as they are")
        declared = response.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > errand.max_bytes:
            response.close()
            raise errand.too_large()
        return response


_FAULTS = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError)


class _Body(httpx.SyncByteStream):
    """An answer's bytes, counted; closing it closes the connection."""

    def __init__(
        self, chunks: Iterable[bytes], connection: httpcore.HTTPConnection, target: Target, errand: Errand
    ) -> None:
        self._chunks = chunks
        self._connection = connection
        self._target = target
        self._errand = errand

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        try:
            for chunk in self._chunks:
                size += len(chunk)
                if size > self._errand.max_bytes:
                    raise self._errand.too_large()
                yield chunk
        except _FAULTS as fault:
            raise _failed(fault, self._target, self._errand) from None

    def close(self) -> None:
        self._connection.close()


def not_allowed(target: Target, errand: Errand) -> Exception:
    """The refusal of a host that is on no entry."""
    default = {"http": 80, "https": 443}[target.scheme] == target.port
    named = f"http://{target.host}" if target.scheme == "http" and default else target.netloc
    return errand.refused(
        f"{target.netloc} is not on this server's allow-list", f"start the server with --allow-fetch {named}"
    )


def _redirected(response: httpx.Response, target: Target, errand: Errand) -> Target:
    try:
        onward = follow(target, response.headers["location"])
    except (KeyError, ValueError):
        raise errand.refused(f"{target.host} redirects to what is not an http(s) URL") from None
    if target.scheme == "https" and onward.scheme == "http":
        raise errand.refused(f"{target.host} redirects from https to plain http")
    return onward


def _file(response: httpx.Response, target: Target, errand: Errand) -> bytes:
    if response.status_code != 200:
        raise errand.refused_status(target.host, response.status_code)
    return b"".join(response.iter_raw())


def _failed(fault: Exception, target: Target, errand: Errand) -> Exception:
    if isinstance(fault, httpcore.TimeoutException):
        return errand.late()
    if isinstance(fault.__cause__ or fault.__context__, ssl.SSLCertVerificationError):
        return errand.failed(
            f"the certificate of {target.host} is not trusted", "set SSL_CERT_FILE to its authority"
        )
    if isinstance(fault, httpcore.ConnectError):
        return errand.failed(f"{target.host} cannot be reached")
    return errand.failed(f"{target.host} broke off, or does not speak HTTP")
