"""A server that speaks as much of a container registry's API as resolving a tag takes, and its token server.

A real HTTP server on a loopback port. Wire: OCI Distribution Specification 1.1, "Pulling manifests"; Distribution,
"Token Authentication Specification". Any answer can be changed before it is sent.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
TOKEN = "a-token-of-the-registry"


@dataclass
class Answer:
    """What is about to be sent."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Request:
    """A request as it arrived."""

    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]


class RegistryServer:
    """``host`` is what an image's name begins with."""

    def __init__(self) -> None:
        self.host = ""
        self.manifests: dict[tuple[str, str], tuple[bytes, str]] = {}
        """Bytes and media type by repository, and by tag or digest."""
        self.challenge: str | None = None
        """``Bearer`` or ``Basic``: what a request without a credential is answered with."""
        self.users: dict[str, str] = {}
        """Passwords by user; without any, the token server gives everybody a token."""
        self.changes: list[Callable[[Answer], Any]] = []
        """Each is used for one answer about a manifest."""
        self.signs_in = True
        """Whether ``/oauth``, which stands for Google's token endpoint, knows the account that asks."""
        self.requests: list[Request] = []
        self._lock = threading.Lock()

    def push(self, repository: str, tag: str, *, layers: tuple[int, ...] = (1000, 24)) -> str:
        """An image for linux/amd64; gives its digest."""
        layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": "sha256:" + "0" * 64}
        said = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": len(tag), "digest": tag},
            "layers": [{**layer, "size": size} for size in layers],
        }
        return self.put(repository, tag, said, MANIFEST)

    def push_index(self, repository: str, tag: str, images: Mapping[str, str]) -> str:
        """An index of images by platform (``linux/amd64``) and digest; gives its digest."""
        listed = [
            {
                "mediaType": MANIFEST,
                "digest": digest,
                "size": 1,
                "platform": dict(zip(("os", "architecture"), platform.split("/"), strict=True)),
            }
            for platform, digest in images.items()
        ]
        return self.put(repository, tag, {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}, INDEX)

    def put(self, repository: str, tag: str, said: object, kind: str) -> str:
        """Any manifest; gives its digest."""
        body = json.dumps(said).encode()
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        self.manifests[repository, tag] = self.manifests[repository, digest] = (body, kind)
        return digest

    def asked(self) -> list[str]:
        """The paths that were asked for."""
        return [request.path for request in self.requests]

    def answer(self, target: str, headers: Mapping[str, str]) -> Answer:
        """To a request."""
        parts = urlsplit(target)
        with self._lock:
            self.requests.append(Request(parts.path, parse_qs(parts.query), headers))
            if parts.path == "/token":
                return self._token(headers)
            if parts.path == "/oauth":
                said = {"access_token": TOKEN, "expires_in": 3600} if self.signs_in else {"error": "invalid_grant"}
                kind = {"Content-Type": "application/json"}
                return Answer(200 if self.signs_in else 400, kind, json.dumps(said).encode())
            answer = self._manifest(parts.path, headers)
            if self.changes:
                self.changes.pop(0)(answer)
            return answer

    def _token(self, headers: Mapping[str, str]) -> Answer:
        if self.users and not self._knows(headers.get("authorization", "")):
            return Answer(401)
        return Answer(200, {"Content-Type": "application/json"}, json.dumps({"token": TOKEN}).encode())

    def _manifest(self, path: str, headers: Mapping[str, str]) -> Answer:
        sent = headers.get("authorization", "")
        if self.challenge == "Bearer" and sent != f"Bearer {TOKEN}":
            realm = f'Bearer realm="http://{self.host}/token",service="registry"'
            return Answer(401, {"WWW-Authenticate": realm})
        if self.challenge == "Basic" and not self._knows(sent):
            return Answer(401, {"WWW-Authenticate": 'Basic realm="registry"'})
        repository, _, reference = path.removeprefix("/v2/").partition("/manifests/")
        found = self.manifests.get((repository, reference))
        if found is None:
            return Answer(404, {"Content-Type": "application/json"}, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
        body, kind = found
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        return Answer(200, {"Content-Type": kind, "Docker-Content-Digest": digest}, body)

    def _knows(self, authorization: str) -> bool:
        if not authorization.startswith("Basic "):
            return False
        user, _, password = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        return user in self.users and self.users[user] == password


@contextmanager
def registry_server() -> Iterator[RegistryServer]:
    """Start one."""
    registry = RegistryServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer = registry.answer(self.path, {name.lower(): value for name, value in self.headers.items()})
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            try:
                self.wfile.write(answer.body)
            except OSError:
                self.close_connection = True

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Tests look at ``requests``."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that is gone is none."""

    server = Server(("127.0.0.1", 0), Handler)
    registry.host = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
