"""A resource's schema: what the package says with what the overlay adds, and terraform's own form of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import wire
from .overlay import OVERLAY, Rule
from .values import number

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Attribute:
    """What holds one value."""

    type: Any
    """As terraform spells it in JSON: ``"string"``, ``["list", "string"]``, ``["list", ["object", {…}]]``."""
    required: bool
    optional: bool
    computed: bool
    rule: Rule

    @property
    def read_only(self) -> bool:
        return self.computed and not self.optional


@dataclass(frozen=True, slots=True)
class Nested:
    """A block inside a block; its value is a list of objects."""

    nesting: str
    """``list`` or ``set``."""
    block: Block
    required: bool
    max_items: int
    """0: any number."""
    rule: Rule


@dataclass(frozen=True, slots=True)
class Block:
    attributes: dict[str, Attribute] = field(default_factory=dict)
    blocks: dict[str, Nested] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Type:
    """A resource, a data source or the provider's own configuration."""

    name: str
    block: Block
    timeouts: tuple[str, ...] = ()
    importable: bool = False


def load(file: Path) -> dict[str, Type]:
    """All types of a schema file, by name. A rule of the overlay that meets no member is an error."""
    found = {}
    for name, facts in json.loads(file.read_text(encoding="utf-8")).items():
        rules = dict(OVERLAY.get(name, {}))
        block = _block(facts["members"], rules, "")
        if left := sorted(set(rules) - {"*"} - _paths(block, "")):
            raise ValueError(f"the overlay names what {name} has not: {', '.join(left)}")
        if name != "provider":
            block.attributes.setdefault("id", Attribute("string", False, True, True, Rule()))
        found[name] = Type(name, block, tuple(facts["timeouts"]), facts["importable"])
    found["provider"].block.attributes.pop("id", None)
    return found


def to_wire(of: Type) -> Any:
    """A schema message."""
    block = _block_to_wire(of.block)
    if of.timeouts:
        attributes = [
            wire.message("Schema.Attribute", name=each, type=b'"string"', optional=True) for each in of.timeouts
        ]
        inner = wire.message("Schema.Block", attributes=attributes)
        single = wire.NESTING["single"]
        block.block_types.append(
            wire.message("Schema.NestedBlock", type_name="timeouts", block=inner, nesting=single)
        )
    return wire.message("Schema", block=block)


def with_numbers(block: Block, value: Any) -> Any:
    """The value with its numbers as numbers, also those that crossed the wire as text."""
    if not isinstance(value, dict):
        return value
    found = dict(value)
    for name, attribute in block.attributes.items():
        if attribute.type == "number":
            found[name] = number(value.get(name))
    for name, nested in block.blocks.items():
        if isinstance(value.get(name), list):
            found[name] = [with_numbers(nested.block, item) for item in value[name]]
    return found


def shaped(of: Type, stored: Mapping[str, Any]) -> Json:
    """A stored value with each member that the schema has now, and no other."""
    found = _shaped(of.block, stored)
    if of.timeouts:
        given = stored.get("timeouts")
        found["timeouts"] = {each: given.get(each) for each in of.timeouts} if isinstance(given, dict) else None
    return found


def _shaped(block: Block, stored: Mapping[str, Any]) -> Json:
    found: Json = {name: stored.get(name) for name in block.attributes}
    for name, nested in block.blocks.items():
        found[name] = [_shaped(nested.block, item) for item in stored.get(name) or []]
    return found


def _block(members: Json, rules: Mapping[str, Rule], prefix: str) -> Block:
    block = Block()
    for name, facts in members.items():
        flags = {flag: bool(facts[flag]) for flag in ("required", "optional", "computed")}
        read_only = flags["computed"] and not flags["optional"]
        rule = rules.get(prefix + name) or (Rule() if read_only else rules.get("*", Rule()))
        if "members" in facts:
            inner = _block(facts["members"], rules, f"{prefix}{name}.")
            block.blocks[name] = Nested(facts["nesting"], inner, flags["required"], facts["max_items"], rule)
        else:
            block.attributes[name] = Attribute(facts["type"], rule=rule, **flags)
    return block


def _paths(block: Block, prefix: str) -> set[str]:
    found = {prefix + name for name in (*block.attributes, *block.blocks)}
    for name, nested in block.blocks.items():
        found |= _paths(nested.block, f"{prefix}{name}.")
    return found


def _block_to_wire(block: Block) -> Any:
    attributes = [
        wire.message(
            "Schema.Attribute",
            name=name,
            type=json.dumps(each.type).encode(),
            required=each.required,
            optional=each.optional,
            computed=each.computed,
            sensitive=each.rule.sensitive,
            write_only=each.rule.write_only,
        )
        for name, each in sorted(block.attributes.items())
    ]
    nested = [
        wire.message(
            "Schema.NestedBlock",
            type_name=name,
            block=_block_to_wire(each.block),
            nesting=wire.NESTING[each.nesting],
            min_items=1 if each.required else 0,
            max_items=each.max_items,
        )
        for name, each in sorted(block.blocks.items())
    ]
    return wire.message("Schema.Block", attributes=attributes, block_types=nested)
