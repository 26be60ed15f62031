"""Where batch jobs read and write: buckets that may be fetched from, and one directory that the operator named."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

from medport.errors import InputError
from medport_local.serving.fetch import Fetcher

_READ = "inputConfig.gcsSource.uris"
_WRITE = "outputConfig.gcsDestination.outputUriPrefix"
MAX_INPUT_BYTES = 1024**3


class BatchFiles:
    """Reads and writes whole files; blocking.

    Args:
        fetcher: for ``gs://``, by its allow-list.
        directory: for local paths and ``file://``; without one there are none.
    """

    def __init__(self, fetcher: Fetcher, directory: Path | None) -> None:
        self._fetcher = fetcher
        self._root = Path(os.path.realpath(directory)) if directory is not None else None

    def check(self, sources: Sequence[str], prefix: str) -> None:
        """Refuse a place that no job may use, before there is a job.

        Raises:
            InputError: names the field.
        """
        for uri in sources:
            if not _is_bucket(uri):
                self._inside(uri, _READ)
        if not _is_bucket(prefix):
            self._inside(prefix, _WRITE)

    def lines(self, uris: Sequence[str]) -> list[bytes]:
        """The lines of every file, in order, blank ones left out. ``*`` at the end stands for any rest of a name.

        Raises:
            InputError: a file is missing, too large or not allowed.
        """
        found: list[bytes] = []
        size = 0
        for uri in uris:
            for each in self._expanded(uri):
                data = self._read(each)
                size += len(data)
                if size > MAX_INPUT_BYTES:
                    raise InputError("has more than 1 GiB", field=_READ, remedy="split the job")
                found += [line for line in data.split(b"\n") if line.strip()]
        return found

    def write(self, name: str, data: bytes) -> None:
        """Write a file as a whole or not at all.

        Raises:
            InputError: it may not, or cannot, be written there.
        """
        if _is_bucket(name):
            self._fetcher.gcs_write(name, data, field=_WRITE)
            return
        path = self._inside(name, _WRITE)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Beside its place, so that renaming cannot cross file systems; gone again if anything fails.
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as file:
                try:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                    os.replace(file.name, path)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError as fault:
            raise InputError(
                f"cannot be written ({os.strerror(fault.errno or 0)})", field=_WRITE, remedy="check the directory"
            ) from None

    def _expanded(self, uri: str) -> Sequence[str]:
        if not uri.endswith("*"):
            return [uri]
        if _is_bucket(uri):
            return self._fetcher.gcs_list(uri[:-1], field=_READ)
        path = self._inside(uri[:-1] + "x", _READ)
        names = sorted(each for each in path.parent.glob("*") if each.name.startswith(path.name[:-1]))
        return [str(each) for each in names if each.is_file() and not each.is_symlink()]

    def _read(self, uri: str) -> bytes:
        if _is_bucket(uri):
            return self._fetcher.gcs(uri, field=_READ)
        path = self._inside(uri, _READ)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as fault:
            raise InputError(
                f"cannot be read ({os.strerror(fault.errno or 0)})", field=_READ, remedy="check the path"
            ) from None
        with open(descriptor, "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode) or facts.st_size > MAX_INPUT_BYTES:
                raise InputError("is no file, or has more than 1 GiB", field=_READ, remedy="split the job")
            return file.read()

    def _inside(self, uri: str, field: str) -> Path:
        """The path of a local file that lies in the directory, links followed."""
        if self._root is None:
            raise InputError(
                "is not in a bucket, and this server has no directory for jobs",
                field=field,
                remedy="give gs://BUCKET/…, or start the server with --batch-dir DIR",
            )
        path = uri.removeprefix("file://").replace("\0", "")
        place = Path(os.path.realpath(path if os.path.isabs(path) else self._root / path))
        if not place.is_relative_to(self._root):
            raise InputError("lies outside the server's directory for jobs", field=field, remedy="move it there")
        return place


def _is_bucket(uri: str) -> bool:
    return uri.startswith("gs://")
