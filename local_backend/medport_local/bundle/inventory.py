"""What a bundle brings, read from its small members and checked against one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from medport import lock as locks
from medport.errors import ConfigError, VerificationError
from medport.lock import Lock
from medport_local.bundle.archive import Bundle, refuse
from medport_local.bundle.manifest import LOCK, Entry
from medport_local.locked import check_locked
from medport_local.snapshot import MANIFEST, Manifest, digest_of
from medport_local.snapshot_names import check_names, is_allowed
from medport_local.store import Record

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class BundledSnapshot:
    """A snapshot in a bundle."""

    manifest: Manifest
    record: Record
    """Where whoever exported it had it from."""

    @property
    def reference(self) -> str:
        """``MODEL_ID@REVISION``, or the model's id alone."""
        revision = self.manifest.revision
        return f"{self.manifest.repo_id}@{revision}" if revision else self.manifest.repo_id


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a bundle brings."""

    snapshots: tuple[BundledSnapshot, ...]
    lock: Lock | None
    blobs: Mapping[str, Entry]
    """By sha256."""


def read_inventory(bundle: Bundle) -> Inventory:
    """Read the snapshots' manifests and the lock.

    Raises:
        VerificationError: a snapshot's manifest contradicts itself or its place; a file of it is not in the
            bundle, or a blob belongs to none; the lock is not the one that the bundle's manifest names, or names a
            snapshot that is not in the bundle, or is in it under another model or commit.
    """
    blobs = {entry.sha256: entry for entry in bundle.manifest.of_kind("blob")}
    snapshots = tuple(_snapshots(bundle, blobs))
    used = {entry.sha256 for snapshot in snapshots for entry in snapshot.manifest.files.values()}
    for sha256, entry in blobs.items():
        if sha256 not in used:
            refuse(entry.path, "belongs to no snapshot of the bundle")
    manifests = {each.manifest.snapshot_sha256: each.manifest for each in snapshots}
    return Inventory(snapshots, _lock(bundle, manifests), blobs)


def _snapshots(bundle: Bundle, blobs: Mapping[str, Entry]) -> Iterator[BundledSnapshot]:
    members = {entry.path: entry for entry in bundle.manifest.of_kind("snapshot")}
    for folder in sorted({path.rpartition("/")[0] for path in members}):
        paths = (f"{folder}/{MANIFEST}", f"{folder}/record.json")
        for path in paths:
            if path not in members:
                refuse(path, "is missing, and belongs to a snapshot")
        manifest = _parsed(bundle, members[paths[0]], Manifest)
        record = _parsed(bundle, members[paths[1]], Record)
        check_names(manifest.files)
        if f"snapshots/{manifest.snapshot_sha256}" != folder:
            refuse(paths[0], "is of another snapshot than its place says")
        if digest_of(manifest.files) != manifest.snapshot_sha256:
            refuse(paths[0], "its snapshot_sha256 is not that of its own table of files")
        for name, file in manifest.files.items():
            if not is_allowed(name):
                refuse(paths[0], f"lists {name}, which is not a kind of file that a snapshot holds")
            blob = blobs.get(file.sha256)
            if blob is None or blob.size_bytes != file.size_bytes:
                refuse(paths[0], f"lists {name}, which is not in the bundle")
        yield BundledSnapshot(manifest, record)


def _parsed(bundle: Bundle, entry: Entry, model: type[_Model]) -> _Model:
    try:
        return model.model_validate_json(bundle.small(entry))
    except ValidationError:
        refuse(entry.path, "cannot be read")


def _lock(bundle: Bundle, there: Mapping[str, Manifest]) -> Lock | None:
    entry, lock_id = bundle.manifest.entry(LOCK), bundle.manifest.lock_id
    if entry is None:
        if lock_id is not None:
            refuse(LOCK, "is missing, and the bundle was made for a lock")
        return None
    try:
        lock = locks.parse(bundle.small(entry, limit=locks.MAX_BYTES))
    except ConfigError as fault:
        refuse(LOCK, fault.message)
    if lock.lock_id != lock_id:
        refuse(LOCK, "is not the lock that the bundle was made for")
    for name, model in lock.models.items():
        found = there.get(model.snapshot_sha256)
        if found is None:
            refuse(LOCK, f"names a snapshot for {name} that is not in the bundle")
        try:
            check_locked(
                model,
                snapshot_sha256=found.snapshot_sha256,
                model_id=found.repo_id,
                revision=found.revision,
                family=found.family,
            )
        except VerificationError as fault:
            refuse(LOCK, f"{name}: {fault.message}")
    return lock
