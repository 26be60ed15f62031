"""A control plane that is killed at every step of a walk through all it does, and started again.

``python -m tests.support.control_walk DIRECTORY`` prints one JSON line for each point at which it was killed. A
point is before or after a COMMIT, an engine's start or an engine's end; so between a COMMIT and what follows it
there is one. Processes are forked from one that has everything imported, and end by SIGKILL, which no code sees.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.no_engines import NoEngine, NoEngines
from tests.support.planes import PROJECT, Standing

from medport.errors import MedportError
from medport_local.control import deployed, operations
from medport_local.control.database import Database
from medport_local.control.host import Intent
from medport_local.control.plane import Plane, PlaneSettings

Json = dict[str, Any]
ENDPOINT = f"{PROJECT.parent}/endpoints/e"


class Points:
    """Counts points, and ends the process at one of them."""

    def __init__(self, fatal: int) -> None:
        self._fatal = fatal
        self._lock = threading.Lock()
        self.passed = 0

    def __call__(self) -> None:
        with self._lock:
            self.passed += 1
            if self.passed == self._fatal:
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()


class MortalDatabase(Database):
    """A state whose process may end before or after each COMMIT."""

    def __init__(self, directory: Path, points: Points) -> None:
        self.points = points
        super().__init__(directory, {"project": PROJECT.id})

    def _commit(self) -> None:
        self.points()
        super()._commit()
        self.points()


class MortalEngines(NoEngines):
    """Engines at whose start and end the process may end."""

    def __init__(self, points: Points) -> None:
        super().__init__()
        self.points = points

    def start(self, intent: Intent, cancelled: Callable[[], bool]) -> NoEngine:
        self.points()
        engine = super().start(intent, cancelled)
        self.points()
        return engine

    def stop(self, running: NoEngine) -> None:
        self.points()
        super().stop(running)
        self.points()


class Walk:
    """All that callers do, one after another; what they were told is kept in a file."""

    def __init__(self, site: Standing, told: Path) -> None:
        self._site = site
        self._told = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def steps(self) -> list[Callable[[], object]]:
        site, resources = self._site, {"dedicatedResources": {"minReplicaCount": 1}}
        endpoint = {"displayName": "e", "dedicatedEndpointEnabled": True}
        model = {"displayName": "m", "containerSpec": {"imageUri": "serve", "predictRoute": "/predict"}}
        rolling = {"rolloutOptions": {"previousDeployedModel": "1"}}
        upload = {"model": model, "modelId": "m"}
        version = {"model": model, "parentModel": f"{PROJECT.parent}/models/m"}
        return [
            lambda: self._do(site.call("POST", "endpoints", endpoint, endpointId="e")),
            lambda: self._do(site.call("POST", "models:upload", upload)),
            lambda: self._do(site.deploying("1", **resources)),
            lambda: self._do(site.call("POST", "models:upload", version)),
            lambda: self._do(site.deploying("2", model="m@2", split={"0": 20, "1": 80}, **resources)),
            lambda: site.share({"1": 50, "2": 50}),
            lambda: self._do(site.deploying("3", model="m@2", **rolling)),
            self._several_at_once,
            lambda: self._do(site.deploying("6")),
            lambda: self._do(site.undeploying("4")),
            lambda: self._do(site.undeploying("2")),
            lambda: self._do(site.call("DELETE", "endpoints/e")),
            lambda: self._do(site.call("DELETE", "models/m")),
        ]

    def _several_at_once(self) -> None:
        begun = [self._site.deploying("4"), self._site.undeploying("3", split={"2": 100})]
        for operation in begun:
            self._tell(operation)
        for operation in begun:
            self._tell(self._site.call.done(operation))

    def _do(self, operation: Json) -> None:
        self._tell(operation)
        self._tell(self._site.call.done(operation))

    def _tell(self, operation: Json) -> None:
        os.write(self._told, json.dumps(operation).encode() + b"\n")


def opened(directory: Path, fatal: int) -> Standing:
    """A plane over the directory's state, started, that ends at its ``fatal``-th point."""
    points = Points(fatal)
    database = MortalDatabase(directory / "state", points)
    host = MortalEngines(points)
    host.failures["6"] = MedportError("it does not start")
    plane: Plane[NoEngine] = Plane(
        PROJECT, database, host, advertised="localhost:1", settings=PlaneSettings(look_s=3600.0)
    )
    plane.start()
    return Standing(plane, database, host)


def walk(directory: Path, fatal: int) -> None:
    """Do all steps, and note the state after each of those that end."""
    site = opened(directory, fatal)
    for step in Walk(site, directory / "told").steps():
        step()
        with open(directory / "states", "a") as states:
            states.write(json.dumps(state_of(site)) + "\n")


def state_of(site: Standing) -> Json:
    """What there is, as far as steps change it."""
    with site.database.reading() as tx:
        names = [row["name"] for row in tx.all("SELECT name FROM resource ORDER BY name")]
        body = tx.one("SELECT body FROM resource WHERE name = ?", ENDPOINT)
        rows = {row.id: row.state for row in deployed.every(tx)}
    split = {} if body is None else json.loads(body["body"]).get("trafficSplit", {})
    return {"resources": names, "split": split, "deployed": rows}


def recover(directory: Path, fatal: int) -> None:
    """Go on from what is on the disk until nothing is done any more."""
    assert opened(directory, fatal).plane.quiet(30)


def take_stock(directory: Path, fatal: int) -> None:
    """Go on, note all that there is then, and take everything down."""
    site = opened(directory, fatal)
    assert site.plane.quiet(30)
    with site.database.reading() as tx:
        kept = [operations.of_row(row).shown() for row in tx.all("SELECT * FROM operation ORDER BY place")]
        orphans = tx.all("SELECT id FROM deployment WHERE endpoint NOT IN (SELECT name FROM resource)")
    found = {
        "state": state_of(site),
        "engines": site.host.keys(),
        "operations": kept,
        "orphans": len(orphans),
        "turns": [site.enter() for _ in range(100)] if state_of(site)["split"] else [],
    }
    for row in site.rows():
        site.share({}, "e")
        site.undeployed(row.id)
    for name in state_of(site)["resources"]:
        if "@" not in name:
            site.call.done(site.call("DELETE", f"/v1/{name}"))
    found["left"] = [state_of(site), site.host.keys()]
    (directory / "found").write_text(json.dumps(found))


def in_child(work: Callable[[Path, int], None], directory: Path, fatal: int) -> bool:
    """Do it in a process of its own; whether it came to its end, and was not killed."""
    child = os.fork()
    if child == 0:
        try:
            work(directory, fatal)
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(70)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"{work.__name__} failed at point {fatal} of {directory.name}"
    return code == 0


def main(root: Path) -> None:
    """Kill at the first point, the second, … until one is not reached; the last line is of the whole walk."""
    fatal, ended = 0, False
    while not ended:
        fatal += 1
        directory = root / str(fatal)
        directory.mkdir()
        ended = in_child(walk, directory, fatal)
        # The first recovery is killed too, at one of its own points.
        again = not in_child(recover, directory, 1 + fatal % 7)
        assert in_child(take_stock, directory, 0)
        lines = {name: _lines(directory / name) for name in ("told", "states")}
        found = json.loads((directory / "found").read_text())
        print(json.dumps({"point": fatal, "ended": ended, "again": again, **lines, **found}), flush=True)


def _lines(file: Path) -> list[Json]:
    if not file.exists():
        return []
    # What was being written when the process ended is not a line that anybody was told.
    whole, _, _ = file.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
