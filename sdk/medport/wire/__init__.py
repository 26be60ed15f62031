"""The messages on the wire, used alike by the client that writes them and the server that reads them."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from medport.errors import InputError

M = TypeVar("M", bound=BaseModel)


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
        raise input_error(fault) from None


def input_error(fault: ValidationError) -> InputError:
    """The first fault of a pydantic validation, without the value that caused it."""
    first = fault.errors(include_url=False, include_context=False, include_input=False)[0]
    # Members of a union appear in the path under their type's name, which means nothing to a caller.
    steps = [step for step in first["loc"] if isinstance(step, int) or not step.startswith(("str", "list["))]
    field = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
    return InputError(
        first["msg"][:1].lower() + first["msg"][1:],
        field=field or None,
        remedy="see the parameter's documentation for its range",
    )
