"""A program that runs ``medport deploy apply`` in children, each of which is stopped at a line of its journal.

Reads jobs, one JSON line each: ``file`` (the specification), ``verb`` (``apply``, ``rollback`` or ``promote``),
``line`` (such as ``done alias``, ``header`` or ``ended``), ``turn`` (0: where such a line comes first),
``written`` (stopped after it is on the disk, or before) and ``signal``. Answers each with the status of the child:
its exit code, or minus the signal that ended it; 3: the run ended before. Without ``signal`` nothing stops it.

Whoever judges what serves finds everything good and sends nothing: what a trial asks is tested elsewhere.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from medport.errors import EXIT_INTERRUPTED
from medport_deploy.control import messages
from medport_deploy.control.plane import ControlPlane
from medport_deploy.run import apply
from medport_deploy.run.interrupts import Stopped
from medport_deploy.work import apply as applying
from medport_deploy.work import opening, rollback
from medport_deploy.work import run as running
from support import deploying

NEVER_CAME = 3
Json = dict[str, Any]
COMMANDS: dict[str, Callable[[opening.Deployment], object]] = {
    "apply": applying.apply,
    "promote": applying.promote,
    "rollback": rollback.go_back,
}


class Content:
    """Finds everything good."""

    def straight(self, name: str, id_: str, *, sleep: Callable[[float], None] = time.sleep) -> str | None:
        return None

    def smoke(self, name: str, id_: str, *, sleep: Callable[[float], None] = time.sleep) -> None: ...

    def baseline(self, name: str, *, sleep: Callable[[float], None] = time.sleep) -> None: ...

    def gate(
        self, name: str, id_: str, share: int, *, beside: bool, watch_s: float, sleep: Callable[[float], None]
    ) -> None: ...

    def remember(self, name: str, id_: str, *, sleep: Callable[[float], None] = time.sleep) -> None: ...


def main() -> None:
    # What takes long to import is imported once, before the children are made.
    messages.mask("x")
    messages.endpoint({})
    vars(opening)["ControlPlane"] = partial(ControlPlane, polling=deploying.FAST)
    vars(running)["trial_of"] = lambda deployment: Content()
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                os._exit(run(json.loads(line)))
            except BaseException:
                import traceback

                traceback.print_exc()
            os._exit(99)
        status = os.waitpid(child, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)


def text_of(line: Json) -> str:
    """A line of a journal, in short."""
    if "state" in line:
        return f"{line['state']} {line['kind']}"
    return "header" if "verb" in line else "ended" if "ended" in line else "resumed"


def run(job: Json) -> int:
    left = int(job["turn"])
    came = False

    def on_line(said: Json, written: bool) -> None:
        nonlocal left, came
        if came or not job["signal"] or text_of(said) != job["line"]:
            return
        if left == 0 and written == job["written"]:
            came = True
            os.kill(os.getpid(), getattr(signal, job["signal"]))
        left -= written

    vars(apply)["run"] = partial(apply.run, on_journal_line=on_line)
    with opening.opened(Path(job["file"])) as deployment:
        try:
            COMMANDS[job["verb"]](deployment)
        except Stopped:
            return EXIT_INTERRUPTED
    return 0 if came or not job["signal"] else NEVER_CAME


if __name__ == "__main__":
    main()
