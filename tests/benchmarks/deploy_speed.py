"""What does medport deploy itself take: a plan of nothing, an apply, a way back, a lock's check, its imports?

Commands are processes of their own, as users start them, against a control plane that serves phantoms.

* A plan that finds nothing to do, without and with a Terraform root (the real terraform and ``roots/local``; where
  terraform or the wheel of its provider's schema is missing, that case is left out). The promise: under 3 s.
* An apply of another revision, straight to 100 % and without a bake time, less what the control plane took for its
  own operations: what is left is the client's start, the calls, the polling, the smoke tests and the gates. The
  promise: under 5 s.
* A rollback to the fleet that is kept: until all traffic is back, and until the rejected fleet is undeployed.
* The files of a lock, hashed where they lie, against sha256 of as many bytes in the cache: per core.
* Imports, against an interpreter that imports nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import harness
import yaml

HERE = Path(__file__)
sys.path.insert(0, str(HERE.parents[1]))

from support.configurations import copied  # noqa: E402
from support.plane_server import KEY, PlaneServer, plane_server  # noqa: E402
from support.planned import spec_bytes  # noqa: E402
from support.provider import WheelMissing, attached, reaching, schema_file  # noqa: E402

from medport.lock import LockedFile  # noqa: E402
from medport_deploy.lock import pinned  # noqa: E402
from medport_deploy.lock.model_source import locked  # noqa: E402
from medport_deploy.spec import reading as specs  # noqa: E402
from medport_local.phantom import weights_dir  # noqa: E402
from medport_local.snapshot_file import entry_of  # noqa: E402

DEPLOY = [sys.executable, "-m", "medport.cli", "deploy"]
ROLLOUT = {"strategy": "canary", "steps": [100], "bake_s": 0, "retain_s": 3600}
SHARDS, SHARD_BYTES = 3, 400_000_000
NOTHING = "python -c pass"
IMPORTS = {
    NOTHING: "pass",
    "import medport_deploy.cli.app": "import medport_deploy.cli.app",
    "import medport_deploy.work.opening": "import medport_deploy.work.opening",
    "import google.cloud.aiplatform_v1": "import google.cloud.aiplatform_v1",
}
CACHED = "sha256 of bytes in the cache"


@dataclass
class Site:
    """A directory with a specification and a lock, and a server that they are for."""

    folder: Path
    server: PlaneServer
    name: str
    environment: dict[str, str] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    """Of the specification."""

    def write(self, fleet: str) -> None:
        """The files; each ``fleet`` is another version of the same model."""
        whole = yaml.safe_load(spec_bytes(self.server.url, self.name, rollout=ROLLOUT, **self.more))
        whole["target"]["ca_file"] = self.server.line["ca_file"]
        whole["models"]["reader"]["env"] = {"FLEET": fleet}
        (self.folder / "medport.yaml").write_text(yaml.safe_dump(whole))
        self.deploy("lock", "--mirror", str(weights_dir("medgemma")), "--offline")

    def deploy(self, *words: str, expect: int = 0) -> None:
        """One command."""
        environment = {**os.environ, "KEY": KEY, **self.environment}
        done = subprocess.run(
            [*DEPLOY, *words], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == expect, (words, done.returncode, done.stdout[-2000:], done.stderr[-2000:])

    @property
    def endpoint(self) -> str:
        """Of the model, by its id."""
        return specs.parse((self.folder / "medport.yaml").read_bytes()).endpoint_id("reader")

    def serving(self) -> set[str]:
        """The deployed models that have all the traffic."""
        return set(self.server.endpoint(self.endpoint).get("trafficSplit", {}))


@contextmanager
def sites(folder: Path) -> Iterator[list[Site]]:
    """Where medport makes the endpoint and, if there is one, where Terraform does; both deployed."""
    with ExitStack() as stack:
        server = stack.enter_context(plane_server(folder))
        plain = Site(folder / "plain", server, "bench")
        found = [plain]
        try:
            schema = schema_file() if shutil.which("terraform") else None
        except WheelMissing:
            schema = None
        if schema is not None:
            variables = stack.enter_context(attached(schema, reaching(server.url, server.line["ca_file"], KEY)))
            more = {"model": {"endpoint": {"id": "4100000009"}}, "terraform": {"root": "terraform/roots/local"}}
            found.append(Site(folder / "rooted", server, "rooted", variables, more))
        for site in found:
            site.folder.mkdir()
            if site.more:
                copied(site.folder)
            site.write("first")
            site.deploy("plan", expect=2)
            site.deploy("apply")
        yield found


def plans(found: Sequence[Site], rounds: int) -> list[harness.Row]:
    """A plan that finds nothing to do."""
    cases: dict[str, Callable[[], object]] = {NOTHING: lambda: python("pass")}
    for site in found:
        cases["with a Terraform root" if site.more else "without Terraform"] = lambda site=site: site.deploy(
            "plan"
        )
    return timed("plan, nothing to do", cases, rounds, NOTHING)


def applies(site: Site, rounds: int) -> list[harness.Row]:
    """Another revision and back, again and again."""
    walls, overheads, backs, whole = list[float](), list[float](), list[float](), list[float]()
    applied, returned = list[float](), list[float]()
    for number in range(rounds):
        old = site.serving()
        site.write(f"number {number}")
        site.deploy("plan", expect=2)
        before = set(operations(site))
        began, used = time.perf_counter(), of_children()
        site.deploy("apply")
        walls.append(time.perf_counter() - began)
        applied.append(of_children() - used)
        spent = operations(site)
        overheads.append(walls[-1] - sum(spent[name] for name in spent.keys() - before))
        assert site.serving() != old
        with returning(site, old) as seconds:
            began, used = time.perf_counter(), of_children()
            site.deploy("rollback")
            whole.append(time.perf_counter() - began)
            returned.append(of_children() - used)
        backs.append(seconds[0])
    return [
        seconds_row("apply", "the command", walls, applied),
        seconds_row("apply", "less the server's own operations", overheads),
        seconds_row("rollback, old fleet kept", "until it has all the traffic", backs),
        seconds_row("rollback, old fleet kept", "the command", whole, returned),
    ]


def operations(site: Site) -> dict[str, float]:
    """Seconds that each operation of the server took, by its name."""
    found: dict[str, float] = {}
    for path in ("/operations", "/endpoints/-/operations", "/models/-/operations"):
        answer = site.server.call("GET", path)
        for each in answer.json().get("operations", []) if answer.status_code == 200 else ():
            times = each["metadata"]["genericMetadata"]
            began, ended = (datetime.fromisoformat(times[key]) for key in ("createTime", "updateTime"))
            found[each["name"]] = (ended - began).total_seconds()
    assert found, "the server lists its operations elsewhere"
    return found


@contextmanager
def returning(site: Site, old: set[str]) -> Iterator[list[float]]:
    """Seconds from here until these deployed models have all the traffic; one entry, at the end of the block."""
    found: list[float] = []
    began = time.perf_counter()

    def watch() -> None:
        while time.perf_counter() - began < 120:
            if site.serving() == old:
                found.append(time.perf_counter() - began)
                return
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield found
    watcher.join()
    assert found, "the traffic did not come back"


def checks(folder: Path, rounds: int) -> tuple[list[harness.Row], list[str]]:
    """A lock's files where they lie; the system holds them in memory, so no disk is measured."""
    block = os.urandom(1 << 20)
    for number in range(SHARDS):
        with (folder / f"model-{number}.safetensors").open("wb") as file:
            for _ in range(SHARD_BYTES // len(block)):
                file.write(block)
    names = sorted(path.name for path in folder.iterdir())
    entries = {name: entry_of(folder, name) for name in names}
    files = {name: LockedFile(sha256=each.sha256, size_bytes=each.size_bytes) for name, each in entries.items()}
    model = locked("example/model", None, "medgemma", files)
    size = sum(each.size_bytes for each in model.files.values())

    def cached() -> None:
        digest = hashlib.sha256()
        for _ in range(size // len(block)):
            digest.update(block)

    samples = harness.alternate(
        {CACHED: cached, "verify_files": lambda: pinned.verify_files(model, folder)}, rounds, warm_up=1
    )
    rates = [
        f"{how}: {statistics.median(size / each.cpu_s for each in mine) / 1e9:.2f} GB/s of a core, "
        f"{statistics.median(size / each.wall_s for each in mine) / 1e9:.2f} GB/s by the clock"
        for how, mine in samples.items()
    ]
    return harness.rows(f"lock's files, {size / 1e6:.0f} MB", samples, CACHED), rates


def timed(what: str, cases: dict[str, Callable[[], object]], rounds: int, baseline: str) -> list[harness.Row]:
    """Processes by the clock, and what they and their children took of the processors."""
    spent: dict[str, list[float]] = {name: [] for name in cases}

    def counted(name: str) -> None:
        before = of_children()
        cases[name]()
        spent[name].append(of_children() - before)

    samples = harness.alternate({name: lambda name=name: counted(name) for name in cases}, rounds, warm_up=1)
    return [
        harness.Row(
            r.what, r.how, r.n, r.median, r.p95, r.unit, r.ratio, r.baseline,
            statistics.median(spent[r.how][-rounds:]) * 1e3,
        )
        for r in harness.rows(what, samples, baseline)
    ]  # fmt: skip


def of_children() -> float:
    """Seconds that processes which have ended took of the processors."""
    found = os.times()
    return found.children_user + found.children_system


def python(code: str) -> None:
    """An interpreter for this alone."""
    subprocess.run([sys.executable, "-c", code], check=True)


def seconds_row(what: str, how: str, found: Sequence[float], used: Sequence[float] = ()) -> harness.Row:
    """Of times by the clock, and of seconds of the processors."""
    ordered = sorted(found)
    cpu_ms = statistics.median(used) * 1e3 if used else None
    return harness.Row(
        what, how, len(found), statistics.median(found), harness.percentile(ordered, 95), "s", cpu_ms=cpu_ms
    )


def main() -> None:
    given = harness.arguments(__doc__, rounds=7)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "files").mkdir()
        with sites(folder) as found:
            table = plans(found, given.rounds)
            table += applies(found[0], given.rounds)
        rows, notes = checks(folder / "files", given.rounds)
        table += rows
        codes: dict[str, Callable[[], object]] = {
            how: lambda code=code: python(code) for how, code in IMPORTS.items()
        }
        table += timed("imports", codes, given.rounds, NOTHING)
    harness.report(__doc__, table, given.json, notes=notes)


if __name__ == "__main__":
    main()
