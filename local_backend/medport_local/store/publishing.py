"""A finished snapshot → ``snapshots/<snapshot_sha256>/``, in one rename.

Order; a kill or a crash between any two steps leaves the store as it was, or with the snapshot:

1. ``snapshots/.new-<id>``: a link for each file (a copy where links cannot be), ``manifest.json``; the directories
   become read-only; ``fsync`` of all;
2. everything that is checked at a load is checked there;
3. under the store's lock: the record, then the rename to the snapshot's name, ``fsync`` of ``snapshots/``.

A record without a snapshot is a leftover that gc removes; a snapshot never lacks its record.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from medport.errors import VerificationError
from medport_local.snapshot import MANIFEST, Manifest, digest_of, open_snapshot
from medport_local.snapshot_file import FileEntry, refuse
from medport_local.snapshot_names import check_names, is_allowed
from medport_local.store import disk, entries
from medport_local.store.hashing import hash_file
from medport_local.store.layout import Layout
from medport_local.store.locks import locked
from medport_local.store.records import Entry, Record

STAGED = ".new-"
PUT = ".put"
_MAX_ID = 200
_COPY_BYTES = 8 * 2**20
# What a file system or its rules answer where a hard link cannot be: another device, a link count that is used up,
# a file of another owner (fs.protected_hardlinks), no links at all.
_NO_LINKS = {errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES}


def publish(layout: Layout, intake: str, manifest: Manifest, record: Record) -> None:
    """Make the snapshot visible. Every file of it is a blob that was hashed.

    The caller holds the snapshot's lease, so that gc leaves alone what was there before.

    Args:
        intake: the name of who does it, whose lock is held; nobody else works under it.

    Raises:
        VerificationError: ``open_snapshot`` would refuse it, or a name is not plain or not of a kind that is kept.
        OSError: the disk.
    """
    _check(manifest)
    data = canonical(manifest)
    staged = layout.snapshots / f"{STAGED}{intake}"
    disk.remove_tree(staged)
    try:
        _build(layout, staged, manifest, data)
        open_snapshot(staged, defer_weights=True)
        _show(layout, staged, manifest, record, data)
    finally:
        disk.remove_tree(staged)


def canonical(manifest: Manifest) -> bytes:
    """The manifest as it is kept: JSON, keys sorted, no blanks."""
    plain = manifest.model_dump(mode="json", exclude_none=True)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def place(layout: Layout, entry: FileEntry, target: Path) -> None:
    """Put a blob's bytes under another name: a link, or a copy that is hashed.

    Raises:
        VerificationError: the blob is gone, or the copy is not what it should be.
    """
    blob = layout.blob(entry.sha256)
    try:
        try:
            os.link(blob, target, follow_symlinks=False)
            return
        except OSError as fault:
            if fault.errno not in _NO_LINKS:
                raise
        _copy(blob, target)
    except FileNotFoundError:
        if os.path.lexists(blob):  # what is not there is the place for it
            raise
        # Claimed, so that gc leaves it; but whoever repairs takes out what is damaged.
        refuse(target.name, "was taken out of the store meanwhile", "the same again")
    if hash_file(target) != entry:
        os.unlink(target)
        refuse(target.name, "is damaged in the store", "medport snapshot verify --repair")


def _check(manifest: Manifest) -> None:
    if not 1 <= len(manifest.repo_id) <= _MAX_ID or not manifest.repo_id.isprintable() or "@" in manifest.repo_id:
        refuse(MANIFEST, "its repo_id is not a model's name")
    check_names(manifest.files)
    for name in manifest.files:
        if name == MANIFEST or not is_allowed(name):
            refuse(name, "is not a kind of file that a snapshot holds", "leave it out")
    if digest_of(manifest.files) != manifest.snapshot_sha256:
        refuse(MANIFEST, "its snapshot_sha256 is not that of its own table of files")


def _build(layout: Layout, staged: Path, manifest: Manifest, data: bytes) -> None:
    disk.make_directory(staged, disk.PRIVATE_DIRECTORY)
    for name, entry in manifest.files.items():
        folder = staged
        for part in name.split("/")[:-1]:
            folder = folder / part
            disk.make_directory(folder, disk.PRIVATE_DIRECTORY)
        place(layout, entry, staged / name)
    disk.write_file(staged / MANIFEST, data, mode=disk.FILE_MODE)
    disk.seal(staged)
    for path, _, _ in os.walk(staged):
        disk.sync_directory(Path(path))


def _show(layout: Layout, staged: Path, manifest: Manifest, record: Record, data: bytes) -> None:
    sha256 = manifest.snapshot_sha256
    target = layout.snapshot(sha256)
    if not target.is_dir():
        with locked(layout.mutex):
            if not target.is_dir():
                entries.write(layout, sha256, _entry(record, data))
                os.rename(staged, target)
                disk.sync_directory(layout.snapshots)
                return
    wrong = _wrong(layout, target, manifest)
    with locked(layout.mutex):
        disk.seal(target)  # who was killed while it was open left it so
        mend(layout, target, wrong)
        _join(layout, target, manifest, record, data)


def mend(layout: Layout, target: Path, wrong: Mapping[str, FileEntry]) -> None:
    """Put these files of a snapshot back. Their blobs were hashed; the caller holds the store's lock."""
    if not wrong:
        return
    with disk.unsealed(target):
        for name, entry in wrong.items():
            path = target / name
            for folder in reversed(path.relative_to(target).parents[:-1]):
                disk.make_directory(target / folder, disk.OPEN_DIRECTORY)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_beside(layout))
            place(layout, entry, _beside(layout))
            os.rename(_beside(layout), path)
            disk.sync_directory(path.parent)


