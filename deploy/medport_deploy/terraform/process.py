"""One run of terraform, in a process group and a directory of its own.

What it prints goes into a file that is read while it grows, never into a pipe: if the reader of a pipe dies,
terraform dies at its next line, leaves the state locked and forgets what it has just made. With a file it goes on,
saves the state and unlocks it, whatever becomes of us.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_LOOK_EVERY_S = 0.05
_TAIL = 8192


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended."""

    code: int
    out: str
    """What went to stdout."""
    err: str
    """The end of what went to stderr."""
    stopped: bool
    """It was asked to stop."""


@contextmanager
def private_directory(parent: Path | None = None) -> Iterator[Path]:
    """A directory that only this user may enter; gone at the end."""
    directory = Path(tempfile.mkdtemp(prefix="medport-terraform-", dir=parent))  # mode 0700
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run(
    arguments: Sequence[str],
    *,
    directory: Path,
    environment: Mapping[str, str],
    scratch: Path,
    on_line: Callable[[str], None] = lambda line: None,
    cancel: threading.Event | None = None,
    deadline: float | None = None,
    patience_s: float = 600.0,
) -> Ended:
    """Run a program to its end.

    Stopping means one SIGINT: terraform lets the calls under way finish, saves and unlocks. Only if that takes
    longer than ``patience_s`` is it told again, and gives up; nothing is ever killed outright.

    Args:
        scratch: a private directory for what it prints.
        on_line: is called with each whole line of stdout as it comes.
        cancel: when it is set, the run is stopped.
        deadline: in ``time.monotonic``; the run is stopped then.

    Raises:
        OSError: the program cannot be run.
        KeyboardInterrupt, and whatever ``on_line`` raises: after the run was stopped and has ended.
    """
    out, err = scratch / "out", scratch / "err"
    with open(out, "wb") as to_out, open(err, "wb") as to_err:
        process = subprocess.Popen(  # noqa: S603  the operator's own program, and no shell
            list(arguments),
            cwd=directory,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=to_out,
            stderr=to_err,
            # Ctrl-C on a terminal goes to a whole group: this one is told by us alone, and once.
            start_new_session=True,
            # A local state file, and a saved plan, may hold what is not for others.
            umask=0o077,
        )
    stop = _Stop(process, patience_s)
    lines = _Lines(on_line)
    try:
        with open(out, encoding="utf-8", errors="replace", newline="") as growing:
            while True:
                over = process.poll() is not None
                lines.add(growing.read())
                if over:
                    break
                if (cancel is not None and cancel.is_set()) or (deadline and time.monotonic() > deadline):
                    stop.ask()
                time.sleep(_LOOK_EVERY_S)
        lines.end()
    except BaseException:
        stop.ask()
        stop.wait()
        raise
    return Ended(process.returncode, lines.text, _end_of(err), stop.asked)


class _Lines:
    """Cuts what comes into lines."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._all: list[str] = []
        self._rest = ""

    @property
    def text(self) -> str:
        return "".join(self._all)

    def add(self, chunk: str) -> None:
        self._all.append(chunk)
        *whole, self._rest = (self._rest + chunk).split("\n")
        for line in whole:
            self._on_line(line)

    def end(self) -> None:
        if self._rest:
            self._on_line(self._rest)


class _Stop:
    """Asks a process to stop: once, and once more when patience is over."""

    def __init__(self, process: subprocess.Popen[bytes], patience_s: float) -> None:
        self._process = process
        self._patience_s = patience_s
        self._again_at: float | None = None
        self.asked = False

    def ask(self) -> None:
        now = time.monotonic()
        if not self.asked:
            self.asked, self._again_at = True, now + self._patience_s
            self._send()
        elif self._again_at is not None and now > self._again_at:
            self._again_at = None
            self._send()

    def wait(self) -> None:
        while self._process.poll() is None:
            self.ask()
            # A second Ctrl-C must not leave terraform behind without anybody who waits for it.
            with suppress(KeyboardInterrupt):
                time.sleep(_LOOK_EVERY_S)

    def _send(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGINT)


def _end_of(file: Path) -> str:
    with open(file, "rb") as said:
        said.seek(max(0, file.stat().st_size - _TAIL))
        return said.read().decode("utf-8", "replace")
