"""Writing so that a crash leaves the state before or the state after, and saying what is wrong with a disk.

The rule everywhere: write under another name, ``fsync`` the file, rename, ``fsync`` the directory. A rename within
one directory is atomic on every POSIX file system; without the first ``fsync`` a crash of the machine may leave
the name with other bytes, without the second no name at all.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medport.errors import ConfigError

FILE_MODE = 0o444
"""Of blobs and of what lies in a snapshot: nobody writes there again."""
OPEN_DIRECTORY = 0o755
SEALED_DIRECTORY = 0o555
PRIVATE_DIRECTORY = 0o700
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def disk_faults() -> Iterator[None]:
    """Say as ``ConfigError`` that the store's disk is full or may not be written."""
    try:
        yield
    except OSError as fault:
        if fault.errno in _FULL:
            raise ConfigError(
                "its disk is full",
                field="store",
                remedy="free some space (medport snapshot gc), and run the same again: what has arrived is kept",
            ) from fault
        if fault.errno in _DENIED:
            raise ConfigError(
                "may not be written by this user",
                field="store",
                remedy="run as its owner, or give another --store",
            ) from fault
        if fault.errno in _NO_LOCKS:
            raise ConfigError(
                "lies on a file system that cannot lock files", field="store", remedy="give another --store"
            ) from fault
        raise


def make_directory(path: Path, mode: int) -> None:
    """Make one directory with exactly this mode, whatever the umask is; none if it is there."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return
    os.chmod(path, mode)


def sync_directory(path: Path) -> None:
    """Make the names in a directory last through a crash."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte; one ``write`` may take fewer."""
    with memoryview(data) as rest:
        written = 0
        while written < len(rest):
            written += os.write(descriptor, rest[written:])


def write_file(path: Path, data: bytes, *, mode: int = 0o644, beside: Path | None = None) -> None:
    """Put a small file under its name: all of it or nothing. Who calls it holds a lock for the name.

    Args:
        beside: under which name it is written first, on the same file system.
    """
    beside = beside or path.with_name(f".{path.name}.new")
    with suppress(FileNotFoundError):
        os.unlink(beside)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(beside, path)
    sync_directory(path.parent)


def remove_tree(path: Path) -> None:
    """Remove a directory of ours that is sealed. None is no fault."""
    if not os.path.lexists(path):
        return
    for folder, _, _ in os.walk(path):
        os.chmod(folder, PRIVATE_DIRECTORY)
    shutil.rmtree(path)


def seal(path: Path) -> None:
    """Let nobody change a directory and those in it."""
    for folder, _, _ in os.walk(path):
        os.chmod(folder, SEALED_DIRECTORY)


@contextmanager
def unsealed(path: Path) -> Iterator[None]:
    """Let a sealed directory be changed for a moment."""
    for folder, _, _ in os.walk(path):
        os.chmod(folder, OPEN_DIRECTORY)
    try:
        yield
    finally:
        seal(path)


def free_bytes(path: Path) -> int:
    """What this user may still write on the disk that holds a directory."""
    return shutil.disk_usage(path).free
