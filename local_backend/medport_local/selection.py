"""Which snapshots are served: what was asked for (directories, references into a store, a lock) → what is loaded.

Nothing is fetched here, whatever is missing: a server starts the same with and without a network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from medport import lock as locks
from medport.errors import ConfigError, NotFound, VerificationError
from medport.lock import Lock, LockedModel
from medport_local import locked
from medport_local.snapshot import INT8_SUFFIX, Snapshot, open_snapshot
from medport_local.store import Store, default_root

_REFERENCE = re.compile(
    rf"sha256:[0-9a-f]*|[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(?:{INT8_SUFFIX})?(?P<commit>@.*)?"
)
IMAGE_DIGEST = "MEDPORT_IMAGE_DIGEST"
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What was asked for."""

    snapshots: Mapping[str, str] = field(default_factory=dict)
    """By family: a directory, or what ``Store.find`` takes."""
    store: Path | None = None
    """The store's directory; its own default if ``None``."""
    lock: Path | None = None
    """A lock: what it names is served, and nothing else."""
    image_digest: str | None = None
    """Of the container image that this runs in; one of the lock's, where the lock names images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is to be loaded."""

    snapshots: Mapping[str, Path | Snapshot]
    """By family; a directory is verified when it is loaded. Empty if nothing was asked for."""
    lock_id: str | None = None


@contextmanager
def select(wanted: Wanted) -> Iterator[Selection]:
    """Find what was asked for. Until the end of the block no snapshot of the store is collected.

    Raises:
        ConfigError: there is no store, or the lock cannot be read, or names two models of a family or none that
            was asked for.
        NotFound: the store has no such snapshot. The remedy says how to bring it.
        VerificationError: a snapshot is not what its manifest or the lock says.
    """
    with ExitStack() as held:
        if wanted.lock is not None:
            yield _locked(wanted, locks.read(wanted.lock), held)
        else:
            found = {name: _found(text, wanted.store, held) for name, text in wanted.snapshots.items()}
            yield Selection(snapshots=found)


def verified(wanted: Wanted) -> Mapping[str, Snapshot]:
    """What would be served, with every byte hashed here and now. Raises as ``select`` and ``open_snapshot``."""
    with select(wanted) as selection:
        for each in selection.snapshots.values():
            if isinstance(each, Snapshot):
                each.verify()
        return {
            family: each if isinstance(each, Snapshot) else open_snapshot(each)
            for family, each in selection.snapshots.items()
        }


def image_digest_of(text: str | None) -> str | None:
    """What ``MEDPORT_IMAGE_DIGEST`` says: an image cannot know its own digest, so whoever starts it sets it.

    Returns:
        64 hex digits; ``None`` where it is not set.

    Raises:
        ConfigError: it is no digest.
    """
    if not text:
        return None
    if not (found := _DIGEST.fullmatch(text.strip())):
        raise ConfigError("is not a digest", field=IMAGE_DIGEST, remedy="give sha256: and 64 hex digits")
    return found[1]


def is_reference(text: str, store: Path | None = None) -> bool:
    """Whether a text means a snapshot of the store, and no directory.

    ``OWNER/NAME`` alone is a directory where there is one; with a commit behind it never, so that no directory
    can take a pinned snapshot's place.

    Args:
        store: the store's directory; its own default if ``None``.

    Raises:
        ConfigError: it is a directory here, and the store has a snapshot of that name too: which of them is meant
            would hang on where the server was started.
    """
    found = _REFERENCE.fullmatch(text)
    if found is None:
        return False
    if text.startswith("sha256:") or found["commit"] is not None or not Path(text).is_dir():
        return True
    if _is_stored(text, store):
        raise ConfigError(
            f"may be a directory here or a snapshot of the store: {text}",
            field="snapshot",
            remedy=f"write ./{text} for the directory, or {text}@COMMIT for the snapshot",
        )
    return False


