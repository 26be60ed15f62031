"""Files of a deployment's state, ``.medport/deploy/NAME/``: read without waiting, in directories for one user.

Whoever may write there may do anything with the deployment: plant a history, an approved pair, a plan.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from medport.errors import ConfigError, PolicyError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def read(file: Path, most: int = -1) -> bytes:
    """What a file holds, or its first ``most`` bytes.

    Raises:
        OSError: it cannot be read.
        ConfigError: it is no regular file, such as a pipe, in which nobody may ever write.
    """
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        require_regular(handle, file)
        with open(handle, "rb", closefd=False) as opened:
            return opened.read(most)
    finally:
        os.close(handle)


def require_regular(handle: int, file: Path) -> None:
    """Raise ``ConfigError`` if what was opened is no regular file."""
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        raise ConfigError(f"{file.name} is no regular file", field="state", remedy=f"look at it by hand: {file}")


def make_directory(directory: Path) -> None:
    """Make a directory and those above it that are missing, all for this user alone. Raises ``OSError``."""
    missing = []
    at = directory
    while not at.exists():
        missing.append(at)
        at = at.parent
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)  # parents=True would give those above it the umask's mode


def require_private(directory: Path, root: Path) -> None:
    """Refuse a directory in which others may write, or below ``root`` one above it.

    Raises:
        PolicyError: the group or everybody may write there; says how to end that.
    """
    for at in (directory, *directory.parents):
        if at == root:
            return
        try:
            mode = at.stat().st_mode
        except OSError:
            continue  # it is not there, or whoever reads it says so
        if mode & _OTHERS_WRITE:
            raise PolicyError(
                f"others may write in {at}, and with it change what is deployed",
                field="state",
                remedy=f"chmod go-w {at}; then look at what lies in it",
            )
