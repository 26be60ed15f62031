"""Locks between processes: ``flock`` on small files in the store. A process that dies lets go of all of them.

Of a library's locks none fits: readers share a lock here, and who may only read the store takes it as well, while
filelock's shared lock writes a database.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_POLL_S = 0.05


class Busy(Exception):
    """Another holds the lock."""


@contextmanager
def locked(path: Path, *, shared: bool = False, wait_s: float | None = None) -> Iterator[None]:
    """Hold the lock that a file stands for, which is made if need be.

    Args:
        shared: beside others who share it.
        wait_s: how long to wait for others; ``None`` waits until they are done, 0 does not wait.

    Raises:
        Busy: others did not let go in time.
        OSError: the file cannot be opened.
    """
    descriptor = _take(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait_s)
    try:
        yield
    finally:
        os.close(descriptor)  # lets go


def forget(path: Path) -> None:
    """Remove a lock's file. Only for who holds it alone: whoever waits for it looks again."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def _take(path: Path, kind: int, wait_s: float | None) -> int:
    until = None if wait_s is None else time.monotonic() + wait_s
    while True:
        descriptor = _open(path)
        try:
            _flock(descriptor, kind, until)
            if _is_still(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # Removed while we waited: what we hold is a lock that nobody else will ask for.
        os.close(descriptor)


def _open(path: Path) -> int:
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o644)
    except OSError as fault:
        # Somebody else's store, or one that is mounted read-only: a file that is there will do.
        try:
            return os.open(path, os.O_RDONLY | flags)
        except FileNotFoundError:
            raise fault from None
    with suppress(OSError):
        os.fchmod(descriptor, 0o644)
    return descriptor


def _flock(descriptor: int, kind: int, until: float | None) -> None:
    if until is None:
        fcntl.flock(descriptor, kind)
        return
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise Busy from None
        time.sleep(_POLL_S)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
