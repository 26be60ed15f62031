"""``medport serve --control-plane`` as a program over TLS, and a caller who has no client library."""

from __future__ import annotations

import json
import os
import queue
import signal
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from . import forked
from .polling import wait_until

Json = dict[str, Any]
KEY = "a-key-of-some-length"
COMMAND = ["medport_local.cli", "serve", "--port", "0", "--json", "--api-key-env", "KEY"]


@dataclass(frozen=True)
class PlaneServer:
    """A server that runs."""

    line: Json
    """What it printed."""
    process: forked.Process
    http: httpx.Client
    """With the key, at the server."""

    @property
    def url(self) -> str:
        return str(self.line["url"])

    @property
    def parent(self) -> str:
        """Of names, with the project's number."""
        plane = self.line["control_plane"]
        return f"projects/{plane['project_number']}/locations/{plane['location']}"

    def call(self, method: str, path: str, body: Json | None = None, *, api: str = "v1") -> httpx.Response:
        """``path`` is below the project and location, such as ``/endpoints``."""
        return self.http.request(method, f"/{api}/{self.parent}{path}", json=body)

    def ok(self, method: str, path: str, body: Json | None = None, *, api: str = "v1") -> Json:
        """A call that must succeed."""
        answer = self.call(method, path, body, api=api)
        assert answer.status_code == 200, answer.text
        found: Json = answer.json()
        return found

    def done(self, operation: Json, timeout_s: float = 90) -> Json:
        """An operation once it is done."""
        name = operation["name"]

        def poll() -> Json:
            found: Json = self.http.get(f"/ui/{name}").json()
            return found

        wait_until(lambda: poll().get("done") is True, timeout_s)
        return poll()

    def succeeded(self, operation: Json) -> Json:
        """The response of an operation that must succeed."""
        ended = self.done(operation)
        assert "response" in ended, ended
        response: Json = ended["response"]
        return response

    def upload(self, model: str, model_id: str, *, parent: str = "", **more: Any) -> str:
        """A Model version of a snapshot by its model's id; its name with the version."""
        spec = {"imageUri": "medport/server", "env": [{"name": "MODEL_ID", "value": model_id}]}
        fields = {"displayName": model, "containerSpec": spec, **more}
        named = {"parentModel": f"{self.parent}/models/{parent}"} if parent else {"modelId": model}
        response = self.succeeded(self.ok("POST", "/models:upload", {"model": fields, **named}))
        return f"{response['model']}@{response['modelVersionId']}"

    def create(self, endpoint: str, **more: Any) -> None:
        """An endpoint with a name of its own."""
        body = {"displayName": endpoint, "dedicatedEndpointEnabled": True, **more}
        self.succeeded(self.ok("POST", f"/endpoints?endpointId={endpoint}", body))

    def deploy(
        self, endpoint: str, version: str, *, split: dict[str, int] | None = None, api: str = "v1", **more: Any
    ) -> Json:
        """The operation that deploys a version; it may not be done."""
        resources = {"machineSpec": {"machineType": "g2-standard-24"}, "minReplicaCount": 1}
        model = {"model": version, "displayName": "d", "dedicatedResources": resources, **more}
        body = {"deployedModel": model, **({"trafficSplit": split} if split else {})}
        return self.ok("POST", f"/endpoints/{endpoint}:deployModel", body, api=api)

    def deployed(self, endpoint: str, version: str, **more: Any) -> str:
        """Deploy a version; the deployed model's id."""
        response = self.succeeded(self.deploy(endpoint, version, **more))
        return str(response["deployedModel"]["id"])

    def endpoint(self, endpoint: str) -> Json:
        return self.ok("GET", f"/endpoints/{endpoint}")

    def kill(self) -> None:
        """End it without a chance to tidy up."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


@contextmanager
def plane_server(folder: Path, *options: str, timeout_s: float = 60) -> Iterator[PlaneServer]:
    """Serve the state in ``folder`` until the block ends; a second time goes on from it."""
    process = forked.Process(
        *COMMAND,
        *("--control-plane", str(folder / "state"), "--tls-self-signed", str(folder / "tls"), *options),
        env={**os.environ, "KEY": KEY, "XDG_DATA_HOME": str(folder)},
    )
    said: list[str] = []
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    assert process.stderr is not None
    readers = (
        threading.Thread(target=lambda: lines.put(process.stdout.readline()), daemon=True),  # type: ignore[union-attr]
        threading.Thread(target=lambda: said.extend(process.stderr), daemon=True),  # type: ignore[arg-type]
    )
    for reader in readers:
        reader.start()
    try:
        text = lines.get(timeout=timeout_s)
        assert text, "".join(said)
        line = json.loads(text)
        trusted = ssl.create_default_context(cafile=line["ca_file"])
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=line["url"], verify=trusted, headers=headers, timeout=60) as http:
            yield PlaneServer(line, process, http)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)
        for reader in readers:
            reader.join(10)
        process.stdout.close()
        process.stderr.close()
