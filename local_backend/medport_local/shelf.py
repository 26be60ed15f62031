"""The snapshots that a server may deploy: its store's, the phantoms, and directories that its operator named.

Torch is not needed to know what there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

from medport.errors import ConfigError, PreconditionFailed
from medport_local import phantom
from medport_local.snapshot import MANIFEST, Family, Manifest, Snapshot, open_snapshot
from medport_local.store import Store, Stored, default_root

_PHANTOMS: tuple[Family, ...] = ("medgemma", "medsiglip")


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A snapshot by what its manifest says; nothing of it was verified."""

    model_id: str
    revision: str | None
    snapshot_sha256: str
    family: Family
    directory: Path
    stored: Stored | None = None
    """Where it is the store's."""


class Shelf:
    """What there is to deploy.

    Args:
        store: the store's directory; its own default if ``None``, and then there need not be one.
        model_dirs: directories below which a Model version's ``artifactUri`` may lie.

    Raises:
        ConfigError: the store that is named cannot be used, or a directory is none.
    """

    def __init__(self, store: Path | None = None, model_dirs: Sequence[Path] = ()) -> None:
        self._store = _opened(store)
        for each in model_dirs:
            if not each.is_dir():
                raise ConfigError(f"there is no directory {each}", field="model-dir", remedy="give one that is")
        self._roots = tuple(each.resolve() for each in model_dirs)

    def known(self) -> list[Known]:
        """The phantoms and what is in the store at this moment, each snapshot once."""
        stored = [] if self._store is None else self._store.list()
        found = [
            Known(
                model_id=each.model_id,
                revision=each.revision,
                snapshot_sha256=each.snapshot_sha256,
                family=each.family,
                directory=each.directory,
                stored=each,
            )
            for each in stored
        ]
        return list({each.snapshot_sha256: each for each in (*self._phantoms, *found)}.values())

    def in_directory(self, uri: str) -> Known:
        """The model in a local directory, by its path or ``file://`` URL. Hashes all of it where no manifest is.

        Raises:
            PreconditionFailed: it is not below a directory that the operator named.
            VerificationError: it is no model that this server loads.
        """
        path = Path(unquote(urlsplit(uri).path) if uri.startswith("file://") else uri)
        resolved = _resolved(path)
        # One answer for what is forbidden and for what is not there: a caller must not learn what is on the disk.
        if resolved is None or not any(resolved.is_relative_to(root) for root in self._roots):
            raise PreconditionFailed(
                "is no model directory that this server may deploy",
                field="artifactUri",
                remedy="start it with --model-dir DIR, and give a directory below it; or use its store",
            )
        snapshot = open_snapshot(resolved, defer_weights=True)
        return Known(
            model_id=snapshot.model_id,
            revision=snapshot.revision,
            snapshot_sha256=snapshot.snapshot_sha256,
            family=snapshot.family,
            directory=resolved,
        )

    def hold(self, sha256: str, held: ExitStack) -> None:
        """Keep a snapshot of the store from being collected until ``held`` is closed.

        Raises:
            NotFound: it has been collected just now. One that is not there at all, or no store's, is passed over.
        """
        for each in self.known():
            if each.snapshot_sha256 == sha256 and each.stored is not None and self._store is not None:
                held.enter_context(self._store.hold(each.stored))

    def open(self, known: Known, held: ExitStack) -> Snapshot:
        """Verify all but the weights, which are hashed as they are loaded. Held until ``held`` is closed.

        Raises:
            VerificationError, NotFound: as ``open_snapshot`` and ``Store.open``.
        """
        if known.stored is None or self._store is None:
            return open_snapshot(known.directory, defer_weights=True)
        held.enter_context(self._store.hold(known.stored))
        return self._store.open(known.stored, defer_weights=True)

    @cached_property
    def _phantoms(self) -> tuple[Known, ...]:
        found = []
        for family in _PHANTOMS:
            directory = phantom.weights_dir(family)
            manifest = Manifest.model_validate_json((directory / MANIFEST).read_bytes())
            found.append(
                Known(
                    model_id=manifest.repo_id,
                    revision=manifest.revision,
                    snapshot_sha256=manifest.snapshot_sha256,
                    family=manifest.family,
                    directory=directory,
                )
            )
        return tuple(found)


def _opened(root: Path | None) -> Store | None:
    if root is None and not default_root().exists():
        return None
    return Store(root, create=False)


def _resolved(path: Path) -> Path | None:
    """Without links; ``None`` if it is no directory, or no path at all."""
    try:
        resolved = path.resolve()
        return resolved if resolved.is_dir() else None
    except (OSError, ValueError):  # too long, a NUL, links in a ring
        return None
