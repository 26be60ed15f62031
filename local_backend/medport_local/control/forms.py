"""Bodies of calls: proto3 JSON, read into forms with Google's words for what is wrong, and written as it is kept.

A form takes camelCase and snake_case, numbers as numbers or decimal strings, and ``null`` for "not given". A field
that Google only answers is ``Answered``: clients send back what they read, so it is taken and dropped.

Source: protobuf.dev, "ProtoJSON Format".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictStr,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel

from medport.errors import InputError

Json = dict[str, Any]
_DEEPEST = 100
"""As protobuf has it; what is deeper could be read, and not be written again."""


class Form(BaseModel):
    """One message. Field names are the proto's; aliases are its JSON names."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        loc_by_alias=False,
        defer_build=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: object) -> object:
        """Keys by their proto names; ``null`` is a field that was not given."""
        if not isinstance(given, Mapping):
            return given
        names: dict[object, str] = {field.alias or name: name for name, field in cls.model_fields.items()}
        found: dict[object, object] = {}
        for key, value in given.items():
            name: object = names.get(key, key)
            if name in found:
                raise ValueError(f"{name} is given twice")
            if value is not None or name not in cls.model_fields:
                found[name] = value
        return found


F = TypeVar("F", bound=Form)


def read(form: type[F], body: object, at: str = "") -> F:
    """What a caller sent.

    Args:
        at: where the body stands in the request's message, such as ``model``; for messages.

    Raises:
        InputError: with Google's words: a field that does not exist, a value that cannot be, a missing field.
    """
    if _too_deep(body):
        raise InputError(f"Invalid JSON payload received. The body is nested more than {_DEEPEST} deep.")
    try:
        return form.model_validate(body)
    except ValidationError as fault:
        raise _refusal(fault, at) from None


def written(form: Form) -> Json:
    """A form as it is kept and answered: JSON names, without what has its default value."""
    return form.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def _too_deep(body: object) -> bool:
    level = [body]
    for _ in range(_DEEPEST):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())
        ]
        if not level:
            return False
    return True


def _refusal(fault: ValidationError, at: str) -> InputError:
    error = fault.errors(include_url=False, include_context=False, include_input=False)[0]
    steps = [*([at] if at else []), *error["loc"]]
    if error["type"] == "extra_forbidden":
        name = f"{steps.pop()!s:.80}"
        where = f" at '{_path(steps)}'" if steps else ""
        return InputError(
            f'Invalid JSON payload received. Unknown name "{name}"{where}: Cannot find field.', field=name
        )
    path = _path(steps) or "the body"
    if error["type"] == "missing":
        return InputError(f"'{path}' is required", field=path, remedy="give it")
    said = error["msg"].removeprefix("Value error, ")
    return InputError(f"Invalid value at '{path}': {said}", field=path)


def _path(steps: list[int | str]) -> str:
    """``container_spec.env[0].name``."""
    path = ""
    for step in steps:
        path += f"[{step}]" if isinstance(step, int) else f"{'.' if path else ''}{step:.80}"
    return path


def _whole(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,20}", value):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("is not a whole number")


def _int32(value: object) -> int:
    number = _whole(value)
    if not -(2**31) <= number < 2**31:
        raise ValueError("does not fit into 32 bits")
    return number


def _int64(value: object) -> str:
    number = _whole(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError("does not fit into 64 bits")
    return str(number)


def _double(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("is not a number")
    return float(value)


def _duration(value: object) -> str:
    nanos = _nanos(value)
    if abs(nanos) > 315_576_000_000 * 10**9:
        raise ValueError("is longer than 10000 years")
    whole, rest = divmod(abs(nanos), 10**9)
    sign = "-" if nanos < 0 else ""
    return f"{sign}{whole}{f'.{rest:09}'.rstrip('0') if rest else ''}s"


def _nanos(value: object) -> int:
    if isinstance(value, Mapping) and value.keys() <= {"seconds", "nanos"}:
        return _whole(value.get("seconds", 0)) * 10**9 + _whole(value.get("nanos", 0))
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,12}(\.[0-9]{1,9})?s", value):
        return int(Decimal(value[:-1]) * 10**9)
    raise ValueError('is not a duration; write it like "600s"')


Text = StrictStr
Flag = StrictBool
Int32 = Annotated[int, BeforeValidator(_int32)]
Int64 = Annotated[str, BeforeValidator(_int64)]
"""Written as a decimal string."""
Double = Annotated[float, BeforeValidator(_double)]
"""A double, kept as it came: Terraform sees a difference in the last digit."""
Duration = Annotated[str, BeforeValidator(_duration)]
"""Seconds with an ``s``, such as ``600s``; ``{"seconds": 600}`` is taken too."""
Answered = Annotated[Any, Field(default=None, exclude=True)]
"""A field that only answers have."""
