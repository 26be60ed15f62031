"""The store of snapshots: what is in it, and how it comes in, is used, kept and removed."""

from __future__ import annotations

import builtins
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from medport.errors import NotFound, NotReady, VerificationError
from medport_local.snapshot import MANIFEST, Snapshot, open_snapshot
from medport_local.snapshot_file import refuse
from medport_local.store import collecting, disk, entries, layout, repairing, verifying
from medport_local.store.collecting import Collected
from medport_local.store.disk import disk_faults
from medport_local.store.intake import Intake
from medport_local.store.locks import Busy, forget, locked
from medport_local.store.records import Pin
from medport_local.store.references import resolve
from medport_local.store.stored import Stored, describe, pinned
from medport_local.store.verifying import Finding

logger = logging.getLogger(__name__)

_AGAIN = "medport snapshot verify --repair, then pull it again"


class Store:
    """A directory of snapshots, each of which is what its name says or is refused.

    Several processes may use it at once. Who may only read it can list, find, open and verify.

    Args:
        root: the directory; by default ``MEDPORT_STORE``, else ``medport/store`` in the user's data directory.
        create: make it if there is none.

    Raises:
        ConfigError: it is no store or of another format, it cannot be made, others may write to it, or it belongs
            to a user who is not believed (``MEDPORT_STORE_OWNER``).
    """

    def __init__(self, root: Path | None = None, *, create: bool = True) -> None:
        self._layout = layout.opened(root or layout.default_root(), create=create)

    @property
    def root(self) -> Path:
        """The store's directory."""
        return self._layout.root

    def list(self) -> list[Stored]:
        """Every snapshot, by model and time. One whose manifest cannot be read is left to ``verify``."""
        keeping = pinned(self._layout, strict=False)
        found = (
            describe(self._layout, sha256, keeping.get(sha256, ()))
            for sha256 in entries.snapshot_names(self._layout)
        )
        there = (each for each in found if each is not None)
        return sorted(there, key=lambda each: (each.model_id, each.added_at, each.snapshot_sha256))

    def find(self, reference: str) -> Stored:
        """The snapshot that a reference means: ``MODEL_ID@COMMIT``, ``MODEL_ID`` or ``sha256:…``.

        Raises:
            NotFound, ConfigError: there is none, or several are meant; see ``references.resolve``.
        """
        return resolve(reference, self.list())

    @contextmanager
    def hold(self, stored: Stored) -> Iterator[None]:
        """Keep a snapshot from being collected until the end of the block, or of the process.

        Raises:
            NotFound: it has been collected.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self._layout.lease(stored.snapshot_sha256), shared=True))
            except OSError:
                # Read-only, and the lock's file is not there: go on without, as with any directory.
                logger.info("snapshot %.12s cannot be held against gc", stored.snapshot_sha256)
            if not self._layout.snapshot(stored.snapshot_sha256).is_dir():
                raise _gone(stored)
            yield

    def open(self, stored: Stored, *, defer_weights: bool = False) -> Snapshot:
        """Verify a snapshot against its manifest, and the manifest against its record.

        It is held only while this runs: whoever goes on using it holds it around the call.

        Args:
            defer_weights: as in ``open_snapshot``.

        Raises:
            VerificationError: as ``open_snapshot``; or the manifest is not the one that was stored, or the record
                that says so cannot be read. Of the manifest nothing but these bytes is believed.
            NotFound: it has been collected.
        """
        with self.hold(stored):
            try:
                snapshot = self._open(stored.snapshot_sha256, defer_weights=defer_weights)
            except VerificationError as fault:
                raise VerificationError(fault.message, field=fault.field, remedy=_AGAIN) from fault
        if snapshot.snapshot_sha256 != stored.snapshot_sha256:
            refuse(MANIFEST, "is of another snapshot", _AGAIN)
        return snapshot

    def _open(self, sha256: str, *, defer_weights: bool) -> Snapshot:
        known = entries.read(self._layout, sha256)
        while True:
            if known is None:
                refuse(f"records/{sha256}.json", "is missing or cannot be read")
            try:
                return open_snapshot(
                    self._layout.snapshot(sha256),
                    defer_weights=defer_weights,
                    manifest_sha256=known.manifest_sha256,
                )
            except VerificationError as fault:
                before, known = known, entries.read(self._layout, sha256)
                # A pull may just have given it another name, and with it another manifest.
                if fault.field != MANIFEST or before == known:
                    raise

    @contextmanager
    def intake(self, identity: str, *, wait_s: float | None = None) -> Iterator[Intake]:
        """Take a snapshot in, file by file. What a broken intake of the same identity left is gone on with.

        Args:
            identity: what the source calls itself; never becomes a path.
            wait_s: how long to wait for another process that takes in the same; without end if ``None``.

        Raises:
            NotReady: the other did not get done in ``wait_s``.
            ConfigError: the store may not be written.
        """
        name = layout.identity_name(identity)
        lock = self._layout.intake_lock(name)
        with ExitStack() as stack:
            with disk_faults():
                _enter_alone(stack, lock, wait_s)
                intake = Intake(self._layout, name)
            broken = True
            try:
                yield intake
                broken = False
            finally:
                intake.close(broken=broken)
                forget(lock)

    def verify(
        self,
        stored: Stored | None = None,
        *,
        told: Callable[[int, int], None] | None = None,
        repair: bool = False,
    ) -> builtins.list[Finding]:
        """Hash one snapshot, or everything, and look whether all is as it should be; no finding means yes.

        Args:
            told: called with the bytes read so far and in all.
            repair: move damaged files to ``quarantine/``, so that a pull brings them again.

        Raises:
            NotFound: the snapshot has been collected.
            ConfigError: ``repair``, and the store may not be written.
        """
        sha256 = None if stored is None else stored.snapshot_sha256
        if stored is not None and not self._layout.snapshot(stored.snapshot_sha256).is_dir():
            raise _gone(stored)
        with disk_faults():
            findings = verifying.verify(self._layout, sha256, told=told)
            return repairing.repair(self._layout, findings, sha256) if repair and findings else findings

    def collect(self, *, dry_run: bool, keep: timedelta | None = None) -> Collected:
        """Remove snapshots that nobody pinned or holds, and blobs and partial files that nobody needs.

        Args:
            dry_run: only say what would go.
            keep: snapshots that came in so recently stay.

        Raises:
            VerificationError: a pin or a manifest cannot be read, so that it is not known what is needed; nothing
                was removed.
            ConfigError: the store may not be written.
        """
        with disk_faults():
            return collecting.collect(self._layout, dry_run=dry_run, keep=keep or timedelta(0))

    def pin(self, name: str, snapshots: Sequence[Stored], why: str = "") -> None:
        """Keep snapshots until ``unpin``. A pin of this name is replaced.

        Raises:
            ConfigError: the name cannot be one, or the store may not be written.
            NotFound: a snapshot is no longer there.
        """
        path = self._layout.pin(name)
        pin = Pin(
            snapshots=tuple(each.snapshot_sha256 for each in snapshots), pinned_at=datetime.now(UTC), why=why
        )
        with disk_faults(), locked(self._layout.mutex):
            for each in snapshots:
                if not self._layout.snapshot(each.snapshot_sha256).is_dir():
                    raise _gone(each)
            disk.write_file(path, pin.model_dump_json(indent=1).encode() + b"\n")

    def unpin(self, name: str) -> None:
        """Remove a pin; what it kept may be collected.

        Raises:
            NotFound: there is no such pin.
            ConfigError: the store may not be written.
        """
        path = self._layout.pin(name)
        with disk_faults(), locked(self._layout.mutex):
            if not path.exists():
                there = ", ".join(entries.pin_names(self._layout))
                raise NotFound(
                    f"there is no pin {name}",
                    field="name",
                    remedy=f"there are: {there}" if there else "nothing is pinned",
                )
            os.unlink(path)
            disk.sync_directory(path.parent)

    def pins(self) -> Mapping[str, Pin]:
        """Every pin by its name.

        Raises:
            VerificationError: one cannot be read.
        """
        found = {name: entries.read_pin(self._layout, name) for name in entries.pin_names(self._layout)}
        return {name: pin for name, pin in found.items() if pin is not None}


def _gone(stored: Stored) -> NotFound:
    return NotFound(
        f"the store no longer has {stored.reference}",
        field="snapshot",
        remedy="medport snapshot pull brings it again",
    )


def _enter_alone(stack: ExitStack, lock: Path, wait_s: float | None) -> None:
    try:
        stack.enter_context(locked(lock, wait_s=0))
    except Busy:
        logger.info("another process takes in the same snapshot; waiting for it")
    else:
        return
    try:
        stack.enter_context(locked(lock, wait_s=wait_s))
    except Busy:
        raise NotReady("another process takes in the same snapshot", field="store", remedy="wait for it") from None
