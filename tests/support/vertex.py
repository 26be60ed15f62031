"""A stand-in for Vertex AI over TLS on loopback: token server, control plane, data plane on a host of its own.

Paths, envelopes, errors and header names are those of Google's public documentation and notebooks. An answer of
a model comes from an ASGI app given as ``inner``, or is a canned one; ``script`` puts other answers in front,
good or broken. Whatever comes in is remembered, with the plane it came in by, so that a test can say where a
token went.
"""

from __future__ import annotations

import base64
import itertools
import math
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs

import orjson
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from .certificates import Authority
from .faults import Answer, Seen
from .running import LoopThread, running

PROJECT, NUMBER, LOCATION = "radiology-test", "123456789012", "europe-west4"
PARENT = f"projects/{NUMBER}/locations/{LOCATION}"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
COLD = b"Model is not yet ready for inference. Please wait and then try your request again."
TEXT = "No acute finding."
WIDTH = 8
Plane = Literal["control", "data"]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Request(Seen):
    """One request, and the plane whose port it came to."""

    plane: Plane = "control"

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None


@dataclass
class ServedModel:
    """What an endpoint serves, and the pins of its model version."""

    family: str
    model_id: str
    revision: str = "0123456789abcdef0123456789abcdef01234567"
    snapshot_sha256: str = "ab" * 32
    image_digest: str = "cd" * 32
    lock_id: str = "ef" * 32
    notice: str = ""
    parent: str = ""
    endpoint: str = "1001"
    deployed_model_id: str = "7001"
    model: str = "mg"
    version: str = "3"
    others: dict[str, str] = field(default_factory=dict)
    """More deployed models: id → version."""


