"""The control plane that is deployed to: a server of its own, faults on order, and how traffic is split."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import httpx
from terminal import Terminal, Unexpected, command

FAULTS = "/medport/v1/faults"
POLL_S = 0.05
STOP_S = 30


class Plane:
    """A control plane that listens."""

    def __init__(self, ready: Mapping[str, Any], key: str) -> None:
        self.url: str = ready["url"]
        self.ca_file: str = ready["ca_file"]
        where = ready["control_plane"]
        self._parent = f"projects/{where['project_number']}/locations/{where['location']}"
        self.http = httpx.Client(
            base_url=self.url,
            verify=ssl.create_default_context(cafile=self.ca_file),
            headers={"Authorization": f"Bearer {key}"},
            timeout=30,
        )

    def split(self, endpoint: str) -> dict[str, int]:
        """Per cent of an endpoint's traffic by deployed model; empty if there is no endpoint, or nothing on it."""
        answer = self.http.get(f"/v1/{self._parent}/endpoints/{endpoint}")
        return dict(answer.json().get("trafficSplit", {})) if answer.status_code == httpx.codes.OK else {}

    def left(self) -> list[str]:
        """Names of all endpoints and models that are there."""
        return [
            each["name"]
            for kind in ("endpoints", "models")
            for each in self.http.get(f"/v1/{self._parent}/{kind}").raise_for_status().json().get(kind, ())
        ]

    @contextmanager
    def failing(self, endpoint: str, deployed_model: str, *, from_share: int) -> Iterator[list[int]]:
        """Let a deployed model answer nothing but 503 once it has a share of the traffic; yields the shares seen.

        The fault is taken away at the end.
        """
        rule = {
            "match": {"deployedModelId": deployed_model},
            "http": {"status": 503, "message": "The model server is overloaded."},
        }
        seen: list[int] = []
        over = threading.Event()

        def watch() -> None:
            while not over.wait(POLL_S):
                share = self.split(endpoint).get(deployed_model, 0)
                if share and share not in seen:
                    seen.append(share)
                if share >= from_share:
                    self.http.post(FAULTS, json=rule).raise_for_status()
                    return

        watcher = threading.Thread(target=watch, name="fault")
        watcher.start()
        try:
            yield seen
        finally:
            over.set()
            watcher.join()
            self.http.delete(FAULTS).raise_for_status()


@contextmanager
def served(terminal: Terminal, key: str, *options: str) -> Iterator[Plane]:
    """``medport serve`` with these options, until the block ends."""
    words = ["serve", "--port", "0", "--json", *options]
    terminal.show(f"$ medport {' '.join(words)} &")
    began = time.monotonic()
    with (
        (terminal.directory / "serve.log").open("w") as log,
        subprocess.Popen(
            command(*words),
            cwd=terminal.directory,
            env=terminal.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise Unexpected("the server did not start: see serve.log")
            ready = json.loads(line)
            terminal.show(f"{ready['url']}")
            terminal.show(f"[ready after {time.monotonic() - began:.1f} s]\n")
            plane = Plane(ready, key)
            try:
                yield plane
            finally:
                plane.http.close()
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            process.kill()
