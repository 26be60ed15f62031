"""Which paths may stand in a bundle: those that name one and the same file on every system.

Source: POSIX.1-2017 3.170 (pathnames); Microsoft, "Naming Files, Paths, and Namespaces" (reserved names, streams);
Unicode UAX #15 (normalisation).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise

MAX_PART_BYTES = 255
"""Of one name, in UTF-8: what ext4, XFS, NTFS and APFS hold at least."""
MAX_PATH_BYTES = 1024
MAX_PARTS = 32
"""Folders, and the file in them: more than any member needs."""

_FIRST = "\0"
"""Below all that may stand in a path."""
_SYSTEM_CHARACTERS = frozenset('<>"|?*')
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


def fault_of(path: str) -> str | None:
    """Why a path may not stand in a bundle; ``None`` if it may.

    Returns:
        The end of a sentence that begins with the path, such as ``climbs out by ..``.
    """
    if not path:
        return "is empty"
    # Also marks that turn the direction of writing, lone surrogates, and blanks that look like others.
    if not path.isprintable():
        return "holds a control character, or one that cannot be seen"
    if len(path.encode()) > MAX_PATH_BYTES:
        return f"is longer than {MAX_PATH_BYTES} bytes"
    if path.count("/") >= MAX_PARTS:
        return f"lies deeper than {MAX_PARTS} folders"
    if path.startswith("/"):
        return "is absolute"
    if "\\" in path:
        return "holds a backslash"
    if ":" in path:
        return "holds a colon, which names a drive or a stream"
    if unicodedata.normalize("NFC", path) != path:
        return "is not in Unicode's composed form (NFC)"
    return next((fault for part in path.split("/") if (fault := _part_fault(part))), None)


def twins(paths: Iterable[str]) -> tuple[str, str] | None:
    """Two paths that some system takes for one, or of which one would have to be a file and a folder at once.

    Case and compatible spellings of a character are folded, for folders as for files. Takes memory in proportion
    to the length of all paths, however deep they are.

    Returns:
        The two as far as they are one, such as the two spellings of a folder.
    """
    # With the separator before every other character, what lies in a folder stands together, the folder first.
    ordered = sorted((_fold(path).replace("/", _FIRST), path) for path in paths)
    for (folded, path), (next_folded, next_path) in pairwise(ordered):
        one, other = path.split("/"), next_path.split("/")
        shared = _shared(folded.split(_FIRST), next_folded.split(_FIRST))
        if one[:shared] != other[:shared]:
            return "/".join(one[:shared]), "/".join(other[:shared])
        if shared == len(one):
            return path, next_path
    return None


def shown(path: str) -> str:
    """A path for a message: nothing in it can move a terminal's cursor, and it is not endless."""
    return path if path.isprintable() and len(path) <= 120 else f"{ascii(path)[:120]}"


def _part_fault(part: str) -> str | None:
    if not part:
        return "has an empty part"
    if part in {".", ".."}:
        return "climbs out by .." if part == ".." else "has the part ."
    if len(part.encode()) > MAX_PART_BYTES:
        return f"has a name longer than {MAX_PART_BYTES} bytes"
    if part != part.strip() or part.endswith("."):
        return "has a name that begins or ends with a blank, or ends with a dot"
    if "/" in unicodedata.normalize("NFKC", part):
        return "holds a character that is spelled with a / as well"
    if _SYSTEM_CHARACTERS.intersection(part):
        return 'holds one of < > " | ? *'
    if _DEVICES.fullmatch(part):
        return "names a device of Windows"
    return None


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts two paths have in common at their beginning."""
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _fold(path: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", path).casefold())