class Vertex:
    """The stand-in. Change its attributes between calls; ``settings`` are those of a profile that reaches it."""

    def __init__(
        self, authority: Authority, folder: Path, account: Account, inner: Callable[..., Any] | None = None
    ) -> None:
        self.script: list[Answer | Callable[[Request], Answer]] = []
        """Answers of the data plane, before any other."""
        self.lookups: list[Answer] = []
        """The same for the control plane."""
        self.token_script: list[Answer] = []
        """The same for the token server."""
        self.seen: list[Request] = []
        self.tokens: dict[str, float] = {}
        """Token → when it ends, on the monotonic clock."""
        self.token_life_s = 3600
        self.token_delay_s = 0.0
        self.shape: Literal["dedicated", "shared"] = "dedicated"
        self.dns: str | None = None
        """Announced as ``dedicatedEndpointDns`` in place of where the data plane is."""
        self.answers_as = f"{PARENT}/endpoints/"
        self.models = {
            "medgemma": ServedModel("medgemma", "google/medgemma-4b-it"),
            "medsiglip": ServedModel(
                "medsiglip", "google/medsiglip-448", endpoint="1002", deployed_model_id="7002", model="ms"
            ),
        }
        self.inner, self._account = inner, account
        self._authority, self._folder = authority, folder
        self._counter = itertools.count(1)
        self._lock = threading.Lock()
        self._ports: dict[Plane, int] = {}

    # -- where it is -------------------------------------------------------------------------------------------

    @property
    def control_url(self) -> str:
        return f"https://localhost:{self._ports['control']}"

    @property
    def data_host(self) -> str:
        return f"localhost:{self._ports['data']}"

    def settings(self, **changes: Any) -> dict[str, Any]:
        """A profile that reaches this server."""
        return {
            "backend": "vertex",
            "project": PROJECT,
            "location": LOCATION,
            "medgemma": "1001",
            "medsiglip": "1002",
            "api_endpoint": self.control_url,
            "dns_suffixes": ("localhost",),
            "ca_file": str(self._authority.ca_file),
            "auth": {"credentials_file": str(self._account.write(self._folder, f"{self.control_url}/token"))},
            **changes,
        }

    def asked(self, end: str, plane: Plane | None = None) -> list[Request]:
        """Requests whose path ends so."""
        return [r for r in self.seen if r.path.endswith(end) and plane in (None, r.plane)]

    def revoke_tokens(self) -> None:
        self.tokens.clear()

    @contextmanager
    def serving(self, loop: LoopThread) -> Iterator[Vertex]:
        certificate = self._authority.issue("localhost")
        listeners, apps = {}, {}
        planes: tuple[Plane, ...] = ("control", "data")
        for plane in planes:
            listener = socket.create_server(("127.0.0.1", 0))
            self._ports[plane] = port = listener.getsockname()[1]
            listeners[port], apps[port] = (listener, certificate), self._app(plane)
        with running(loop, apps, listeners):
            yield self

    # -- requests ----------------------------------------------------------------------------------------------

    def _app(self, plane: Plane) -> Callable[..., Awaitable[None]]:
        async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
            headers = {k.decode().lower(): v.decode("latin-1") for k, v in scope["headers"]}
            body = b""
            while True:
                message = await receive()
                body += message.get("body", b"")
                if not message.get("more_body"):
                    break
            request = Request(scope["method"], scope["path"], headers, body, plane)
            self.seen.append(request)
            answer = self._answer(request)
            if answer is None:
                await self._delegate(request, scope, receive, send)
            else:
                await _send(answer, send)

        return app

    def _answer(self, request: Request) -> Answer | None:
        """The answer, or ``None``: the inner app is to give it."""
        if request.plane == "control" and request.path == "/token":
            return self._token(request)
        if request.method == "GET" and self.lookups:
            return self.lookups.pop(0)
        if request.method == "POST" and self.script:
            scripted = self.script.pop(0)
            return scripted(request) if callable(scripted) else scripted
        if self.tokens.get(request.token or "", 0) < time.monotonic():
            return failure(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
        if request.method == "GET":
            return self._look_up(request)
        served = self._served(request)
        if served is None or (request.plane == "data") != (self.shape == "dedicated"):
            # Once an endpoint is dedicated the shared host refuses predictions, and the other way round.
            return failure(404, "NOT_FOUND", "The Endpoint is not found on this host.")
        if len(request.body) > (10_000_000 if self.shape == "dedicated" else 1_500_000):
            return failure(413, "INVALID_ARGUMENT", "Request payload size exceeds the limit.")
        return None if self.inner is not None else self._canned(request, served)

    def _served(self, request: Request) -> ServedModel | None:
        for served in self.models.values():
            for project in (PROJECT, NUMBER):
                name = f"projects/{project}/locations/{LOCATION}/endpoints/{served.endpoint}"
                if request.path in (f"/v1/{name}:predict", f"/v1beta1/{name}/chat/completions"):
                    return served
        return None

    def _token(self, request: Request) -> Answer:
        if self.token_script:
            return self.token_script.pop(0)
        time.sleep(self.token_delay_s)
        form = parse_qs(request.body.decode())
        claims = self._account.verified(form["assertion"][0])
        assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
        assert claims["scope"] == SCOPE, claims
        with self._lock:
            token = f"ya29.token-{next(self._counter)}"
            self.tokens[token] = time.monotonic() + self.token_life_s
        return reply({"access_token": token, "expires_in": self.token_life_s, "token_type": "Bearer"})

    def _look_up(self, request: Request) -> Answer:
        for served in self.models.values():
            for project in (PROJECT, NUMBER):
                parent = f"/v1/projects/{project}/locations/{LOCATION}"
                if request.path == f"{parent}/endpoints/{served.endpoint}":
                    return reply(self._endpoint(served))
                for version in (served.version, *served.others.values()):
                    if request.path == f"{parent}/models/{served.model}@{version}":
                        return reply(self._model(served, version))
        return failure(404, "NOT_FOUND", f"The resource {request.path} is not found.")

    def _endpoint(self, served: ServedModel) -> dict[str, Any]:
        deployed = {served.deployed_model_id: served.version, **served.others}
        dedicated = self.shape == "dedicated"
        dns = self.dns if self.dns is not None else self.data_host
        return {
            "name": f"{self.answers_as}{served.endpoint}",
            "displayName": "a test endpoint",
            "etag": "AMEw9yM=",
            "trafficSplit": {d: 100 // len(deployed) for d in deployed},
            **({"dedicatedEndpointEnabled": True, "dedicatedEndpointDns": dns} if dedicated else {}),
            "deployedModels": [
                {
                    "id": id,
                    "model": f"{PARENT}/models/{served.model}",
                    "modelVersionId": version,
                    "displayName": "d1",
                    "dedicatedResources": {"machineSpec": {"machineType": "g2-standard-24"}, "minReplicaCount": 1},
                }
                for id, version in deployed.items()
            ],
        }

    def _model(self, served: ServedModel, version: str) -> dict[str, Any]:
        return {
            "name": f"{PARENT}/models/{served.model}",
            "versionId": version,
            "displayName": served.model_id,
            "description": served.notice,
            "labels": {
                "medport-rev": served.revision,
                "medport-snap": _label(served.snapshot_sha256),
                "medport-lock": _label(served.lock_id),
            },
            "containerSpec": {
                "imageUri": f"registry.example/p/serving@sha256:{served.image_digest}",
                "args": [f"--model={served.model_id}", f"--revision={served.revision}"],
                "env": [
                    {"name": "MODEL_ID", "value": served.model_id},
                    *([{"name": "MEDPORT_PARENT", "value": served.parent}] if served.parent else []),
                ],
                "ports": [{"containerPort": 8080}],
            },
        }

    # -- answers of the models -----------------------------------------------------------------------------------

    def _canned(self, request: Request, served: ServedModel) -> Answer:
        if request.path.endswith("/chat/completions"):
            return Answer(200, stream(["No acute", " finding."]), {"content-type": "text/event-stream"})
        if served.family == "medgemma":
            return reply(self.envelope(served, chat_completion(TEXT)))
        instances = request.json()["instances"]
        return reply(self.envelope(served, [embedding(i) for i in range(len(instances))]))

    def envelope(self, served: ServedModel, predictions: object) -> dict[str, Any]:
        """What ``:predict`` puts around a container's answer."""
        return {
            "predictions": predictions,
            "deployedModelId": served.deployed_model_id,
            "model": f"{PARENT}/models/{served.model}",
            "modelDisplayName": served.model_id,
            "modelVersionId": served.version,
        }

    async def _delegate(self, request: Request, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        served = self._served(request)
        assert served is not None
        assert self.inner is not None
        inner_name = f"projects/-/locations/-/endpoints/{served.family}"
        streams = request.path.endswith("/chat/completions")
        path = f"/v1beta1/{inner_name}/chat/completions" if streams else f"/v1/{inner_name}:predict"
        headers = [(k, v) for k, v in scope["headers"] if k.lower() != b"authorization"]
        begin: dict[str, Any] = {}
        collected = bytearray()

        async def again() -> dict[str, Any]:
            if not begin.get("read"):
                begin["read"] = True
                return {"type": "http.request", "body": request.body, "more_body": False}
            return await receive()

        async def through(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                begin.update(message)
                if streams and message["status"] == 200:
                    await send({**message, "headers": [(b"content-type", b"text/event-stream; charset=utf-8")]})
            elif streams and begin["status"] == 200:
                await send(message)
            else:
                collected.extend(message.get("body", b""))
                if not message.get("more_body"):
                    retry = [(k, v) for k, v in begin["headers"] if k.lower() == b"retry-after"]
                    await _send(self._enveloped(served, begin["status"], bytes(collected), dict(retry)), send)

        await self.inner({**scope, "path": path, "raw_path": path.encode(), "headers": headers}, again, through)

    def _enveloped(self, served: ServedModel, status: int, body: bytes, headers: Mapping[bytes, bytes]) -> Answer:
        parsed = orjson.loads(body)
        kept = {k.decode(): v.decode() for k, v in headers.items()}
        if status == 200:
            return reply(self.envelope(served, parsed["predictions"]))
        # A public container sends no details of ours: only what every Google client understands comes through.
        error = parsed["error"]
        return failure(status, error["status"], error["message"], headers=kept)


class Account:
    """A service account: its private key signs assertions, its public one checks them."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def write(self, folder: Path, token_uri: str) -> Path:
        pem = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        info = {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": "k1",
            "private_key": pem.decode(),
            "client_email": f"tester@{PROJECT}.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": token_uri,
        }
        path = folder / "account.json"
        path.write_bytes(orjson.dumps(info))
        return path

    def verified(self, assertion: str) -> dict[str, Any]:
        signed, _, signature = assertion.rpartition(".")
        self._key.public_key().verify(_unbased(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        claims: dict[str, Any] = orjson.loads(_unbased(signed.partition(".")[2]))
        return claims


def reply(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, orjson.dumps(value), {"content-type": "application/json", **(headers or {})})


def failure(
    code: int, status: str, message: str, *, array: bool = False, headers: Mapping[str, str] | None = None
) -> Answer:
    """Google's error envelope; streaming methods may wrap it in an array."""
    envelope = {"error": {"code": code, "message": message, "status": status}}
    return reply([envelope] if array else envelope, code, headers)


def cold() -> Answer:
    """How an endpoint that is scaled to zero answers."""
    return Answer(429, COLD, {"content-type": "text/plain"})


def chat_completion(text: str, **choice: Any) -> dict[str, Any]:
    """vLLM's ``chat.completion``."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_750_000_000,
        "model": "google/medgemma-4b-it",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}
        ],
        "usage": {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15},
    }


def chunk(text: str, finish_reason: str | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_750_000_000,
        "model": "",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}],
    }


def event(value: object) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def stream(texts: list[str], *, done: bool = True) -> bytes:
    """A whole stream: role, texts, finish, usage, end mark."""
    chunks = [chunk(""), *map(chunk, texts), chunk("", "stop")]
    usage = {
        **chunk(""),
        "choices": [],
        "usage": {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15},
    }
    return b"".join(map(event, [*chunks, usage])) + (b"data: [DONE]\n\n" if done else b"")


def embedding(i: int, width: int = WIDTH) -> dict[str, Any]:
    """A unit vector of its own for each position."""
    vector = [math.sin(1 + i * width + k) for k in range(width)]
    length = math.sqrt(sum(x * x for x in vector))
    return {
        "embedding": [x / length for x in vector],
        "input_type": "image",
        "model_temperature": 2.0,
        "model_bias": -3.0,
    }


async def _send(answer: Answer, send: Send) -> None:
    assert isinstance(answer.body, bytes)
    headers = {"content-length": str(len(answer.body) + answer.missing), **answer.headers}
    raw = [(k.encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


def _label(hex_digest: str) -> str:
    return base64.b32encode(bytes.fromhex(hex_digest)).decode().rstrip("=").lower()


def _unbased(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
