"""``medport.yaml``: what a team wants to be deployed, and where.

    spec = load("medport.yaml")
    spec.models["medgemma"].machine.type

What a server would refuse late is refused here, with the line; an unknown key with the nearest one that is known.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args, get_origin

from pydantic import BaseModel, ValidationError

from medport.errors import ConfigError
from medport_deploy.spec import rules as spec_rules
from medport_deploy.spec import yaml as spec_yaml
from medport_deploy.spec.form import (
    DEFAULT_REVISION,
    FILE_NAME,
    Auth,
    Container,
    Endpoint,
    Gates,
    Keys,
    Machine,
    Model,
    Network,
    Policy,
    Replicas,
    Rollout,
    Spec,
    Target,
    TerraformRoot,
)

__all__ = [
    "DEFAULT_REVISION",
    "FILE_NAME",
    "Auth",
    "Container",
    "Endpoint",
    "Gates",
    "Keys",
    "Machine",
    "Model",
    "Network",
    "Policy",
    "Replicas",
    "Rollout",
    "Spec",
    "Target",
    "TerraformRoot",
    "load",
    "parse",
    "rooted",
]

_SHOWN = 10
_NUMBERED = {
    "missing": "is missing",
    "string_type": "must be a text; write it in quotes",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
}


def load(path: str | os.PathLike[str]) -> Spec:
    """Read a specification from its file.

    Raises:
        ConfigError: it cannot be read or is wrong. Names file, line and key of each fault.
        PolicyError: its own policy forbids it.
    """
    file = Path(path)
    try:
        with file.open("rb") as opened:
            data = opened.read(spec_yaml.MAX_BYTES + 1)
    except OSError as fault:
        raise ConfigError(
            f"{file} cannot be read ({os.strerror(fault.errno or 0)})",
            field="spec",
            remedy="make one: medport deploy init",
        ) from fault
    return parse(data, name=file.name)


def parse(data: bytes, *, name: str = FILE_NAME) -> Spec:
    """A specification from the bytes of its file.

    Args:
        data: UTF-8.
        name: of the file, for errors.

    Raises:
        ConfigError: it is wrong. Names line and key of each fault.
        PolicyError: its own policy forbids it.
    """
    document = spec_yaml.parse(data, name=name)
    if not isinstance(document.value, dict):
        raise ConfigError(f"{name}:1: is no mapping", field=name, remedy="make one: medport deploy init")
    spec: Spec | None
    try:
        spec = Spec.model_validate(document.value)
    except ValidationError as fault:
        found = [
            (tuple(each["loc"]), _said(each)) for each in fault.errors(include_url=False, include_input=False)
        ]
        spec = None
    if spec is None:
        # Outside of the handler: a traceback would show the fault, and with it values, secrets among them.
        _refuse(name, document, found)
    if wrong := spec_rules.faults(spec):
        _refuse(name, document, [(each.path, each.said) for each in wrong])
    spec_rules.check_policy(spec)
    return spec


def rooted(spec: Spec, root: Path) -> Spec:
    """The same with the paths of its target seen from this process's directory.

    Args:
        root: where the specification is.
    """
    target = spec.target
    auth = target.auth
    if auth.credentials_file:
        auth = auth.model_copy(update={"credentials_file": str(root / auth.credentials_file)})
    ca_file = str(root / target.ca_file) if target.ca_file else None
    return spec.model_copy(update={"target": target.model_copy(update={"ca_file": ca_file, "auth": auth})})


def _refuse(name: str, document: spec_yaml.Document, found: list[tuple[spec_yaml.Path, str]]) -> NoReturn:
    # A key of a mapping is reported as (…, KEY, "[key]").
    plain = [(tuple(step for step in path if step != "[key]"), said) for path, said in found]
    lines = [
        f"{name}:{document.line(path)}: {shown} {said}" if (shown := _shown(path)) else f"{name}:1: {said}"
        for path, said in sorted(plain, key=lambda each: document.line(each[0]))
    ]
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    first = min(plain, key=lambda each: document.line(each[0]))[0]
    raise ConfigError("\n".join([*lines[:_SHOWN], *more]), field=_shown(first) or name)


def _said(error: Any) -> str:
    path: spec_yaml.Path = tuple(error["loc"])
    if error["type"] == "extra_forbidden":
        known = _keys_at(path[:-1])
        near = difflib.get_close_matches(str(path[-1]), known, n=1)
        return f"is not known; did you mean {near[0]}?" if near else f"is not known; known are {', '.join(known)}"
    if plain := _NUMBERED.get(error["type"]):
        return plain
    text = str(error["msg"])
    if error["type"] == "value_error":
        return text.removeprefix("Value error, ")  # ours, which may begin with a name
    text = text.removeprefix("Input ")
    return text[:1].lower() + text[1:]


def _keys_at(path: spec_yaml.Path) -> list[str]:
    """The keys that the mapping at a path may have."""
    kind: Any = Spec
    for step in path:
        form = _form(kind)
        kind = form.model_fields[str(step)].annotation if form else get_args(_bare(kind))[-1]
    form = _form(kind)
    return list(form.model_fields) if form else []


def _form(annotation: Any) -> type[BaseModel] | None:
    bare = _bare(annotation)
    return bare if isinstance(bare, type) and issubclass(bare, BaseModel) else None


def _bare(annotation: Any) -> Any:
    """``T`` of ``Annotated[T, …]``."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _shown(path: spec_yaml.Path) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{_printable(step)}"
    return text.removeprefix(".")


def _printable(step: str) -> str:
    return step if re.fullmatch(r"[\w -]{1,60}", step) else ascii(step[:60])
