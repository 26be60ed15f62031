"""Is the control plane quick enough not to be noticed: its start, a look, a change, a page of a long list?

A server is a process of its own on loopback, without TLS, and has no engine. Its start is measured from the fork
to the first answer, against an interpreter that imports the libraries it cannot do without. Looks and lists take
one kept connection of ``http.client``, against the same server's ``/health/live``, which touches no state. Changes
are measured in this process, from the call to the end of the operation and all that it set going, with a host that
starts nothing: what is left is validation, transactions and their way to the disk, and threads.
"""

from __future__ import annotations

import asyncio
import http.client
import itertools
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import harness

from medport_local.control.asks import Ask
from medport_local.control.database import Database
from medport_local.control.endpoints import create_endpoint
from medport_local.control.host import Intent
from medport_local.control.models import upload
from medport_local.control.plane import Plane
from medport_local.control.project import Project

HOME = Project("radiology", "europe-west4")
PARENT = f"/v1/projects/{HOME.id}/locations/{HOME.location}"
MODELS, ENDPOINTS = 10_000, 1_000
LIBRARIES = "import typer, uvicorn, starlette.applications, pydantic, orjson, sqlite3, ssl"
START, GET, LIST, CHANGE = "start to first answer", "GET", "list a page of 100", "no-op engine"
LIVE = "/health/live"
IMAGE = "registry.example/serve@sha256:" + "0" * 64
_TRIES_S = 60.0


class NoEngines:
    """A host that starts nothing."""

    def resolve(self, intent: Intent) -> str:
        return "ab" * 32

    def start(self, intent: Intent, cancelled: Callable[[], bool]) -> str:
        return intent.deployed_model_id

    def keep(self, snapshots: Set[str]) -> None:
        pass

    def stop(self, running: str) -> None:
        pass


