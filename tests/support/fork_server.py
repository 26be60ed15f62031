"""A program that has imported what takes long, and becomes other programs: ``fork_server.py SOCKET``.

Each is a child of its own, with its own arguments, environment, directory and files; it runs as it would after
``python -m MODULE`` or ``python SCRIPT`` and ends as that would. Reads messages from the socket whose descriptor
it is given, one JSON object each, and answers each:

``{"program", "arguments", "env", "cwd"}`` with two descriptors, for stdout and stderr → ``{"pid"}``. A program is
a module, or the path of a script.
``{"pid"}`` → ``{"status"}``: ``null`` while it runs, then its exit code, or minus the signal that ended it.

When the socket is closed it kills what still runs, and ends.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import socket
import sys
import tempfile
from importlib import import_module
from typing import Any

Json = dict[str, Any]
IMPORTED = (
    "medport.cli", "medport_local.app", "medport_local.cli", "medport_local.container",
    "medport_local.controlled_models", "medport_local.engine.embedder", "medport_local.engine.engine",
    "medport_local.inprocess", "medport_local.opening",
)  # fmt: skip
LARGEST = 1 << 18
"""Bytes of a message."""


def becomes(link: socket.socket) -> Json | None:
    """Serve; in a child what it was asked to become, at the end ``None``."""
    running: set[int] = set()
    while True:
        data, descriptors, _, _ = socket.recv_fds(link, LARGEST, 2)
        if not data:
            break
        asked = json.loads(data)
        if "program" in asked:
            child = os.fork()
            if child == 0:
                link.close()
                for number, descriptor in enumerate(descriptors, 1):
                    os.dup2(descriptor, number)
                    os.close(descriptor)
                return dict(asked)
            for descriptor in descriptors:
                os.close(descriptor)
            running.add(child)
            link.send(json.dumps({"pid": child}).encode())
        else:
            ended, status = os.waitpid(asked["pid"], os.WNOHANG)
            running.discard(ended)
            code = os.waitstatus_to_exitcode(status) if ended else None
            link.send(json.dumps({"status": code}).encode())
    for child in running:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return None


def main() -> None:
    gc.disable()
    for name in IMPORTED:
        import_module(name)
    gc.freeze()
    gc.enable()
    asked = becomes(socket.socket(fileno=int(sys.argv[1])))
    if asked is None:
        return
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    tempfile.tempdir = None  # asked for while modules were imported, it was kept
    program = asked["program"]
    if program.endswith(".py"):
        sys.argv = [program, *asked["arguments"]]
        sys.path[0] = os.path.dirname(program)
        runpy.run_path(program, run_name="__main__")
        return
    module = import_module(program)
    # By these a program tells its users how it was called.
    sys.modules["__main__"].__package__ = program.rpartition(".")[0]
    sys.argv = [str(module.__file__), *asked["arguments"]]
    sys.exit(module.main())


if __name__ == "__main__":
    main()
