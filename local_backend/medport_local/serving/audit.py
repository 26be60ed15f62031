"""The writer of the audit log: one line for each request that reached a model, two for each that changes things.

Form and checks are in ``chain``.

A line goes to the operating system before the last byte of its answer goes to the caller, and to the disk within
a second: a crash of the program loses none, a power cut at most those of the last second. Before a stream begins
there is a line ``began`` as well, so that no part of an answer leaves without a line about it. If a line cannot be
written, the answer is kept back.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock
from filelock import Timeout as LockTimeout

from medport.errors import ConfigError, NotReady
from medport_local.serving import chain
from medport_local.serving.chain import Link

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 256 * 1024 * 1024
_SYNC_EVERY_S = 1.0
_RETRY_AFTER_S = 5.0


class AuditLog:
    """Appends to a directory, which no other process may do meanwhile. Thread-safe.

    Args:
        clock: seconds since the epoch, for the names of files and the time of lines.
        monotonic: seconds that only grow.

    Raises:
        ConfigError: the directory cannot be written, or another process has it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_file_bytes: int = MAX_FILE_BYTES,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._max_file_bytes = max_file_bytes
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._dirty = threading.Event()
        self._ending = threading.Event()
        self._failed_at: float | None = None
        self._file: _File | None = None
        self._last: Link | None = None
        self._owned = _own(directory)
        try:
            self._secret = _secret(directory / "secret")
            self._head = os.open(directory / "head", os.O_RDWR | os.O_CREAT, 0o600)
            for note in self._resume():
                self.append({"event": "note", **note})
        except BaseException as fault:
            self._owned.release()
            if isinstance(fault, OSError):
                raise _unusable(fault) from fault
            raise
        self._thread = threading.Thread(target=self._keep_syncing, name="medport-audit", daemon=True)
        self._thread.start()

    @property
    def last(self) -> Link | None:
        """The last line that was written."""
        return self._last

    def digest(self) -> hmac.HMAC:
        """A new keyed digest, for what was asked or answered."""
        return hmac.new(self._secret, digestmod=hashlib.sha256)

    def check(self) -> None:
        """Raise ``NotReady`` if writing failed a moment ago: no model need run for an answer that is kept back."""
        failed = self._failed_at
        if failed is not None and self._monotonic() - failed < _RETRY_AFTER_S:
            raise _not_written()

    def append(self, record: Mapping[str, object]) -> Link:
        """Write one line; ``time``, ``seq``, ``prev`` and ``hash`` are added.

        Raises:
            NotReady: it could not be written. Nothing of it stays.
        """
        with self._lock:
            if self._ending.is_set():
                raise _not_written()
            now = datetime.fromtimestamp(self._clock(), UTC)
            stamp = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            line, link = chain.sealed({"time": stamp, **record}, self._last)
            try:
                self._current(f"{now:%Y-%m}", len(line)).write(line)
            except OSError as fault:
                self._failed_at = self._monotonic()
                logger.error("the audit log cannot be written (%s)", os.strerror(fault.errno or 0))
                raise _not_written() from fault
            self._last = link
            self._failed_at = None
        self._dirty.set()
        return link

    def sync(self) -> None:
        """Bring all lines to the disk, and ``head`` after them: it never names a line that could get lost.

        Raises:
            OSError: the disk failed.
        """
        with self._syncing:
            self._dirty.clear()
            with self._lock:
                if self._file is None or self._last is None:
                    return
                last, handle = self._last, os.dup(self._file.handle)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            os.lseek(self._head, 0, os.SEEK_SET)
            os.write(self._head, last.head)
            os.fsync(self._head)

    def close(self) -> None:
        """Sync, and let others have the directory. Closing twice does nothing."""
        with self._lock:
            if self._ending.is_set():
                return
            self._ending.set()
        self._dirty.set()
        self._thread.join()
        try:
            self.sync()
        except OSError as fault:
            logger.error("the audit log cannot be synced (%s)", os.strerror(fault.errno or 0))
        if self._file is not None:
            os.close(self._file.handle)
        os.close(self._head)
        self._owned.release()

    def _keep_syncing(self) -> None:
        while not self._ending.is_set():
            self._dirty.wait()
            try:
                self.sync()
            except OSError as fault:
                self._failed_at = self._monotonic()
                self._dirty.set()
                logger.error("the audit log cannot be synced (%s)", os.strerror(fault.errno or 0))
            self._ending.wait(_SYNC_EVERY_S)

    def _resume(self) -> list[dict[str, object]]:
        """Go on where the log ends; what has to be noted in it."""
        notes: list[dict[str, object]] = []
        paths = chain.files(self._directory)
        if paths:
            self._file = _File.existing(paths[-1])
            if torn := self._file.drop_torn_line():
                # The answer that it was about had not been sent in full.
                notes.append({"note": "a crash had cut off a line", "bytes": torn})
            self._last = chain.last_link(paths)
        promised = chain.promised(self._directory)
        if promised is not None and (self._last is None or self._last.seq < promised.seq):
            first = self._last.seq + 1 if self._last else 0
            notes.append({"note": chain.LOST, "lost_from": first, "lost_to": promised.seq})
        return notes

    def _current(self, month: str, size: int) -> _File:
        """The file that a line of ``size`` bytes goes to."""
        file = self._file
        # A clock that was set back must not put later lines into an earlier file.
        if file is not None and month <= file.month:
            if not file.size or file.size + size <= self._max_file_bytes:
                return file
            month, number = file.month, file.number + 1
        else:
            number = 1
        fresh = _File.new(self._directory, month, number)
        if file is not None:
            os.fsync(file.handle)
            os.close(file.handle)
        self._file = fresh
        return fresh