def opened(reference: str, root: Path | None, held: ExitStack) -> Snapshot:
    """A snapshot of a store, held against its collection until ``held`` is closed. Its weights are deferred.

    Raises:
        ConfigError, NotFound, VerificationError: as ``Store``, ``Store.find`` and ``Store.open``.
    """
    store = Store(root, create=False)
    stored = store.find(reference)
    held.enter_context(store.hold(stored))
    # The weights are hashed as they are loaded.
    return store.open(stored, defer_weights=True)


def check_locked(snapshot: Snapshot, model: LockedModel) -> None:
    """Raise VerificationError if a snapshot is not the one that is locked."""
    locked.check_locked(
        model,
        snapshot_sha256=snapshot.snapshot_sha256,
        model_id=snapshot.model_id,
        revision=snapshot.revision,
        family=snapshot.family,
    )


def check_image(digest: str | None, lock: Lock) -> None:
    """Raise VerificationError if a lock names images and this runs in another, as far as that is known."""
    allowed = [image.digest.removeprefix("sha256:") for image in lock.images.values()]
    if digest is not None and allowed and digest not in allowed:
        raise VerificationError(
            f"this runs in the image sha256:{digest}, and the lock holds another",
            field=IMAGE_DIGEST,
            remedy="start the image that is locked",
        )


def from_lock(model: LockedModel, store: Path | None, held: ExitStack) -> Snapshot:
    """The locked snapshot out of the store. Raises as ``opened``; what is missing says how to bring it."""
    try:
        if not (store or default_root()).exists():
            raise NotFound(f"there is no store in {store or default_root()}")
        return opened(f"sha256:{model.snapshot_sha256}", store, held)
    except NotFound as fault:
        raise NotFound(
            f"the locked {model.model_id} is not here: {fault.message}", field="lock", remedy=_bring(model)
        ) from fault


def _is_stored(model_id: str, root: Path | None) -> bool:
    """Whether a store has a snapshot of a name, or several; not where there is no store."""
    try:
        store = Store(root, create=False)
    except ConfigError:
        return False
    try:
        store.find(model_id)
    except NotFound:
        return False
    except ConfigError:
        return True  # there are several
    return True


def _found(text: str, store: Path | None, held: ExitStack) -> Path | Snapshot:
    if not is_reference(text, store):
        return Path(text)
    try:
        return opened(text, store, held)
    except NotFound as fault:
        if ":" in text or "@" in text:
            raise
        # It may have been meant as a path.
        raise NotFound(
            f"there is no directory {text}, and {fault.message}", field="snapshot", remedy=fault.remedy
        ) from fault


def _locked(wanted: Wanted, lock: Lock, held: ExitStack) -> Selection:
    by_family: dict[str, LockedModel] = {}
    for name, model in lock.models.items():
        if model.family in by_family:
            raise ConfigError(
                f"holds two models of {model.family}, the second is {name}",
                field="lock",
                remedy="make a lock with the one that this server serves",
            )
        by_family[model.family] = model
    if not by_family:
        raise ConfigError("holds no model", field="lock", remedy="make it: medport snapshot lock REF")
    for family in wanted.snapshots:
        if family not in by_family:
            raise ConfigError(
                f"the lock holds no {family}",
                field="snapshot",
                remedy="leave it out, or lock it: medport snapshot lock",
            )
    check_image(wanted.image_digest, lock)
    found = {
        family: _as_locked(wanted.snapshots.get(family), model, wanted.store, held)
        for family, model in by_family.items()
    }
    return Selection(snapshots=found, lock_id=lock.lock_id)


def _as_locked(text: str | None, model: LockedModel, store: Path | None, held: ExitStack) -> Snapshot:
    if text is None:
        snapshot = from_lock(model, store, held)
    elif is_reference(text, store):
        snapshot = opened(text, store, held)
    else:
        snapshot = open_snapshot(text, defer_weights=True)
    check_locked(snapshot, model)
    return snapshot


def _bring(model: LockedModel) -> str:
    if model.revision is None or model.model_id.endswith(INT8_SUFFIX):
        return "medport bundle install FILE, or medport snapshot add DIR"
    return f"medport snapshot pull {model.model_id}@{model.revision}, or medport bundle install FILE"
