"""Writing a bundle: the same bytes for the same members, but for its time and its signature."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NoReturn

from medport.errors import ConfigError, VerificationError
from medport_local.bundle import paths, tar_header
from medport_local.bundle.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SIGNATURE,
    BundleManifest,
    Entry,
    Kind,
    check_entries,
    in_order,
)
from medport_local.bundle.signing import Signer

_SLICE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Item:
    """What is to become a member."""

    path: str
    """In the bundle; the manifest says which paths a kind may have."""
    kind: Kind
    source: Path | bytes
    """A regular file, or the content itself."""
    sha256: str | None = None
    """What a file must hold, where that is known: it is then read once, not twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """What the manifest says beside the members."""

    created_at: datetime
    """With a zone."""
    medport: str
    """The version that writes."""
    lock_id: str | None = None


def write_bundle(
    target: Path,
    items: Iterable[Item],
    *,
    meta: Meta,
    signer: Signer | None,
    replace: bool = False,
    told: Callable[[int], None] = lambda _: None,
) -> BundleManifest:
    """Write a bundle, whole or not at all.

    Files are hashed first, as the manifest stands before them, and again while they are copied.

    Args:
        items: in any order; the bundle has its own.
        signer: ``None`` writes an unsigned bundle, which nobody can install.
        replace: whether a file of that name may be replaced.
        told: called with the number of bytes of each slice that was written.

    Raises:
        ConfigError: the target is there already, cannot be written, or the disk is too small.
        VerificationError: a path may not be in a bundle, or a source is no regular file, does not have its
            ``sha256``, or changed meanwhile.
    """
    check_target(target, replace=replace)
    chosen = list(items)
    sources = {item.path: item for item in chosen}
    manifest = BundleManifest(
        created_at=meta.created_at.astimezone(UTC).replace(microsecond=0),
        medport=meta.medport,
        lock_id=meta.lock_id,
        signed_by=signer.names if signer else (),
        entries=tuple(in_order([_entry(item) for item in chosen])),
    )
    check_entries(manifest.entries)
    data = manifest.to_bytes()
    if len(data) > MAX_MANIFEST_BYTES:
        _refuse(MANIFEST, f"would be larger than {MAX_MANIFEST_BYTES / 2**20:.0f} MiB")
    leading = [(MANIFEST, data)] + ([(SIGNATURE, signer.sign(data))] if signer else [])
    with _faults(target), _new(target, _size(leading, manifest)) as out:
        for name, content in leading:
            out.write(tar_header.header(name, len(content)) + content + tar_header.padding(len(content)))
        for entry in manifest.entries:
            out.write(tar_header.header(entry.path, entry.size_bytes))
            _copy(sources[entry.path], entry, out, told)
            out.write(tar_header.padding(entry.size_bytes))
        out.write(tar_header.END)
    return manifest


def check_target(target: Path, *, replace: bool) -> None:
    """Refuse a name for a bundle that is taken, or whose directory is not there.

    Raises:
        ConfigError: it is.
    """
    if not replace and os.path.lexists(target):
        raise ConfigError(f"{target} is there already", field="out", remedy="give another name, or --replace")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"there is no directory {target.parent}", field="out", remedy="make it, or give another")


def _entry(item: Item) -> Entry:
    if isinstance(item.source, bytes):
        digest = hashlib.sha256(item.source).hexdigest()
        if item.sha256 not in {None, digest}:
            _refuse(item.path, "does not have the hash that it should have")
        return Entry(path=item.path, kind=item.kind, sha256=digest, size_bytes=len(item.source))
    with _open(item) as file:
        size = os.fstat(file.fileno()).st_size
        digest = item.sha256 or hashlib.file_digest(file, "sha256").hexdigest()
    return Entry(path=item.path, kind=item.kind, sha256=digest, size_bytes=size)


def _open(item: Item) -> io.FileIO:
    try:
        # O_NONBLOCK: a pipe without a writer would wait for ever.
        descriptor = os.open(item.source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as fault:
        _refuse(
            item.path, f"its source cannot be read, or is a link ({type(fault).__name__})", "give a regular file"
        )
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        _refuse(item.path, "its source is not a regular file", "give a regular file")
    return io.FileIO(descriptor, "rb")


def _copy(item: Item, entry: Entry, out: BinaryIO, told: Callable[[int], None]) -> None:
    digest, size = hashlib.sha256(), 0
    for data in _slices(item):
        size += len(data)
        if size > entry.size_bytes:
            break
        digest.update(data)
        out.write(data)
        told(len(data))
    if size != entry.size_bytes or digest.hexdigest() != entry.sha256:
        if item.sha256 is not None:
            _refuse(item.path, "does not have the hash that it should have", "verify the store")
        _refuse(item.path, "changed while it was read", "stop whatever writes there, and export again")


def _slices(item: Item) -> Iterator[bytes]:
    if isinstance(item.source, bytes):
        yield item.source
        return
    with _open(item) as file:
        while data := file.read(_SLICE_BYTES):
            yield data


def _size(leading: list[tuple[str, bytes]], manifest: BundleManifest) -> int:
    sizes = [(name, len(content)) for name, content in leading]
    sizes += [(entry.path, entry.size_bytes) for entry in manifest.entries]
    return len(tar_header.END) + sum(
        len(tar_header.header(name, size)) + size + len(tar_header.padding(size)) for name, size in sizes
    )


@contextmanager
def _new(target: Path, size_bytes: int) -> Iterator[BinaryIO]:
    """A file beside the target that becomes it at the end, once it is on the disk."""
    free = shutil.disk_usage(target.parent).free
    if size_bytes > free:
        raise ConfigError(
            f"the bundle takes {size_bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free",
            field="out",
            remedy="write to a larger disk",
        )
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb", buffering=_SLICE_BYTES) as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
            os.fchmod(out.fileno(), 0o644)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def _faults(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        raise ConfigError(
            f"{target} cannot be written ({os.strerror(fault.errno or 0)})",
            field="out",
            remedy="check the path",
        ) from fault


def _refuse(path: str, fault: str, remedy: str = "leave it out, or name it otherwise") -> NoReturn:
    name = paths.shown(path)
    raise VerificationError(f"{name}: {fault}", field=name, remedy=remedy)
