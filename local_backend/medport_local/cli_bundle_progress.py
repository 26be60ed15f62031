"""How far ``medport bundle`` has come, for people who wait."""

from __future__ import annotations

import sys
import threading
import time

import typer

from medport_local.cli_snapshot import shown_size

_REDRAW_S = 0.2


class Progress:
    """One line on stderr that is written over, where a person looks at it. May be called by several threads."""

    def __init__(self, total: int | None = None) -> None:
        self.done = 0
        self._total = total
        self._terminal = sys.stderr.isatty()
        self._began = self._drawn = time.monotonic()
        self._ended: float | None = None
        self._lock = threading.Lock()

    @property
    def rate(self) -> float:
        """Bytes a second, up to the end."""
        return self.done / max((self._ended or time.monotonic()) - self._began, 1e-9)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = time.monotonic()
        if self._terminal and self._drawn != self._began:
            typer.echo("\r\x1b[K", nl=False, err=True)

    def __call__(self, count: int) -> None:
        with self._lock:
            self.done += count
            now = time.monotonic()
            if not self._terminal or now - self._drawn < _REDRAW_S:
                return
            self._drawn = now
            of = f" of {shown_size(self._total)}" if self._total else ""
            typer.echo(f"\r\x1b[K{shown_size(self.done)}{of}, {self.rate / 1e9:.2f} GB/s", nl=False, err=True)

    def as_dict(self) -> dict[str, object]:
        """For ``--json``."""
        return {"read_bytes": self.done, "bytes_per_s": round(self.rate)}
