"""A site with no network, from an empty directory to an answer: what a person would type, one step after another.

A program, to be run inside a network namespace (``netns``). It writes down each step and what came of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

GUARD = Path(__file__).with_name("socket_guard.py")
KEY = "a-key-of-this-site"
_READY_S = 300
_SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What the site starts with."""

    directory: str
    """Holds ``site.mpb``, ``site.mpb.sha256``, ``pub.pem`` and ``cxr.png``; all else is made in it."""
    extras: str
    outside: str | None
    """A directory of packages that the site has already; ``None`` where every one comes from the bundle."""
    guard_log: str


class Failed(Exception):
    """A step ended badly; those after it rest on it."""


class Steps:
    """Runs commands in the site's directory and keeps what came of each."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._directory, self._environment = directory, dict(environment)
        self.done: list[dict[str, Any]] = []

    def run(self, name: str, command: str, **more: str) -> str:
        """One line of shell, as it would be typed; its standard output.

        Raises:
            Failed: it exits with another code than 0.
        """
        began = time.monotonic()
        environment = {**self._environment, **more}
        shell = ["bash", "-c", command]
        done = subprocess.run(shell, cwd=self._directory, env=environment, capture_output=True, text=True)
        self.note(name, command, done.returncode, done.stdout, done.stderr, time.monotonic() - began)
        if done.returncode != 0:
            raise Failed(name)
        return done.stdout

    def note(self, name: str, command: str, code: int | None, out: str, err: str, seconds: float) -> None:
        step = {
            "name": name,
            "command": command,
            "code": code,
            "out": out,
            "err": err,
            "seconds": round(seconds, 1),
        }
        self.done.append(step)


class Server:
    """``medport serve``, in the background."""

    def __init__(self, steps: Steps, command: str, directory: Path, environment: Mapping[str, str]) -> None:
        self._steps, self._command, self._began = steps, command, time.monotonic()
        with (directory / "serve.log").open("w") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", f"exec {command} --json"], cwd=directory, env=dict(environment), text=True,
                stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self._log = directory / "serve.log"
        lines: queue.Queue[str] = queue.Queue()
        stream = self._process.stdout
        assert stream is not None
        threading.Thread(target=lambda: lines.put(stream.readline()), daemon=True).start()
        self.line: dict[str, Any] = json.loads(lines.get(timeout=_READY_S) or "{}")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(60)
        seconds = time.monotonic() - self._began
        self._steps.note("serve", self._command, code, json.dumps(self.line), self._log.read_text(), seconds)


def visit(given: Visit) -> list[dict[str, Any]]:
    """All steps, to the end or to the first that fails."""
    directory = Path(given.directory)
    environment = _environment(given, directory)
    steps = Steps(directory, environment)
    try:
        _install(steps, given, directory)
        _use(steps, directory, environment)
    except (Failed, KeyError, ValueError, queue.Empty) as fault:
        steps.note("broken off", "", 1, "", repr(fault), 0)
    return steps.done


def _install(steps: Steps, given: Visit, directory: Path) -> None:
    steps.run("checksum", "sha256sum --check site.mpb.sha256")
    steps.run("unpack wheels", "tar --extract --file site.mpb wheels")
    steps.run("environment", "python3 -m venv venv")
    plant(directory / "venv", given.outside)
    steps.run(
        "pip", f'venv/bin/pip install --no-index --find-links wheels "medport[{given.extras}]" --quiet --no-input'
    )
    steps.run("verify", "medport bundle verify site.mpb --key pub.pem")
    steps.run("install", "medport bundle install site.mpb --key pub.pem")
    shutil.rmtree(directory / "wheels")  # the installed ones are used from here on


def _use(steps: Steps, directory: Path, environment: Mapping[str, str]) -> None:
    site = Path(environment["HOME"]) / ".local/share/medport/site"
    assert site.is_dir(), "the bundle was not installed"
    lock = "~/.local/share/medport/site/lock/medport.lock"
    server = Server(
        steps,
        f"medport serve --port 0 --lock {lock} --audit audit --tls-self-signed tls --api-key-env SITE_KEY",
        directory,
        {**environment, "SITE_KEY": KEY},
    )
    try:
        where = f"--url {server.line['url']} --ca-file tls/ca.pem --json"
        said = steps.run("chat", f'medport chat "Describe this X-ray." -i cxr.png {where}', MEDPORT_API_KEY=KEY)
        steps.run(
            "classify",
            f'medport classify cxr.png --label pneumothorax --label "no acute finding" {where}',
            MEDPORT_API_KEY=KEY,
        )
        steps.run("embed", f"medport embed cxr.png -o vectors.npz {where}", MEDPORT_API_KEY=KEY)
        request = json.loads(said)["provenance"]["request_id"]
        steps.run("audit show", f"medport audit show {request} --dir audit --json")
    finally:
        server.stop()
    steps.run("audit verify", "medport audit verify audit")
    (directory / "medport.toml").write_text(
        f'[profiles.here]\nbackend = "in-process"\nlock = "{site}/lock/medport.lock"\n'
    )
    steps.run("in-process", 'medport chat "Describe this X-ray." -i cxr.png --profile here --json')
    steps.run(
        "doctor",
        "medport doctor --offline --key pub.pem --audit audit "
        "--tls-cert tls/server.pem --tls-key tls/server-key.pem",
    )


def _environment(given: Visit, directory: Path) -> dict[str, str]:
    home, tools = directory / "home", directory / "tools"
    home.mkdir()
    tools.mkdir()
    # The site's own Python, and nothing else of the environment that runs this.
    python = tools / "python3"
    python.write_text(f'#!/bin/sh\nexec "{sys._base_executable}" "$@"\n')  # type: ignore[attr-defined]
    python.chmod(0o755)
    return {
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{directory / 'venv/bin'}:{tools}:{_SYSTEM}",
        # pip's configuration of this machine is not the site's.
        "PIP_CONFIG_FILE": os.devnull,
        "RES_OPTIONS": "timeout:1 attempts:1",
        "SOCKET_GUARD_LOG": given.guard_log,
    }


def plant(venv: Path, outside: str | None) -> None:
    """The guard, and the way to packages that the site has, as a distribution: the doctor asks whose files run."""
    (packages,) = (venv / "lib").glob("python3*/site-packages")
    files = {"socket_guard.py": GUARD.read_text(), "a_socket_guard.pth": "import socket_guard\n"}
    if outside is not None:
        files["outside.pth"] = f"{outside}\n"
    files["socket_guard-1.dist-info/METADATA"] = "Metadata-Version: 2.1\nName: socket-guard\nVersion: 1\n"
    files["socket_guard-1.dist-info/RECORD"] = "".join(f"{name},,\n" for name in files)
    (packages / "socket_guard-1.dist-info").mkdir()
    for name, text in files.items():
        (packages / name).write_text(text)


def checksum(file: Path) -> str:
    """A line as ``sha256sum`` writes it."""
    with file.open("rb") as stream:
        return f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {file.name}\n"


def main(plan: Path, report: Path) -> None:
    report.write_text(json.dumps(visit(Visit(**json.loads(plan.read_text()))), indent=1))


def plan_of(given: Visit) -> str:
    """The file that ``main`` reads."""
    return json.dumps(asdict(given))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
