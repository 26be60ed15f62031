"""A worker process: started, asked over pipes, and given up when it fails or does not answer."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_LAST_S = 10.0
"""What a process may take to end when its stdin has ended."""


class WorkerFailed(Exception):
    """The engine is not installed, refused the model, or failed in a measurement; the text says which."""


class Worker:
    """One engine in its own process.

    Args:
        command: starts it.
        threads: that its libraries may compute with.
        log: a file that takes its stderr.
    """

    def __init__(self, command: Sequence[str], *, threads: int, log: Path) -> None:
        self._began = time.perf_counter()
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        with log.open("wb") as stderr:
            try:
                self._process = subprocess.Popen(  # noqa: S603  the interpreter that the caller names
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                    env=environment,
                )
            except OSError as fault:
                raise WorkerFailed(f"{command[0]} does not start ({type(fault).__name__})") from fault
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def loaded(self, timeout_s: float) -> Mapping[str, Any]:
        """What the engine says when its model is loaded, and ``load_s``: seconds since its process was started.

        Raises:
            WorkerFailed: it is not.
        """
        facts: Mapping[str, Any] = self._answer(timeout_s)
        return {"load_s": time.perf_counter() - self._began, **facts}

    def ask(self, do: str, timeout_s: float, **arguments: Any) -> Any:
        """Have one command done, and wait for its value.

        Raises:
            WorkerFailed: it failed, or took longer than ``timeout_s``; the process may be gone.
        """
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended; reading says so
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        return self._answer(timeout_s)

    def close(self) -> None:
        """End the process, by force if it takes its time."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended with something unread
            self._process.stdin.close()
        try:
            self._process.wait(_LAST_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self, timeout_s: float) -> Any:
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            self._process.kill()
            raise WorkerFailed(f"no answer in {timeout_s:.0f} s") from None
        if not line:
            self._lines.put(line)  # for whoever asks again
            raise WorkerFailed(f"the process ended (exit code {self._process.wait()})")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer["value"]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._process.stdout.close()
        self._lines.put("")
