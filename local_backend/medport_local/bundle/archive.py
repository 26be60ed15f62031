"""The bundle file: an uncompressed POSIX tar whose every byte follows from its signed manifest.

    manifest.json       what the bundle holds (``manifest``)
    manifest.sig        the signature over it (``signing``); missing in an unsigned bundle
    …                   the members in the manifest's order, each a regular file of mode 0644, owner 0 and time 0
    1,024 zero bytes

Any tar program unpacks it. This reader trusts none of what tar headers say: once the manifest's signature is
checked, it knows where each member must begin and what its header must be, and compares. A member that is a link,
leads elsewhere, is not listed or is longer than stated therefore cannot be expressed; ``tar_header`` names it.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from medport.errors import ConfigError, VerificationError
from medport_local.bundle import paths, tar_header
from medport_local.bundle.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SIGNATURE,
    BundleManifest,
    Entry,
    read_manifest,
)
from medport_local.bundle.signature import MAX_SIGNATURE_BYTES
from medport_local.bundle.signing import SignedBy, Verifier
from medport_local.bundle.writing import Item, Meta, write_bundle

__all__ = ["Bundle", "Item", "Meta", "write_bundle"]

SLICE_BYTES = 2**20
"""Read and hashed at once: small enough to stay in a core's cache in between."""
_AHEAD_BYTES = 8 * 2**20
_AT_ONCE = 4
_AGAIN = "get the bundle again from who made it"


@dataclass(frozen=True, slots=True)
class _Placed:
    entry: Entry
    start: int
    """Of its bytes, in the file."""


