"""A plain HTTP server that gives scripted answers, good or broken, and remembers what it was asked."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

from .certificates import Certificate


@dataclass(frozen=True)
class Seen:
    """One request as it came in. Header names are lower-case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    def json(self) -> Any:
        return orjson.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """One scripted answer. An iterable body is sent in chunks; ``missing`` bytes are announced and not sent."""

    status: int = 200
    body: bytes | Iterable[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    missing: int = 0
    hangs: bool = False
    """Keep the connection open and say nothing until the server closes."""


def json_answer(value: object, status: int = 200, **headers: str) -> Answer:
    return Answer(status, orjson.dumps(value), {"content-type": "application/json", **headers})


Scripted = Answer | Callable[[Seen], Answer]


class FaultServer:
    """Answers from ``script`` in order, then from ``routes``, the longest matching end of a path first."""

    def __init__(self, certificate: Certificate | None = None) -> None:
        self.script: list[Scripted] = []
        self.routes: dict[str, Scripted] = {}
        self.seen: list[Seen] = []
        self.closing = threading.Event()
        self._scheme = "https" if certificate else "http"
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        if certificate is not None:
            self._server.socket = certificate.context().wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"{self._scheme}://localhost:{self.port}"

    def asked(self, end: str = "") -> list[Seen]:
        """The requests whose path ends so."""
        return [seen for seen in self.seen if seen.path.endswith(end)]

    def answer(self, seen: Seen) -> Answer:
        self.seen.append(seen)
        end = max((e for e in self.routes if seen.path.endswith(e)), key=len, default=None)
        is_lookup = seen.method == "GET"
        if self.script and not (is_lookup and end is not None):
            chosen: Scripted = self.script.pop(0)
        else:
            chosen = self.routes[end] if end is not None else Answer(404, b"{}")
        return chosen(seen) if callable(chosen) else chosen

    def __enter__(self) -> FaultServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves, or does not trust us, is what many tests are about."""


def _handler(server: FaultServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            """Tests read ``seen``."""

        def do_GET(self) -> None:
            self._handle()

        def do_POST(self) -> None:
            self._handle()

        def _handle(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = server.answer(Seen(self.command, self.path, headers, self.rfile.read(size)))
            if answer.hangs:
                server.closing.wait(30)
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if isinstance(answer.body, bytes):
                self.send_header("content-length", str(len(answer.body) + answer.missing))
                self.end_headers()
                self.wfile.write(answer.body)
            else:
                self._chunks(answer)
            if answer.missing:
                self.close_connection = True

        def _chunks(self, answer: Answer) -> None:
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for chunk in answer.body:
                assert isinstance(chunk, bytes)
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                self.wfile.flush()
            if not answer.missing:
                self.wfile.write(b"0\r\n\r\n")

    return Handler


def dead_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
