"""One file of a snapshot: opened without following links, hashed while it is read, so that it is read once."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field

from medport.errors import VerificationError

NO_LINKS = "copy the files themselves, as hf download --local-dir does"
# Large, as the interpreter's lock is taken again after each: a thread that runs Python gives it up after 5 ms.
# Whether a slice is still in the core's own cache when it is hashed makes no difference that could be measured.
_SLICE_BYTES = 16 * 2**20
_BUFFER_BYTES = 4 * 2**20
_MAX_WHOLE_BYTES = 64 * 2**20


class FileEntry(BaseModel):
    """What one file of a snapshot holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Field(ge=0)]


def refuse(name: str, fault: str, remedy: str = "fetch the snapshot again") -> NoReturn:
    """Raise the VerificationError that names the file."""
    raise VerificationError(f"{name}: {fault}", field=name, remedy=remedy)


def open_file(root: Path, name: str) -> io.FileIO:
    """Open a file for reading, once; what is read from it cannot be exchanged by another of its name.

    Raises:
        VerificationError: it is not there, is a link or not a regular file, or may not be read.
    """
    try:
        # O_NONBLOCK: a pipe without a writer would wait for ever.
        descriptor = os.open(root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        refuse(name, "is missing")
    except OSError as fault:
        if (root / name).is_symlink():
            refuse(name, "is a link", NO_LINKS)
        refuse(name, f"cannot be read ({type(fault).__name__})", "let this user read it")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        refuse(name, "is not a regular file", "remove it")
    return io.FileIO(descriptor, "rb", closefd=True)


def entry_of(root: Path, name: str) -> FileEntry:
    """Read a file to its end and say what it holds. Raises as ``open_file`` does."""
    digest, size = hashlib.sha256(), 0
    with open_file(root, name) as file:
        # A byte more than there is: the file's end is found without reading again.
        there = os.fstat(file.fileno()).st_size + 1
        with memoryview(bytearray(min(there, _BUFFER_BYTES))) as buffer:
            while count := fill(file, buffer, digest):
                size += count
                if count < len(buffer):
                    break
    return FileEntry(sha256=digest.hexdigest(), size_bytes=size)


def read_whole(root: Path, name: str, *, limit: int = _MAX_WHOLE_BYTES) -> tuple[bytes, FileEntry]:
    """The bytes of a small file, and what they are.

    Raises:
        VerificationError: as ``open_file``, or it is larger than ``limit`` bytes.
    """
    with io.BufferedReader(open_file(root, name)) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        refuse(name, f"is larger than {limit / 2**20:.0f} MiB")
    return data, FileEntry(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def fill(file: io.RawIOBase, buffer: memoryview, digest: Any) -> int:
    """Read until the buffer is full or the file ends, and hash what was read.

    Both steps let go of the interpreter's lock, so several files are read side by side.

    Returns:
        How many bytes were read; fewer than the buffer holds only at the file's end.
    """
    filled = 0
    while filled < len(buffer):
        count = file.readinto(buffer[filled : filled + _SLICE_BYTES])
        if not count:
            break
        digest.update(buffer[filled : filled + count])
        filled += count
    return filled


def readers(files: int) -> int:
    """How many threads read and hash so many large files: all at once, or one for each core if there are many.

    Three files on two cores take one and a half turns when three threads share the cores, and two turns when two
    threads take one after the other.
    """
    cores = os.cpu_count() or 1
    return max(1, files if files < 2 * cores else cores)
