"""Where batch jobs read and write: buckets that may be fetched from, and one directory that the operator named.

Local files are read line by line and written as rows come, so they may be of any size. An object of a bucket is
held in memory while its lines are read, and so is a file that goes into a bucket: nothing of a job is put into a
temporary directory.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import re
import secrets
import stat
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote

from medport.errors import ConfigError, InputError
from medport_local.serving.batch_rows import MAX_ROW_BYTES
from medport_local.serving.fetch import Fetcher, FetchError

READ = "inputConfig.gcsSource.uris"
WRITE = "outputConfig.gcsDestination.outputUriPrefix"
MAX_FILES = 100_000
SHARD_ROWS = 5000
SHARD_BYTES = 32 * 1024 * 1024
"""Of the rows as they came. With ``SHARD_ROWS`` it is what a job holds in memory at most for a bucket."""
_PART = ".part-"
"""Begins the name of a file that is being written."""
_BLOCK_ROWS, _BLOCK_BYTES = 256, 4 * 1024 * 1024

Line = bytes | None
"""A row without its line's end; ``None`` for one that is over ``MAX_ROW_BYTES``."""


class Output(Protocol):
    """A file that is there as a whole once it is committed, and not before. Blocking."""

    def write(self, data: bytes) -> None: ...
    def commit(self) -> None: ...
    def discard(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What one reading of the input tells."""

    rows: list[int]
    """How many each file of results is to have."""
    digest: str
    """Of all rows in their order: the same input gives the same."""


class BatchFiles:
    """Reads and writes; blocking, and the same from any thread.

    Args:
        fetcher: for ``gs://``, by its allow-list.
        directory: for local paths and ``file://``; without one there are none.

    Raises:
        ConfigError: ``directory`` is not one.
    """

    def __init__(self, fetcher: Fetcher, directory: Path | None) -> None:
        if directory is not None and not directory.is_dir():
            raise ConfigError("is not a directory", field="batch-dir", remedy="make it, or name another")
        self._fetcher = fetcher
        self._root = Path(os.path.realpath(directory)) if directory is not None else None

    def check(self, sources: Sequence[str], prefix: str) -> None:
        """Refuse a place that no job may use, before there is a job. Quick: nothing is opened or sent.

        Raises:
            InputError: names the field.
        """
        for i, uri in enumerate(sources):
            self._check(uri, f"{READ}[{i}]")
        if "*" in prefix:
            raise InputError("holds a *", field=WRITE, remedy="name one directory")
        self._check(f"{prefix}/x", WRITE)

    def plan(self, uris: Sequence[str], stopped: Callable[[], bool]) -> Plan:
        """How the results will be cut into files. Reads everything once, or until ``stopped``.

        Raises:
            InputError: a file is missing, too large or not allowed.
        """
        shards: list[int] = []
        digest = hashlib.blake2b(digest_size=32)
        size = 0
        for line in self.rows(uris):
            if stopped():
                break
            digest.update(b"\n" if line is None else b"%d\n%b" % (len(line), line))
            size += len(line or b"")
            if not shards or shards[-1] >= SHARD_ROWS or size > SHARD_BYTES:
                shards.append(0)
                size = len(line or b"")
            shards[-1] += 1
        return Plan(shards, digest.hexdigest())

    def rows(self, uris: Sequence[str]) -> Generator[Line, None, None]:
        """The lines of every file in order, blank ones left out.

        ``*`` in an address stands for any part of a name within a folder, ``**`` for any part across folders.

        Raises:
            InputError: as ``plan``.
        """
        for i, uri in enumerate(uris):
            with _told_of(uri, f"{READ}[{i}]") as field:
                for each in self._expanded(uri, field):
                    with self._opened(each, field) as file:
                        yield from _lines(file)

    def make(self, folder: str) -> None:
        """Make a local folder, so that a job that cannot write fails before its first row.

        One that is there already is the same job's: what it had not finished in it is removed.
        """
        if not _is_bucket(folder):
            with _told_of(folder, WRITE), _os_faults("cannot be made", WRITE):
                place = self._inside(folder, WRITE)
                place.mkdir(parents=True, exist_ok=True)
                for left in place.glob(f"{_PART}*"):
                    left.unlink(missing_ok=True)

    def lines_of(self, name: str) -> list[Line] | None:
        """The lines of a file that was written; ``None`` if there is none.

        Raises:
            InputError: it cannot be read.
        """
        with _told_of(name, WRITE):
            if _is_bucket(name):
                if name not in self._fetcher.gcs_list(name, field=WRITE):
                    return None
            elif not self._inside(name, WRITE).exists():
                return None
            with self._opened(name, WRITE) as file:
                return list(_lines(file))

    def output(self, name: str) -> Output:
        """A new file.

        Raises:
            InputError: it may not, or cannot, be written there; so do its methods.
        """
        if _is_bucket(name):
            return _Object(self._fetcher, name)
        return _Local(self._inside(name, WRITE))

    def _check(self, uri: str, field: str) -> None:
        with _told_of(uri, field):
            if _is_bucket(uri):
                self._fetcher.gcs_check(uri.partition("*")[0], field=field)
            else:
                self._inside(uri.partition("*")[0], field)

    def _expanded(self, uri: str, field: str) -> Sequence[str]:
        if not _is_bucket(uri):
            uri = _path(uri, field)
        start, star, rest = uri.partition("*")
        if not star:
            return [uri]
        if _is_bucket(uri):
            names = self._fetcher.gcs_list(start, field=field)
        else:
            folder, slash, stem = start.rpartition("/")
            top = self._inside(folder + slash or ".", field)
            names, start = _below(top, field), f"{top}/{stem}"
        pattern = _pattern(start, star + rest)
        found = [name for name in names if pattern.fullmatch(name)]
        if not found:
            raise InputError("names no file", field=field, remedy="check the part before the *")
        return found

    @contextmanager
    def _opened(self, uri: str, field: str) -> Iterator[BinaryIO]:
        if _is_bucket(uri):
            yield io.BytesIO(self._fetcher.gcs(uri, credential="application_default", field=field))
            return
        path = self._inside(uri, field)
        # Not a link, nor anything that opening could wait for.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        with _os_faults("cannot be read", field):
            descriptor = os.open(path, flags)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise InputError("is not a file", field=field, remedy="name a file, or use a *")
        with open(descriptor, "rb", buffering=1024 * 1024) as file:
            yield file

    def _inside(self, uri: str, field: str) -> Path:
        """The path of something local that lies in the directory, links followed."""
        if self._root is None:
            raise InputError(
                "is not in a bucket, and this server has no directory for jobs",
                field=field,
                remedy="give gs://BUCKET/…, or start the server with --batch-dir DIR",
            )
        path = _path(uri, field)
        place = Path(os.path.realpath(path if os.path.isabs(path) else self._root / path))
        if not place.is_relative_to(self._root):
            raise InputError("lies outside the server's directory for jobs", field=field, remedy="move it there")
        return place


def take(rows: Iterator[Line]) -> list[Line]:
    """The next rows, as many as fit into a block; none at the end."""
    block: list[Line] = []
    size = 0
    for line in itertools.islice(rows, _BLOCK_ROWS):
        block.append(line)
        size += len(line or b"")
        if size > _BLOCK_BYTES:
            break
    return block


def skip(rows: Iterator[Line], count: int, stopped: Callable[[], bool]) -> None:
    """Pass over some rows, or until ``stopped``."""
    for _ in itertools.islice(rows, count):
        if stopped():
            return


class _Local:
    """Written beside its place, so that renaming cannot cross file systems."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.parent / f"{_PART}{secrets.token_hex(8)}"
        with _os_faults("cannot be written", WRITE):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("xb")

    def write(self, data: bytes) -> None:
        with _os_faults("cannot be written", WRITE):
            self._file.write(data)

    def commit(self) -> None:
        with _os_faults("cannot be written", WRITE):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._part, self._path)
            # The name too: who is told that a file is whole finds it after a power cut.
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def discard(self) -> None:
        with suppress(OSError):  # a full disk fails the last write again
            self._file.close()
        self._part.unlink(missing_ok=True)


