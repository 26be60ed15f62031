"""One snapshot of the store as its own files describe it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from medport.errors import VerificationError
from medport_local.model_identity import Family
from medport_local.snapshot import Manifest
from medport_local.store import entries
from medport_local.store.layout import Layout
from medport_local.store.records import Record

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stored:
    """A snapshot in the store. Nothing of it was verified yet: ``Store.open`` does that."""

    snapshot_sha256: str
    model_id: str
    revision: str | None
    """40 hex digits of a commit; ``None`` for what came from a directory or a bucket."""
    family: Family
    size_bytes: int
    added_at: datetime
    record: Record
    pinned_by: tuple[str, ...]
    """Names of the pins that keep it."""
    directory: Path
    """As ``open_snapshot`` takes it."""
    manifest: Manifest = field(repr=False)

    @property
    def reference(self) -> str:
        """``MODEL_ID@REVISION``, or the model's id alone where it has no revision."""
        return entries.reference(self.model_id, self.revision)


def pinned(layout: Layout, *, strict: bool) -> Mapping[str, tuple[str, ...]]:
    """The names of the pins of each pinned snapshot, by its sha256.

    Raises:
        VerificationError: a pin cannot be read, and ``strict``.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name in entries.pin_names(layout):
        try:
            pin = entries.read_pin(layout, name)
        except VerificationError:
            if strict:
                raise
            logger.warning("pin %s cannot be read; medport snapshot verify says more", name)
            continue
        for sha256 in pin.snapshots if pin else ():
            found[sha256] = (*found.get(sha256, ()), name)
    return found


def describe(layout: Layout, sha256: str, pinned_by: tuple[str, ...] = ()) -> Stored | None:
    """A snapshot by its sha256; ``None`` if it is not there or its manifest cannot be read."""
    directory = layout.snapshot(sha256)
    manifest = entries.read_manifest(directory)
    if manifest is None:
        if directory.is_dir():
            logger.warning("snapshot %.12s cannot be read; medport snapshot verify says why", sha256)
        return None
    known = entries.read(layout, sha256)
    record = known.record if known else _unknown(directory)
    return Stored(
        snapshot_sha256=sha256,
        model_id=manifest.repo_id,
        revision=manifest.revision,
        family=manifest.family,
        size_bytes=sum(entry.size_bytes for entry in manifest.files.values()),
        added_at=record.added_at,
        record=record,
        pinned_by=pinned_by,
        directory=directory,
        manifest=manifest,
    )


def _unknown(directory: Path) -> Record:
    # If it is just being collected, any time will do.
    came = datetime.fromtimestamp(directory.stat().st_mtime if directory.is_dir() else 0, UTC)
    return Record(source="unknown", requested="", added_at=came, by="unknown")
