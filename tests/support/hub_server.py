"""A server that speaks the hub's API as far as models are fetched by it, and the storage host behind it.

Both are real HTTP servers on loopback ports, with TLS if asked for. Wire: ``huggingface_hub`` 2.4,
``HfApi.model_info``, ``HfApi.whoami``, ``hf_hub_url`` and ``hf_raise_for_status``. Any answer can be changed
before it is sent.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from .certificates import Certificate

SIGNATURE = "c2lnbmVk-by-the-hub"
"""Stands in every address of the storage host, and is a secret."""
_LARGE = (".safetensors", "tokenizer.json", ".model", ".bin")
_RANGE = re.compile(r"bytes=(\d+)-")


@dataclass
class Answer:
    """What is about to be sent."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_after: int | None = None
    """Bytes of the body after which the connection is closed."""
    pause_s: float = 0.0
    """After each 64 KiB of the body."""


Change = Callable[[Answer], Any]


@dataclass
class Repository:
    """One model repository; every commit keeps its files."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    gated: str | bool = False
    readers: tuple[str, ...] = ()
    """Tokens whose accounts accepted the terms."""
    card: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """A request as it arrived."""

    server: str
    """``hub`` or ``storage``."""
    path: str
    headers: Mapping[str, str]


class Hub:
    """Both servers. ``endpoint`` is what ``HF_ENDPOINT`` holds."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.accounts: dict[str, str] = {}
        """Names by token."""
        self.requests: list[Request] = []
        self.sent: Counter[str] = Counter()
        """Bytes of bodies by the file's name."""
        self.changes: dict[str, list[Change]] = {}
        """By file name (``api`` and ``whoami`` are two): each is used for one answer with the file's bytes."""
        self.redirect_changes: dict[str, list[Change]] = {}
        """The same for the answers that redirect to where a file is stored."""
        self.pause_s = 0.0
        self.endpoint = self.storage = ""
        self._lock = threading.Lock()

    def add(self, repository: str, files: Mapping[str, bytes], **options: Any) -> str:
        """Make a repository of one commit on ``main``, or a further commit; gives the commit."""
        table = "".join(f"{name} {hashlib.sha1(data).hexdigest()}\n" for name, data in sorted(files.items()))
        commit = hashlib.sha1(f"{repository}\n{table}".encode()).hexdigest()
        there = self.repositories.setdefault(repository, Repository({}, {}))
        there.commits[commit] = dict(files)
        there.branches["main"] = commit
        for name, value in options.items():
            setattr(there, name, value)
        return commit

    def change(self, name: str, *changes: Change) -> None:
        """Change the next answers that hold a file's bytes, one each."""
        self.changes.setdefault(name, []).extend(changes)

    def asked(self, server: str) -> list[str]:
        """The paths that a server was asked for."""
        return [request.path for request in self.requests if request.server == server]

    def answer(self, server: str, path: str, headers: Mapping[str, str]) -> tuple[str, Answer]:
        """The file that is asked for, and the answer."""
        with self._lock:
            self.requests.append(Request(server, path, {name.lower(): value for name, value in headers.items()}))
            parts = urlsplit(path)
            steps = [unquote(step) for step in parts.path.strip("/").split("/")]
            token = headers.get("authorization", "").removeprefix("Bearer ") or None
            if server == "storage":
                name, answer = self._stored(steps, parse_qs(parts.query), headers)
            elif steps[:1] == ["api"]:
                name, answer = self._api(steps, token)
            else:
                name, answer = self._resolved(steps, token, headers)
            redirects = 300 <= answer.status < 400
            waiting = (self.redirect_changes if redirects else self.changes).get(name)
            if waiting:
                waiting.pop(0)(answer)
            return name, answer

    def _api(self, steps: list[str], token: str | None) -> tuple[str, Answer]:
        if steps == ["api", "whoami-v2"]:
            name = self.accounts.get(token or "")
            return "whoami", _json(200, {"name": name}) if name else Answer(401)
        assert steps[1] == "models"
        repository = self.repositories.get("/".join(steps[2:4]))
        if repository is None:
            return "api", Answer(404 if token else 401, {"X-Error-Code": "RepoNotFound"})
        commit = repository.branches.get(steps[5], steps[5])
        if commit not in repository.commits:
            return "api", Answer(404, {"X-Error-Code": "RevisionNotFound"})
        files = repository.commits[commit]
        return "api", _json(
            200,
            {
                "id": "/".join(steps[2:4]),
                "sha": commit,
                "gated": repository.gated,
                "private": False,
                "cardData": repository.card,
                "siblings": [_sibling(name, data) for name, data in files.items()],
            },
        )

    def _resolved(self, steps: list[str], token: str | None, headers: Mapping[str, str]) -> tuple[str, Answer]:
        repository = self.repositories["/".join(steps[:2])]
        name = "/".join(steps[4:])
        if repository.gated and token not in repository.readers:
            return name, Answer(403 if token else 401, {"X-Error-Code": "GatedRepo"})
        data = repository.commits.get(steps[3], {}).get(name)
        if data is None:
            return name, Answer(404, {"X-Error-Code": "EntryNotFound"})
        about = {"X-Repo-Commit": steps[3]}
        if not name.endswith(_LARGE):
            return name, _bytes(data, f'"{git_blob(data)}"', headers, about)
        sha256 = hashlib.sha256(data).hexdigest()
        about |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
        to = f"{self.storage}/{steps[0]}/{steps[1]}/{sha256}?X-Signature={SIGNATURE}"
        return name, Answer(302, {"Location": to, **about})

    def _stored(
        self, steps: list[str], query: Mapping[str, list[str]], headers: Mapping[str, str]
    ) -> tuple[str, Answer]:
        if query.get("X-Signature") != [SIGNATURE]:
            return "", Answer(403)
        for files in self.repositories["/".join(steps[:2])].commits.values():
            for name, data in files.items():
                if hashlib.sha256(data).hexdigest() == steps[2]:
                    return name, _bytes(data, f'"{steps[2][:32]}"', headers, {})
        return "", Answer(404)


