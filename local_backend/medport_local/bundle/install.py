"""Installing a bundle: its snapshots into the store, all else into a directory; whole or not at all.

Order; a kill or a fault between any two steps leaves the site as it was:

1. the signature, the manifest and every header were checked when the bundle was opened;
2. the small members are read and checked against one another (``inventory``), the free space is looked at;
3. every member is read once and hashed: blobs into the store's intake, all else into a staging directory;
4. the snapshots become visible in the store, and are pinned beside those of what is installed;
5. the staging directory takes the place of the one that was there;
6. the pin is narrowed to what is installed and to the installation before it.

Between 4 and 5 the store has snapshots that nobody uses yet, which harms nobody.
"""

from __future__ import annotations

import getpass
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from medport.errors import ConfigError, NotFound, NotReady
from medport_local.bundle import succession
from medport_local.bundle.archive import Bundle
from medport_local.bundle.inventory import BundledSnapshot, Inventory, read_inventory
from medport_local.bundle.manifest import LOCK, Entry
from medport_local.bundle.signing import SignedBy
from medport_local.bundle.site import Receipt, Site, write_member, write_signed
from medport_local.store import Intake, Record, Store, Stored, default_root, disk
from medport_local.store.layout import Layout

Tell = Callable[[int], None]
_SITE = "site"
_MARGIN_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What installing would do."""

    bundle: Bundle
    signed_by: SignedBy
    inventory: Inventory
    store_root: Path
    site: Site
    absent: tuple[Entry, ...]
    """Blobs that the store does not have."""
    others: tuple[Entry, ...]
    """What goes into the directory."""
    before: Receipt | None
    """Of what it would replace."""
    notes: tuple[str, ...]
    """What a person should know before: another lock, an older bundle, another signer."""

    @property
    def copied_bytes(self) -> int:
        """How much will be written."""
        return sum(entry.size_bytes for entry in (*self.absent, *self.others))


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What came of it."""

    directory: Path
    store_root: Path
    snapshots: tuple[Stored, ...]
    pin: str | None
    """The store's pin that keeps them, and those of the earlier installation."""
    previous: Path | None
    """Where the earlier installation is."""
    lock: Path | None
    wheels: Path | None


def default_site(store_root: Path | None = None) -> Path:
    """Where bundles are installed unless said otherwise: ``site`` beside the store."""
    return (store_root or default_root()).absolute().parent / _SITE


def plan(
    bundle: Bundle, *, store_root: Path | None = None, to: Path | None = None, older: bool = False,
    other_signer: bool = False, now: datetime | None = None,
) -> Plan:  # fmt: skip
    """Look at everything that installing needs; writes nothing.

    Args:
        bundle: opened with a verifier.
        store_root: the store; ``store.default_root()`` if ``None``. Installing makes one if there is none.
        to: the directory; ``default_site`` if ``None``.
        older: whether it may have been made before what is installed.
        other_signer: whether it may be by another signer than what is installed.

    Raises:
        VerificationError: the bundle's parts contradict one another.
        ConfigError: the bundle was opened without a verifier, is older or by another signer and may not be, the
            directory holds other things, or a disk is too small.
    """
    if bundle.signed_by is None or bundle.signature_bytes is None:
        raise ConfigError(
            "a bundle is installed only if it is known who signed it", field="key", remedy="give --key or --ca"
        )
    inventory = read_inventory(bundle)
    root = (store_root or default_root()).expanduser().absolute()
    site = Site((to or default_site(root)).expanduser().absolute())
    if site.directory.is_relative_to(root) or root.is_relative_to(site.directory):
        raise ConfigError("the store and the directory lie in one another", field="to", remedy="give another --to")
    site.check()
    before = site.standing()
    if before is not None:
        succession.require(bundle, bundle.signed_by, before, older=older, other_signer=other_signer)
    blobs = Layout(root)
    made = Plan(
        bundle=bundle,
        signed_by=bundle.signed_by,
        inventory=inventory,
        store_root=root,
        site=site,
        absent=tuple(entry for entry in inventory.blobs.values() if not blobs.blob(entry.sha256).exists()),
        others=tuple(entry for entry in bundle.manifest.entries if entry.kind not in {"blob", "snapshot"}),
        before=before,
        notes=tuple(succession.notes(bundle, bundle.signed_by, before, now or datetime.now(UTC))),
    )
    _check_space(made)
    return made