class _File:
    """One file of the log, open at its end."""

    def __init__(self, handle: int, month: str, number: int, size: int) -> None:
        self.handle = handle
        self.month = month
        self.number = number
        self.size = size

    @classmethod
    def new(cls, directory: Path, month: str, number: int) -> _File:
        path = directory / chain.file_name(month, number)
        return cls(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600), month, number, 0)

    @classmethod
    def existing(cls, path: Path) -> _File:
        return cls(os.open(path, os.O_RDWR | os.O_APPEND), *chain.place_of(path), path.stat().st_size)

    def write(self, line: bytes) -> None:
        """All of it or nothing."""
        try:
            if os.write(self.handle, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self.handle, self.size)
            raise
        self.size += len(line)

    def drop_torn_line(self) -> int:
        """Cut off what follows the last line's end; how many bytes that were."""
        whole = self.size
        while whole > 0:
            start = max(0, whole - 65536)
            os.lseek(self.handle, start, os.SEEK_SET)
            end = os.read(self.handle, whole - start).rfind(b"\n")
            whole = start + end + 1
            if end >= 0:
                break
        torn = self.size - whole
        if torn:
            os.ftruncate(self.handle, whole)
            self.size = whole
        return torn


def _own(directory: Path) -> FileLock:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Not of one thread: a server opens its log in one worker thread and closes it in another.
        lock = FileLock(directory / "lock", mode=0o600, thread_local=False)
        lock.acquire(timeout=0)
    except LockTimeout:
        raise ConfigError(
            "another server writes this audit log", field="audit", remedy="give each its own directory"
        ) from None
    except OSError as fault:
        raise _unusable(fault) from fault
    return lock


def _secret(path: Path) -> bytes:
    """The log's own secret, made at the first use and readable by its owner only."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        pass
    try:
        secret = bytes.fromhex(path.read_text())
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise ConfigError("the audit log's secret is broken", field="audit", remedy="restore the file secret")
    return secret


def _unusable(fault: OSError) -> ConfigError:
    return ConfigError(
        f"the directory of the audit log cannot be used ({os.strerror(fault.errno or 0)})",
        field="audit",
        remedy="give a directory that you may write",
    )


def _not_written() -> NotReady:
    return NotReady(
        "the audit log cannot be written", remedy="tell who runs the server", retry_after_s=_RETRY_AFTER_S
    )
