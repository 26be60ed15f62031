"""A control plane that only shows: endpoints and models in Vertex's forms, by pages, on a loopback port."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import orjson

from .web import serving

LOCATION = "europe-west4"
PARENT = f"projects/123456789012/locations/{LOCATION}"
REVISION, OTHER_REVISION = "0123456789abcdef0123456789abcdef01234567", "f" * 40
SNAPSHOT, IMAGE, LOCK, OTHER_LOCK = "ab" * 32, "cd" * 32, "ef" * 32, "12" * 32


def label(hex_digest: str) -> str:
    """A sha256 as a label holds it."""
    return base64.b32encode(bytes.fromhex(hex_digest)).decode().rstrip("=").lower()


def version(model: str, number: str, *aliases: str, **changes: Any) -> dict[str, Any]:
    """A model version with every pin, each said by two sources."""
    return {
        "name": f"{PARENT}/models/{model}",
        "versionId": number,
        "versionAliases": list(aliases),
        "displayName": "chest reader",
        "labels": {
            "medport-rev": REVISION,
            "medport-snap": label(SNAPSHOT),
            "medport-image": label(IMAGE),
            "medport-lock": label(LOCK),
        },
        "containerSpec": {
            "imageUri": f"registry.example/serving@sha256:{IMAGE}",
            "args": ["--model=google/medgemma-4b-it", f"--revision={REVISION}"],
            "env": [
                {"name": "MODEL_ID", "value": "google/medgemma-4b-it"},
                {"name": "MEDPORT_REVISION", "value": REVISION},
                {"name": "MEDPORT_SNAPSHOT_SHA256", "value": SNAPSHOT},
            ],
        },
        **changes,
    }


def deployed(number: str, model: str, model_version: str, **changes: Any) -> dict[str, Any]:
    """A deployed model as an endpoint shows it."""
    return {
        "id": number,
        "model": f"{PARENT}/models/{model}",
        "modelVersionId": model_version,
        "displayName": f"reader mp1.{label(LOCK)}",
        "createTime": "2026-11-26T08:00:00.000000Z",
        "dedicatedResources": {
            "machineSpec": {
                "machineType": "g2-standard-24",
                "acceleratorType": "NVIDIA_L4",
                "acceleratorCount": 2,
            },
            "minReplicaCount": 1,
            "maxReplicaCount": 3,
        },
        "status": {"availableReplicaCount": 1},
        **changes,
    }


def endpoint(name: str, *models: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """An endpoint whose first deployed model has 100 percent."""
    return {
        "name": f"{PARENT}/endpoints/{name}",
        "displayName": f"the {name}",
        "labels": {"team": "chest"},
        "etag": "7",
        "dedicatedEndpointEnabled": True,
        "dedicatedEndpointDns": f"{name}.example",
        "deployedModels": list(models),
        "trafficSplit": {each["id"]: 0 if i else 100 for i, each in enumerate(models)},
        **changes,
    }


@dataclass
class Listing:
    """What there is, how it is answered, and what was asked."""

    endpoints: list[dict[str, Any]] = field(default_factory=list)
    versions: list[dict[str, Any]] = field(default_factory=list)
    page_size: int = 2
    """No page holds more."""
    refused: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """By the end of a path: statuses and texts for its next requests, the last for all that follow."""
    answers: dict[str, Any] = field(default_factory=dict)
    """By the end of a path: a body in place of the right one."""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Paths and queries."""
    keys: set[str] = field(default_factory=set)
    port: int = 0

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        for end, scripted in self.refused.items():
            if path.endswith(end):
                status, text = scripted.pop(0) if len(scripted) > 1 else scripted[0]
                if status != 200:
                    return status, {"error": {"code": status, "message": text}}
        for end, body in self.answers.items():
            if path.endswith(end):
                return 200, body
        return self._right(path, query)

    def _right(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        kind, _, name = (rest := path.split("/", 6)[6]).partition("/")
        if rest == "endpoints":
            return 200, self._page("endpoints", self.endpoints, query)
        if rest == "models":
            return 200, self._page("models", [v for v in self.versions if "default" in v["versionAliases"]], query)
        if name.endswith(":listVersions"):
            name = name.removesuffix(":listVersions")
            return 200, self._page("models", [v for v in self.versions if _id(v) == name], query)
        if kind == "endpoints":
            found = [e for e in self.endpoints if _id(e) == name]
        else:
            model, _, wanted = name.partition("@")
            named = {wanted or "default"}
            found = [
                v for v in self.versions if _id(v) == model and named & {v["versionId"], *v["versionAliases"]}
            ]
        return (200, found[0]) if found else (404, {"error": {"code": 404, "message": "not found"}})

    def _page(self, kind: str, all_of_them: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
        start = int(query.get("pageToken", "0"))
        end = start + min(self.page_size, int(query.get("pageSize", "100")))
        more = {"nextPageToken": str(end)} if end < len(all_of_them) else {}
        return {kind: all_of_them[start:end], **more}


def _id(resource: dict[str, Any]) -> str:
    return str(resource["name"]).rpartition("/")[2]


@contextmanager
def listing(shown: Listing) -> Iterator[Listing]:
    """Serve it."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        query = {key: each[0] for key, each in parse_qs(scope["query_string"].decode()).items()}
        shown.asked.append((scope["path"], query))
        shown.keys |= {value.decode() for name, value in scope["headers"] if name == b"authorization"}
        status, body = shown.answer(scope["path"], query)
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    with serving(app) as shown.port:
        yield shown
