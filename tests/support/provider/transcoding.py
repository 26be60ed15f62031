"""Between a resource's value in terraform and the service's JSON: names, empty values and single blocks."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from typing import Any

from .schema import Block
from .values import UNKNOWN, camel, is_empty, number

Json = dict[str, Any]
_LOCAL = frozenset({"id", "labels", "terraform_labels", "effective_labels"})
"""Names with a meaning of their own in every resource."""


def to_api(block: Block, value: Json, *, without: Container[str] = (), as_json: Container[str] = ()) -> Json:
    """What is set, in the service's names.

    Args:
        without: top-level names to leave out.
        as_json: attributes that hold JSON as text.
    """
    found: Json = {}
    for name, attribute in block.attributes.items():
        given = value.get(name)
        if name in without or name in _LOCAL or attribute.read_only or given is UNKNOWN or is_empty(given):
            continue
        found[camel(name)] = json.loads(str(given)) if name in as_json else given
    for name, nested in block.blocks.items():
        given = value.get(name)
        if name in without or given is UNKNOWN or not given:
            continue
        items = [to_api(nested.block, item) for item in given]
        found[camel(name)] = items[0] if nested.max_items == 1 else items
    return found


def from_api(
    block: Block, answer: Json, prior: Json, *, kept: Container[str] = (), as_json: Container[str] = ()
) -> Json:
    """A resource's value from the service's answer.

    Args:
        prior: what the state says. A zero there stays if the service says nothing; so do secrets.
        kept: top-level names that the service does not tell.
        as_json: attributes that hold JSON as text.
    """
    found: Json = {}
    for name, attribute in block.attributes.items():
        old = None if prior.get(name) is UNKNOWN else prior.get(name)
        if name in kept or name in _LOCAL or attribute.rule.sensitive:
            found[name] = old
        elif camel(name) in answer:
            told = answer[camel(name)]
            text = json.dumps(told, sort_keys=True, separators=(",", ":")) if name in as_json else told
            found[name] = _typed(attribute.type, text)
        else:
            found[name] = old if is_empty(old) else None
    for name, nested in block.blocks.items():
        told = answer.get(camel(name))
        items = [] if told is None else told if isinstance(told, list) else [told]
        before = prior.get(name) if isinstance(prior.get(name), list) else []
        found[name] = [
            from_api(nested.block, item, before[index] if index < len(before) else {})  # type: ignore[index, arg-type]
            for index, item in enumerate(items)
        ]
    return found


def _typed(kind: Any, told: Any) -> Any:
    """What the service told, as terraform's type: single objects are lists of one there."""
    if kind == "number":
        return number(told)
    if not isinstance(kind, list):
        return told
    outer, inner = kind
    if outer == "object":
        members: Mapping[str, Any] = inner
        return {
            name: _typed(each, told[camel(name)]) if camel(name) in told else None
            for name, each in members.items()
        }
    if outer == "map":
        return told
    return [_typed(inner, item) for item in (told if isinstance(told, list) else [told])]
