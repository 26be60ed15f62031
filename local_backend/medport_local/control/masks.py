"""Field masks: which fields a change is about, which fields a caller wants to read.

Source: google.protobuf.FieldMask; google.aip.dev/134 and /161.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from pydantic.alias_generators import to_camel, to_snake

from medport.errors import InputError
from medport_local.control.forms import Form

Json = dict[str, Any]
_PATH = re.compile(r"[A-Za-z][A-Za-z0-9_]*(?:\.[A-Za-z0-9_-]+)*")


def given(query: Mapping[str, str], name: str) -> str:
    """A query parameter that may be spelled ``update_mask`` or ``updateMask``; ``""`` if it is not there."""
    return query.get(to_camel(name)) or query.get(name) or ""


def changed(mask: str, form: type[Form], mutable: Collection[str], *, elsewhere: Mapping[str, str]) -> set[str]:
    """The fields that a change is about, by their proto names.

    Args:
        mask: paths joined by commas, camelCase or snake_case; ``*`` is every field that can be changed.
        form: the resource's.
        mutable: fields that this call changes.
        elsewhere: what changes other fields, for the remedy.

    Raises:
        InputError: none is given, one is unknown, cannot be changed, or is inside another field.
    """
    paths = _paths(mask, "update_mask")
    if not paths:
        raise InputError("update_mask is required", field="update_mask", remedy=f"name {_either(mutable)}")
    if "*" in paths:
        return set(mutable)
    found = set()
    for path in paths:
        name, _, inner = path.partition(".")
        if name not in form.model_fields:
            raise InputError(
                f"Invalid field mask path: {path:.80}", field="update_mask", remedy=f"name {_either(mutable)}"
            )
        if name not in mutable:
            raise InputError(
                f"{name} cannot be changed by this call",
                field="update_mask",
                remedy=elsewhere.get(name, f"leave it out; what can be changed is {_either(mutable)}"),
            )
        if inner:
            raise InputError(
                f"{path:.80} is inside {name}, which changes as a whole",
                field="update_mask",
                remedy=f"name {name}",
            )
        found.add(name)
    return found


def read(mask: str, shown: Json, form: type[Form]) -> Json:
    """A resource with the fields that a caller wants to read; all of them if ``mask`` is empty or ``*``.

    Raises:
        InputError: a field is unknown.
    """
    paths = _paths(mask, "read_mask")
    if not paths or "*" in paths:
        return shown
    kept: Json = {}
    for path in paths:
        first = path.partition(".")[0]
        if first not in form.model_fields:
            raise InputError(f"Invalid field mask path: {path:.80}", field="read_mask", remedy="name its fields")
        _copy(shown, kept, [to_camel(first), *path.split(".")[1:]])
    return kept


def _copy(source: Json, target: Json, steps: list[str]) -> None:
    step, *rest = steps
    found = next((key for key in (step, to_camel(step)) if key in source), None)
    if found is None:
        return
    if not rest or not isinstance(source[found], dict):
        target[found] = source[found]
    else:
        _copy(source[found], target.setdefault(found, {}), rest)


def _paths(mask: str, field: str) -> list[str]:
    paths = [path.strip() for path in mask.split(",") if path.strip()]
    for path in paths:
        if path != "*" and not _PATH.fullmatch(path):
            raise InputError(f"Invalid field mask path: {path[:80]!r}", field=field)
    return [_snake(path) for path in paths]


def _snake(path: str) -> str:
    """The field by its proto name; what stands behind it may be a map's key, which stays as it is."""
    name, dot, rest = path.partition(".")
    return to_snake(name) + dot + rest


def _either(fields: Collection[str]) -> str:
    return ", ".join(sorted(fields))
