"""What a run does, as it does it, on stderr: one line a step; on a terminal the step under way has a clock."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from medport.cli.output import Output, printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from medport_deploy.cli.given import Given
    from medport_deploy.run.steps import Event
    from medport_deploy.terraform.events import Event as TerraformEvent
    from medport_deploy.work.opening import Telling

_ENDS = {"done": "✓", "skipped": "=", "failed": "✗", "undone": "↩", "not undone": "✗"}
"""What a step's line begins with. The word is there as well where the mark alone could be misread."""


@contextmanager
def telling(output: Output, given: Given | None = None) -> Iterator[Telling]:
    """What a run is given to tell of itself; nothing is told with ``--json``, where stderr holds errors alone.

    Args:
        given: what the commands that it tells of must name.
    """
    from medport_deploy.run.interrupts import Interrupts
    from medport_deploy.work.opening import Telling

    fresh = "\r\x1b[K" if sys.stderr.isatty() else ""

    def say(text: str) -> None:
        if not output.json:
            # In a signal's handler: Python's own streams may be in the middle of a line.
            os.write(2, f"{fresh}{text}\n".encode())

    interrupts = Interrupts(say)
    if output.json:
        yield Telling(interrupts=interrupts)
        return
    named = given.told if given else str
    shown = _Live(named) if sys.stderr.isatty() else _Lines(output, named)
    try:
        yield Telling(shown.event, shown.terraform, shown.line, interrupts)
    finally:
        shown.close()


class _Lines:
    """Where nobody watches: a line for each step that begins and each that ends."""

    def __init__(self, output: Output, named: Callable[[str], str]) -> None:
        self._output = output
        self._named = named
        self._began = time.monotonic()
        self._steps: dict[str, float] = {}

    def event(self, event: Event) -> None:
        now = time.monotonic()
        if event.state in ("before", "undoing"):
            self._steps[event.step] = now
            self.line(f"{event.step}{'' if event.state == 'before' else ': taking it back'} …")
        elif event.state in ("stage", "said"):
            self.line(f"  {event.text}")
        elif (mark := _ENDS.get(event.state)) is not None:
            began = self._steps.pop(event.step, None)
            took = f" ({now - began:.1f} s)" if began is not None else ""
            self.line(f"{mark} {event.step}: {event.state}{took}{': ' if event.text else ''}{event.text}")

    def terraform(self, event: TerraformEvent) -> None:
        if text := terraform_words(event):
            self.line(f"  {text}")

    def line(self, text: str) -> None:
        self._output.note(f"[{time.monotonic() - self._began:7.1f} s] {self._named(text)}")

    def close(self) -> None:
        """Nothing is held."""


class _Live:
    """On a terminal: the step under way with its stage and its time, above it those that ended."""

    def __init__(self, named: Callable[[str], str]) -> None:
        self._named = named
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._began = 0.0
        self._step = ""

    def event(self, event: Event) -> None:
        if event.state in ("before", "undoing"):
            self._begin(event.step if event.state == "before" else f"taking back: {event.step}")
        elif event.state == "stage":
            self._describe(f"{self._step}: {event.text}")
        elif event.state == "said":
            self.line(f"  {event.text}")
        elif (mark := _ENDS.get(event.state)) is not None:
            took = f" ({time.monotonic() - self._began:.1f} s)" if self._bar is not None else ""
            self.close()
            word = "" if event.state == "done" else f": {event.state}"
            self.line(f"{mark} {event.step}{word}{took}{': ' if event.text else ''}{event.text}")

    def terraform(self, event: TerraformEvent) -> None:
        if text := terraform_words(event):
            self._describe(f"terraform: {text}")

    def line(self, text: str) -> None:
        from rich.console import Console

        console = self._bar.console if self._bar is not None else Console(stderr=True)
        console.print(printable(self._named(text)), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the live line away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _begin(self, text: str) -> None:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self.close()
        self._step, self._began = text, time.monotonic()
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn(),
            console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        self._task = self._bar.add_task(printable(text), total=None)
        self._bar.start()

    def _describe(self, text: str) -> None:
        if self._bar is None:
            self._begin(text)
        elif self._task is not None:
            self._bar.update(self._task, description=printable(text))


def terraform_words(event: TerraformEvent) -> str:
    """What Terraform works on, in words; empty for all else. No values: only addresses and actions."""
    from medport_deploy.terraform.events import Working

    if isinstance(event, Working):
        return f"{event.address} {event.action} {event.stage} ({event.elapsed_s:.0f} s)"
    return ""
