"""Processes that change a store and are killed while they do. Run as a program: one JSON order a line.

Each order is carried out in a fork, so that hundreds of kills take seconds. With ``kill_at`` the fork sends itself
SIGKILL instead of its so many-th change of the disk, and half way through it where that is a write.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

_CHANGES = ("open", "write", "fsync", "rename", "link", "unlink", "mkdir", "rmdir", "chmod", "fchmod")
NOBODY = 65534
# Of capabilities(7): CHOWN, SETGID and SETUID.
_TO_BECOME_ANOTHER = 1 << 0 | 1 << 6 | 1 << 7


def may_become_another() -> bool:
    """Whether this process may give files away and go on as another user: root, unless in a strict container."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return os.getuid() == 0
    held = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    return held & _TO_BECOME_ANOTHER == _TO_BECOME_ANOTHER


class Worker:
    """The program, and orders to it."""

    def __init__(self) -> None:
        paths = [str(Path(__file__).parents[1]), *sys.path]
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
        )

    def run(self, action: str, root: Path, **order: Any) -> dict[str, Any]:
        """What came of it: ``killed``, ``error`` (name of a class and text), ``result``, ``changes`` (a count)."""
        return self.wait(self.start(action, root, **order))

    def start(self, action: str, root: Path, **order: Any) -> int:
        """Begin it; its process."""
        return int(self._ask({"action": action, "root": str(root), **order})["process"])

    def wait(self, process: int) -> dict[str, Any]:
        """Wait for a process that was started."""
        return self._ask({"wait": process})

    def close(self) -> None:
        """End the program."""
        self._process.communicate()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return cast(dict[str, Any], json.loads(self._process.stdout.readline()))


def _serve() -> None:
    outcomes: dict[int, int] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            print(json.dumps(_outcome(order["wait"], outcomes.pop(order["wait"]))), flush=True)
            continue
        readable, writable = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(readable)
            _carry_out(order, writable)
        os.close(writable)
        outcomes[process] = readable
        print(json.dumps({"process": process}), flush=True)


def _outcome(process: int, readable: int) -> dict[str, Any]:
    with os.fdopen(readable) as told:
        text = told.read()
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return {"killed": os.WTERMSIG(status) == signal.SIGKILL}
    return {"killed": False, **json.loads(text)}


def _carry_out(order: dict[str, Any], writable: int) -> None:
    from medport.errors import MedportError

    os.dup2(os.open(os.devnull, os.O_RDWR), sys.stdout.fileno())  # who holds it open keeps the reader waiting
    if order.get("unprivileged") and may_become_another():
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    if limit := order.get("file_limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if order.get("no_links"):
        _refuse_links()
    counted = _count_changes(order.get("kill_at"))
    try:
        answer = {"result": _ACTIONS[order["action"]](Path(order["root"]), order)}
    except MedportError as error:
        answer = {"error": [type(error).__name__, str(error)]}
    except BaseException as fault:
        answer = {"error": [type(fault).__name__, repr(fault)]}
    os.write(writable, json.dumps({**answer, "changes": counted()}).encode())
    os._exit(0)


def _count_changes(kill_at: int | None) -> Callable[[], int]:
    done = 0

    def counting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            nonlocal done
            if name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR):
                return real(*args, **options)
            done += 1
            if done == kill_at:
                if name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return counted

    for name in _CHANGES:
        setattr(os, name, counting(name, getattr(os, name)))
    return lambda: done


def _refuse_links() -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "no links here")

    os.link = link


def _add(root: Path, order: dict[str, Any]) -> object:
    from medport_local.store import Store
    from support.snapshots import add

    options = {name: order[name] for name in ("revision", "repo_id", "identity") if name in order}
    return [add(Store(root), Path(folder), **options).snapshot_sha256 for folder in order["folders"]]


def _collect(root: Path, order: dict[str, Any]) -> object:
    from medport_local.store import Store

    collected = Store(root).collect(dry_run=False, keep=timedelta(days=order.get("keep_days", 0)))
    return [each.snapshot_sha256 for each in collected.snapshots]


def _verify(root: Path, order: dict[str, Any]) -> object:
    from medport_local.store import Store

    store = Store(root, create=False)
    return [[each.path, each.fault] for each in store.verify(repair=order.get("repair", False))]


def _read(root: Path, order: dict[str, Any]) -> object:
    from medport_local.store import Store

    store = Store(root, create=False)
    return [store.open(each).snapshot_sha256 for each in store.list()]


def _pin(root: Path, order: dict[str, Any]) -> object:
    from medport_local.store import Store

    store = Store(root)
    store.pin(order["name"], [each for each in store.list() if each.snapshot_sha256 in order["snapshots"]])
    return None


def _unpin(root: Path, order: dict[str, Any]) -> object:
    from medport_local.store import Store

    Store(root).unpin(order["name"])
    return None


def _hold(root: Path, order: dict[str, Any]) -> object:
    from medport_local.store import Store

    store = Store(root, create=False)
    with contextlib.ExitStack() as stack:
        for each in store.list():
            stack.enter_context(store.hold(each))
        Path(order["sign"]).touch()
        while not Path(order["until"]).exists() and os.getppid() == _PROGRAM:
            time.sleep(0.01)
    return None


# Whoever is left behind by a test that fails ends with the program.
_PROGRAM = os.getpid()

_ACTIONS: dict[str, Callable[[Path, dict[str, Any]], object]] = {
    "add": _add,
    "collect": _collect,
    "verify": _verify,
    "read": _read,
    "pin": _pin,
    "unpin": _unpin,
    "hold": _hold,
}


if __name__ == "__main__":
    # Once, before the forks.

    import medport_local.store  # noqa: F401

    _serve()
