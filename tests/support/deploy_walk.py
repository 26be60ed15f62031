"""A program that applies a deployment in children of its own, each of which is stopped at a line of its journal.

Reads jobs, one JSON line each: ``url``, ``ca_file``, ``key``, ``root``, ``name``, ``model_id``, ``line`` (0 is the
first that the run writes), ``written`` (stopped after that line is on the disk, or before), ``signal``. Answers
each with the child's status: its exit code, or minus the signal that ended it; 3: the run ended before.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from medport.errors import EXIT_INTERRUPTED
from medport_deploy.control import messages as control_messages
from medport_deploy.run import apply
from medport_deploy.run.interrupts import Stopped
from support import deploying

NEVER_CAME = 3


def main() -> None:
    # What takes long to import is imported once, before the children are made.
    control_messages.mask("x")
    control_messages.endpoint({})
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


def run(job: deploying.Json) -> int:
    seen = 0
    came = False

    def on_line(said: deploying.Json, written: bool) -> None:
        nonlocal seen, came
        if written == job["written"] and seen == job["line"] and not came:
            came = True
            os.kill(os.getpid(), getattr(signal, job["signal"]))
        seen += written

    name = job["name"]
    with deploying.plane(job["url"], job["ca_file"], job["key"]) as control:
        try:
            apply.run(
                deploying.steps(control, name, job["model_id"]),
                deploying.header("apply", name),
                deploying.directory(Path(job["root"]), name),
                control=control,
                on_journal_line=on_line,
            )
        except Stopped:
            return EXIT_INTERRUPTED
    return 0 if came else NEVER_CAME


if __name__ == "__main__":
    main()
