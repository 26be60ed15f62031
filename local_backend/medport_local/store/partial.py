"""One file under way: written and hashed piece by piece, and gone on with after a break.

A note beside it says which file and which version of it this is. It is written before the first byte and removed
after the last; without a note that fits, nothing of what is there is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from medport.errors import ConfigError, VerificationError
from medport_local.snapshot_file import FileEntry, refuse
from medport_local.store import disk
from medport_local.store.disk import disk_faults
from medport_local.store.hashing import hash_into
from medport_local.store.records import DoneNote, PartNote

Read = Callable[[int], Iterator[bytes]]
"""The bytes of a file from an offset on."""

_Note = TypeVar("_Note", bound=BaseModel)
# Linux, random(4).
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# A thread is not worth less.
_LARGE_BYTES = 256 * 2**10


class Partial:
    """A file in the directory of an intake, by the name that its source gives it."""

    def __init__(self, folder: Path, note: PartNote) -> None:
        self._folder = folder
        self._note = note
        # A hash: this file system may take two names for one, or may not be able to write one.
        self._stem = hashlib.sha256(note.name.encode()).hexdigest()[:32]

    @property
    def path(self) -> Path:
        """Where its bytes are."""
        return self._folder / f"{self._stem}.part"

    def done_before(self) -> FileEntry | None:
        """What this very version was when it last arrived whole, as far as versions can be told apart."""
        done = _read_note(self._folder / f"{self._stem}.done", DoneNote)
        if done is None or not self._note.version or not _same(done, self._note):
            return None
        return FileEntry(sha256=done.found_sha256, size_bytes=done.found_bytes)

    def fetch(self, read: Read) -> FileEntry:
        """Write all of it, behind what is there from before, and ``fsync``.

        Raises:
            VerificationError: it is not what its source lists.
            ConfigError: the disk is full, or may not be written.
        """
        with disk_faults():
            offset, digest = self._begin()
        size = self._append(read, offset, digest)
        found = FileEntry(sha256=digest.hexdigest(), size_bytes=size)
        if self._note.sha256 not in (None, found.sha256):
            self.drop()
            if offset == 0:
                refuse(self._note.name, "does not have the sha256 that its source lists", "try again")
            # What was kept may be at fault, as after a loss of power: once more from the start.
            return self.fetch(read)
        return found

    def finish(self, found: FileEntry) -> None:
        """Note what it was, once its bytes are a blob."""
        done = DoneNote(**self._note.model_dump(), found_sha256=found.sha256, found_bytes=found.size_bytes)
        disk.write_file(self._folder / f"{self._stem}.done", done.model_dump_json().encode())
        self.drop()

    def drop(self) -> None:
        """Forget its bytes."""
        for path in (self.path, self._folder / f"{self._stem}.json"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _begin(self) -> tuple[int, Any]:
        """How much of what is there can be gone on with, and the hash over that."""
        note, digest = self._note, hashlib.sha256()
        beside = self._folder / f"{self._stem}.json"
        kept = _read_note(beside, PartNote)
        offset = 0
        if kept is not None and _same(kept, note) and (note.sha256 or self._is_exact(kept)):
            with contextlib.suppress(VerificationError):
                offset = hash_into(self.path, digest)
        if offset == 0 or (note.size_bytes is not None and offset > note.size_bytes):
            offset, digest = 0, hashlib.sha256()
            self.drop()
            disk.write_file(beside, note.model_copy(update={"boot": _boot()}).model_dump_json().encode())
        else:
            os.chmod(self.path, 0o600)  # killed between being read-only and being a blob
        self._check_room(offset)
        return offset, digest

    def _is_exact(self, kept: PartNote) -> bool:
        """Whether what is there can be gone on with although no sha256 will tell: power loss leaves holes."""
        return bool(kept.version and kept.boot) and kept.boot == _boot()

    def _check_room(self, offset: int) -> None:
        missing = (self._note.size_bytes or 0) - offset - disk.free_bytes(self._folder)
        if missing > 0:
            raise ConfigError(
                f"its disk has {missing / 1e9:.2f} GB too little for {self._note.name}",
                field="store",
                remedy="free some space (medport snapshot gc), or give another --store",
            )

    def _append(self, read: Read, offset: int, digest: Any) -> int:
        """Write what ``read`` gives; the file's size."""
        size, limit = offset, self._note.size_bytes
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with disk_faults():
            descriptor = os.open(self.path, flags, 0o600)
        try:
            if limit is None or size < limit:
                with contextlib.closing(_hashed_and_written(read(offset), descriptor, digest)) as pieces:
                    for count in pieces:
                        size += count
                        if limit is not None and size > limit:
                            self.drop()
                            refuse(self._note.name, f"is longer than the {limit} bytes that its source lists")
            if limit is not None and size < limit:
                refuse(self._note.name, f"ended after {size} of {limit} bytes", "try again; what has come is kept")
            with disk_faults():
                os.fchmod(descriptor, disk.FILE_MODE)
                self._sync(descriptor)
        finally:
            os.close(descriptor)
        return size

    def _sync(self, descriptor: int) -> None:
        try:
            os.fsync(descriptor)
        except OSError:
            self.drop()  # what did not reach the disk is not said, and a second fsync would not say it again
            raise


def _hashed_and_written(chunks: Iterator[bytes], descriptor: int, digest: Any) -> Generator[int, None, None]:
    """Hash and write each chunk, both at once; gives their lengths."""
    with ExitStack() as stack:
        if isinstance(chunks, Generator):
            stack.enter_context(contextlib.closing(chunks))
        pool = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="medport-store"))
        for chunk in chunks:
            hashing = pool.submit(digest.update, chunk) if len(chunk) >= _LARGE_BYTES else None
            if hashing is None:
                digest.update(chunk)
            with disk_faults():
                disk.write_all(descriptor, chunk)
            if hashing is not None:
                hashing.result()
            yield len(chunk)


def _read_note(path: Path, kind: type[_Note]) -> _Note | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _same(one: PartNote, other: PartNote) -> bool:
    """Whether both are of one version of one file."""
    return all(getattr(one, name) == getattr(other, name) for name in ("name", "version", "size_bytes", "sha256"))


def _boot() -> str:
    """Another text after each start of the machine; empty where the system has none."""
    try:
        return _BOOT_ID.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
