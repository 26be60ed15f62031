"""Taking a snapshot in: its files become blobs one by one, and then a snapshot all together.

Order for each file, so that a kill or a crash at any point leaves nothing that looks whole and is not:

1. its bytes are written to ``partial/<id>/``, hashed, ``fsync``, mode 0444;
2. under the store's lock a claim, ``claim-<sha256>``, says that this intake needs the blob: gc leaves it;
3. rename to ``blobs/<aa>/<sha256>``, ``fsync`` of that directory.

A blob that is there already is hashed before it counts: a name proves nothing. The claims stay until the snapshot
is committed, and those of an intake that broke off for a day.
"""

from __future__ import annotations

import io
import os
from contextlib import ExitStack, suppress
from pathlib import Path

from medport.errors import VerificationError
from medport_local.snapshot import Manifest
from medport_local.snapshot_file import FileEntry, open_file, read_whole, refuse
from medport_local.snapshot_names import check_name, is_allowed
from medport_local.store import disk
from medport_local.store.disk import disk_faults
from medport_local.store.hashing import hash_file
from medport_local.store.layout import SHA256, Layout
from medport_local.store.locks import locked
from medport_local.store.partial import Partial, Read
from medport_local.store.publishing import publish
from medport_local.store.records import PartNote, Record
from medport_local.store.stored import Stored, describe

CLAIM = "claim-"


class Intake:
    """Snapshots on their way into the store. Made by ``Store.intake``, which holds the lock of its identity.

    Several threads may each receive another file.
    """

    def __init__(self, layout: Layout, name: str) -> None:
        self._layout = layout
        self._name = name
        self._folder = layout.partials / name
        self._verified: dict[str, FileEntry] = {}
        self._committed = False
        self._leases = ExitStack()
        disk.make_directory(self._folder, disk.PRIVATE_DIRECTORY)

    def have(self, expected: FileEntry) -> bool:
        """Whether the store holds these bytes; they are hashed, and stay until this intake is over.

        Raises:
            VerificationError: a blob of this name holds other bytes.
        """
        return self._blob(expected.sha256, expected.size_bytes) is not None

    def receive(
        self, name: str, read: Read, *, size_bytes: int | None, sha256: str | None, version: str = ""
    ) -> FileEntry:
        """Take a file in, unless the store has it.

        Args:
            name: its path in the snapshot.
            read: gives the file's bytes from an offset on. Not called for a file that is there, nor for one that
                lacks nothing. What it raises passes through; what has arrived is kept for another try.
            size_bytes, sha256: what it must be, as far as is known.
            version: an etag, a generation or the like. A partial file is gone on with only if its version is the
                same, and its sha256 is known; or it has a version, and the machine was not restarted since.

        Raises:
            VerificationError: the name may not be in a snapshot; the bytes are not those expected (nothing of them
                is kept), or fewer than expected (they are kept); or the store's own blob is damaged.
            ConfigError: the disk is full, or may not be written.
        """
        check_name(name)
        if not is_allowed(name):
            refuse(name, "is not a kind of file that a snapshot holds", "leave it out")
        if sha256 is not None and SHA256.fullmatch(sha256) is None:
            refuse(name, "has a sha256 that is not 64 hex digits", "ask the source")
        partial = Partial(self._folder, PartNote(name=name, version=version, size_bytes=size_bytes, sha256=sha256))
        if sha256 is not None:
            there = self._blob(sha256, size_bytes)
        else:
            before = partial.done_before()
            there = self._blob(before.sha256, before.size_bytes) if before else None
        if there is not None:
            return there
        found = partial.fetch(read)
        with disk_faults():
            self._adopt(partial.path, found)
            partial.finish(found)
        self._verified[found.sha256] = found
        return found

    def open(self, entry: FileEntry) -> io.FileIO:
        """A received file, for reading from its beginning; whoever trusts what he reads hashes it.

        Raises:
            VerificationError: it is gone.
        """
        assert entry.sha256 in self._verified
        blob = self._layout.blob(entry.sha256)
        return open_file(blob.parent, blob.name)

    def read(self, entry: FileEntry) -> bytes:
        """The verified bytes of a small file that was received.

        Raises:
            VerificationError: it is larger than 64 MiB, or damaged since.
        """
        blob = self._layout.blob(entry.sha256)
        data, found = read_whole(blob.parent, blob.name)
        if found != entry:
            raise _damaged(entry.sha256)
        return data

    def commit(self, manifest: Manifest, record: Record) -> Stored:
        """Make a snapshot of received files, visible at once and whole.

        Bytes that the store has already are not stored again: the snapshot gets another name (``Record.also``), or
        its first one, if it had no revision. May be called for several snapshots.

        Raises:
            VerificationError: it is not a snapshot that this server would open, a file of it was not received, or
                the manifest contradicts itself.
            ConfigError: the disk is full, or may not be written.
        """
        if SHA256.fullmatch(manifest.snapshot_sha256) is None:
            refuse("snapshot_sha256", "is not 64 hex digits")
        for name, entry in manifest.files.items():
            if self._verified.get(entry.sha256) != entry:
                refuse(name, "is in the manifest and was not received")
        with disk_faults():
            # To the end of the intake, so that it can still be pinned then.
            self._leases.enter_context(locked(self._layout.lease(manifest.snapshot_sha256), shared=True))
            publish(self._layout, self._name, manifest, record)
        self._committed = True
        stored = describe(self._layout, manifest.snapshot_sha256)
        assert stored is not None
        return stored

    def close(self, *, broken: bool) -> None:
        """Leave what has arrived for the next try, or nothing if there is nothing more to do."""
        if self._committed and not broken:
            with disk_faults():
                disk.remove_tree(self._folder)
        with suppress(OSError):
            self._folder.rmdir()
        self._leases.close()

    def _blob(self, sha256: str, size_bytes: int | None) -> FileEntry | None:
        """A blob that is there and right, claimed for this intake."""
        known = self._verified.get(sha256)
        if known is None:
            with disk_faults(), locked(self._layout.mutex):
                self._claim(sha256)
            if not os.path.lexists(self._layout.blob(sha256)):
                return None
            known = self._checked(sha256)
        if size_bytes not in (None, known.size_bytes):
            refuse("size_bytes", f"is not {known.size_bytes}, the size of what has this sha256", "ask the source")
        return known

    def _checked(self, sha256: str) -> FileEntry:
        found = hash_file(self._layout.blob(sha256))
        if found.sha256 != sha256:
            raise _damaged(sha256)
        self._verified[sha256] = found
        return found

    def _adopt(self, part: Path, found: FileEntry) -> None:
        """Make a blob of it, unless another intake was sooner."""
        blob = self._layout.blob(found.sha256)
        with locked(self._layout.mutex):
            self._claim(found.sha256)
            if not os.path.lexists(blob):
                if not blob.parent.is_dir():
                    disk.make_directory(blob.parent, disk.OPEN_DIRECTORY)
                    disk.sync_directory(blob.parent.parent)
                os.rename(part, blob)
                disk.sync_directory(blob.parent)
                return
        self._checked(found.sha256)

    def _claim(self, sha256: str) -> None:
        claim = self._folder / f"{CLAIM}{sha256}"
        os.close(os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def _damaged(sha256: str) -> VerificationError:
    return VerificationError(
        f"blobs/{sha256[:2]}/{sha256}: is damaged in the store",
        field=sha256,
        remedy="medport snapshot verify --repair, then the same again",
    )
