"""A verified snapshot → a model and the codecs around it.

Offline always, safetensors only, classes by allow-list, the attention implementation and the image backend pinned,
and every weight accounted for. transformers reads its configuration from a private copy of the files that were
hashed, and never sees the weights' files.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medport.errors import VerificationError
from medport_local.engine import devices
from medport_local.engine.assembly import empty_model, fill_model
from medport_local.engine.codecs import ImageCodec, SiglipTextCodec, TextCodec
from medport_local.engine.int8_weights import Int8Weights
from medport_local.engine.kernels import Int8
from medport_local.engine.protocol import DtypeRule as DtypeRule
from medport_local.engine.torchvision_check import IMPORT_FAULTS, check_torchvision
from medport_local.engine.weights import ReadShard, Shard, read_shard, reading
from medport_local.snapshot import Snapshot

try:
    from transformers import (
        Gemma3Config,
        Gemma3ForCausalLM,
        Gemma3ForConditionalGeneration,
        Gemma3TextConfig,
        GemmaTokenizer,
        GenerationConfig,
        SiglipConfig,
        SiglipModel,
        SiglipTokenizer,
    )
    from transformers.cache_utils import Cache, DynamicCache
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding, Gemma3TextScaledWordEmbedding
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
    from transformers.utils import logging as library_logging
except IMPORT_FAULTS:
    check_torchvision()
    raise

__all__ = ["Cache", "Gemma", "Siglip", "load_codecs", "load_gemma", "load_siglip", "new_cache", "use_one_thread"]


SMALL_PARAMETERS = 200_000_000
"""A model below it is fast enough in float32, and gains nothing from several threads."""
_GENERATION = "generation_config.json"
# What transformers reads of a snapshot, beside the weights.
_CONFIGURATION = (
    "config.json",
    _GENERATION,
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)


@dataclass(frozen=True, slots=True)
class Gemma:
    """A MedGemma ready to run."""

    model: Any
    """``None`` where only the codecs were loaded."""
    text: TextCodec
    images: ImageCodec | None
    """``None`` for a text-only model."""
    image_tokens: int
    """Soft tokens that one image becomes."""
    image_token_id: int | None
    eos_ids: frozenset[int]
    device: torch.device
    int8: Mapping[str, Int8] = field(default_factory=dict, repr=False)
    """The language model's weights where they are int8, by ``layers.3.q_proj``, ``embed_tokens`` and ``lm_head``;
    the model's own parameters have no memory then, and its ``forward`` cannot run."""

    @property
    def small(self) -> bool:
        """Too small to gain from several threads."""
        return _is_small(self.model, self.device)


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
        return _is_small(self.model, self.device)


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
def load_gemma(
    snapshot: Snapshot, *, device: str | None = None, dtype: DtypeRule = "auto", read: ReadShard = read_shard
) -> Gemma:
    """Load a MedGemma snapshot.

    Args:
        device: as ``devices.choose`` takes it.
        dtype: ``auto`` is float32 for a model of less than 200 million parameters, bfloat16 for others.
        read: gives the weights; ``SealedWeights.read`` keeps them for the next model of the same snapshot.

    Raises:
        VerificationError: weights are missing, unknown or of the wrong shape, or a file changed meanwhile.
        ConfigError: there is no such device.
    """
    where = devices.choose(device)
    model_class = Gemma3ForConditionalGeneration if snapshot.takes_images else Gemma3ForCausalLM
    # The weights take longest: the tokenizer and the empty model are made while they are read.
    with reading(snapshot, read) as shards:
        codecs, config, generation = _gemma_codecs(snapshot, where)
        model, int8 = _load(model_class, config, snapshot, shards, where, dtype)
    model.generation_config = generation
    return replace(codecs, model=model, int8=int8)


@_quiet()
def load_codecs(snapshot: Snapshot) -> Gemma:
    """What stands around a MedGemma's weights, without them: ``model`` is ``None``.

    Raises:
        VerificationError: a file changed meanwhile, or there is no chat template.
    """
    return _gemma_codecs(snapshot, torch.device("cpu"))[0]


