"""Terraform's values in Python: objects are dicts, collections are lists, and a value may be unknown.

They cross the wire as msgpack. A number that is no integer goes as a string, as terraform sends it: its numbers
are decimal.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgpack

from . import wire


class Unknown:
    """What is known only after apply."""

    def __repr__(self) -> str:
        return "UNKNOWN"

    def __copy__(self) -> Unknown:
        return self

    def __deepcopy__(self, memo: object) -> Unknown:
        return self


UNKNOWN: Final = Unknown()
# 0 is an unknown value, 12 one of which something is known, such as that it is not null.
_UNKNOWN_CODES = (0, 12)


def decode(value: Any) -> Any:
    """Of a ``DynamicValue``."""
    if value.json:
        return json.loads(value.json)
    if not value.msgpack:
        return None
    return msgpack.unpackb(value.msgpack, ext_hook=_extension, strict_map_key=False)


def encode(value: Any) -> Any:
    """As a ``DynamicValue``."""
    return wire.message("DynamicValue", msgpack=msgpack.packb(_packable(value)))


def is_empty(value: Any) -> bool:
    """Whether providers of this kind cannot tell it from not set."""
    return value is None or (value is not UNKNOWN and value in ("", 0, False, [], {}))


def same(one: Any, other: Any) -> bool:
    return (
        (one is other)
        or (one is not UNKNOWN and other is not UNKNOWN and one == other)
        or (is_empty(one) and is_empty(other))
    )


def holds_unknown(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(holds_unknown, value.values()))
    if isinstance(value, list):
        return any(map(holds_unknown, value))
    return value is UNKNOWN


def number(value: Any) -> Any:
    """A number from the text that it crossed the wire as."""
    if not isinstance(value, str):
        return value
    return float(value) if any(letter in value for letter in ".eE") else int(value)


def camel(name: str) -> str:
    """Google's spelling of a name: ``display_name`` is ``displayName`` there."""
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def _extension(code: int, data: bytes) -> Any:
    if code not in _UNKNOWN_CODES:
        raise ValueError(f"a value with the extension {code}")
    return UNKNOWN


def _packable(value: Any) -> Any:
    if value is UNKNOWN:
        return msgpack.ExtType(_UNKNOWN_CODES[0], b"\0")
    if isinstance(value, float):
        return int(value) if value.is_integer() else repr(value)
    if isinstance(value, dict):
        return {key: _packable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_packable(inner) for inner in value]
    return value
