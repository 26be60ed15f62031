"""One snapshot of a bundle as a source to pull from: ``bundle:FILE#REFERENCE``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from medport.errors import ConfigError, NotFound
from medport_local.bundle.archive import Bundle
from medport_local.bundle.inventory import BundledSnapshot, Inventory, read_inventory
from medport_local.bundle.signing import Verifier
from medport_local.bundle.trust import AUTHORITY, KEY, trusted
from medport_local.sources import Offer, Offered

_DIGITS = 7


class BundleSource:
    """A snapshot in a signed bundle. Satisfies ``sources.Source``.

    Args:
        file: the bundle.
        reference: ``MODEL_ID@COMMIT`` or its first 7 digits, ``MODEL_ID``, or ``sha256:…``; ``None`` for the only
            one there.
        verifier: whom to trust.

    Raises:
        ConfigError: the bundle cannot be read, or it is not clear which snapshot is meant.
        NotFound: the bundle has no such snapshot.
        VerificationError: the bundle is not what it should be.
    """

    def __init__(self, file: Path, reference: str | None, verifier: Verifier) -> None:
        self._bundle = Bundle.open(file, verifier)
        try:
            self._inventory: Inventory = read_inventory(self._bundle)
            self._chosen = choose(self._inventory.snapshots, reference)
        except BaseException:
            self._bundle.close()
            raise

    @property
    def reference(self) -> str | None:
        """``sha256:…`` of the snapshot: a bundle's content does not move."""
        return f"sha256:{self._chosen.manifest.snapshot_sha256}"

    def offer(self) -> Offer:
        """What the snapshot holds; nothing more of the bundle is read for it."""
        manifest, signed = self._chosen.manifest, self._bundle.signed_by
        assert signed is not None
        return Offer(
            identity=f"bundle snapshot sha256:{manifest.snapshot_sha256}",
            source="bundle",
            model_id=manifest.repo_id,
            requested=self._chosen.reference,
            revision=manifest.revision,
            said=(
                f"the bundle of {self._bundle.manifest.created_at:%Y-%m-%d} "
                f"is signed by {', '.join(signed.names)}",
            ),
            terms=self._chosen.record.terms,
            files={
                name: Offered(name=name, size_bytes=file.size_bytes, sha256=file.sha256, version=file.sha256)
                for name, file in manifest.files.items()
            },
            manifest=manifest,
        )

    def read(self, name: str, offset: int) -> Iterator[bytes]:
        """The bytes of a file of the snapshot from ``offset`` on. Who takes them hashes them.

        Raises:
            VerificationError: the bundle became shorter.
        """
        blob = self._inventory.blobs[self._chosen.manifest.files[name].sha256]
        return self._bundle.read_unchecked(blob, offset)

    def close(self) -> None:
        """Close the bundle."""
        self._bundle.close()


def open_source(file: Path, reference: str | None) -> BundleSource:
    """The source for ``sources.source_for``, by what this machine trusts (``trust``). Raises as ``BundleSource``.

    Raises:
        ConfigError: this machine trusts nobody.
    """
    verifier = trusted()
    if verifier is None:
        raise ConfigError(
            "it is not known who may sign bundles", field="key", remedy=f"name a public key: {KEY} or {AUTHORITY}"
        )
    return BundleSource(file, reference, verifier)


def choose(snapshots: Sequence[BundledSnapshot], reference: str | None) -> BundledSnapshot:
    """The one that a reference means. Raises as ``BundleSource``."""
    there = ", ".join(each.reference for each in snapshots) or "none"
    found = [each for each in snapshots if reference is None or _means(each, reference)]
    if not found:
        raise NotFound(
            "the bundle has no such snapshot", field="snapshot", remedy=f"behind the # write one of: {there}"
        )
    if len(found) > 1:
        raise ConfigError(
            "it is not clear which snapshot is meant",
            field="snapshot",
            remedy=f"behind the # write one of: {there}",
        )
    return found[0]


def _means(snapshot: BundledSnapshot, reference: str) -> bool:
    manifest = snapshot.manifest
    if reference.startswith("sha256:"):
        digits = reference.removeprefix("sha256:")
        return len(digits) >= _DIGITS and manifest.snapshot_sha256.startswith(digits)
    model_id, at, revision = reference.partition("@")
    if model_id != manifest.repo_id:
        return False
    return not at or (len(revision) >= _DIGITS and (manifest.revision or "").startswith(revision))
