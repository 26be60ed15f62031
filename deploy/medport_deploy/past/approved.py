"""The specification and the lock of each deployment that was verified, kept to go back to.

``.medport/deploy/NAME/approved/LOCK_ID/`` holds both, as they were at that moment, whatever becomes of the user's
files. One lock may be verified under several specifications, as machines and replicas are not in it: the last one
counts.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from medport import lock as locks
from medport.errors import ConfigError, NotFound, VerificationError
from medport.lock import Lock
from medport_deploy import state_files, whole_file
from medport_deploy.spec import reading as specs

DIRECTORY = "approved"


def keep(directory: Path, spec_bytes: bytes, lock: Lock) -> Path:
    """Keep a pair, whole or not at all; on the disk when this returns. The same twice is fine.

    Args:
        directory: of the deployment, as ``apply.directory_of`` gives it.

    Returns:
        Where it is.

    Raises:
        VerificationError: another lock lies there under this one's id, so somebody changed it.
        ConfigError: it cannot be written.
    """
    place = directory / DIRECTORY / lock.lock_id
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if place.is_dir():
            _same_lock(place, lock)
            _write(place, specs.FILE_NAME, spec_bytes)
            return place
        made = Path(tempfile.mkdtemp(prefix=".new-", dir=place.parent))  # mode 0700
        try:
            _write(made, specs.FILE_NAME, spec_bytes)
            _write(made, locks.FILE_NAME, lock.text().encode())
            made.rename(place)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        _sync(place.parent)
    except OSError as fault:
        raise ConfigError(
            f"the approved pair cannot be kept ({os.strerror(fault.errno or 0)})",
            field="approved",
            remedy="make room or give another place",
        ) from fault
    return place


def load(directory: Path, lock_id: str, *, spec_sha256: str = "") -> tuple[bytes, Lock]:
    """A pair that was kept: the bytes of the specification's file, and the lock.

    Args:
        spec_sha256: of the file, as the history's entry has it; empty: only what the lock says of it is compared.

    Raises:
        NotFound: there is none of this lock.
        VerificationError: it was changed since.
        ConfigError: it cannot be read.
    """
    place = directory / DIRECTORY / lock_id
    if not place.is_dir():
        raise NotFound(
            f"lock {lock_id[:12]} was never verified here",
            field="to",
            remedy="medport deploy history shows which were",
        )
    try:
        data = state_files.read(place / specs.FILE_NAME)
        lock = locks.parse(state_files.read(place / locks.FILE_NAME))
    except OSError as fault:
        raise ConfigError(
            f"the approved pair cannot be read ({os.strerror(fault.errno or 0)})", field="approved"
        ) from fault
    told = ((lock.model_extra or {}).get("deploy") or {}).get("spec_sha256")
    other = bool(spec_sha256) and hashlib.sha256(data).hexdigest() != spec_sha256
    if other or lock.lock_id != lock_id or told != specs.parse(data).content_sha256():
        raise _changed(lock_id)
    return data, lock


def _same_lock(place: Path, lock: Lock) -> None:
    if locks.parse(state_files.read(place / locks.FILE_NAME)).lock_id != lock.lock_id:
        raise _changed(lock.lock_id)


def _changed(lock_id: str) -> VerificationError:
    return VerificationError(
        f"what was kept of lock {lock_id[:12]} was changed since it was approved",
        field="approved",
        remedy="deploy from your own copy of medport.yaml and medport.lock",
    )


def _write(place: Path, name: str, data: bytes) -> None:
    whole_file.write(place / name, data)
    _sync(place)


def _sync(place: Path) -> None:
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
