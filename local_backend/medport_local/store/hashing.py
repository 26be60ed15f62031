"""Hashing files of the store, several at once, with progress."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from medport.errors import VerificationError
from medport_local.snapshot_file import FileEntry, fill, open_file

_BUFFER_BYTES = 8 * 2**20
# More than there are cores on small machines; why, ``snapshot`` says.
_THREADS = 8

Read = Callable[[int], None]
"""Told how many bytes more were read; from several threads."""


def hash_file(path: Path, read: Read | None = None) -> FileEntry:
    """What a file holds.

    Raises:
        VerificationError: it is gone, is no regular file, or cannot be read.
    """
    digest = hashlib.sha256()
    size = hash_into(path, digest, read)
    return FileEntry(sha256=digest.hexdigest(), size_bytes=size)


def hash_into(path: Path, digest: Any, read: Read | None = None) -> int:
    """Hash all of a file; how many bytes that is. Raises as ``hash_file``."""
    size = 0
    with open_file(path.parent, path.name) as file:
        # One byte more than it holds: then one round sees its end.
        room = min(_BUFFER_BYTES, os.fstat(file.fileno()).st_size + 1)
        buffer = memoryview(bytearray(room))
        while count := fill(file, buffer, digest):
            size += count
            if read is not None:
                read(count)
    return size


def hash_files(paths: Iterable[Path], read: Read | None = None) -> dict[Path, FileEntry | VerificationError]:
    """What each file holds, or why it cannot be said."""

    def one(path: Path) -> FileEntry | VerificationError:
        try:
            return hash_file(path, read)
        except VerificationError as fault:
            return fault
        except OSError as fault:  # the disk itself
            return VerificationError(f"{path.name}: cannot be read ({type(fault).__name__})", field=path.name)

    # The longest first: no thread is left alone with it at the end.
    wanted = sorted(paths, key=size_of, reverse=True)
    # hashlib lets go of the interpreter's lock, so files are hashed side by side.
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="medport-store") as pool:
        return dict(zip(wanted, pool.map(one, wanted), strict=True))


def size_of(path: Path) -> int:
    """Of a file in bytes; 0 if it is gone."""
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0
