"""The only importer of transformers: a verified snapshot → a model and the codecs around it.

Offline always, safetensors only, classes by allow-list, the attention implementation and the image backend pinned,
and every weight accounted for.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaTokenizer,
    SiglipConfig,
    SiglipModel,
    SiglipTokenizer,
)
from transformers.cache_utils import Cache, DynamicCache
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.utils import logging as library_logging

from medport.errors import VerificationError
from medport_local.engine.codecs import ImageCodec, SiglipTextCodec, TextCodec
from medport_local.snapshot import Snapshot

__all__ = ["Cache", "Gemma", "Siglip", "load_gemma", "load_siglip", "new_cache", "use_one_thread"]

DtypeRule = Literal["auto", "float32", "bfloat16"]

_SMALL_PARAMETERS = 200_000_000


@dataclass(frozen=True, slots=True)
class Gemma:
    """A MedGemma ready to run."""

    model: Any
    text: TextCodec
    images: ImageCodec | None
    """``None`` for a text-only model."""
    image_tokens: int
    """Soft tokens that one image becomes."""
    image_token_id: int | None
    eos_ids: frozenset[int]
    device: torch.device

    @property
    def small(self) -> bool:
        """Too small to gain from several threads."""
        return _is_small(self.model)


@dataclass(frozen=True, slots=True)
class Siglip:
    """A MedSigLIP ready to run."""

    model: Any
    text: SiglipTextCodec
    images: ImageCodec
    logit_scale: float
    """As stored: the logarithm of the factor."""
    logit_bias: float
    device: torch.device

    @property
    def small(self) -> bool:
        """Too small to gain from several threads."""
        return _is_small(self.model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars and remarks about default values off stderr; real faults are raised here."""
    library: Any = library_logging
    bars, verbosity = library.is_progress_bar_enabled(), library.get_verbosity()
    library.disable_progress_bar()
    library.set_verbosity_error()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        if bars:
            library.enable_progress_bar()


@_quiet()
def load_gemma(snapshot: Snapshot, *, device: str | None = None, dtype: DtypeRule = "auto") -> Gemma:
    """Load a MedGemma snapshot.

    Raises:
        VerificationError: weights are missing, unknown or of the wrong shape, or a file changed meanwhile.
    """
    where = _device(device)
    folder = str(snapshot.directory)
    config_class, model_class = (
        (Gemma3Config, Gemma3ForConditionalGeneration)
        if snapshot.takes_images
        else (Gemma3TextConfig, Gemma3ForCausalLM)
    )
    config: Any = config_class.from_pretrained(folder, local_files_only=True)
    model = _load(model_class, config, snapshot, where, dtype)
    tokenizer = GemmaTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise VerificationError("the snapshot has no chat template", field="chat_template.jinja")
    images = _image_codec(Gemma3ImageProcessorPil, folder) if snapshot.takes_images else None
    eos = model.generation_config.eos_token_id
    if eos is None:
        eos = config.eos_token_id
    snapshot.still_same()
    return Gemma(
        model=model,
        text=TextCodec(tokenizer),
        images=images,
        image_tokens=int(config.mm_tokens_per_image) if snapshot.takes_images else 0,
        image_token_id=int(config.image_token_id) if snapshot.takes_images else None,
        eos_ids=frozenset([eos] if isinstance(eos, int) else eos or ()),
        device=where,
    )


@_quiet()
def load_siglip(snapshot: Snapshot, *, device: str | None = None, dtype: DtypeRule = "auto") -> Siglip:
    """Load a MedSigLIP snapshot.

    Raises:
        VerificationError: weights are missing, unknown or of the wrong shape, or a file changed meanwhile.
    """
    where = _device(device)
    folder = str(snapshot.directory)
    config = SiglipConfig.from_pretrained(folder, local_files_only=True)
    model = _load(SiglipModel, config, snapshot, where, dtype)
    tokenizer = SiglipTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    snapshot.still_same()
    return Siglip(
        model=model,
        text=SiglipTextCodec(tokenizer, snapshot.max_context),
        images=_image_codec(SiglipImageProcessorPil, folder),
        logit_scale=float(model.logit_scale.item()),
        logit_bias=float(model.logit_bias.item()),
        device=where,
    )


def use_one_thread() -> None:
    """Let torch compute in the calling thread alone, and leave all other threads as they are.

    A small model's operators are shorter than the barriers between threads: on a busy machine several threads were
    50 times slower than one.
    """
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    # The call above also sets what threads begin with that have not used torch yet. Set that back, from a thread
    # of its own: the count of a thread that has begun stays.
    other = threading.Thread(target=torch.set_num_threads, args=(count,))
    other.start()
    other.join()


def new_cache(model: Any) -> Cache:
    """An empty cache for one sequence: a ring in sliding layers, a growing one in global layers."""
    return DynamicCache(config=model.config.get_text_config())


def _device(name: str | None) -> torch.device:
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _load(model_class: Any, config: Any, snapshot: Snapshot, device: torch.device, dtype: DtypeRule) -> Any:
    model, info = model_class.from_pretrained(
        str(snapshot.directory),
        config=config,
        dtype=_dtype(snapshot.directory, dtype),
        attn_implementation="sdpa",
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    # transformers fills what is missing with random numbers and only warns.
    missing = set(info["missing_keys"]) - {"lm_head.weight"}
    for fault, keys in (
        ("lacks", missing),
        ("holds the unknown", set(info["unexpected_keys"])),
        ("has another shape for", {key for key, *_ in info["mismatched_keys"]}),
    ):
        if keys:
            raise VerificationError(
                f"the snapshot {fault} {sorted(keys)[0]} and {len(keys) - 1} more weights",
                field="model.safetensors",
                remedy="fetch the snapshot again; it does not fit its config.json",
            )
    if "lm_head.weight" in info["missing_keys"] and not config.get_text_config().tie_word_embeddings:
        raise VerificationError("the snapshot lacks lm_head.weight", field="model.safetensors")
    return model.to(device).eval().requires_grad_(False)


def _dtype(directory: Path, rule: DtypeRule) -> torch.dtype:
    if rule == "auto":
        rule = "float32" if _parameters(directory) < _SMALL_PARAMETERS else "bfloat16"
    return torch.float32 if rule == "float32" else torch.bfloat16


def _is_small(model: Any) -> bool:
    return bool(model.device.type == "cpu" and model.num_parameters() < _SMALL_PARAMETERS)


def _parameters(directory: Path) -> int:
    """How many numbers the weight files hold, read from their headers."""
    total = 0
    for path in directory.glob("*.safetensors"):
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                total += int(np.prod(tensor["shape"], dtype=np.int64))
    return total


def _image_codec(processor_class: Any, folder: str) -> ImageCodec:
    processor = processor_class.from_pretrained(folder, local_files_only=True)
    # With torchvision installed the library prefers another resizing, which gives other pixels.
    assert type(processor) is processor_class
    return ImageCodec(processor)
