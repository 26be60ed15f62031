"""Where terraform is, and whether it is one that our configurations can use."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from medport.errors import ConfigError

LEAST = (1, 11)
"""Write-only arguments, ephemeral variables and ``-junit-xml`` came with it."""


def find(given: str | None = None) -> Path:
    """The program.

    Args:
        given: a path or a name; ``terraform`` on PATH if there is none.

    Raises:
        ConfigError: it is not there.
    """
    found = shutil.which(given or "terraform")
    if found is None:
        raise ConfigError(
            f"there is no {given or 'terraform on PATH'}",
            field="terraform",
            remedy="install terraform 1.11 or later, or give its path in MEDPORT_TERRAFORM",
        )
    return Path(found)


def version(binary: Path) -> tuple[int, int, int]:
    """What ``binary`` says that it is.

    Raises:
        ConfigError: it cannot be run, or is older than ``LEAST``.
    """
    try:
        return _version(binary, binary.stat().st_mtime_ns)
    except OSError as fault:
        raise _mute(binary, fault) from fault


@cache
def _version(binary: Path, changed_ns: int) -> tuple[int, int, int]:
    # Each verb asks, and a program that was not replaced says the same.
    try:
        done = subprocess.run(  # noqa: S603  the operator's own program
            [str(binary), "version", "-json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=30,
            check=True,
            env={**os.environ, "CHECKPOINT_DISABLE": "1"},
        )
        said = str(json.loads(done.stdout)["terraform_version"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as fault:
        raise _mute(binary, fault) from fault
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", said)
    found = (int(numbers[1]), int(numbers[2]), int(numbers[3])) if numbers else (0, 0, 0)
    if found < LEAST:
        raise ConfigError(
            f"terraform {said:.40} is older than {'.'.join(map(str, LEAST))}",
            field="terraform",
            remedy="install a later one: secrets would end in the state",
        )
    return found


def _mute(binary: Path, fault: Exception) -> ConfigError:
    return ConfigError(
        f"{binary.name} does not say its version ({type(fault).__name__})",
        field="terraform",
        remedy="give the path of a terraform that runs here",
    )
