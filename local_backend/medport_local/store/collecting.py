"""Removing what nobody needs.

What is needed is decided by manifests and claims, not by link counts: where links cannot be, a blob that is in use
has a count of one, and a user's own link says nothing about the store.

Order, all under the store's lock, so that nothing comes in meanwhile:

1. a snapshot's lease is taken alone; whoever holds it shared keeps it;
2. rename to ``snapshots/.gone-<sha256>``: it is not there any more, at once and whole; ``fsync``;
3. its files, its record and the lease go;
4. blobs that no manifest lists and no intake claims go.

Killed in between, the next collection finds what was left: names with a dot, records without a snapshot.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from medport.errors import ConfigError
from medport_local.snapshot import digest_of
from medport_local.snapshot_file import refuse
from medport_local.store import disk, entries
from medport_local.store.intake import CLAIM
from medport_local.store.layout import SHA256, Layout
from medport_local.store.locks import Busy, forget, locked
from medport_local.store.publishing import PUT, STAGED
from medport_local.store.stored import Stored, describe, pinned

GONE = ".gone-"
_PARTIAL_KEPT_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Collected:
    """What went, or would go."""

    snapshots: tuple[Stored, ...]
    blobs: int
    partials: int
    """Broken intakes older than a day."""
    freed_bytes: int
    """Of disk; what stays because another snapshot has it is not counted."""
    kept: tuple[tuple[Stored, str], ...]
    """Each snapshot that stays, and why: ``pinned``, ``in use`` or ``recent``."""


def collect(layout: Layout, *, dry_run: bool, keep: timedelta) -> Collected:
    """See ``Store.collect``."""
    if not dry_run and not os.access(layout.snapshots, os.W_OK):
        raise ConfigError("may not be written by this user", field="store", remedy="run as its owner")
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(layout.mutex))
        except OSError:
            if not dry_run:
                raise
        return _collect(layout, stack, dry_run=dry_run, keep=keep)


def _collect(layout: Layout, stack: ExitStack, *, dry_run: bool, keep: timedelta) -> Collected:
    if not dry_run:
        _sweep_leftovers(layout)
    going: list[Stored] = []
    kept: list[tuple[Stored, str]] = []
    for stored in _all(layout):
        if reason := _reason_to_keep(layout, stack, stored, keep):
            kept.append((stored, reason))
        else:
            going.append(stored)
    partials = [path for path in _entries(layout.partials) if _is_stale(layout, stack, path)]
    needed = {entry.sha256 for stored, _ in kept for entry in stored.manifest.files.values()}
    needed |= {claim for path in _entries(layout.partials) if path not in partials for claim in _claims(path)}
    blobs = [blob for blob in _blobs(layout) if blob.name not in needed]
    freed = sum(_size(blob) for blob in blobs) + sum(_tree_size(path) for path in partials)
    freed += sum(_copied_size(layout, stored) for stored in going)
    if not dry_run:
        for stored in going:
            _remove_snapshot(layout, stored.snapshot_sha256)
        for path in partials:
            _remove_partial(layout, path)
        for blob in blobs:
            os.unlink(blob)
    return Collected(
        snapshots=tuple(going), blobs=len(blobs), partials=len(partials), freed_bytes=freed, kept=tuple(kept)
    )


def _all(layout: Layout) -> Iterator[Stored]:
    keeping = pinned(layout, strict=True)
    names = entries.snapshot_names(layout)
    _check_quarantine(layout, {sha256: pins for sha256, pins in keeping.items() if sha256 not in names})
    for sha256 in names:
        stored = describe(layout, sha256, keeping.get(sha256, ()))
        fault = "cannot be read" if stored is None else "is not that of this snapshot"
        # The snapshot's name is the hash of its table of files: a table that gives it is the right one.
        if stored is None or digest_of(stored.manifest.files) != sha256:
            refuse(
                f"snapshots/{sha256}",
                f"its manifest {fault}, so that it is not known which blobs it needs; nothing was removed",
                "medport snapshot verify --repair",
            )
        yield stored


def _check_quarantine(layout: Layout, absent: Mapping[str, tuple[str, ...]]) -> None:
    """Which blobs a pinned snapshot needs that ``verify`` took out, nobody knows until it is pulled again."""
    for path in _entries(layout.quarantine):
        if pins := absent.get(path.name.partition(".")[0]):
            refuse(
                f"pins/{pins[0]}.json",
                f"keeps sha256:{path.name[:12]}, which is in quarantine, so that it is not known which blobs it "
                "needs; nothing was removed",
                f"pull it again, or medport snapshot unpin {pins[0]}",
            )


def _reason_to_keep(layout: Layout, stack: ExitStack, stored: Stored, keep: timedelta) -> str | None:
    if stored.pinned_by:
        return f"pinned by {', '.join(stored.pinned_by)}"
    if keep and datetime.now(UTC) - stored.added_at < keep:
        return "recent"
    try:
        # Until the end: nobody begins to use it in between.
        stack.enter_context(locked(layout.lease(stored.snapshot_sha256), wait_s=0))
    except (Busy, OSError):
        return "in use"
    return None


def _is_stale(layout: Layout, stack: ExitStack, path: Path) -> bool:
    """Whether a broken intake is so old that nobody will go on with it, and nobody is at it."""
    newest = max((_mtime(each) for each in (path, *_entries(path))), default=0.0)
    if time.time() - newest < _PARTIAL_KEPT_S:
        return False
    try:
        stack.enter_context(locked(layout.intake_lock(path.name), wait_s=0))
    except (Busy, OSError):
        return False
    return True


def _remove_snapshot(layout: Layout, sha256: str) -> None:
    gone = layout.snapshots / f"{GONE}{sha256}"
    os.rename(layout.snapshot(sha256), gone)
    disk.sync_directory(layout.snapshots)
    disk.remove_tree(gone)
    with suppress(FileNotFoundError):
        os.unlink(layout.record(sha256))
    forget(layout.lease(sha256))


def _remove_partial(layout: Layout, path: Path) -> None:
    disk.remove_tree(layout.snapshots / f"{STAGED}{path.name}")
    disk.remove_tree(path)
    forget(layout.intake_lock(path.name))


def _sweep_leftovers(layout: Layout) -> None:
    """What processes that were killed left behind."""
    for path in _entries(layout.snapshots):
        if path.name.startswith(GONE):
            disk.remove_tree(path)
        elif path.name == PUT:
            os.unlink(path)
        elif path.name.startswith(STAGED):
            with suppress(Busy), locked(layout.intake_lock(path.name.removeprefix(STAGED)), wait_s=0):
                disk.remove_tree(path)
    for path in _entries(layout.root / "records"):
        if not layout.snapshots.joinpath(path.stem).is_dir():
            os.unlink(path)
    there = set(entries.snapshot_names(layout))
    for path in _entries(layout.root / "locks"):
        kind, _, name = path.stem.partition("-")
        idle = (kind == "snapshot" and name not in there) or (
            kind == "intake" and not (layout.partials / name).is_dir()
        )
        if idle:
            with suppress(Busy), locked(path, wait_s=0):
                forget(path)


def _blobs(layout: Layout) -> list[Path]:
    folders = [path for path in _entries(layout.root / "blobs") if path.is_dir()]
    return [path for folder in folders for path in _entries(folder) if SHA256.fullmatch(path.name)]


def _claims(partial: Path) -> Iterator[str]:
    for path in _entries(partial):
        if path.name.startswith(CLAIM):
            yield path.name.removeprefix(CLAIM)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # gone meanwhile, or not for this user
        return []


def _mtime(path: Path) -> float:
    with suppress(OSError):
        return os.lstat(path).st_mtime
    return 0.0


def _size(path: Path) -> int:
    with suppress(OSError):
        return os.lstat(path).st_size
    return 0


def _tree_size(path: Path) -> int:
    return sum(_size(each) for each in _entries(path))


def _copied_size(layout: Layout, stored: Stored) -> int:
    """Of a snapshot's files that are not links to blobs."""
    size = 0
    for name, entry in stored.manifest.files.items():
        with suppress(OSError):
            own = os.lstat(stored.directory / name)
            blob = layout.blob(entry.sha256)
            if not (blob.exists() and os.path.samestat(own, os.lstat(blob))):
                size += own.st_size
    return size
