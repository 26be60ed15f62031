"""What a plan says a resource will be, as providers built on the plugin SDK 2 decide it.

Not set and zero are the same to them. What only the service knows is unknown in a new resource and stays as it
was in an old one. A computed block that the configuration leaves out stays too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .schema import Attribute, Block, Nested
from .values import UNKNOWN, same

Json = dict[str, Any]
Path = tuple[str | int, ...]


@dataclass(slots=True)
class Planning:
    """One resource's plan; ``replaced`` fills while ``plan`` runs."""

    replaced: list[Path] = field(default_factory=list)
    """Where a change is that no update can make."""

    def plan(self, block: Block, config: Json, prior: Json | None, proposed: Json, path: Path = ()) -> Json:
        """The planned value.

        Args:
            config: what the configuration says.
            prior: what the state says; None for what is new.
            proposed: terraform's own merge of the two.
        """
        found: Json = {}
        for name, attribute in block.attributes.items():
            found[name] = self._attribute(name, attribute, config, prior, proposed)
            old = None if prior is None else prior.get(name)
            if prior is not None and attribute.rule.force_new and not same(old, found[name]):
                self.replaced.append((*path, name))
        for name, nested in block.blocks.items():
            found[name] = self._nested(name, nested, config, prior, proposed, (*path, name))
        return found

    def _attribute(self, name: str, attribute: Attribute, config: Json, prior: Json | None, proposed: Json) -> Any:
        if attribute.rule.write_only:
            return None
        value = proposed.get(name)
        if config.get(name) is None and attribute.rule.default is not None:
            value = attribute.rule.default
        if value is None and attribute.computed and prior is None:
            return UNKNOWN
        if prior is not None and same(prior.get(name), value):
            return prior.get(name)
        return value

    def _nested(
        self, name: str, nested: Nested, config: Json, prior: Json | None, proposed: Json, path: Path
    ) -> Any:
        items, given = proposed.get(name), config.get(name)
        if items is UNKNOWN:
            return UNKNOWN
        old = None if prior is None else prior.get(name) or []
        if old is not None and nested.rule.computed and not given:
            return old
        planned = []
        for index, item in enumerate(items or []):
            is_list = nested.nesting == "list"
            before = _at(old, index) if is_list else item if item in (old or []) else None
            configured = _at(given if isinstance(given, list) else None, index) or item
            # An element of a set has no index; its block stands for it.
            inner = (*path, index) if is_list else path
            planned.append(self.plan(nested.block, configured, before, item, inner))
        if old is not None and nested.rule.force_new and len(old) != len(planned):
            self.replaced.append(path)
        return planned


def _at(items: list[Json] | None, index: int) -> Json | None:
    return items[index] if items is not None and index < len(items) else None
