"""A saved plan: what was looked at is what will be done, or nothing is.

JSON, readable by its owner alone. It says by which medport it was made and of what; ``load`` takes it only where
all of that is still so. Terraform's own plan lies beside it, bound by its sha256.

Its sha256 finds accidents and is no signature: whoever may write the file may write the sum too, and with it what
``apply`` does. So may whoever writes in the deployment's state.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from medport.errors import ConfigError, PreconditionFailed
from medport.lock import Lock
from medport_deploy import state_files, whole_file
from medport_deploy.plan.making import LEFTOVERS, Inputs, Plan
from medport_deploy.plan.reality import Reality, fingerprint

FORM = "medport-plan"
VERSION = 1
PLAN_NAME = "plan.json"
"""Of the file of a plan in a deployment's directory."""
TERRAFORM_SUFFIX = ".tfplan"
_MAX_BYTES = 32 * 2**20
_FIRST = "make one: medport deploy plan"
_AGAIN = "plan again: medport deploy plan"
_PLAN: TypeAdapter[Plan] = TypeAdapter(Plan)


@dataclass(frozen=True, slots=True)
class Saved:
    """A plan from its file."""

    plan: Plan
    sha256: str
    """Of the file: what a journal calls the plan by."""
    terraform_file: Path | None
    """Terraform's plan; ``None`` if there is none, or if it was applied: then it is gone."""


def terraform_file(path: Path) -> Path:
    """Where Terraform's plan lies that belongs to the plan in ``path``."""
    return path.with_name(path.name + TERRAFORM_SUFFIX)


def kept_file(directory: Path, sha256: str) -> Path:
    """Where a copy of a plan lies while its run is open.

    Args:
        directory: of the deployment, as ``apply.directory_of`` gives it.
        sha256: of the plan's file.
    """
    return directory / "runs" / sha256 / PLAN_NAME


def save(path: Path, plan: Plan) -> Saved:
    """Put a plan into a file, whole or not at all, readable by its owner alone.

    Raises:
        ConfigError: it cannot be written there.
    """
    said = _PLAN.dump_python(plan, mode="json")
    whole = {"form": FORM, "version": VERSION, "medport": plan.medport, "sha256": _sha256(said), "plan": said}
    data = json.dumps(whole, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"
    try:
        whole_file.write(path, data)
    except OSError as fault:
        raise ConfigError(
            f"{path.name} cannot be written ({os.strerror(fault.errno or 0)})",
            field="plan",
            remedy="give another place",
        ) from fault
    beside = terraform_file(path) if plan.inputs.terraform_sha256 else None
    return Saved(plan, hashlib.sha256(data).hexdigest(), beside)


def read(path: Path, *, medport: str) -> Saved:
    """A plan from its file, whatever has moved since.

    Args:
        medport: the version that reads it.

    Raises:
        ConfigError: it cannot be read or is no plan.
        PreconditionFailed: another medport made it, it was changed, or Terraform's plan beside it is another one.
    """
    try:
        data = state_files.read(path, _MAX_BYTES + 1)
    except OSError as fault:
        raise ConfigError(
            f"{path.name} cannot be read ({os.strerror(fault.errno or 0)})",
            field="plan",
            remedy=_FIRST if isinstance(fault, FileNotFoundError) else _AGAIN,
        ) from fault
    whole = _whole(path, data)
    check_maker(str(whole.get("medport")), medport)
    if whole.get("version") != VERSION:
        raise PreconditionFailed(f"{path.name} has the form of another medport", field="plan", remedy=_AGAIN)
    if whole.get("sha256") != _sha256(whole.get("plan")):
        raise PreconditionFailed(f"{path.name} was changed after it was made", field="plan", remedy=_AGAIN)
    try:
        # Strict would refuse lists for tuples, which is all that JSON has.
        plan = _PLAN.validate_python(whole["plan"])
    except ValidationError as fault:
        place = ".".join(str(step) for step in fault.errors(include_url=False, include_input=False)[0]["loc"])
        raise ConfigError(f"{path.name} is no plan (at {place})", field="plan", remedy=_AGAIN) from None
    return Saved(plan, hashlib.sha256(data).hexdigest(), _terraform(path, plan.inputs))


def check_maker(made_by: str, present: str) -> None:
    """Refuse a plan that another version of medport made: its steps need not be those that were approved.

    Raises:
        PreconditionFailed: it is another.
    """
    if made_by != present:
        raise PreconditionFailed(
            f"the plan was made by medport {made_by}, and this is {present}",
            field="plan",
            remedy="plan again: medport deploy plan",
        )


def load(path: Path, *, spec_bytes: bytes, lock: Lock, found: Reality | None, medport: str) -> Saved:
    """A plan from its file, if all it was made of is still so.

    Args:
        spec_bytes: of the specification's file, as it is now.
        lock: as it is now.
        found: what stands now; ``None`` to go on with a run of this very plan, which has moved it itself.
        medport: the version that reads it.

    Raises:
        ConfigError: it cannot be read or is no plan.
        PreconditionFailed: another medport made it, or something has moved; names which.
    """
    saved = read(path, medport=medport)
    if found is not None and saved.plan.inputs.terraform_sha256 is not None and saved.terraform_file is None:
        raise PreconditionFailed("Terraform's plan is gone: it is good for one apply", field="plan", remedy=_AGAIN)
    if moved := _moved(saved.plan.inputs, spec_bytes, lock, found):
        raise PreconditionFailed(
            f"since the plan was made, {' and '.join(moved)} changed", field="plan", remedy=_AGAIN
        )
    return saved


def _moved(inputs: Inputs, spec_bytes: bytes, lock: Lock, found: Reality | None) -> list[str]:
    moved = []
    if hashlib.sha256(spec_bytes).hexdigest() != inputs.spec_sha256:
        moved.append("the specification")
    if lock.lock_id != inputs.lock_id:
        moved.append(f"the lock ({inputs.lock_id[:12]} → {lock.lock_id[:12]})")
    if found is None:
        return moved
    present = {name: state.fingerprint() for name, state in found.models.items()}
    present[LEFTOVERS] = fingerprint(found.leftovers)
    for name in sorted({*present, *inputs.reality}):
        if present.get(name) != inputs.reality.get(name):
            moved.append(
                "what is left of earlier specifications" if name == LEFTOVERS else f"what stands for {name}"
            )
    return moved


def _terraform(path: Path, inputs: Inputs) -> Path | None:
    if inputs.terraform_sha256 is None:
        return None
    file = terraform_file(path)
    try:
        present = hashlib.sha256(state_files.read(file)).hexdigest()
    except FileNotFoundError:
        return None
    except OSError as fault:
        raise ConfigError(
            f"{file.name} cannot be read ({os.strerror(fault.errno or 0)})", field="plan", remedy=_AGAIN
        ) from fault
    if present != inputs.terraform_sha256:
        raise PreconditionFailed(f"Terraform's plan {file.name} is another one", field="plan", remedy=_AGAIN)
    return file


def _whole(path: Path, data: bytes) -> Mapping[str, Any]:
    try:
        whole = json.loads(data) if len(data) <= _MAX_BYTES else None
    except (ValueError, RecursionError):
        whole = None
    if not isinstance(whole, dict) or whole.get("form") != FORM:
        raise ConfigError(f"{path.name} is no plan of medport", field="plan", remedy=_AGAIN)
    return whole


def _sha256(said: object) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
