"""A first ``medport.yaml`` from a few answers. It is parsed before it is written, so that what is written is good.

    answers = Answers(target="local", name="chest", image="…", models=("google/medgemma-4b-it",), url="https://…")
    write(Path("medport.yaml"), render(answers))

Terms are never accepted here: the file names them, and a person writes their id after reading.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from medport.errors import AlreadyExists, ConfigError
from medport_deploy import names, whole_file
from medport_deploy.first_run import init_text
from medport_deploy.lock import terms as all_terms
from medport_deploy.lock.terms import Terms
from medport_deploy.spec import machines as spec_machines
from medport_deploy.spec import reading as spec

Kind = Literal["vertex", "local"]
LOCAL_PROJECT, LOCAL_LOCATION = "local", "europe-west4"
"""What ``medport serve --control-plane`` answers to unless it is told otherwise."""
LOCAL_URL = "https://127.0.0.1:8443"
KNOWN = (
    "google/medgemma-4b-it",
    "google/medgemma-1.5-4b-it",
    "google/medgemma-27b-it",
    "google/medgemma-27b-text-it",
    "google/medsiglip-448",
)
"""What to choose from; any other model of theirs may be named."""
_LONGEST_NAME = 30


@dataclass(frozen=True, slots=True)
class Choice:
    """A machine, and what is in it."""

    type: str
    accelerator: str | None = None
    count: int = 0


_ONE_PROCESSOR = Choice("n1-standard-4")
_MACHINES: tuple[tuple[re.Pattern[str], Choice], ...] = (
    (re.compile(r"google/medgemma(-[0-9.]+)?-4b-.+", re.I), Choice("g2-standard-24", "NVIDIA_L4", 2)),
    (re.compile(r"google/medgemma(-[0-9.]+)?-27b-.+", re.I), Choice("a2-ultragpu-1g", "NVIDIA_A100_80GB", 1)),
    (re.compile(r"google/medsiglip-.+", re.I), Choice("g2-standard-12", "NVIDIA_L4", 1)),
)
"""What holds the weights in bfloat16 with room for requests: 4B take 8 GB, 27B take 54 GB. True at
``spec.machines.AS_OF``."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What was asked or given. Each is checked by the form when the text is made."""

    target: Kind
    models: tuple[str, ...]
    image: str
    name: str = "medport"
    project: str = LOCAL_PROJECT
    location: str = LOCAL_LOCATION
    url: str | None = None
    ca_file: str | None = None
    api_key_env: str | None = None
    machine: Choice | None = None
    """For all models; ``None``: what suits each."""
    terraform_root: str | None = None


def machine_for(model: str, target: Kind) -> Choice | None:
    """The machine that suits a model; ``None`` where none is known. A local target runs on what it is."""
    if target == "local":
        return _ONE_PROCESSOR
    return next((choice for form, choice in _MACHINES if form.fullmatch(model)), None)


def terms_of(models: Sequence[str]) -> tuple[Terms, ...]:
    """The terms that somebody must read before these models are locked, each once."""
    return tuple({found.id: found for each in models if (found := all_terms.known(each)) is not None}.values())


def values(answers: Answers) -> dict[str, Any]:
    """The keys that are set, as the file holds them.

    Raises:
        ConfigError: no machine is known for a model, and none is given.
    """
    target: dict[str, Any] = {
        "kind": answers.target, "project": answers.project, "location": answers.location,
    }  # fmt: skip
    if answers.target == "local":
        target["url"] = answers.url or LOCAL_URL
    if answers.ca_file:
        target["ca_file"] = answers.ca_file
    if answers.target == "local" and answers.api_key_env:
        target["auth"] = {"api_key_env": answers.api_key_env}
    models: dict[str, Any] = {}
    for model in dict.fromkeys(answers.models):
        models[_name_of(model, models)] = _model(model, answers)
    if answers.terraform_root:
        for name, each in models.items():
            each["endpoint"] = {"id": _digits(answers.name, name)}
    made: dict[str, Any] = {
        "version": 1, "name": answers.name, "target": target, "models": models,
        "rollout": {"strategy": "canary"}, "accept_terms": [],
    }  # fmt: skip
    if answers.terraform_root:
        made["terraform"] = {"root": answers.terraform_root}
    return made


def render(answers: Answers, *, file_name: str = spec.FILE_NAME) -> str:
    """The text of the file.

    Args:
        file_name: for errors.

    Raises:
        ConfigError: an answer is none that the form takes; says which key.
    """
    text = init_text.render(values(answers), terms_of(answers.models))
    spec.parse(text.encode(), name=file_name)
    return text


def write(path: Path, text: str, *, force: bool = False) -> None:
    """Write the file: the whole or nothing.

    Args:
        force: replace one that is there.

    Raises:
        AlreadyExists: it is there.
        ConfigError: it cannot be written.
    """
    try:
        if force:
            whole_file.write(path, text.encode(), mode=0o644)
        else:
            _create(path, text)
    except FileExistsError:
        refuse_to_replace(path)
    except OSError as fault:
        raise ConfigError(
            f"{path.name} cannot be written ({os.strerror(fault.errno or 0)})",
            field="output",
            remedy="give another place with --output",
        ) from fault


def _create(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8") as file:
        try:
            file.write(text)
            file.flush()
        except OSError:
            path.unlink()
            raise


def refuse_to_replace(path: Path) -> NoReturn:
    """Raise ``AlreadyExists`` for a file that is there."""
    raise AlreadyExists(
        f"{path.name} is there already; it was left as it is",
        field="output",
        remedy="give another name with --output, or replace it with --force",
    ) from None


def _model(model: str, answers: Answers) -> dict[str, Any]:
    machine = answers.machine or machine_for(model, answers.target)
    if machine is None:
        raise ConfigError(
            f"no machine is known for {model:.100} (as of {spec_machines.AS_OF})",
            field="--machine",
            remedy="give --machine, and --accelerator with --count if it has some",
        )
    chosen: dict[str, Any] = {"type": machine.type}
    if machine.accelerator is not None:
        chosen |= {"accelerator": machine.accelerator, "count": machine.count}
    return {"model": model, "image": answers.image, "machine": chosen}


def _name_of(model: str, taken: dict[str, Any]) -> str:
    """A model's name in the file: that on the hub, as far as it is one."""
    plain = re.sub(r"[^a-z0-9]+", "-", model.rpartition("/")[2].lower()).strip("-")
    name = (plain if plain[:1].isalpha() else f"m-{plain}")[:_LONGEST_NAME].strip("-")
    number = 2
    while name in taken:
        tail = f"-{number}"
        name = name[: _LONGEST_NAME - len(tail)].rstrip("-") + tail
        number += 1
    return name


def _digits(deployment: str, model: str) -> int:
    """An id for an endpoint that Terraform makes: ten digits, the same for the same names."""
    said = hashlib.sha256(names.endpoint_id(deployment, model).encode()).hexdigest()
    return 10**9 + int(said, 16) % (9 * 10**9)