def _beside(layout: Layout) -> Path:
    """Where a file is made that is then renamed into a snapshot; in it, it would be a file too many."""
    return layout.snapshots / PUT


def _wrong(layout: Layout, target: Path, manifest: Manifest) -> Mapping[str, FileEntry]:
    """The files of a snapshot that are missing or damaged."""
    return {name: entry for name, entry in manifest.files.items() if not _is_whole(layout, target / name, entry)}


def _is_whole(layout: Layout, path: Path, entry: FileEntry) -> bool:
    try:
        found = os.lstat(path)
        if os.path.samestat(found, os.lstat(layout.blob(entry.sha256))):
            return True
        return hash_file(path) == entry
    except (FileNotFoundError, NotADirectoryError, VerificationError):
        return False


def _entry(record: Record, data: bytes) -> Entry:
    return Entry(manifest_sha256=(hashlib.sha256(data).hexdigest(),), record=record)


def _join(layout: Layout, target: Path, manifest: Manifest, record: Record, data: bytes) -> None:
    """The same bytes are there already: note under which other name they came.

    Files from a directory that turn out to be a commit of the hub take its name.
    """
    sha256 = manifest.snapshot_sha256
    (there, digest), known = entries.read_manifest_hashed(target), entries.read(layout, sha256)
    more = manifest.revision is not None and (there is None or there.revision is None)
    if there is not None and known is not None and digest in known.manifest_sha256 and not more:
        _note_name(layout, manifest, known, entries.reference(there.repo_id, there.revision))
        return
    fresh = _entry(record, data)
    # Both are right until the second of two files is written.
    before = known.manifest_sha256 if known is not None else ()
    entries.write(layout, sha256, fresh.model_copy(update={"manifest_sha256": (*fresh.manifest_sha256, *before)}))
    with disk.unsealed(target):
        disk.write_file(target / MANIFEST, data, mode=disk.FILE_MODE, beside=_beside(layout))
    entries.write(layout, sha256, fresh)


def _note_name(layout: Layout, manifest: Manifest, known: Entry, named: str) -> None:
    """Write down another name of the same bytes."""
    name = entries.reference(manifest.repo_id, manifest.revision)
    if manifest.revision is None or name in (named, *known.record.also):
        return
    record = known.record.model_copy(update={"also": (*known.record.also, name)})
    entries.write(layout, manifest.snapshot_sha256, known.model_copy(update={"record": record}))


def _copy(blob: Path, target: Path) -> None:
    with open(blob, "rb") as source, open(target, "xb") as copy:
        shutil.copyfileobj(source, copy, _COPY_BYTES)
        copy.flush()
        os.fchmod(copy.fileno(), disk.FILE_MODE)
        os.fsync(copy.fileno())
