"""Reading and writing the store's own small files: records, pins, and the manifests of its snapshots."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pydantic import ValidationError

from medport.errors import VerificationError
from medport_local.snapshot import MANIFEST, Manifest
from medport_local.snapshot_file import read_whole
from medport_local.store import disk
from medport_local.store.layout import SHA256, Layout
from medport_local.store.records import Entry, Pin


def reference(model_id: str, revision: str | None) -> str:
    """``MODEL_ID@REVISION``, or the name alone where there is no revision."""
    return f"{model_id}@{revision}" if revision else model_id


def read(layout: Layout, sha256: str) -> Entry | None:
    """A snapshot's record; ``None`` if there is none that can be read."""
    path = layout.record(sha256)
    try:
        return Entry.model_validate_json(read_whole(path.parent, path.name)[0])
    except (VerificationError, ValidationError):
        return None


def write(layout: Layout, sha256: str, entry: Entry) -> None:
    """Write a snapshot's record. The caller holds the store's lock."""
    disk.write_file(layout.record(sha256), entry.model_dump_json(indent=1).encode() + b"\n")


def read_manifest(directory: Path) -> Manifest | None:
    """What a snapshot's directory says about itself; ``None`` if it cannot be read."""
    return read_manifest_hashed(directory)[0]


def read_manifest_hashed(directory: Path) -> tuple[Manifest | None, str | None]:
    """The manifest and the sha256 of its bytes; each ``None`` if it cannot be had."""
    try:
        data, entry = read_whole(directory, MANIFEST)
    except VerificationError:
        return None, None
    try:
        return Manifest.model_validate_json(data), entry.sha256
    except ValidationError:
        return None, hashlib.sha256(data).hexdigest()


def read_together(layout: Layout, sha256: str) -> tuple[Manifest | None, str | None, Entry | None]:
    """A snapshot's manifest, the sha256 of its bytes, and its record; each ``None`` if it cannot be had.

    A pull may give the snapshot another name meanwhile: first the record says that two manifests are right, then
    the manifest is exchanged, then the record names that one. So the record must be the same before and after.
    """
    known = read(layout, sha256)
    while True:
        manifest, digest = read_manifest_hashed(layout.snapshot(sha256))
        before, known = known, read(layout, sha256)
        if before == known:
            return manifest, digest, known


def snapshot_names(layout: Layout) -> list[str]:
    """The snapshots that are there, by their sha256. What only looks like one is left to ``verify``."""
    return sorted(path.name for path in layout.snapshots.iterdir() if is_snapshot(path))


def is_snapshot(path: Path) -> bool:
    """Whether a path in ``snapshots/`` is a snapshot's directory and no link to one."""
    return SHA256.fullmatch(path.name) is not None and path.is_dir() and not path.is_symlink()


def pin_names(layout: Layout) -> list[str]:
    """The names of all pins."""
    return sorted(path.stem for path in layout.pins.glob("[!.]*.json"))


def read_pin(layout: Layout, name: str) -> Pin | None:
    """One pin; ``None`` if it is not there any more.

    Raises:
        VerificationError: it cannot be read, so that it is not known what it keeps.
    """
    path = layout.pins / f"{name}.json"
    try:
        return Pin.model_validate_json(read_whole(path.parent, path.name)[0])
    except (ValidationError, VerificationError):
        if not os.path.lexists(path):
            return None
        raise VerificationError(
            f"pins/{path.name}: cannot be read",
            field=path.name,
            remedy=f"medport snapshot unpin {path.stem}, and pin again what must be kept",
        ) from None
