"""One run of a deployment at a time on this machine. A dead run holds nothing: the kernel lets its lock go."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from medport.errors import ConfigError, Conflict
from medport.wire.vertex import rfc3339
from medport_deploy import state_files

_NAME = "run.lock"


class Busy(Conflict):
    """Another run works on the deployment now; nothing was done."""


@contextmanager
def held(directory: Path, verb: str) -> Iterator[None]:
    """Hold a deployment's lock.

    Args:
        directory: the deployment's.

    Raises:
        Busy: another run holds it; says which. Nothing is waited for.
        ConfigError: the directory cannot be written.
    """
    try:
        state_files.make_directory(directory)
        handle = os.open(directory / _NAME, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o600)
    except OSError as fault:
        raise ConfigError(
            f"{directory.name} cannot be written ({os.strerror(fault.errno or 0)})",
            field="journal",
            remedy="give another place",
        ) from fault
    try:
        state_files.require_regular(handle, directory / _NAME)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as taken:
            raise Busy(
                f"{_who(handle)} works on {directory.name}; nothing was done",
                field="deployment",
                remedy="wait for it to end, or stop it with Ctrl-C",
            ) from taken
        said = {"verb": verb, "pid": os.getpid(), "host": socket.gethostname(), "at": rfc3339(datetime.now(UTC))}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(said).encode(), 0)
        yield
    finally:
        os.close(handle)


def _who(handle: int) -> str:
    try:
        said = json.loads(os.pread(handle, 4096, 0))
        return f"{said['verb']}, process {said['pid']} on {said['host']} since {said['at']},"
    except (ValueError, KeyError, TypeError):
        return "another run"
