"""Programs of ours as processes that need not import torch each: five seconds of a processor less for a server.

Forked from a process that has imported all and done nothing (``fork_server``), one for each process that runs
tests. Whoever wants to know that a program imports what it needs starts it by ``subprocess``.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from .fork_server import LARGEST

PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL
STEP_S = 0.01


class _ForkServer:
    """The process that is forked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._link, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "support.fork_server", str(other.fileno())],
                pass_fds=[other.fileno()],
                cwd=Path(__file__).parents[1],
                stdin=subprocess.DEVNULL,
            )
        atexit.register(self.close)

    def ask(self, message: dict[str, Any], *descriptors: int) -> dict[str, Any]:
        with self._lock:
            socket.send_fds(self._link, [json.dumps(message).encode()], descriptors)
            found: dict[str, Any] = json.loads(self._link.recv(LARGEST))
        return found

    def close(self) -> None:
        self._link.close()
        self._process.wait(30)


_server: list[_ForkServer] = []


class Process:
    """A program that runs; the part of ``subprocess.Popen`` that tests use.

    Args:
        program: a module whose ``main`` is called, such as ``medport_local.cli``; or a script, by its path.
        env: all of its environment; this process's own if ``None``.
        stdout, stderr: ``PIPE`` (text), ``DEVNULL`` or a file that is open for writing.
    """

    def __init__(
        self,
        program: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdout: int | IO[Any] = PIPE,
        stderr: int | IO[Any] = PIPE,
    ) -> None:
        if not _server:
            _server.append(_ForkServer())
        self.returncode: int | None = None
        self.stdout: io.TextIOWrapper | None
        self.stderr: io.TextIOWrapper | None
        out, self.stdout = _end(stdout)
        err, self.stderr = _end(stderr)
        asked = {
            "program": program, "arguments": arguments, "env": dict(os.environ if env is None else env),
            "cwd": os.fspath(cwd or Path.cwd()),
        }  # fmt: skip
        try:
            self.pid = int(_server[0].ask(asked, out, err)["pid"])
        finally:
            os.close(out)
            os.close(err)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exception: object) -> None:
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait(60)

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; ``None`` while it runs."""
        if self.returncode is None:
            self.returncode = _server[0].ask({"pid": self.pid})["status"]
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """As ``poll``, once it has ended. Raises ``subprocess.TimeoutExpired``."""
        end = time.monotonic() + (timeout or float("inf"))
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(STEP_S)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that is still to be read of both pipes, once it has ended."""
        found = {"stdout": "", "stderr": ""}

        def read(name: str) -> None:
            with getattr(self, name) as stream:
                found[name] = stream.read()

        readers = [threading.Thread(target=read, args=[name]) for name in found if getattr(self, name) is not None]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        return found["stdout"], found["stderr"]

    def send_signal(self, number: int) -> None:
        """Nothing if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(program: str, *arguments: str, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
    """A program to its end, with what it printed."""
    process = Process(program, *arguments, **options)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    assert process.returncode is not None
    return subprocess.CompletedProcess([program, *arguments], process.returncode, out, err)


def _end(wanted: int | IO[Any]) -> tuple[int, io.TextIOWrapper | None]:
    """The descriptor that the program writes to, and what reads from it here."""
    if wanted == PIPE:
        reading, writing = os.pipe()
        return writing, open(reading, encoding="utf-8")
    if wanted == DEVNULL:
        return os.open(os.devnull, os.O_WRONLY), None
    assert not isinstance(wanted, int)
    return os.dup(wanted.fileno()), None
