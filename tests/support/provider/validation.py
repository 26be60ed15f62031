"""What ``terraform validate`` can refuse beyond the schema, without any service."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from . import wire
from .overlay import Rule
from .schema import Block
from .values import UNKNOWN

Json = dict[str, Any]
Path = tuple[str | int, ...]


def provider_faults(config: Json) -> Iterator[Any]:
    """A custom base URL ends with a version and a slash."""
    for name, value in config.items():
        if name.endswith("_custom_endpoint") and isinstance(value, str) and not re.match(r".*/[^/]+/$", value):
            yield wire.error(f'"{name}" ("{value}") doesn\'t match regexp ".*/[^/]+/$"', path=(name,))


def faults(block: Block, config: Json) -> Iterator[Any]:
    """Of a resource's or data source's configuration, as diagnostics that name the place."""
    yield from _inside(block, config, config, ())


def _inside(block: Block, value: Json, root: Json, path: Path) -> Iterator[Any]:
    for name, attribute in block.attributes.items():
        given = value.get(name)
        if attribute.read_only and given is not None:
            detail = f'Can\'t configure a value for "{name}": the provider decides it.'
            yield wire.error("Value for unconfigurable attribute", detail, (*path, name))
        if attribute.rule.allowed and isinstance(given, str) and given not in attribute.rule.allowed:
            allowed = ", ".join(attribute.rule.allowed)
            yield wire.error(f"expected {name} to be one of {allowed}, got {given}", path=(*path, name))
        yield from _exclusions(name, attribute.rule, given, root, (*path, name))
    for name, nested in block.blocks.items():
        given = value.get(name)
        yield from _exclusions(name, nested.rule, given, root, (*path, name))
        for index, item in enumerate(given if isinstance(given, list) else []):
            here: Path = (*path, name, index) if nested.nesting == "list" else (*path, name)
            yield from _inside(nested.block, item, root, here)


def _exclusions(name: str, rule: Rule, given: Any, root: Json, path: Path) -> Iterator[Any]:
    if _is_set(given):
        for other in rule.conflicts:
            if _is_set(root.get(other)):
                yield wire.error("Conflicting configuration arguments", f'"{name}": conflicts with {other}', path)
    # Said once for the group, at its first.
    if rule.one_of and name == rule.one_of[0] and not any(root.get(each) is UNKNOWN for each in rule.one_of):
        count = sum(_is_set(root.get(each)) for each in rule.one_of)
        if count != 1:
            detail = f"exactly one of {', '.join(rule.one_of)} must be set, {count} are"
            yield wire.error("Invalid combination of arguments", detail, path)


def _is_set(value: Any) -> bool:
    # What is unknown may still turn out not to be set.
    return value is not None and value is not UNKNOWN and value != []
