"""Whether the directory that a bundle was installed into still holds what was signed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from medport.errors import VerificationError
from medport_local.bundle.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SIGNATURE,
    BundleManifest,
    read_manifest,
)
from medport_local.bundle.signature import MAX_SIGNATURE_BYTES
from medport_local.bundle.signing import SignedBy, Verifier
from medport_local.bundle.site import RECEIPT, SIGNED, Receipt, Site
from medport_local.snapshot_file import entry_of, read_whole

_AGAIN = "medport bundle install, with the bundle that belongs here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """An installed bundle whose every file is the one that its manifest lists."""

    manifest: BundleManifest
    files: int
    """How many files of the directory the manifest lists; blobs and snapshots are in the store."""
    signed_by: SignedBy | None
    """``None`` if nobody is trusted here: then whoever may write the directory may have written all of it."""


def check(directory: Path, verifier: Verifier | None) -> Installation:
    """Check the signature of what was installed, and then every file by the signed manifest.

    Args:
        verifier: whom to trust; ``None`` leaves the signature unchecked.

    Raises:
        VerificationError: the signature is not by whom this machine trusts; a file is missing, another or not
            listed; or the receipt speaks of another bundle.
    """
    receipt = Site(directory).receipt()
    if receipt is None:
        _refuse(f"{RECEIPT} is missing or cannot be read")
    data, entry = read_whole(directory / SIGNED, MANIFEST, limit=MAX_MANIFEST_BYTES)
    if entry.sha256 != receipt.manifest_sha256:
        _refuse(f"{SIGNED}/{MANIFEST} is not the one that was installed")
    signed_by = None
    if verifier is not None:
        # Before the manifest is parsed, as with a bundle.
        signed_by = verifier.verify(data, read_whole(directory, SIGNATURE, limit=MAX_SIGNATURE_BYTES)[0])
    manifest = read_manifest(data)
    if signed_by is not None and manifest.signed_by != signed_by.names:
        _refuse(f"{SIGNATURE} is by another signer than the manifest says")
    if fault := _other(receipt, manifest, signed_by):
        _refuse(f"{RECEIPT} does not have the {fault} of the manifest that was signed")
    listed = [each for each in manifest.entries if each.kind not in ("blob", "snapshot")]
    for each in listed:
        if entry_of(directory, each.path).sha256 != each.sha256:
            _refuse(f"{each.path} is not what the manifest lists")
    # pip would take a wheel that somebody put beside those of the bundle.
    own = {RECEIPT, SIGNATURE, f"{SIGNED}/{MANIFEST}"}
    if more := sorted(set(_paths(directory)) - own - {each.path for each in listed}):
        _refuse(f"{more[0]} is not in the manifest", "take it out, and ask who put it there")
    return Installation(manifest=manifest, files=len(listed), signed_by=signed_by)


def _other(receipt: Receipt, manifest: BundleManifest, signed_by: SignedBy | None) -> str | None:
    """What of a receipt is not as it was signed."""
    pairs = {
        "signer": (receipt.signed_by, manifest.signed_by),
        "date": (receipt.created_at, manifest.created_at),
        "lock": (receipt.lock_id, manifest.lock_id),
        "key": (receipt.key_sha256, receipt.key_sha256 if signed_by is None else signed_by.key_sha256),
    }
    return next((name for name, (said, is_) in pairs.items() if said != is_), None)


def _paths(directory: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(directory):
        # A link to a folder is listed as a folder, and not entered.
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        yield from ((Path(folder) / name).relative_to(directory).as_posix() for name in (*files, *links))


def _refuse(fault: str, remedy: str = _AGAIN) -> NoReturn:
    raise VerificationError(fault, remedy=remedy)