@dataclass(slots=True)
class Bundle:
    """An open bundle: signature, manifest and headers were checked. Its members are checked as they are read."""

    path: Path
    manifest: BundleManifest
    manifest_bytes: bytes = field(repr=False)
    signature_bytes: bytes | None = field(repr=False)
    signed_by: SignedBy | None
    """``None`` if nobody was asked for (an unsigned bundle, or ``open`` without a verifier)."""
    size_bytes: int
    _file: io.FileIO = field(repr=False)
    _members: Mapping[str, _Placed] = field(repr=False)

    @classmethod
    def open(cls, path: Path, verifier: Verifier | None) -> Self:
        """Open a bundle and check all but its members' contents.

        The signature is checked before anything else of the file is looked at.

        Args:
            verifier: whom to trust. With ``None`` the signature is not looked at, and nothing is proved but that
                the bundle is whole: for showing an unsigned bundle, never for using it.

        Raises:
            ConfigError: there is no such file, or it cannot be read.
            VerificationError: it is no bundle, is not signed or not by whom it should be, is cut short, or holds
                what no bundle holds. Names the member.
        """
        file = _open(path)
        try:
            with _read_faults(path):
                return cls._read(path, file, verifier)
        except BaseException:
            file.close()
            raise

    @classmethod
    def _read(cls, path: Path, file: io.FileIO, verifier: Verifier | None) -> Self:
        size = os.fstat(file.fileno()).st_size
        found = _leading(file, 0, MANIFEST, MAX_MANIFEST_BYTES)
        if found is None:
            start = os.pread(file.fileno(), tar_header.BLOCK_BYTES, 0)
            refuse(path.name, tar_header.not_a_bundle(start), "give a file that medport bundle export wrote")
        manifest_bytes, reached = found
        signed = _leading(file, reached, SIGNATURE, MAX_SIGNATURE_BYTES)
        signature, reached = signed if signed else (None, reached)
        signed_by = None
        if verifier is not None:
            if signature is None:
                refuse(SIGNATURE, "is missing: the bundle is not signed", "get a signed bundle")
            signed_by = verifier.verify(manifest_bytes, signature)
        manifest = read_manifest(manifest_bytes)
        _check_signer(manifest, signature, signed_by)
        return cls(
            path=path, manifest=manifest, manifest_bytes=manifest_bytes, signature_bytes=signature,
            signed_by=signed_by, size_bytes=size, _file=file, _members=_members(file, manifest, reached, size),
        )  # fmt: skip

    @property
    def manifest_sha256(self) -> str:
        """Of the manifest's bytes: names this bundle among all others."""
        return hashlib.sha256(self.manifest_bytes).hexdigest()

    def read(self, entry: Entry) -> Iterator[bytes]:
        """The bytes of a member, in slices of up to 1 MiB.

        Raises:
            VerificationError: they do not have the hash that the manifest lists. Raised after the last slice; who
                uses a slice before that must be able to take it back.
        """
        digest = hashlib.sha256()
        for data in self.read_unchecked(entry):
            digest.update(data)
            yield data
        if digest.hexdigest() != entry.sha256:
            refuse(entry.path, "does not have the hash that the manifest lists")

    def read_unchecked(self, entry: Entry, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a member from ``offset`` on, for who hashes them himself and compares.

        Raises:
            VerificationError: the file became shorter.
        """
        start = self._members[entry.path].start
        while offset < entry.size_bytes:
            count = min(SLICE_BYTES, entry.size_bytes - offset)
            with _read_faults(self.path):
                data = os.pread(self._file.fileno(), count, start + offset)
                _read_ahead(self._file, start + offset, len(data))
            if not data:
                refuse(entry.path, "is cut short: the file became shorter while it was read")
            offset += len(data)
            yield data

    def small(self, entry: Entry, *, limit: int = 2**26) -> bytes:
        """All bytes of a small member, checked.

        Raises:
            VerificationError: as ``read``; or it is larger than ``limit`` bytes.
        """
        if entry.size_bytes > limit:
            refuse(entry.path, f"is larger than {limit / 2**20:.0f} MiB")
        return b"".join(self.read(entry))

    def verify(self, told: Callable[[int], None] = lambda _: None) -> None:
        """Read every member once and check its hash; several side by side, as hashing is what takes the time.

        Args:
            told: called with the number of bytes of each slice read; from several threads.

        Raises:
            VerificationError: a member's hash is not what the manifest lists. Of several, the first is named.
        """
        with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1), thread_name_prefix="medport-verify") as pool:
            checks = [pool.submit(self.check, entry, told) for entry in self.manifest.entries]
            try:
                for check in checks:
                    check.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def check(self, entry: Entry, told: Callable[[int], None] = lambda _: None) -> None:
        """Read a member in place and check its hash.

        Raises:
            VerificationError: as ``read``.
        """
        start, reached, digest = self._members[entry.path].start, 0, hashlib.sha256()
        buffer = memoryview(bytearray(min(SLICE_BYTES, max(1, entry.size_bytes))))
        while reached < entry.size_bytes:
            room = buffer[: min(len(buffer), entry.size_bytes - reached)]
            with _read_faults(self.path):
                count = os.preadv(self._file.fileno(), [room], start + reached)
                _read_ahead(self._file, start + reached, count)
            if not count:
                refuse(entry.path, "is cut short: the file became shorter while it was read")
            digest.update(room[:count])
            reached += count
            told(count)
        if digest.hexdigest() != entry.sha256:
            refuse(entry.path, "does not have the hash that the manifest lists")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def refuse(name: str, fault: str, remedy: str = _AGAIN) -> NoReturn:
    """Raise the VerificationError that names the member."""
    said = paths.shown(name)
    raise VerificationError(f"{said}: {fault}", field=said, remedy=remedy)


def _read_ahead(file: io.FileIO, start: int, count: int) -> None:
    """Every so often let the disk fetch what comes next, while this is hashed."""
    end = start + count
    if start // _AHEAD_BYTES != end // _AHEAD_BYTES and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), end, 2 * _AHEAD_BYTES, os.POSIX_FADV_WILLNEED)


@contextmanager
def _read_faults(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        raise ConfigError(
            f"{path} cannot be read ({os.strerror(fault.errno or 0)})", field="bundle", remedy="check its disk"
        ) from fault


def _open(path: Path) -> io.FileIO:
    try:
        # O_NONBLOCK: a pipe without a writer would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as fault:
        raise ConfigError(
            f"{path} cannot be read ({os.strerror(fault.errno or 0)})", field="bundle", remedy="check the path"
        ) from fault
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError(f"{path} is not a regular file", field="bundle", remedy="copy the bundle to a file")
    return io.FileIO(descriptor, "rb")


def _leading(file: io.FileIO, at: int, name: str, limit: int) -> tuple[bytes, int] | None:
    """One of the first two members, whose size only its header tells; ``None`` if another one is there."""
    block = os.pread(file.fileno(), tar_header.BLOCK_BYTES, at)
    if len(block) < tar_header.BLOCK_BYTES:
        refuse(name, "is cut short") if block and at else None
        return None
    size = tar_header.size_of(block, name)
    if size is None:
        if block.startswith(name.encode() + b"\0"):
            refuse(*tar_header.explain(block, path=name, size_bytes=0, listed={name: 0}))
        return None
    if size > limit:
        refuse(name, f"is larger than {limit / 2**20:.0f} MiB")
    start = at + len(block)
    data = os.pread(file.fileno(), size, start)
    if len(data) < size:
        refuse(name, "is cut short")
    return data, _check_padding(file, name, start, size)


def _check_padding(file: io.FileIO, name: str, start: int, size: int) -> int:
    """Where the next header begins; refuses a member that is not followed by zeros up to there."""
    zeros = tar_header.padding(size)
    found = os.pread(file.fileno(), len(zeros), start + size) if zeros else b""
    if found != zeros:
        refuse(name, "is cut short" if len(found) < len(zeros) else "is not followed by zeros")
    return start + size + len(zeros)


def _check_signer(manifest: BundleManifest, signature: bytes | None, signed_by: SignedBy | None) -> None:
    if signature is None and manifest.signed_by:
        refuse(SIGNATURE, "is missing: it was taken out of the bundle")
    if signed_by is not None:
        if manifest.signed_by != signed_by.names:
            refuse(SIGNATURE, "is by another signer than the manifest says")
        signed_by.require_valid_at(manifest.created_at, "the bundle was made")


def _members(file: io.FileIO, manifest: BundleManifest, reached: int, size: int) -> dict[str, _Placed]:
    """Where each member begins. Every header, every padding and the end are compared with what they must be."""
    places = {entry.path: place for place, entry in enumerate(manifest.entries)}
    found = {}
    for entry in manifest.entries:
        expected = tar_header.header(entry.path, entry.size_bytes)
        start = _check_header(file, reached, expected, entry.path, entry.size_bytes, places)
        if start + entry.size_bytes > size:
            refuse(entry.path, "is cut short")
        found[entry.path] = _Placed(entry, start)
        reached = _check_padding(file, entry.path, start, entry.size_bytes)
    reached = _check_header(file, reached, tar_header.END, "", 0, places)
    if size != reached:
        refuse("bundle", "has bytes after its end")
    return found


def _check_header(
    file: io.FileIO, at: int, expected: bytes, path: str, size_bytes: int, places: Mapping[str, int]
) -> int:
    block = os.pread(file.fileno(), len(expected), at)
    if block == expected:
        return at + len(expected)
    if len(block) < len(expected):
        refuse(path or "bundle", "is cut short")
    block = os.pread(file.fileno(), tar_header.EXPLAIN_BYTES, at)
    refuse(*tar_header.explain(block, path=path, size_bytes=size_bytes, listed=places))
