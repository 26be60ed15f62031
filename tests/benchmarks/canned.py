"""A server that answers at once with bytes made before: what is left of a call's time is the client's.

It runs in a process of its own, one thread a connection, TLS with keep-alive. It reads a request's head and
body and parses neither beyond the path and ``Content-Length``.
"""

from __future__ import annotations

import json
import multiprocessing
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

PROJECT, LOCATION = "benchmark", "europe-west4"
PARENT = f"projects/{PROJECT}/locations/{LOCATION}"
CHAT, EMBED = "1001", "1002"
ITEMS, WIDTH = 64, 1152


@dataclass(frozen=True)
class Server:
    """Where it listens, and the files that clients need."""

    port: int
    ca_file: str
    credentials_file: str

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def predict_url(self, endpoint: str) -> str:
        return f"{self.url}/v1/{PARENT}/endpoints/{endpoint}:predict"

    def profile(self) -> dict[str, Any]:
        """The settings of a ``vertex`` profile: a service account, dedicated endpoints."""
        return {
            "backend": "vertex",
            "project": PROJECT,
            "location": LOCATION,
            "medgemma": CHAT,
            "medsiglip": EMBED,
            "api_endpoint": self.url,
            "ca_file": self.ca_file,
            "dns_suffixes": ("localhost",),
            "auth": {"credentials_file": self.credentials_file},
        }


@contextmanager
def serving() -> Iterator[Server]:
    """Start the server, and stop it at the end of the block."""
    with tempfile.TemporaryDirectory() as folder:
        ca, leaf = trustme.CA(), Path(folder) / "leaf.pem"
        ca_file, credentials_file = Path(folder) / "ca.pem", Path(folder) / "account.json"
        ca.cert_pem.write_to_path(ca_file)
        ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(leaf)
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(str(leaf), theirs), daemon=True)
        process.start()
        port: int = ours.recv()
        credentials_file.write_text(json.dumps(_account(port)))
        try:
            yield Server(port, str(ca_file), str(credentials_file))
        finally:
            process.terminate()
            process.join()


def _account(port: int) -> dict[str, str]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {
        "type": "service_account",
        "project_id": PROJECT,
        "private_key_id": "1",
        "private_key": pem.decode(),
        "client_email": f"bench@{PROJECT}.iam.gserviceaccount.com",
        "token_uri": f"https://localhost:{port}/token",
    }


def _serve(leaf: str, ready: multiprocessing.connection.Connection) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf)
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    port = listener.getsockname()[1]
    answers = _answers(port)
    ready.send(port)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_converse, args=(connection, context, answers), daemon=True).start()


def _converse(raw: socket.socket, context: ssl.SSLContext, answers: dict[bytes, bytes]) -> None:
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = memoryview(bytearray(1 << 20))
    try:
        with context.wrap_socket(raw, server_side=True) as stream:
            while size := stream.recv_into(buffer):
                while (end := bytes(buffer[:size]).find(b"\r\n\r\n")) < 0:
                    size += stream.recv_into(buffer[size:])
                head = bytes(buffer[:end])
                left = _content_length(head) - (size - end - 4)
                while left > 0:
                    left -= stream.recv_into(buffer)
                stream.sendall(_answer(head, answers))
    except (OSError, ssl.SSLError):
        return  # the client left


def _content_length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    return int(rest.partition(b"\r\n")[0]) if found else 0


def _answer(head: bytes, answers: dict[bytes, bytes]) -> bytes:
    path = head.split(b" ", 2)[1].partition(b"?")[0]
    return next(answer for end, answer in answers.items() if path.endswith(end))


def _answers(port: int) -> dict[bytes, bytes]:
    endpoints = {
        f"/endpoints/{number}".encode(): {
            "name": f"{PARENT}/endpoints/{number}",
            "dedicatedEndpointEnabled": True,
            "dedicatedEndpointDns": f"localhost:{port}",
            "deployedModels": [{"id": "1", "model": f"{PARENT}/models/{number}", "modelVersionId": "1"}],
            "trafficSplit": {"1": 100},
            "createTime": "2026-01-05T09:00:00Z",  # without it, aiplatform looks the endpoint up at every call
        }
        for number in (CHAT, EMBED)
    }
    models = {
        f"/models/{number}@1".encode(): {"name": f"{PARENT}/models/{number}", "versionId": "1"}
        for number in (CHAT, EMBED)
    }
    bodies = {
        **endpoints,
        **models,
        b"/token": {"access_token": "token", "expires_in": 3600, "token_type": "Bearer"},
        f"/endpoints/{CHAT}:predict".encode(): {"predictions": _chat(), "deployedModelId": "1"},
        f"/endpoints/{EMBED}:predict".encode(): {"predictions": _embeddings(), "deployedModelId": "1"},
        b"/chat/completions": _chat(),
    }
    return {path: _http(orjson.dumps(body)) for path, body in bodies.items()}


def _http(body: bytes) -> bytes:
    """An answer with the headers that Vertex AI sends, or as many of them."""
    lines = [
        "HTTP/1.1 200 OK",
        "X-Vertex-AI-Deployed-Model-Id: 1",
        "Content-Type: application/json; charset=UTF-8",
        "Vary: Origin, X-Origin, Referer",
        "Date: Mon, 05 Jan 2026 09:00:00 GMT",
        "X-Request-Id: 0f3b2c1d",
        "Cache-Control: private",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _chat() -> dict[str, object]:
    message = {"role": "assistant", "content": "No acute cardiopulmonary process. The heart size is normal."}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1767603600,
        "model": "google/medgemma-4b-it",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 17, "completion_tokens": 12, "total_tokens": 29},
    }


def _embeddings() -> list[dict[str, object]]:
    vectors = np.random.default_rng(7).normal(size=(ITEMS, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    extra = {"input_type": "text", "model_temperature": 4.7, "model_bias": -16.5}
    return [{"embedding": row.tolist(), **extra} for row in vectors]
