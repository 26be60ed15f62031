"""What a source of models says about one of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from medport.errors import VerificationError
from medport.lock import LockedFile, LockedModel
from medport_deploy.lock.terms import Terms

Family = Literal["medgemma", "medsiglip"]
_FAMILIES: Mapping[str, Family] = {"gemma3": "medgemma", "gemma3_text": "medgemma", "siglip": "medsiglip"}


@dataclass(frozen=True, slots=True)
class FoundModel:
    """One snapshot, by every file."""

    model: LockedModel
    requested: str
    """The branch, tag or commit that was asked for."""
    terms: Terms | None = None
    left: tuple[str, ...] = ()
    """Names at the source that are no part of the model."""


def locked(model_id: str, revision: str | None, family: Family, files: Mapping[str, LockedFile]) -> LockedModel:
    """A model as a lock holds it, with the sha256 over its table of files."""
    plain = {name: {"sha256": file.sha256, "size_bytes": file.size_bytes} for name, file in files.items()}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return LockedModel(
        model_id=model_id, revision=revision, snapshot_sha256=digest, family=family, files=dict(files)
    )


def family_of(config: bytes, *, field: str) -> Family:
    """The family that ``config.json`` describes.

    Raises:
        VerificationError: it is none that medport serves, or names code to run.
    """
    try:
        said = json.loads(config)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise VerificationError("config.json is no JSON object", field=field, remedy="name another revision")
    if "auto_map" in said:
        raise VerificationError(
            "config.json names code to run (auto_map)", field=field, remedy="name another model"
        )
    family = _FAMILIES.get(str(said.get("model_type")))
    if family is None:
        raise VerificationError(
            f"config.json describes a model of type {said.get('model_type')!s:.40}, which medport does not serve",
            field=field,
            remedy="name a MedGemma or MedSigLIP",
        )
    return family