def main() -> None:
    given = harness.arguments(__doc__, rounds=200)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "plane"
        table = starts(directory, max(10, given.rounds // 20))
        fill(directory)
        table += looks(directory, given.rounds)
    with tempfile.TemporaryDirectory() as folder:
        table += changes(Path(folder) / "plane", given.rounds // 2)
    notes = [f"lists and looks: {MODELS} models, {ENDPOINTS} endpoints; /health/live is their baseline"]
    harness.report(__doc__, table, given.json, notes=notes)


def starts(directory: Path, rounds: int) -> list[harness.Row]:
    """A new process each time, on a state that is there."""

    def start() -> None:
        with server(directory):
            pass

    def libraries() -> None:
        subprocess.run([sys.executable, "-c", LIBRARIES], check=True)

    cases: dict[str, Callable[[], object]] = {"import its libraries": libraries, "medport serve": start}
    # The end of the process is part of a round and not of the time: it is taken inside.
    samples = harness.alternate(cases, rounds, warm_up=1)
    samples["medport serve"] = [harness.Sample(wall, 0.0) for wall in START_TIMES[-rounds:]]
    return wall_only(harness.rows(START, samples, "import its libraries"))


START_TIMES: list[float] = []
"""Seconds from fork to first answer, of every server that was started."""


@contextmanager
def server(directory: Path) -> Iterator[int]:
    """The command as its users run it; gives the port once a look at the state was answered."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    command = [
        sys.executable, "-m", "medport_local.cli", "serve", "--control-plane", str(directory), "--port", str(port),
        "--project", HOME.id, "--location", HOME.location,
    ]  # fmt: skip
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while get(port, f"{PARENT}/endpoints?pageSize=1") is None:
                if process.poll() is not None or time.perf_counter() - began > _TRIES_S:
                    raise SystemExit("the server does not start")
                time.sleep(0.005)
            START_TIMES.append(time.perf_counter() - began)
            yield port
        finally:
            process.terminate()
            process.wait(30)


def get(port: int, path: str) -> int | None:
    """The status of one request on a connection of its own; ``None`` while nobody listens or it is not ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
        return status if status == 200 else None
    except OSError:
        return None
    finally:
        connection.close()


def fill(directory: Path) -> None:
    """Many models, of which every hundredth has a label, and many endpoints, each as a caller would make it."""
    database = Database(directory, {})
    with database.writing() as tx:
        for i in range(MODELS):
            labels = {"team": "chest" if i % 100 == 0 else "skin", "medport-rev": f"{i:040x}"}
            environment = [{"name": "MODEL_ID", "value": "google/medgemma-4b-it"}]
            container = {"imageUri": IMAGE, "args": ["--max-model-len=8192"], "env": environment}
            model = {"displayName": f"model {i}", "labels": labels, "containerSpec": container}
            upload(tx, HOME, {"modelId": f"m{i}", "model": {**model, "versionAliases": ["default"]}})
        for i in range(ENDPOINTS):
            body = {"displayName": f"endpoint {i}", "labels": {"team": "chest"}, "dedicatedEndpointEnabled": True}
            create_endpoint(tx, HOME, {"endpointId": f"e{i}", "endpoint": body})
    database.close()


def looks(directory: Path, rounds: int) -> list[harness.Row]:
    """Reads through one connection that is kept."""
    with server(directory) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

        def asking(path: str, at_least: int = 1) -> Callable[[], object]:
            def ask() -> None:
                connection.request("GET", path)
                answer = connection.getresponse()
                body = answer.read()
                assert answer.status == 200, body
                assert body.count(b'"name":"projects/') >= at_least, body[:300]

            return ask

        def listing(kind: str, wanted: str = "", at_least: int = 100) -> Callable[[], object]:
            return asking(f"{PARENT}/{kind}?pageSize=100&filter={quote(wanted)}", at_least)

        live = asking(LIVE, 0)
        one = {
            LIVE: live,
            "endpoint": asking(f"{PARENT}/endpoints/e500"),
            "model": asking(f"{PARENT}/models/m500"),
        }
        lists = {
            LIVE: live,
            "models": listing("models"),
            "models, a label that 1 of 100 has": listing("models", 'labels.team="chest"'),
            "models, a name that 1 of 10,000 has": listing("models", 'display_name="model 9876"', 1),
            "models, a filter that none fits": listing("models", 'labels.team="none"', 0),
            "endpoints": listing("endpoints"),
            "endpoints, a label that all have": listing("endpoints", 'labels.team="chest"'),
        }
        table = harness.rows(GET, harness.alternate(one, rounds, warm_up=10), LIVE)
        table += harness.rows(LIST, harness.alternate(lists, rounds, warm_up=5), LIVE)
        connection.close()
    return wall_only(table)


def changes(directory: Path, rounds: int) -> list[harness.Row]:
    """An endpoint made, a model uploaded, deployed and undeployed, over and over, each until all is quiet."""
    database = Database(directory, {"project": HOME.id})
    plane: Plane[str] = Plane(HOME, database, NoEngines(), advertised="localhost:8443")
    plane.start()
    handlers = {row.operation: row.handler for row in plane.rows()}

    def call(operation: str, body: Mapping[str, Any], query: Mapping[str, str] | None = None, **path: str) -> None:
        home = {"project": HOME.id, "location": HOME.location}
        ask = Ask(api="v1", path={**home, **path}, query=query or {}, body=dict(body))

        async def answered() -> dict[str, Any]:
            return await handlers[operation](ask)

        shown = asyncio.run(answered())
        assert plane.quiet(10)
        assert "error" not in shown

    numbers = itertools.count(1)
    last = 0

    def create() -> None:
        nonlocal last
        last = next(numbers)
        call("createEndpoint", {"displayName": "e"}, {"endpointId": f"e{last}"})

    def upload_one() -> None:
        model = {"displayName": "m", "versionAliases": ["default"], "containerSpec": {"imageUri": IMAGE}}
        call("uploadModel", {"model": model, "modelId": f"m{last}"})

    def deploy() -> None:
        resources = {"machineSpec": {"machineType": "g2-standard-24"}, "minReplicaCount": 1}
        model = {"id": "1", "model": f"{HOME.parent}/models/m{last}@1", "dedicatedResources": resources}
        call("deployModel", {"deployedModel": model}, endpoint=f"e{last}")

    def undeploy() -> None:
        call("undeployModel", {"deployedModelId": "1"}, endpoint=f"e{last}")

    # In this order and not in turns: each needs what the one before it made.
    cases = {"create an endpoint": create, "upload a model": upload_one, "deploy": deploy, "undeploy": undeploy}
    samples: dict[str, list[harness.Sample]] = {how: [] for how in cases}
    for i in range(rounds + 3):
        for how, work in cases.items():
            began = time.perf_counter()
            work()
            if i >= 3:
                samples[how].append(harness.Sample(time.perf_counter() - began, 0.0))
    plane.close()
    database.close()
    return wall_only(harness.rows(CHANGE, samples, "create an endpoint"))


def wall_only(table: list[harness.Row]) -> list[harness.Row]:
    """The CPU time of another process is not seen from here."""
    return [harness.Row(r.what, r.how, r.n, r.median, r.p95, r.unit, r.ratio, r.baseline) for r in table]


if __name__ == "__main__":
    main()
