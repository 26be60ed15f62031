"""What must be on this machine before anything is deployed: place for the state, terraform where it is used."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from medport.cli.checks import Skipped
from medport.errors import ConfigError, VerificationError
from medport_deploy.lock.terraform import LOCK_FILE, provider_lock
from medport_deploy.spec.reading import Spec
from medport_deploy.terraform import binary as terraform_binary

TERRAFORM_VARIABLE = "MEDPORT_TERRAFORM"
"""Path of the terraform to use; the one on PATH without it."""
LEAST_FREE_BYTES = 100 * 2**20
"""A journal and a plan are some kilobytes; a full disk in the middle of a run is what this is to prevent."""


def state(directory: Path) -> str:
    """Whether the state of a deployment can be written, and is read by nobody else. Nothing is made.

    Raises:
        ConfigError: it cannot, others can read it, or the disk is nearly full.
    """
    there = next(each for each in (directory, *directory.absolute().parents) if each.exists())
    if not there.is_dir():
        raise ConfigError(f"{there.name} is no directory", field="state", remedy="move it away")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{there.name or there} cannot be written", field="state", remedy="run as whom it belongs to"
        )
    if there == directory and (mode := stat.S_IMODE(there.stat().st_mode)) & 0o077:
        raise ConfigError(
            f"{there.name} is open to others (mode {mode:04o})", field="state", remedy=f"chmod 700 {directory}"
        )
    free = shutil.disk_usage(there).free
    if free < LEAST_FREE_BYTES:
        raise ConfigError(
            f"only {free // 2**20} MiB are free for journals and plans", field="state", remedy="make room"
        )
    return f"{'is there' if there == directory else 'can be made'}, {free / 2**30:.1f} GiB free"


def terraform(spec: Spec, directory: Path) -> str:
    """Which terraform makes what stands below the models.

    Args:
        directory: of the specification.

    Raises:
        Skipped: the specification names no root.
        ConfigError: there is no such root, no terraform, or one that is too old.
        VerificationError: the root's providers are not pinned, and the target is in the cloud.
    """
    if spec.terraform.root is None:
        raise Skipped("no terraform.root: medport makes the endpoints itself")
    binary = terraform_binary.find(os.environ.get(TERRAFORM_VARIABLE))
    version = ".".join(map(str, terraform_binary.version(binary)))
    root = directory / spec.terraform.root
    if not root.is_dir():
        raise ConfigError(
            f"there is no directory {spec.terraform.root}",
            field="terraform.root",
            remedy="name the root's directory",
        )
    if provider_lock(root) is not None:
        return f"{version}, {LOCK_FILE} is there"
    if spec.target.kind == "vertex":
        raise VerificationError(
            f"has no {LOCK_FILE}: any provider could come",
            field="terraform.root",
            remedy="terraform providers lock -platform=linux_amd64, commit the file, then: medport deploy lock",
        )
    return f"{version}, without {LOCK_FILE}, which a local target does without"
