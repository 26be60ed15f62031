"""Which model a configuration describes: the kinds that are loaded, and the published models by their shapes.

Plain dictionaries in, names out; of files only ``known_models.json`` beside this module is read. It holds:

* ``models``: each published model's id, ``model_type``, terms, and by part of its configuration (``""`` is the
  configuration itself) the values that its configuration must have. Sources: the published configurations as
  quoted in the code of inference engines (4B 34/2560/10240, 27B 62/5376/32/16/128/21504/1024 and the SigLIP so400m
  tower 27/1152/16/4304/14) and the model cards (896 and 448 pixels, 256 tokens an image, 128 K of context, 64
  tokens of a MedSigLIP text). What is not known is left out and not checked: the 27B text model's vocabulary.
* ``left_out``: what a key means that a configuration leaves out: transformers' own defaults, which the published
  configurations leave out where they equal them. Source: transformers 5.23, ``Gemma3TextConfig``,
  ``SiglipTextConfig``, ``SiglipVisionConfig``; a test compares them with the installed library.
* ``terms``: under which a model is given out. Source: Google, Health AI Developer Foundations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medport_local.snapshot_file import refuse

Family = Literal["medgemma", "medsiglip"]
INT8_SUFFIX = " int8"
"""Ends the name of a model whose weights are int8: it answers otherwise than the model that it was made from."""

_DATA: Mapping[str, Any] = json.loads(Path(__file__).with_name("known_models.json").read_text("utf-8"))


@dataclass(frozen=True, slots=True)
class KnownTerms:
    """What whoever uses a model has agreed to."""

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A published model and the shape by which its configuration gives it away."""

    model_id: str
    """Such as ``google/medgemma-4b-it``."""
    model_type: str
    shape: Mapping[str, Mapping[str, int]]
    """What the configuration must hold, by its part (``text_config``; ``""`` is the configuration itself)."""
    terms: KnownTerms

    @property
    def family(self) -> Family:
        """Which family it is of."""
        return KINDS[self.model_type].family

    @property
    def max_context(self) -> int:
        """Tokens of prompt and answer together; of a text for MedSigLIP."""
        return self.shape["" if self.model_type == "gemma3_text" else "text_config"]["max_position_embeddings"]

    @property
    def image_tokens(self) -> int | None:
        """Tokens that an image takes in a prompt; ``None`` where there are no images in prompts."""
        return self.shape.get("", {}).get("mm_tokens_per_image")


KNOWN_MODELS = tuple(
    KnownModel(each["id"], each["model_type"], each["shape"], KnownTerms(**_DATA["terms"][each["terms"]]))
    for each in _DATA["models"]
)
_BY_NAME = {known.model_id.casefold(): known for known in KNOWN_MODELS}


def known_model(model_id: str) -> KnownModel | None:
    """The published model of a name, also of one derived from it with int8 weights; ``None`` for all others.

    Letter case does not count, as it does not on the hub: another spelling is no way around a check.
    """
    return _BY_NAME.get(model_id.casefold().removesuffix(INT8_SUFFIX))


def check_identity(model_id: str, config: Mapping[str, Any], *, int8: bool | None = None) -> None:
    """Refuse a configuration of another shape than the published model has whose name it goes by.

    A name that is not known says nothing, and nothing is checked.

    Args:
        model_id: what a manifest or a source says that it is.
        config: of ``config.json``.
        int8: whether the weights are int8, where the name must say so too.

    Raises:
        VerificationError: a value is another than that model's. Names the key and both values.
    """
    known = known_model(model_id)
    if known is None:
        return
    if int8 is not None and int8 != model_id.endswith(INT8_SUFFIX):
        said = "holds weights of int8" if int8 else "holds no weights of int8"
        refuse(
            "config.json",
            f"{said}, and the snapshot is called {model_id}",
            "give it the name that it was made with",
        )
    remedy = "fetch the model that was meant, or give this one a name of its own"
    if config.get("model_type") != known.model_type:
        said = _shown(config.get("model_type"))
        refuse("config.json", f"its model_type is {said}, and {known.model_id} is a {known.model_type}", remedy)
    for place, expected, found in _shape_of(config, known):
        if not _same(found, expected):
            refuse("config.json", f"its {place} is {_shown(found)}, and {known.model_id} has {expected}", remedy)


