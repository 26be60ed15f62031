"""Find out what a specification means, and write that down as its lock."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from medport import lock as locks
from medport.lock import Lock
from medport_deploy.lock import file as lock_file
from medport_deploy.lock import registry_auth, resolving, terms
from medport_deploy.lock.mirror import Mirror
from medport_deploy.work.opening import Deployment


@dataclass(frozen=True, slots=True)
class Locked:
    """What came of it."""

    lock: Lock
    changes: tuple[str, ...]
    """What it says otherwise than the lock that was there."""
    written: bool
    discarded: str = ""
    """What was wrong with the lock that was there, if it does not count."""


def lock(
    deployment: Deployment,
    *,
    mirror: Path | None = None,
    offline: bool = False,
    accept: Collection[str] = (),
    accepted_by: str | None = None,
) -> Locked:
    """Find out what the specification means now, and write it down if that is not what the lock says.

    Args:
        mirror: a store, directory or lock on this machine where models are looked up; the hub if none.
        offline: ask no registry and no hub.
        accept: ids of terms that changed since they were accepted, and are accepted as they are now.
        accepted_by: who accepts terms; this user if nobody is named.

    A lock that is there and is none any more does not count: terms are then accepted anew.

    Raises: as ``lock.resolving.resolve``, and ``ConfigError`` if the file cannot be read or written, or another
        medport wrote it.
    """
    before, discarded = lock_file.replaced(deployment.lock_file)
    after = resolving.resolve(
        deployment.spec,
        previous=before,
        models=Mirror(mirror) if mirror else None,
        credentials=registry_auth.from_environment(),
        offline=offline,
        accepted_by=terms.this_user() if accepted_by is None else accepted_by,
        again=accept,
        directory=deployment.root,
    )
    written = bool(discarded) or before is None or before.lock_id != after.lock_id
    if written:
        locks.write(deployment.lock_file, after)
    return Locked(after, tuple(resolving.changes(before, after)), written, discarded)