@contextmanager
def hub_server(*, hub_tls: Certificate | None = None, storage_tls: Certificate | None = None) -> Iterator[Hub]:
    """Start both servers."""
    hub = Hub()
    with _serving(hub, "hub", hub_tls) as endpoint, _serving(hub, "storage", storage_tls) as storage:
        hub.endpoint, hub.storage = endpoint, storage
        yield hub


def status(code: int, **headers: str) -> Change:
    """Send a status and no body. Headers with ``_`` for ``-``."""

    def change(answer: Answer) -> None:
        answer.status, answer.body = code, b""
        answer.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    return change


def cut(after: int) -> Change:
    """Close the connection after so many bytes of the body."""
    return lambda answer: setattr(answer, "cut_after", after)


def headers(**values: str) -> Change:
    """Set headers; ``_`` stands for ``-``."""
    return lambda answer: answer.headers.update({name.replace("_", "-"): value for name, value in values.items()})


def body(change: Callable[[bytes], bytes], *, chunked: bool = False) -> Change:
    """Change the body; ``chunked`` does not say how long it is."""

    def changed(answer: Answer) -> None:
        answer.body = change(answer.body)
        if chunked:
            answer.headers["Transfer-Encoding"] = "chunked"

    return changed


def flipped(data: bytes) -> bytes:
    """The same bytes but for the last bit."""
    return data[:-1] + bytes([data[-1] ^ 1])


def git_blob(data: bytes) -> str:
    """Git's id of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sharded(folder: Path, shards: int = 3) -> dict[str, bytes]:
    """The files of a model with its weights in several files and an index, as large models are published."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    whole = files.pop("model.safetensors")
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    metadata = header.pop("__metadata__", {})
    tensors = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    weight_map = {}
    for number in range(shards):
        mine = tensors[number * len(tensors) // shards : (number + 1) * len(tensors) // shards]
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        table: dict[str, Any] = {"__metadata__": metadata}
        body = b""
        for name, entry in mine:
            begin, end = entry["data_offsets"]
            table[name] = {**entry, "data_offsets": [len(body), len(body) + end - begin]}
            body += whole[start + begin : start + end]
            weight_map[name] = file
        head = json.dumps(table).encode()
        files[file] = len(head).to_bytes(8, "little") + head + body
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return files


def _sibling(name: str, data: bytes) -> dict[str, Any]:
    about: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_blob(data)}
    if name.endswith(_LARGE):
        sha256 = hashlib.sha256(data).hexdigest()
        about["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
    return about


def _json(status: int, value: object) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, json.dumps(value).encode())


def _bytes(data: bytes, etag: str, headers: Mapping[str, str], about: Mapping[str, str]) -> Answer:
    asked = _RANGE.fullmatch(headers.get("range", ""))
    common = {"ETag": etag, "Accept-Ranges": "bytes", **about}
    if asked is None or headers.get("if-range", etag) != etag:
        return Answer(200, common, data)
    start = int(asked[1])
    if start >= len(data):
        return Answer(416, {**common, "Content-Range": f"bytes */{len(data)}"})
    span = f"bytes {start}-{len(data) - 1}/{len(data)}"
    return Answer(206, {**common, "Content-Range": span}, data[start:])


@contextmanager
def _serving(hub: Hub, kind: str, certificate: Certificate | None) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name, answer = hub.answer(kind, self.path, {k.lower(): v for k, v in self.headers.items()})
            self.send_response(answer.status)
            for header, value in answer.headers.items():
                self.send_header(header, value)
            chunked = answer.headers.get("Transfer-Encoding") == "chunked"
            if not chunked and "Content-Length" not in answer.headers:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            body = answer.body if answer.cut_after is None else answer.body[: answer.cut_after]
            try:
                for at in range(0, len(body), 65536):
                    piece = body[at : at + 65536]
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                    hub.sent[name] += len(piece)
                    time.sleep(answer.pause_s or hub.pause_s)
                if chunked and answer.cut_after is None:
                    self.wfile.write(b"0\r\n\r\n")
            except OSError:
                self.close_connection = True
            if answer.cut_after is not None:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Tests look at ``requests``."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that is gone is none."""

    server = Server(("127.0.0.1", 0), Handler)
    if certificate is not None:
        server.socket = certificate.context().wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        scheme = "http" if certificate is None else "https"
        yield f"{scheme}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