def _shape_of(config: Mapping[str, Any], known: KnownModel) -> list[tuple[str, int, object]]:
    """(key, what it must be, what it is) for each value of a known model's shape."""
    left_out = _DATA["left_out"][known.model_type]
    rows = []
    for part, values in known.shape.items():
        held = config.get(part) if part else config
        held = held if isinstance(held, Mapping) else {}
        for key, expected in values.items():
            rows.append((f"{part}.{key}" if part else key, expected, held.get(key, left_out[part][key])))
    return rows


def _same(found: object, expected: int) -> bool:
    # JSON's true and 1.0 equal numbers here, and need not do so for who reads the configuration next.
    return type(found) is int and found == expected


def _shown(value: object) -> str:
    return f"{value!a:.40}"


@dataclass(frozen=True, slots=True)
class Kind:
    """What follows from a configuration's ``model_type``."""

    family: Family
    takes_images: bool
    architecture: str
    """The class of transformers that a configuration may name."""


KINDS: Mapping[str, Kind] = {
    "gemma3": Kind("medgemma", True, "Gemma3ForConditionalGeneration"),
    "gemma3_text": Kind("medgemma", False, "Gemma3ForCausalLM"),
    "siglip": Kind("medsiglip", True, "SiglipModel"),
}


def kind_of(config: Mapping[str, Any]) -> Kind:
    """Which of the loaded kinds a configuration describes.

    Raises:
        VerificationError: it is none of them.
    """
    kind = KINDS.get(str(config.get("model_type")))
    architectures = config.get("architectures")
    if kind is None or architectures not in (None, [kind.architecture]):
        refuse(
            "config.json",
            f"describes a model of type {config.get('model_type')!s:.40}, which this server does not load",
            f"give a MedGemma or MedSigLIP snapshot (model_type {', '.join(KINDS)})",
        )
    return kind


INT8_FORMAT = "medport_int8"


def holds_int8(config: Mapping[str, Any], kind: Kind) -> bool:
    """Whether the configuration says that the language model's weights are int8 with a scale for each row.

    Raises:
        VerificationError: the weights are quantised in another way.
    """
    parts = (config, *(value for value in config.values() if isinstance(value, dict)))
    said = [part["quantization_config"] for part in parts if part.get("quantization_config") is not None]
    if not said:
        return False
    if kind.family != "medgemma" or said != [config.get("quantization_config")] or said != [int8_marker()]:
        refuse(
            "config.json",
            "describes weights that are quantised in a way that this server does not load",
            "give the snapshot as it was published; medport quantize makes int8 weights from it",
        )
    return True


def int8_marker() -> dict[str, object]:
    """The ``quantization_config`` of a snapshot with int8 weights.

    It has no ``quant_method``, and that is meant: transformers' ``from_pretrained`` raises ``ValueError`` then.
    One that it does not know it passes over with a warning, and takes the integers for the weights themselves.
    """
    return {"format": INT8_FORMAT, "version": 1}


def max_context(config: Mapping[str, Any], kind: Kind) -> int:
    """Tokens that a model takes at most.

    Raises:
        VerificationError: the configuration says something that is no sensible number.
    """
    text = config if config.get("model_type") == "gemma3_text" else config.get("text_config") or {}
    # The published configurations leave out what equals the library's default.
    value = text.get("max_position_embeddings", 64 if kind.family == "medsiglip" else 131_072)
    if not isinstance(value, int) or not 1 <= value <= 2**24:
        refuse("config.json", "its max_position_embeddings is not a sensible number")
    return value


def identify(config: Mapping[str, Any], kind: Kind, root: Path) -> str:
    """The model's published name by the shape of its configuration, or by names it carries where shapes agree."""
    candidates = [
        known.model_id
        for known in KNOWN_MODELS
        if known.model_type == config.get("model_type")
        and all(_same(found, expected) for _, expected, found in _shape_of(config, known))
    ]
    if len(candidates) == 1:
        return candidates[0]
    hints = (str(config.get("_name_or_path") or ""), root.resolve().name)
    for hint in hints:
        for candidate in candidates:
            if candidate.partition("/")[2] in hint:
                return candidate
    return "medgemma-4b (unidentified)" if candidates else f"{kind.family} (unidentified)"
