"""Digests that sources know of a whole file, beside sha256: git's id of a blob, and Cloud Storage's crc32c."""

from __future__ import annotations

import base64
import hashlib
import io
from typing import Protocol

from medport._extras import load
from medport_local.sources.source import Offered

_BUFFER_BYTES = 2**20


class _Running(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class Whole:
    """Compares a file with what its source lists, as its bytes go by from the first to the last.

    Args:
        offered: says the digest; its size is needed for git's.
        size_bytes: of the file.
    """

    def __init__(self, offered: Offered, size_bytes: int) -> None:
        self._checks: list[tuple[str, _Running, bytes]] = []
        if offered.git_blob_sha1 is not None:
            blob = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
            self._checks.append(("git's id", blob, bytes.fromhex(offered.git_blob_sha1)))
        if offered.crc32c is not None:
            crc = load("google_crc32c", extra="fetch").Checksum()
            self._checks.append(("crc32c", crc, base64.b64decode(offered.crc32c)))

    def update(self, data: bytes) -> None:
        """Take the next bytes."""
        for _, running, _ in self._checks:
            running.update(data)

    def update_from(self, file: io.FileIO) -> None:
        """Take everything that a file holds."""
        if self._checks:
            while data := file.read(_BUFFER_BYTES):
                self.update(data)

    def differing(self) -> str | None:
        """The digest that is not the listed one, by its name; ``None`` if all are."""
        for name, running, listed in self._checks:
            if running.digest() != listed:
                return name
        return None