def install(made: Plan, *, told: Tell = lambda _: None, now: datetime | None = None) -> Installed:
    """Do what was planned.

    Args:
        told: called with the number of bytes of each slice that was read.

    Raises:
        VerificationError: a member is not what the manifest lists, or a snapshot is none that would be loaded.
        ConfigError: a disk is full, or may not be written.
        NotReady: another installs into the directory, or has since this was planned.
    """
    when = now or datetime.now(UTC)
    bundle, store = made.bundle, Store(made.store_root)
    with made.site.staging() as staged, store.intake(f"bundle sha256:{bundle.manifest_sha256}") as intake:
        # Under the directory's lock: what was compared with the bundle must be what it replaces.
        if made.site.standing() != made.before:
            raise NotReady(
                f"another bundle was installed into {made.site.directory} meanwhile",
                field="to",
                remedy="look at it, and install again",
            )
        for entry in made.others:
            write_member(staged, entry.path, _counted(bundle.read(entry), told))
        _receive(made, intake, told)
        snapshots = [intake.commit(each.manifest, _record(made, each, when)) for each in made.inventory.snapshots]
        pin = _pin(store, made, snapshots, made.before, made.site.replaced())
        assert bundle.signature_bytes is not None
        write_signed(staged, bundle.manifest_bytes, bundle.signature_bytes, _receipt(made, when))
        previous = made.site.publish(staged)
        with suppress(ConfigError, NotFound):  # it is installed: a pin that keeps too much does not undo that
            _pin(store, made, snapshots, made.before)
    directory = made.site.directory
    return Installed(
        directory=directory,
        store_root=store.root,
        snapshots=tuple(store.find(f"sha256:{each.snapshot_sha256}") for each in snapshots),
        pin=pin if snapshots else None,
        previous=previous,
        lock=directory / LOCK if made.inventory.lock else None,
        wheels=directory / "wheels" if bundle.manifest.of_kind("wheel") else None,
    )


def _pin(store: Store, made: Plan, snapshots: Iterable[Stored], *kept: Receipt | None) -> str:
    """Keep these and those of other installations by the one pin of the directory; the pin's name."""
    name = f"site-{hashlib.sha256(os.fsencode(made.site.directory)).hexdigest()[:12]}"
    found = {each.snapshot_sha256: each for each in snapshots}
    for sha256 in (sha256 for receipt in kept if receipt for sha256 in receipt.snapshots):
        with suppress(NotFound):  # in another store, or somebody let it be collected
            found.setdefault(sha256, store.find(f"sha256:{sha256}"))
    if found:
        store.pin(name, tuple(found.values()), f"installed into {made.site.directory}, or there before it")
    else:
        with suppress(NotFound):
            store.unpin(name)
    return name


def _receive(made: Plan, intake: Intake, told: Tell) -> None:
    """Every blob once: what the store has is not written again, but is hashed in the bundle all the same."""
    left = dict(made.inventory.blobs)
    for snapshot in made.inventory.snapshots:
        for name, file in snapshot.manifest.files.items():
            blob = left.pop(file.sha256, None)
            reading = _Reading(made.bundle, blob, told) if blob else None
            intake.receive(
                name, reading or _never, size_bytes=file.size_bytes, sha256=file.sha256, version=file.sha256
            )
            if blob is not None and reading is not None and not reading.begun:
                made.bundle.check(blob, told)


class _Reading:
    """A blob's bytes for the intake, which hashes them."""

    def __init__(self, bundle: Bundle, blob: Entry, told: Tell) -> None:
        self._bundle = bundle
        self._blob = blob
        self._told = told
        self.begun = False

    def __call__(self, offset: int) -> Iterator[bytes]:
        self.begun = True
        self._told(offset)
        return _counted(self._bundle.read_unchecked(self._blob, offset), self._told)


def _never(offset: int) -> Iterator[bytes]:
    raise AssertionError(f"a blob that was received is asked for again, from {offset}")


def _counted(slices: Iterator[bytes], told: Tell) -> Iterator[bytes]:
    for data in slices:
        told(len(data))
        yield data


def _record(made: Plan, snapshot: BundledSnapshot, when: datetime) -> Record:
    came, bundle = snapshot.record, made.bundle
    return Record(
        source="bundle",
        requested=snapshot.reference,
        revision=snapshot.manifest.revision,
        added_at=when,
        by=_user(),
        terms=came.terms,
        notes=(
            *came.notes,
            f"bundle sha256:{bundle.manifest_sha256} of {bundle.manifest.created_at:%Y-%m-%d}, signed by "
            f"{', '.join(made.signed_by.names)}",
            f"there from {came.source} {came.requested}, {came.added_at:%Y-%m-%d}",
        ),
    )


def _receipt(made: Plan, when: datetime) -> Receipt:
    manifest = made.bundle.manifest
    return Receipt(
        manifest_sha256=made.bundle.manifest_sha256,
        created_at=manifest.created_at,
        installed_at=when,
        medport=manifest.medport,
        lock_id=manifest.lock_id,
        signed_by=made.signed_by.names,
        key_sha256=made.signed_by.key_sha256,
        snapshots=tuple(each.manifest.snapshot_sha256 for each in made.inventory.snapshots),
    )


def _check_space(made: Plan) -> None:
    store, site = _existing(made.store_root), _existing(made.site.directory)
    blobs = sum(entry.size_bytes for entry in made.absent)
    others = sum(entry.size_bytes for entry in made.others)
    if os.stat(store).st_dev == os.stat(site).st_dev:
        blobs = others = blobs + others
    for place, needed, field in ((store, blobs, "store"), (site, others, "to")):
        free = disk.free_bytes(place)
        if needed + _MARGIN_BYTES > free:
            raise ConfigError(
                f"installing takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
                field=field,
                remedy="free some space (medport snapshot gc), or name a larger disk",
            )


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.exists())


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"