def _gemma_codecs(snapshot: Snapshot, device: torch.device) -> tuple[Gemma, Any, GenerationConfig]:
    config_class = Gemma3Config if snapshot.takes_images else Gemma3TextConfig
    with _configuration(snapshot) as folder:
        config: Any = config_class.from_pretrained(folder, local_files_only=True)
        tokenizer = GemmaTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        images = _image_codec(Gemma3ImageProcessorPil, folder) if snapshot.takes_images else None
        generation = (
            GenerationConfig.from_pretrained(folder, local_files_only=True)
            if _GENERATION in snapshot.files
            else GenerationConfig.from_model_config(config)
        )
    if not tokenizer.chat_template:
        raise VerificationError("the snapshot has no chat template", field="chat_template.jinja")
    eos = generation.eos_token_id
    if eos is None:
        eos = config.eos_token_id
    codecs = Gemma(
        model=None,
        text=TextCodec(tokenizer),
        images=images,
        image_tokens=int(config.mm_tokens_per_image) if snapshot.takes_images else 0,
        image_token_id=int(config.image_token_id) if snapshot.takes_images else None,
        eos_ids=frozenset([eos] if isinstance(eos, int) else eos or ()),
        device=device,
    )
    return codecs, config, generation


@_quiet()
def load_siglip(
    snapshot: Snapshot, *, device: str | None = None, dtype: DtypeRule = "auto", read: ReadShard = read_shard
) -> Siglip:
    """Load a MedSigLIP snapshot. Arguments and errors are those of ``load_gemma``."""
    where = devices.choose(device)
    with reading(snapshot, read) as shards:
        with _configuration(snapshot) as folder:
            config = SiglipConfig.from_pretrained(folder, local_files_only=True)
            tokenizer = SiglipTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            images = _image_codec(SiglipImageProcessorPil, folder)
        model, _ = _load(SiglipModel, config, snapshot, shards, where, dtype)
    return Siglip(
        model=model,
        text=SiglipTextCodec(tokenizer, snapshot.max_context),
        images=images,
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


@contextmanager
def _configuration(snapshot: Snapshot) -> Iterator[str]:
    """A private directory of the small files; transformers takes nothing but directories."""
    with tempfile.TemporaryDirectory(prefix="medport-configuration-") as folder:  # 0700 by contract
        for name in _CONFIGURATION:
            if name in snapshot.files:
                (Path(folder) / name).write_bytes(snapshot.read(name))
        yield folder


def _load(
    model_class: Any,
    config: Any,
    snapshot: Snapshot,
    shards: Iterable[Shard],
    device: torch.device,
    rule: DtypeRule,
) -> tuple[Any, Mapping[str, Int8]]:
    model = empty_model(model_class, config)
    dtype = _dtype(model, rule)
    int8 = Int8Weights(model if snapshot.int8 else None, device)
    fill_model(model, int8.taken_from(shards), device=device, dtype=dtype, rebuild=_buffer, elsewhere=int8.places)
    # As from_pretrained leaves them; parts of the library ask the configuration.
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        part.dtype = dtype
    return model, int8.complete()


def _dtype(model: Any, rule: DtypeRule) -> torch.dtype:
    if rule == "auto":
        rule = "float32" if model.num_parameters() < SMALL_PARAMETERS else "bfloat16"
    return torch.float32 if rule == "float32" else torch.bfloat16


def _buffer(module: nn.Module, name: str, empty: Tensor) -> Tensor:
    """What the module's own constructor computes, outside of the meta device."""
    if name == "position_ids":
        return torch.arange(empty.shape[-1]).expand(empty.shape)
    if isinstance(module, Gemma3TextScaledWordEmbedding):
        return torch.tensor(module.scalar_embed_scale)
    assert isinstance(module, Gemma3RotaryEmbedding), type(module).__name__
    value: Tensor = getattr(type(module)(module.config), name)
    return value


def _is_small(model: Any, device: torch.device) -> bool:
    return bool(device.type == "cpu" and model.num_parameters() < SMALL_PARAMETERS)


def _image_codec(processor_class: Any, folder: str) -> ImageCodec:
    processor = processor_class.from_pretrained(folder, local_files_only=True)
    # With torchvision installed the library prefers another resizing, which gives other pixels.
    assert type(processor) is processor_class
    return ImageCodec(processor)
