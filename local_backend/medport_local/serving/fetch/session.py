"""requests, for the libraries that are built on it, over the guarded way out."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPHeaderDict, HTTPResponse

from medport_local.serving.fetch.address import Permit
from medport_local.serving.fetch.errand import Errand
from medport_local.serving.fetch.target import Target
from medport_local.serving.fetch.web import REDIRECTS, Web


def session(
    web: Web, errand: Errand, permit: Callable[[Target], Permit | None], headers: Mapping[str, str]
) -> requests.Session:
    """A session that reaches what ``permit`` admits and follows no redirect.

    ``headers`` go out with every request, whatever the library asks for in their place.
    """
    made = requests.Session()
    made.trust_env = False  # no proxy, .netrc or CA bundle of the environment
    adapter = _GuardedAdapter(web, errand, permit, headers)
    made.mount("https://", adapter)
    made.mount("http://", adapter)
    return made


class _GuardedAdapter(HTTPAdapter):
    def __init__(
        self, web: Web, errand: Errand, permit: Callable[[Target], Permit | None], headers: Mapping[str, str]
    ) -> None:
        super().__init__()
        self._web = web
        self._errand = errand
        self._permit = permit
        self._headers = headers
        self._answers: list[httpx.Response] = []

    def close(self) -> None:
        """End the connections of answers that their readers have left open."""
        super().close()
        for answer in self._answers:
            answer.close()
        self._answers.clear()

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        """As requests' own; timeouts and trust are the errand's and the server's.

        Raises:
            FetchError: which requests and its users let through.
        """
        target = self._web.target(request.url or "", self._errand)
        permit = self._permit(target)
        if permit is None:
            raise self._errand.refused(f"{target.netloc} is not the server that was allowed")
        body = request.body or b""
        content = body.encode() if isinstance(body, str) else body
        if not isinstance(content, bytes):
            raise TypeError("only whole bodies are sent")
        headers = {name: _text(value) for name, value in (request.headers or {}).items()}
        own = {name.lower() for name in self._headers}
        headers = {name: value for name, value in headers.items() if name.lower() not in own} | dict(self._headers)
        answer = self._web.send(request.method or "GET", target, permit, self._errand, headers, content)
        self._answers.append(answer)
        if answer.status_code in REDIRECTS and "location" in answer.headers:
            raise self._errand.refused(f"{target.host} redirects, which is not followed here")
        raw = HTTPResponse(
            body=io.BufferedReader(_Raw(answer)),
            headers=HTTPHeaderDict(answer.headers.multi_items()),
            status=answer.status_code,
            reason=answer.reason_phrase,
            preload_content=False,
            decode_content=False,
        )
        return self.build_response(request, raw)


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


class _Raw(io.RawIOBase):
    """A response's body as a file."""

    def __init__(self, answer: httpx.Response) -> None:
        self._answer = answer
        self._chunks = answer.iter_raw()
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def close(self) -> None:
        if not self.closed:
            self._answer.close()
        super().close()
