"""Golden answers: what a fleet says to the same few questions, kept to be compared.

Two comparisons. Between two fleets (a gate): how many of the answers differ, where a new revision may differ a
little. Of one lock over time (``verify``): the same bytes must say the same, but for the noise of floating-point
sums, whose order depends on what else is computed at that moment.

Texts, at temperature 0, are kept as a hash and their beginning; embeddings as float16. Questions are
``smoke_inputs.golden``. A file a lock, in ``golden/`` of the deployment's directory, readable by its owner alone.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medport.errors import ConfigError
from medport_deploy import state_files, whole_file
from medport_deploy.trial.probing import Answer

SAME_COSINE = 0.999
"""Embeddings of two fleets are the same from here on."""
NOISE_COSINE = 0.9999
"""Embeddings of the same bytes are the same from here on; float16 takes 1e-6 of it."""
_BEGINNING = 40
_FOLDER = "golden"


class Golden(BaseModel):
    """One answer, in the form that is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str | None = None
    """Of a text's UTF-8."""
    beginning: str | None = None
    """A text's first characters."""
    vectors: Annotated[str, Field(max_length=2**20)] | None = None
    """float16, little-endian, row after row, in base64."""
    rows: int = 0

    @classmethod
    def of(cls, answer: Answer) -> Golden:
        """An answer's."""
        if answer.vectors is not None:
            packed = base64.b64encode(answer.vectors.astype("<f2").tobytes()).decode()
            return cls(vectors=packed, rows=len(answer.vectors))
        text = answer.text or ""
        return cls(sha256=hashlib.sha256(text.encode()).hexdigest(), beginning=text[:_BEGINNING])

    def differs(self, other: Golden) -> bool:
        """Whether two fleets said different things: another text, or an embedding under ``SAME_COSINE``."""
        if self.vectors is None or other.vectors is None:
            return (self.sha256, self.vectors) != (other.sha256, other.vectors)
        return self._cosine(other) < SAME_COSINE

    def contradicts(self, later: Golden) -> bool:
        """Whether the same bytes cannot have said both.

        A rounding may turn a late token of a text and all that follows: the beginning must be the same.
        Embeddings must have a cosine of ``NOISE_COSINE``.
        """
        if self.vectors is None or later.vectors is None:
            return (self.beginning, self.vectors) != (later.beginning, later.vectors)
        return self._cosine(later) < NOISE_COSINE

    def _cosine(self, other: Golden) -> float:
        """The smallest of all rows; -1 if they have another form."""
        mine, theirs = self._rows(), other._rows()
        if mine.shape != theirs.shape or not mine.size:
            return -1.0
        lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            cosines = (mine * theirs).sum(axis=1) / lengths
        return float(np.nan_to_num(cosines, nan=-1.0).min())

    def _rows(self) -> npt.NDArray[np.float64]:
        flat = np.frombuffer(base64.b64decode(self.vectors or ""), "<f2").astype(np.float64)
        return flat.reshape(self.rows, -1) if self.rows and flat.size % self.rows == 0 else flat.reshape(0, 0)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Annotated[int, Field(ge=1, le=1)] = 1
    models: dict[str, dict[str, Golden]] = {}


def drift(new: Mapping[str, Sequence[Golden]], standing: Mapping[str, Sequence[Golden]]) -> tuple[int, int]:
    """How many questions two fleets answer differently, and how many could be compared.

    A question is compared if both have answered it, and the standing fleet the same each time. It counts as
    different if any of the new fleet's answers does.
    """
    steady = {
        name: answers[0]
        for name, answers in standing.items()
        if answers and not any(answers[0].differs(each) for each in answers[1:])
    }
    compared = [name for name, answers in new.items() if answers and name in steady]
    return sum(any(steady[name].differs(each) for each in new[name]) for name in compared), len(compared)


def contradictions(kept: Mapping[str, Golden], later: Mapping[str, Golden]) -> list[str]:
    """The questions that the same bytes answer otherwise than before."""
    return [name for name, each in kept.items() if name in later and each.contradicts(later[name])]


def load(directory: Path, lock_id: str, name: str) -> dict[str, Golden] | None:
    """What a model of a lock answered when it was recorded; ``None`` if that was not yet.

    Args:
        directory: of the deployment.
        name: of the model in the specification.

    Raises:
        ConfigError: the file cannot be read.
    """
    return _read(_file(directory, lock_id)).models.get(name)


def keep(directory: Path, lock_id: str, name: str, answers: Mapping[str, Golden]) -> None:
    """Record what a model of a lock answers.

    Raises:
        ConfigError: the file cannot be read or written.
    """
    file = _file(directory, lock_id)
    known = _read(file)
    write(file, _File(models={**known.models, name: dict(answers)}))


def write(file: Path, content: BaseModel) -> None:
    """Put something into a file, whole or not at all, for its owner alone.

    Raises:
        ConfigError: it cannot be written there.
    """
    try:
        state_files.make_directory(file.parent)
        whole_file.write(file, content.model_dump_json(exclude_none=True).encode())
    except OSError as fault:
        raise ConfigError(f"{file.name} cannot be written ({os.strerror(fault.errno or 0)})") from fault


def _file(directory: Path, lock_id: str) -> Path:
    return directory / _FOLDER / f"{lock_id}.json"


def _read(file: Path) -> _File:
    try:
        return _File.model_validate_json(state_files.read(file))
    except FileNotFoundError:
        return _File()
    except OSError as fault:
        raise ConfigError(f"{file.name} cannot be read ({os.strerror(fault.errno or 0)})") from fault
    except ValidationError:
        raise ConfigError(
            f"{file.name} holds no golden answers", remedy=f"remove it from {_FOLDER}/; it is recorded again"
        ) from None
