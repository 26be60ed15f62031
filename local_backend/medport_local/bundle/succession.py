"""How a bundle stands to the one that is installed: what is refused, and what is only said."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from medport.errors import ConfigError
from medport_local.bundle.archive import Bundle
from medport_local.bundle.signing import SignedBy
from medport_local.bundle.site import Receipt

_CLOCK_ALLOWANCE_S = 300


def require(bundle: Bundle, signed_by: SignedBy, before: Receipt, *, older: bool, other_signer: bool) -> None:
    """Refuse what would take the site back to what it has left, or hand it to somebody else, unless told.

    Raises:
        ConfigError: the bundle was made before the installed one and not ``older``, or is by another signer and
            not ``other_signer``. The field is the option that allows it.
    """
    made_at = bundle.manifest.created_at
    if made_at < before.created_at and not older:
        raise ConfigError(
            f"the bundle is OLDER than what is installed: {_times(made_at, before.created_at)}",
            field="older",
            remedy="get the newest one; --older installs it all the same",
        )
    # Under an authority a signer renews his certificate, and with it his key, and keeps his name.
    if signed_by.names != before.signed_by and not other_signer:
        raise ConfigError(
            f"the bundle is signed by {_names(signed_by.names)}, and what is installed by "
            f"{_names(before.signed_by)}",
            field="other-signer",
            remedy="ask both; --other-signer installs it all the same",
        )


def notes(bundle: Bundle, signed_by: SignedBy, before: Receipt | None, now: datetime) -> Iterator[str]:
    """What a person should know before, each without a full stop."""
    manifest = bundle.manifest
    if (manifest.created_at - now).total_seconds() > _CLOCK_ALLOWANCE_S:
        yield f"by this machine's clock the bundle was made in the future, {manifest.created_at:%Y-%m-%d %H:%M}Z"
    if before is None:
        return
    if before.manifest_sha256 == bundle.manifest_sha256:
        yield f"this bundle is installed already, since {before.installed_at:%Y-%m-%d}; it is installed anew"
        return
    if manifest.created_at < before.created_at:
        yield f"OLDER than what is installed: {_times(manifest.created_at, before.created_at)}"
    if manifest.lock_id != before.lock_id:
        yield f"another lock than what is installed: {_id(manifest.lock_id)}, the other {_id(before.lock_id)}"
    if signed_by.key_sha256 != before.key_sha256:
        yield f"signed by another key than what is installed, which was by {', '.join(before.signed_by)}"


def _names(names: tuple[str, ...]) -> str:
    return f"{', '.join(names)!a:.200}"


def _times(made_at: datetime, before: datetime) -> str:
    return f"made on {made_at:%Y-%m-%d %H:%M:%S}Z, the other on {before:%Y-%m-%d %H:%M:%S}Z"


def _id(lock_id: str | None) -> str:
    return lock_id[:12] if lock_id else "none"
