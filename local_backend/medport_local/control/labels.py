"""The rules of labels.

Source: cloud.google.com, "Requirements for labels"; Vertex AI documents 64 characters, Google's common rule is 63,
and what is written for one must be taken by the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from medport.errors import InputError

MOST = 64
_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_VALUE = re.compile(r"[a-z0-9_-]{0,63}")


def check(labels: Mapping[str, str], *, field: str = "labels") -> None:
    """Raise ``InputError`` naming the label that breaks a rule."""
    if len(labels) > MOST:
        raise InputError(f"there are {len(labels)} labels", field=field, remedy=f"keep at most {MOST}")
    for key, value in labels.items():
        if not _KEY.fullmatch(key):
            raise InputError(
                f"the key {key[:80]!r} is not one of a label",
                field=field,
                remedy="begin with a letter a-z, then at most 62 of a-z, 0-9, _ and -",
            )
        if not _VALUE.fullmatch(value):
            raise InputError(
                f"the value of the label {key} is not one of a label",
                field=f"{field}.{key}",
                remedy="write at most 63 of a-z, 0-9, _ and -",
            )


def is_key(key: str) -> bool:
    """Whether a label may have this key."""
    return _KEY.fullmatch(key) is not None
