"""What the verbs return. Every result is preliminary, says so, and says where it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medport.errors import MedportError, errors_dict

Language = Literal["en", "zh-Hant", "zh-Hans", "de", "fr", "es", "ja"]
NOTICES: Mapping[str, str] = {
    "en": "Preliminary: needs independent verification by a qualified person.",
    "zh-Hant": "初步結果：須由合格人員獨立驗證。",
    "zh-Hans": "初步结果：须由合格人员独立验证。",
    "de": "Vorläufig: muss von einer Fachperson unabhängig geprüft werden.",
    "fr": "Préliminaire : à vérifier de façon indépendante par une personne qualifiée.",
    "es": "Preliminar: requiere verificación independiente por una persona cualificada.",
    "ja": "暫定結果：有資格者による独立した検証が必要です。",
}
"""The notice can be translated. It cannot be switched off."""

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Provenance:
    """Which bytes answered, where and when. ``None``: the backend does not say."""

    backend: str
    """The profile that answered."""
    kind: str
    """``in-process``, ``local`` or ``vertex``."""
    endpoint: str
    """Full resource name, ``projects/…/locations/…/endpoints/…``."""
    deployed_model_id: str | None
    model_id: str | None
    """For example ``google/medgemma-4b-it``."""
    revision: str | None
    """Commit SHA of the model repository."""
    image_digest: str | None
    """sha256 of the serving container's image."""
    snapshot_sha256: str | None
    """sha256 over the table of the snapshot's files."""
    lock_id: str | None
    request_id: str | None
    sdk_version: str
    time: str
    """When the answer arrived: UTC, ISO 8601."""
    latency_ms: float
    attempts: int
    """How many times the request was sent; 1 is no retry."""
    sampling: Mapping[str, Any]
    prompt_version: str | None
    model_notice: str | None
    """A warning of the model itself, such as that it is a phantom."""
    language: str = "en"
    parent: str | None = None
    """What the snapshot was derived from, such as one with int8 weights: model, revision and sha256 in a line."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """LoRA adapters that took part, by name, and the sha256 of each."""

    def line(self) -> str:
        """One line for people: ``Preliminary: … · in-process · medgemma@1f3a… · 412 ms``."""
        model = (self.model_id or self.endpoint).rpartition("/")[2]
        version = f"@{self.revision[:8]}" if self.revision else ""
        parts = [notice(self.language), self.backend, f"{model}{version}", f"{self.latency_ms:.0f} ms"]
        if self.model_notice:
            parts.insert(1, self.model_notice)
        return " · ".join(parts)


def notice(language: str) -> str:
    """The preliminary notice in ``language``; English where there is no translation."""
    return NOTICES.get(language, NOTICES["en"])


class _Preliminary:
    """The part that all results share."""

    __slots__ = ()
    provenance: Provenance

    @property
    def preliminary(self) -> Literal[True]:
        """Always true: no output of these models is a finding before a qualified person has verified it."""
        return True

    @property
    def notice(self) -> str:
        return notice(self.provenance.language)

    def _envelope(self) -> dict[str, Any]:
        provenance = asdict(self.provenance)
        provenance["sampling"] = dict(self.provenance.sampling)
        return {"preliminary": True, "notice": self.notice, "provenance": provenance}


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts; an image counts as the soft tokens it becomes."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """One piece of a stream: of the answer (``text``) or of the thinking before it."""

    text: str = ""
    thinking: str = ""


@dataclass(frozen=True, slots=True)
class Chat(_Preliminary):
    """An answer of MedGemma."""

    text: str
    thinking: str | None
    """What the model wrote between its thought markers; ``None`` if it did not think."""
    finish_reason: Literal["stop", "length", "content_filter"] | None
    """``length``: cut at ``max_tokens``. If that was in mid-thought, ``text`` is empty."""
    usage: Usage
    provenance: Provenance = field(repr=False)

    def __repr__(self) -> str:
        return f"<Chat {self.text!r} · {self.provenance.line()}>"

    def __str__(self) -> str:
        return f"{self.text}\n{self.provenance.line()}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON: text, thinking, finish_reason, usage, preliminary, notice, provenance."""
        return {
            "text": self.text,
            "thinking": self.thinking,
            "finish_reason": self.finish_reason,
            "usage": asdict(self.usage),
            **self._envelope(),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings(_Preliminary):
    """Vectors of MedSigLIP, images and texts in one space. ``np.asarray(result)`` gives the vectors."""

    vectors: Float32 = field(repr=False)
    """float32 ``[n, d]``, L2-normalised, in the order given; rows of failed items are NaN."""
    logit_scale: float
    """The factor itself, as applied: ``logit = logit_scale · cos + logit_bias``."""
    logit_bias: float
    errors: Mapping[int, MedportError]
    """By position: why that item has no vector."""
    provenance: Provenance = field(repr=False)

    def __len__(self) -> int:
        return len(self.vectors)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self.vectors, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        n, d = self.vectors.shape
        failed = f", {len(self.errors)} failed" if self.errors else ""
        return f"<Embeddings {n} x {d} float32{failed} · {self.provenance.line()}>"

    __str__ = __repr__

    def to_dict(self) -> dict[str, Any]:
        return {
            "vectors": [None if i in self.errors else row.tolist() for i, row in enumerate(self.vectors)],
            "logit_scale": self.logit_scale,
            "logit_bias": self.logit_bias,
            "errors": {str(i): errors_dict(e) for i, e in self.errors.items()},
            **self._envelope(),
        }


@dataclass(frozen=True, slots=True)
class Score:
    """How well one label fits an image."""

    label: str
    logit: float
    probability: float
    """Sigmoid of the logit: SigLIP's own probability; labels are judged one by one and need not sum to 1."""
    softmax: float
    """Share among the labels given; sums to 1."""


@dataclass(frozen=True, slots=True)
class Classification(_Preliminary):
    """The labels of one image, best first."""

    scores: tuple[Score, ...]
    provenance: Provenance = field(repr=False)

    @property
    def best(self) -> Score:
        return self.scores[0]

    def __getitem__(self, label: str) -> Score:
        for score in self.scores:
            if score.label == label:
                return score
        raise KeyError(label)

    def __str__(self) -> str:
        lines = [f"{s.softmax:6.1%}  p={s.probability:.3f}  {s.label}" for s in self.scores]
        return "\n".join([*lines, self.provenance.line()])

    def to_dict(self) -> dict[str, Any]:
        return {"scores": [asdict(s) for s in self.scores], **self._envelope()}


@dataclass(frozen=True, slots=True)
class Classifications(_Preliminary, Sequence["Classification | None"]):
    """One entry per image, in order; ``None`` where ``errors`` says why."""

    items: tuple[Classification | None, ...]
    errors: Mapping[int, MedportError]
    provenance: Provenance = field(repr=False)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]

    def __iter__(self) -> Iterator[Classification | None]:
        return iter(self.items)

    def to_dict(self) -> dict[str, Any]:
        items = [
            {"scores": [asdict(s) for s in item.scores]} if item else {"error": errors_dict(self.errors[position])}
            for position, item in enumerate(self.items)
        ]
        return {"items": items, **self._envelope()}
