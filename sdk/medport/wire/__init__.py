"""The messages on the wire, used alike by the client that writes them and the server that reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from medport.errors import InputError

M = TypeVar("M", bound=BaseModel)


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole: TypeAlias = Annotated[int, BeforeValidator(_whole)]
"""An integer that may come as ``8.0``: protobuf's Value, in which Google's generated client sends instances, knows
doubles only."""


class Deferred(BaseModel):
    """A model whose validator is built at its first use, and not by ``import medport``."""

    model_config = ConfigDict(defer_build=True)


def checked(model: type[M], values: object) -> M:
    """Validate ``values`` as ``model``.

    Raises:
        InputError: the first fault, with its field as ``messages[0].role`` and the rule it breaks. The value
            itself is left out: it may be a prompt.
    """
    try:
        return model.model_validate(values)
    except ValidationError as fault:
        raise input_error(fault, values) from None


# pydantic's own texts would quote the value, or a pattern that says little.
_MINE = {
    "union_tag_invalid": "its type or role is none of those that are known",
    "union_tag_not_found": "its type or role is missing",
    "string_pattern_mismatch": "has another form than this field takes",
}


def input_error(fault: ValidationError, values: object = None) -> InputError:
    """What is wrong with ``values``, without the value that is.

    Of several faults the deepest is told: where a text or a list may stand, it is the one in the list's item, and
    not that a list is no text.
    """
    faults = fault.errors(include_url=False, include_context=False, include_input=False)
    worst = max(faults, key=lambda each: len(each["loc"]))
    field = "".join(
        f"[{step}]" if isinstance(step, int) else f".{step:.64}" for step in _path(worst["loc"], values)
    )
    said = _MINE.get(worst["type"], worst["msg"])
    return InputError(
        said[:1].lower() + said[1:],
        field=field.lstrip(".") or None,
        remedy="see the parameter's documentation for its range",
    )


def _path(loc: tuple[int | str, ...], values: object) -> list[int | str]:
    """The steps that lead through ``values``; pydantic puts the names of a union's members among them."""
    path: list[int | str] = []
    for i, step in enumerate(loc):
        inside = isinstance(values, Mapping) and step in values
        if inside or (isinstance(values, list) and isinstance(step, int)):
            path.append(step)
            values = values[step]  # type: ignore[index]
        elif i == len(loc) - 1 and isinstance(values, Mapping) and step != "[key]":
            path.append(step)  # it is missing
    return path
