"""Which model a configuration describes: the kinds that are loaded, and the published models by their shapes.

Plain dictionaries in, names out; no file is read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medport_local.snapshot_file import refuse

Family = Literal["medgemma", "medsiglip"]


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A published model and the shape by which its configuration gives it away."""

    model_id: str
    model_type: str
    hidden: int
    layers: int
    image_px: int | None = None


KNOWN_MODELS = (
    KnownModel("google/medgemma-4b-it", "gemma3", 2560, 34),
    KnownModel("google/medgemma-1.5-4b-it", "gemma3", 2560, 34),
    KnownModel("google/medgemma-27b-it", "gemma3", 5376, 62),
    KnownModel("google/medgemma-27b-text-it", "gemma3_text", 5376, 62),
    KnownModel("google/medsiglip-448", "siglip", 1152, 27, 448),
)


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
    model_type = str(config.get("model_type"))
    part = config if model_type == "gemma3_text" else config.get("text_config") or {}
    vision = config.get("vision_config") or {}
    if model_type == "siglip":
        part = vision
    shape = (part.get("hidden_size"), part.get("num_hidden_layers"))
    candidates = [
        known.model_id
        for known in KNOWN_MODELS
        if known.model_type == model_type
        and (known.hidden, known.layers) == shape
        and known.image_px in (None, vision.get("image_size"))
    ]
    if len(candidates) == 1:
        return candidates[0]
    hints = (str(config.get("_name_or_path") or ""), root.resolve().name)
    for hint in hints:
        for candidate in candidates:
            if candidate.partition("/")[2] in hint:
                return candidate
    return "medgemma-4b (unidentified)" if candidates else f"{kind.family} (unidentified)"
