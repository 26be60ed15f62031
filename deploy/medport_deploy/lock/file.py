"""``medport.lock`` as it lies beside a specification: what is wrong with its content, locking again mends."""

from __future__ import annotations

from pathlib import Path

from medport import lock as locks
from medport.errors import ConfigError, VerificationError
from medport.lock import Lock
from medport_deploy.lock.pins import accepted_before

AGAIN = "make it again: medport deploy lock"


def read(path: Path) -> Lock:
    """The lock in a file.

    Raises:
        ConfigError: it cannot be read, another medport wrote it, or it is no lock, such as after a merge.
        VerificationError: a table of files is not the one that was locked.
    """
    try:
        return locks.read(path)
    except (ConfigError, VerificationError) as fault:
        if isinstance(fault.__cause__, OSError):
            fault.remedy = "make it readable, or name another: --lock FILE"
        elif "snapshot lock" in (fault.remedy or ""):
            # That command makes a lock of models alone.
            fault.remedy = AGAIN
        raise


def replaced(path: Path) -> tuple[Lock | None, str]:
    """What of a lock the next one takes over, and what is wrong with the rest, in words; ``None`` if nothing.

    Raises:
        ConfigError: it cannot be read, or another medport wrote it.
    """
    if not path.exists():
        return None, ""
    try:
        lock = read(path)
    except (ConfigError, VerificationError) as fault:
        if fault.remedy != AGAIN:
            raise
        return None, f"{path} was no lock any more: {fault.message}"
    try:
        accepted_before(lock)
    except ConfigError as fault:
        kept = lock.model_dump(mode="json", exclude_unset=True, exclude={"deploy"})
        return locks.checked({**kept, "version": lock.version}), f"{path} {fault.message}"
    return lock, ""
