"""What goes into a bundle: gathered, checked, and listed with the hash that each part must have when it is copied.

Needs the extra ``bundle``, for the bill of materials.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from medport import _extras
from medport import lock as locks
from medport.errors import ConfigError, NotFound, VerificationError
from medport.lock import Lock, LockedModel
from medport_local.bundle import collect, images, providers
from medport_local.bundle import wheels as wheel_files
from medport_local.bundle.archive import Item
from medport_local.bundle.manifest import LOCK
from medport_local.bundle.providers import Archive
from medport_local.bundle.wheels import Wheel
from medport_local.locked import check_locked
from medport_local.snapshot_file import entry_of
from medport_local.store import Record, Store, Stored

SBOM = "sbom/medport.cdx.json"
AUTO: Literal["auto"] = "auto"
DIRECTORY = "directory"
"""The source whose records hold a path of this machine."""
_SOMEBODY = "unknown"
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What was asked for."""

    snapshots: Sequence[str] = ()
    """References, as ``Store.find`` takes them."""
    lock: Path | None = None
    """Its snapshots go in as well; images must be those that it names."""
    wheels: Path | Literal["auto"] | None = None
    """A directory; or ``auto``, what this environment runs (``collect``)."""
    images: Mapping[str, Path] = field(default_factory=dict)
    """OCI layouts by name."""
    providers: Path | None = None
    """A mirror, as ``terraform providers mirror`` writes it."""
    documents: Sequence[Path] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What was found, ready to be written."""

    items: tuple[Item, ...]
    lock_id: str | None


@contextmanager
def gather(
    store: Store | None,
    selection: Selection,
    *,
    created_at: datetime,
    medport_version: str,
    told: Tell = lambda _: None,
    workspace: Path | None = None,
) -> Iterator[Contents]:
    """Check all that was asked for; write the bundle inside the block.

    Snapshots are held against collection and fetched wheels are kept until the block ends. Weights are not hashed
    here: their items say what they must hold, and writing refuses others.

    Args:
        store: where the snapshots are; ``None`` if none are asked for.
        created_at: for the bill of materials; the same as the bundle's.
        told: is called with lines for people.
        workspace: where fetched wheels are put for the time being; the system's temporary directory if ``None``.

    Raises:
        ConfigError: nothing was asked for, something that was asked for is not there, or the extra is missing.
        NotFound: the store has no such snapshot. Names what brings it.
        VerificationError: something is not what it must be: a snapshot, a wheel, an image, a provider; or the lock
            names another image, or a snapshot's bytes under another model or commit.
    """
    _extras.load("cyclonedx", extra="bundle")
    from medport_local.bundle import sbom

    lock = locks.read(selection.lock) if selection.lock is not None else None
    with ExitStack() as stack:
        stored = _chosen(store, selection.snapshots, lock)
        items: list[Item] = []
        for each in stored:
            assert store is not None
            stack.enter_context(store.hold(each))
            items += _snapshot_items(store, each)
            told(
                f"snapshot {each.reference} sha256:{each.snapshot_sha256[:12]}…, {len(each.manifest.files)} files"
            )
        wheels = [(each, _sha256(each.path)) for each in _wheels(selection.wheels, stack, told, workspace)]
        items += [Item(f"wheels/{wheel.path.name}", "wheel", wheel.path, sha256) for wheel, sha256 in wheels]
        digests: dict[str, str] = {}
        for name, directory in selection.images.items():
            digests[name], found = _image_items(name, directory, lock)
            items += found
            told(f"image {name} {digests[name]}")
        _tell_absent(lock, digests, told)
        archives: tuple[Archive, ...] = ()
        if selection.providers is not None:
            archives, found = _provider_items(selection.providers)
            items += found
            told(f"{len(archives)} provider archives")
        items += [Item(f"documents/{path.name}", "document", path) for path in selection.documents]
        if not items:
            raise ConfigError(
                "there is nothing to put into the bundle", remedy="give --snapshot, --lock or --wheels"
            )
        if lock is not None:
            items.append(Item(LOCK, "lock", lock.text().encode()))
        bill = sbom.Materials(
            medport_version=medport_version,
            created_at=created_at,
            wheels=wheels,
            models=[sbom.Model(**_described(each)) for each in stored],
            images=digests,
            archives=archives,
        )
        items.append(Item(SBOM, "sbom", sbom.bill_of(bill)))
        yield Contents(items=_once(items), lock_id=lock.lock_id if lock is not None else None)


def _chosen(store: Store | None, references: Sequence[str], lock: Lock | None) -> list[Stored]:
    """Each snapshot once: those of the lock, then those that were named."""
    models = list(lock.models.values()) if lock is not None else []
    if store is None:
        if models or references:
            raise ConfigError("snapshots come from a store", field="store", remedy="give --store DIR")
        return []
    found = [_locked(store, model) for model in models]
    found += [store.find(reference) for reference in references]
    return list({each.snapshot_sha256: each for each in found}.values())


def _locked(store: Store, model: LockedModel) -> Stored:
    try:
        found = store.find(f"sha256:{model.snapshot_sha256}")
    except NotFound as absent:
        raise NotFound(
            f"the store does not have {model}, which the lock names",
            field="lock",
            remedy=f"medport snapshot pull {model}"
            if model.revision
            else "add its directory: medport snapshot add",
        ) from absent
    check_locked(
        model,
        snapshot_sha256=found.snapshot_sha256,
        model_id=found.model_id,
        revision=found.revision,
        family=found.family,
    )
    return found


def _snapshot_items(store: Store, stored: Stored) -> Iterator[Item]:
    snapshot = store.open(stored, defer_weights=True)
    folder = f"snapshots/{stored.snapshot_sha256}"
    yield Item(f"{folder}/manifest.json", "snapshot", snapshot.manifest)
    record = _without_place(stored).model_dump_json(indent=1).encode() + b"\n"
    yield Item(f"{folder}/record.json", "snapshot", record)
    for name, entry in snapshot.files.items():
        yield Item(f"blobs/{entry.sha256}", "blob", stored.directory / name, entry.sha256)


def _without_place(stored: Stored) -> Record:
    """Where it came from, without this machine's user and paths: they are nobody's business at the site."""
    record = stored.record
    asked = stored.reference if record.source == DIRECTORY else record.requested
    return record.model_copy(update={"by": _SOMEBODY, "requested": asked})


def _wheels(
    chosen: Path | Literal["auto"] | None, stack: ExitStack, told: Tell, workspace: Path | None
) -> tuple[Wheel, ...]:
    if chosen is None:
        return ()
    if isinstance(chosen, Path):
        found = wheel_files.read_directory(chosen)
    else:
        fetched = tempfile.TemporaryDirectory(prefix="medport-wheels-", dir=workspace)
        found = collect.collect(Path(stack.enter_context(fetched)), told=told)
    told(f"{len(found)} wheels")
    return found


def _image_items(name: str, directory: Path, lock: Lock | None) -> tuple[str, list[Item]]:
    image = images.read_layout(directory)
    if lock is not None:
        named = lock.images.get(name)
        if named is None:
            raise ConfigError(
                f"the lock names no image {name}",
                field="image",
                remedy=f"it names {', '.join(sorted(lock.images)) or 'none'}; leave it out, or lock it",
            )
        if named.digest != image.digest:
            raise VerificationError(
                f"{name}: the layout holds {image.digest}, and the lock names {named.digest}",
                field="image",
                remedy=f"copy that one: skopeo copy docker://{named.uri}@{named.digest} oci:DIR",
            )
    parts = [
        Item(f"images/{name}/{path}", "image", directory / path, entry.sha256)
        for path, entry in image.files.items()
    ]
    return image.digest, parts


def _tell_absent(lock: Lock | None, digests: Mapping[str, str], told: Tell) -> None:
    for name in sorted(set(lock.images) - set(digests)) if lock is not None else ():
        told(f"image {name} of the lock is not in the bundle: no --image {name}=DIR was given")


def _provider_items(directory: Path) -> tuple[tuple[Archive, ...], list[Item]]:
    mirror = providers.read_mirror(directory)
    parts = [
        Item(f"providers/{path}", "provider", directory / path, entry.sha256)
        for path, entry in mirror.files.items()
    ]
    return mirror.archives, parts


def _described(stored: Stored) -> dict[str, Any]:
    """What the bill of materials says about a snapshot; see ``sbom.Model``."""
    terms = stored.record.terms
    return {
        "model_id": stored.model_id,
        "revision": stored.revision,
        "snapshot_sha256": stored.snapshot_sha256,
        "files": stored.manifest.files,
        "terms": terms.name if terms else None,
        "terms_url": terms.url if terms else None,
        "from_hub": stored.record.source == "hub",
    }


def _once(items: Sequence[Item]) -> tuple[Item, ...]:
    """Blobs that several snapshots share, once. Of other kinds, writing refuses what is there twice."""
    found: dict[str, Item] = {}
    more: list[Item] = []
    for item in items:
        if item.kind == "blob":
            found.setdefault(item.path, item)
        else:
            more.append(item)
    return (*more, *found.values())


def _sha256(path: Path) -> str:
    return entry_of(path.parent, path.name).sha256