class _Object:
    def __init__(self, fetcher: Fetcher, name: str) -> None:
        self._fetcher = fetcher
        self._name = name
        self._data = io.BytesIO()

    def write(self, data: bytes) -> None:
        self._data.write(data)

    def commit(self) -> None:
        self._data.seek(0)
        with _told_of(self._name, WRITE):
            self._fetcher.gcs_write(self._name, self._data, field=WRITE)
        self.discard()

    def discard(self) -> None:
        self._data = io.BytesIO()


def _lines(file: BinaryIO) -> Iterator[Line]:
    first = True
    while line := file.readline(MAX_ROW_BYTES + 2):
        if len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(_BLOCK_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield None
        elif line := (line.removeprefix(b"\xef\xbb\xbf") if first else line).strip():
            yield line
        first = False


def _pattern(start: str, rest: str) -> re.Pattern[str]:
    """As Cloud Storage's tools read it. Source: Cloud Storage, "Wildcards"."""
    means = {"*": "[^/]*", "**": ".*"}
    parts = (means.get(part) or re.escape(part) for part in re.split(r"(\*\*?)", rest))
    return re.compile(re.escape(start) + "".join(parts), re.DOTALL)


def _below(top: Path, field: str) -> list[str]:
    """The files in and below a folder; links and hidden ones are none."""
    found: list[str] = []
    for folder, folders, names in os.walk(top):
        folders[:] = [each for each in folders if not each.startswith(".")]
        found += [os.path.join(folder, name) for name in names if not name.startswith(".")]
        if len(found) > MAX_FILES:
            raise InputError(f"there are more than {MAX_FILES} files", field=field, remedy="give a longer path")
    return sorted(each for each in found if not os.path.islink(each))


def _path(uri: str, field: str) -> str:
    """The local path that is meant."""
    path = uri
    if uri.startswith("file://"):
        host, _, rest = uri[7:].partition("/")
        path = "/" + unquote(rest) if host in ("", "localhost") else "\0"
    if "\0" in path or "://" in path:
        raise InputError("is no place for a job", field=field, remedy="give gs://… or a path in --batch-dir")
    return path


def _is_bucket(uri: str) -> bool:
    return uri.startswith("gs://")


@contextmanager
def _told_of(uri: str, field: str) -> Iterator[str]:
    """Errors name the bucket; never what is in it. Gives ``field``."""
    try:
        yield field
    except FetchError as error:
        bucket = uri[5:].partition("/")[0].partition("*")[0]
        if bucket not in error.message:
            error.message = f"gs://{bucket}: {error.message}"
        raise


@contextmanager
def _os_faults(said: str, field: str) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        # The system's own word, without the path that it comes with.
        raise InputError(
            f"{said} ({os.strerror(fault.errno or 0)})", field=field, remedy="check it, and who owns it"
        ) from None
