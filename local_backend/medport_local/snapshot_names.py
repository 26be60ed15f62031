"""Names of files as they come from outside, in a manifest, an archive or a listing, before they become paths.

A name that passes means the same file on every system: no way out of the directory, nothing that a terminal or
another file system reads otherwise, and no two names that some file system takes for one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

from medport_local.snapshot_file import refuse

__all__ = ["check_name", "check_names", "check_twins", "is_allowed"]

_MAX_NAME = 512
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
# Names that are devices on Windows, with any suffix.
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")
_ALLOWED = re.compile(r".*\.(safetensors|json|jinja|model|txt|md)|(.*/)?(LICENSE|NOTICE)[A-Za-z0-9._-]*")
_REMEDY = "use a snapshot with plain names"


def check_name(name: str) -> None:
    """Let through a relative path of ASCII letters, digits, ``.``, ``_`` and ``-``, parted by ``/``.

    Raises:
        VerificationError: it is absolute, has ``..``, a backslash, a colon, a control character or anything else
            that is not on the list, is a device's name, begins or ends a part with a dot, or is too long.
    """
    if not name or len(name) > _MAX_NAME:
        refuse(_shown(name), f"is not a name of 1 to {_MAX_NAME} characters", _REMEDY)
    for part in name.split("/"):
        if not _PART.fullmatch(part) or part.endswith(".") or _DEVICES.fullmatch(part):
            refuse(_shown(name), "is not a plain relative path", _REMEDY)


def check_names(names: Collection[str]) -> None:
    """Let through names that are plain, each by itself and all together.

    Raises:
        VerificationError: as ``check_name``; or two differ only in case or in Unicode form, or one is a folder of
            another.
    """
    for name in names:
        check_name(name)
    check_twins(names)


def check_twins(names: Collection[str]) -> None:
    """Let through names no two of which are one to some file system. Raises as ``check_names``."""
    seen: dict[str, str] = {}
    for name in names:
        folded = unicodedata.normalize("NFKC", name).casefold()
        if (twin := seen.setdefault(folded, name)) != name:
            refuse(_shown(name), f"differs from {_shown(twin)} only in case or Unicode form", _REMEDY)
    for folded, name in seen.items():
        parent = folded
        while "/" in parent:
            parent = parent.rpartition("/")[0]
            if parent in seen:
                refuse(_shown(name), f"lies in {_shown(seen[parent])}, which is a file", _REMEDY)


def is_allowed(name: str) -> bool:
    """Whether a file of this name may be part of a stored snapshot: weights, settings, tokenizers, licences."""
    return _ALLOWED.fullmatch(name) is not None


def _shown(name: str) -> str:
    """The name so that it can neither move a terminal's cursor nor fill a log."""
    return ascii(name[:100])[1:-1]
