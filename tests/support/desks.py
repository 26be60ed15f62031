"""A desk: a directory with a specification and a lock, and ``medport deploy`` as its team uses it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from medport.cli import main
from medport_deploy.run import apply, journal
from medport_deploy.run.journal import Journal
from medport_deploy.spec import reading as specs
from medport_deploy.spec.reading import Spec
from medport_local.phantom import weights_dir

from .plane_server import KEY, PlaneServer
from .planned import spec_bytes

Json = dict[str, Any]
MIRROR = weights_dir("medgemma")
VARIABLE = "DESK_KEY"
"""The environment variable that holds the key of the server."""
ROLLOUT = {"steps": [50, 100], "bake_s": 0}
COMMAND = [str(Path(sys.executable).with_name("medport")), "deploy"]


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Json:
        found: Json = json.loads(self.out)
        return found

    @property
    def error(self) -> Json:
        """Of a command with ``--json`` that failed."""
        found: Json = json.loads(self.err)["error"]
        return found


@dataclass
class Desk:
    """Args of ``write`` are those of ``planned.spec_bytes``."""

    server: PlaneServer
    root: Path
    name: str
    environment: dict[str, str] = field(default_factory=dict)
    """More of it, for commands that are processes of their own."""
    said: list[Said] = field(default_factory=list)
    """All that commands have printed."""

    @property
    def file(self) -> Path:
        return self.root / "medport.yaml"

    @property
    def spec(self) -> Spec:
        return specs.load(self.file)

    @property
    def state(self) -> Path:
        return apply.directory_of(self.root, self.name)

    @property
    def endpoint(self) -> str:
        return self.spec.endpoint_id("reader")

    def write(self, **changes: Any) -> None:
        """Put the specification there; ``number`` changes what the lock must say, ``names`` are its models'."""
        number, model = changes.pop("number", 1), changes.pop("model", {})
        names = changes.pop("names", ["reader"])
        changes.setdefault("rollout", ROLLOUT)
        data = spec_bytes(self.server.url, self.name, model={"env": {"NUMBER": str(number)}, **model}, **changes)
        whole = yaml.safe_load(data)
        whole["target"] |= {"ca_file": str(self.server.line["ca_file"]), "auth": {"api_key_env": VARIABLE}}
        whole["models"] = {name: deepcopy(whole["models"]["reader"]) for name in names}
        self.file.write_text(yaml.safe_dump(whole))

    def run(self, *arguments: str) -> Said:
        """A command in this process, which has loaded already what it needs."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main(["deploy", arguments[0], "-f", str(self.file), *arguments[1:]])
        return self._kept(Said(int(str(ended.value.code)), out.getvalue(), err.getvalue()))

    def process(self, *arguments: str) -> subprocess.Popen[str]:
        """A command as a process of its own, in the directory of the specification."""
        return subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self.root,
            env={**os.environ, VARIABLE: KEY, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def typed(self, *arguments: str) -> Said:
        """The same, once it has ended."""
        process = self.process(*arguments)
        out, err = process.communicate(timeout=120)
        return self._kept(Said(process.returncode, out, err))

    def locked(self) -> str:
        """Write the lock; its id."""
        said = self.run("lock", "--mirror", str(MIRROR), "--offline", "--json")
        assert said.code == 0, said.err
        return str(said.json["lock_id"])

    def planned(self, **changes: Any) -> Json:
        """Write specification and lock, and plan; the plan, which has changes."""
        self.write(**changes)
        self.locked()
        said = self.run("plan", "--json")
        assert said.code == 2, said.err
        return said.json

    def deployed(self, **changes: Any) -> str:
        """Write specification and lock, plan and apply; the lock's id."""
        plan = self.planned(**changes)
        said = self.run("apply", "--json")
        assert said.code == 0, said.err
        return str(plan["lock_id"])

    def split(self) -> dict[str, int]:
        found: dict[str, int] = self.server.endpoint(self.endpoint).get("trafficSplit", {})
        return found

    def fleets(self) -> dict[str, str]:
        """Display names of what is deployed, by id."""
        deployed = self.server.endpoint(self.endpoint).get("deployedModels", [])
        return {each["id"]: each["displayName"] for each in deployed}

    def journals(self) -> list[Journal]:
        return journal.all_of(self.state) if self.state.exists() else []

    def fault(self, http: Json, **match: str) -> None:
        """Let calls that fit be answered so, until ``well``."""
        self.server.http.post("/medport/v1/faults", json={"match": match, "http": http}).raise_for_status()

    def well(self) -> None:
        self.server.http.delete("/medport/v1/faults").raise_for_status()

    def close(self) -> None:
        """Take away what the test has left."""
        self.well()
        if self.file.exists():
            said = self.run("destroy", "--yes")
            assert said.code == 0, said.err
            self.file.unlink()

    def _kept(self, said: Said) -> Said:
        self.said.append(said)
        return said
