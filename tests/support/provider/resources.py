"""What every kind of resource does for the servicer."""

from __future__ import annotations

from string import Formatter
from typing import Any, Protocol

from .api import Api
from .schema import Block, Type
from .values import UNKNOWN, holds_unknown

Json = dict[str, Any]
_ZERO: Json = {"string": "", "number": 0, "bool": False}


class Refused(Exception):
    """The provider itself refuses, before any call."""


class Resource(Protocol):
    """One type's life at the service. Values are whole resources; what is unknown in them becomes known."""

    def create(self, api: Api, planned: Json) -> Json: ...
    def read(self, api: Api, state: Json) -> Json | None:
        """As the service has it; None if it is gone."""

    def update(self, api: Api, prior: Json, planned: Json) -> Json: ...
    def delete(self, api: Api, state: Json) -> None: ...
    def imported(self, of: Type, id_: str, provider: Json) -> Json:
        """What is known of a resource by its id; reading gives the rest."""


def filled(template: str, value: Json) -> str:
    """A template with a value's own texts and numbers in place of ``{NAME}``; what is not known is empty."""
    names = [name for _, name, _, _ in Formatter().parse(template) if name]
    known = {name: value.get(name) for name in names}
    return template.format(
        **{name: "" if each is None or each is UNKNOWN else each for name, each in known.items()}
    )


def known(block: Block, value: Json) -> Json:
    """The value with a zero for what is still unknown, and nothing in what is write-only."""
    found = dict(value)
    for name, attribute in block.attributes.items():
        if attribute.rule.write_only:
            found[name] = None
        elif holds_unknown(value.get(name)):
            outer = attribute.type[0] if isinstance(attribute.type, list) else attribute.type
            found[name] = _ZERO.get(outer, {} if outer == "map" else [])
    for name, nested in block.blocks.items():
        items = value.get(name)
        found[name] = [known(nested.block, item) for item in items] if isinstance(items, list) else []
    return found
