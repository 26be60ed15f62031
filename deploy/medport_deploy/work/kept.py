"""What an open run was made of: the plan, specification and lock as they were approved.

    STATE/runs/PLAN_SHA256/{plan.json,medport.yaml,medport.lock}

A run that was held or stopped is gone on with, or taken back, by these, whatever was written into the files of the
specification since. They are gone once the run is.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from medport import lock as locks
from medport.errors import ConfigError, PreconditionFailed
from medport.lock import Lock
from medport_deploy import state_files
from medport_deploy.plan.file import PLAN_NAME, kept_file
from medport_deploy.spec.reading import FILE_NAME


@dataclass(frozen=True, slots=True)
class Kept:
    """Of one run."""

    plan_file: Path
    spec_bytes: bytes
    lock: Lock


def keep(directory: Path, plan_sha256: str, plan: bytes, spec_bytes: bytes, lock: Lock) -> Path:
    """Put them away, whole or not at all; gives where the plan is. Nothing is changed if they are there.

    Args:
        directory: the deployment's.

    Raises:
        ConfigError: they cannot be written.
    """
    place = kept_file(directory, plan_sha256).parent
    try:
        if not place.exists():
            state_files.make_directory(place.parent)
            made = Path(tempfile.mkdtemp(prefix=".", dir=place.parent))  # mode 0700
            files = {PLAN_NAME: plan, FILE_NAME: spec_bytes, locks.FILE_NAME: lock.text().encode()}
            for name, data in files.items():
                _written(made / name, data)
            made.rename(place)
    except OSError as fault:
        raise ConfigError(
            f"{place.parent} cannot be written ({os.strerror(fault.errno or 0)}): nothing is begun without a copy",
            field="plan",
            remedy="make room or give another place",
        ) from fault
    return place / PLAN_NAME


def load(directory: Path, plan_sha256: str) -> Kept:
    """Those of a run.

    Raises:
        PreconditionFailed: they are not there.
        ConfigError, VerificationError: the lock was changed.
    """
    place = kept_file(directory, plan_sha256).parent
    try:
        spec_bytes, lock = state_files.read(place / FILE_NAME), state_files.read(place / locks.FILE_NAME)
    except OSError as fault:
        raise PreconditionFailed(
            "what the open run was made of is not there any more",
            field="plan",
            remedy="put away what it left: medport deploy sweep",
        ) from fault
    return Kept(place / PLAN_NAME, spec_bytes, locks.parse(lock))


def has(directory: Path, plan_sha256: str) -> bool:
    """Whether those of a run are there."""
    return kept_file(directory, plan_sha256).exists()


def forget(directory: Path, but: Collection[str]) -> None:
    """Remove those of all runs but these, by the sha256 of their plans."""
    for place in (directory / "runs").glob("*"):
        if place.name not in but:
            shutil.rmtree(place, ignore_errors=True)


def _written(file: Path, data: bytes) -> None:
    with open(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())
