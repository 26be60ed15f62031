"""LoRA adapters from directories in PEFT's layout, and the names by which callers ask for them.

Nothing that can run code comes in, each file is read once, and what is hashed is what is loaded. An adapter must
fit the language model's linears exactly: one that would be used in part is refused, by the file and what is wrong.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from medport.errors import ConfigError, VerificationError
from medport_local.engine.adapter_config import CONFIG, MERGE, AdapterConfig, ends_with, parse_config
from medport_local.engine.adapter_names import check_name, parse_model
from medport_local.engine.lora import Adapter, Pair, Side, of_rows
from medport_local.safetensors_header import LENGTH_BYTES, header_bytes, parse
from medport_local.snapshot import INT8_SUFFIX, digest_of
from medport_local.snapshot_file import NO_LINKS, read_whole, refuse

__all__ = ["Adapter", "Side", "Target", "check_name", "load_adapter", "of_rows", "parse_model"]

WEIGHTS = "adapter_model.safetensors"

_MAX_CONFIG_BYTES = 2**20
_MAX_WEIGHT_BYTES = 4 * 2**30
# What a download leaves beside the adapter; nothing reads them.
_BYSTANDERS = re.compile(r"(?i)(readme\.md|license[^/]*|notice[^/]*|\.gitattributes|\.gitignore)\Z")
_ONLY = f"keep only {CONFIG} and {WEIGHTS}"

_OWNERS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), "self_attn"),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp"),
}
_KEY = re.compile(
    # The model with images, as it is and as it was before transformers 4.52, and the model of text alone.
    r"base_model\.model\.(?P<root>model\.language_model|language_model\.model|model)"
    r"\.layers\.(?P<layer>0|[1-9][0-9]{0,3})\.(?P<owner>self_attn|mlp)\.(?P<name>[a-z]+_proj)"
    r"\.lora_(?P<side>[AB])\.weight\Z"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The language model that adapters are loaded for."""

    shapes: Mapping[tuple[int, str], tuple[int, int]] = field(repr=False)
    """By layer and name of a linear, such as ``(3, "q_proj")``: how many numbers go in and come out."""
    dtype: torch.dtype
    device: torch.device
    model_id: str

    @classmethod
    def of(cls, config: Any, *, dtype: torch.dtype, device: torch.device, model_id: str) -> Target:
        """The target with a ``Gemma3TextConfig``'s shapes."""
        hidden, inner = config.hidden_size, config.intermediate_size
        queries, keys = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        shapes = {
            "q_proj": (hidden, queries),
            "k_proj": (hidden, keys),
            "v_proj": (hidden, keys),
            "o_proj": (queries, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }
        layers = range(config.num_hidden_layers)
        return cls(
            shapes={(layer, name): shape for layer in layers for name, shape in shapes.items()},
            dtype=dtype,
            device=device,
            model_id=model_id,
        )


def load_adapter(directory: str | os.PathLike[str], target: Target, *, name: str | None = None) -> Adapter:
    """Load a LoRA adapter in PEFT's layout: ``adapter_config.json`` and ``adapter_model.safetensors``.

    Args:
        directory: holds these two files, and at most a licence and a readme beside them.
        target: what it must fit; says dtype and device of its tensors too.
        name: what callers ask for; the directory's name unless given.

    Raises:
        ConfigError: there is no such directory, or the name is no name.
        VerificationError: a file is missing, of another kind or not one of an adapter; or the adapter does not fit
            the language model's linears, or does more than LoRA. Names the adapter and the file.

    Source: PEFT 0.21, ``save_pretrained``.
    """
    root = Path(directory)
    if not root.is_dir():
        raise ConfigError(
            f"there is no adapter directory {root}",
            field="adapter",
            remedy=f"give a directory that holds {CONFIG} and {WEIGHTS}; nothing is downloaded",
        )
    name = check_name(root.resolve().name if name is None else name)
    try:
        return _load(root, target, name)
    except VerificationError as fault:
        # The server may have several: say in which one the file is.
        remedy = fault.remedy and fault.remedy.replace("the snapshot", "the adapter")
        place = f"{name}/{fault.field}"
        raise VerificationError(f"{name}/{fault.message}", field=place, remedy=remedy) from fault


def _load(root: Path, target: Target, name: str) -> Adapter:
    _check_files(root)
    settings, settings_entry = read_whole(root, CONFIG, limit=_MAX_CONFIG_BYTES)
    config = parse_config(settings)
    data, weights_entry = read_whole(root, WEIGHTS, limit=_MAX_WEIGHT_BYTES)
    return Adapter(
        name=name,
        sha256=digest_of({CONFIG: settings_entry, WEIGHTS: weights_entry}),
        weights=_Weights(config, target).read(data),
        base=config.base,
        fits_base=_fits(config.base, target.model_id),
    )


class _Weights:
    """Tensors by PEFT's names → pairs by layer and name of the linear."""

    def __init__(self, config: AdapterConfig, target: Target) -> None:
        self._config = config
        self._target = target

    def read(self, data: bytes) -> Mapping[tuple[int, str], Pair]:
        count = header_bytes(data[:LENGTH_BYTES], len(data), shard=WEIGHTS)
        parse(data[LENGTH_BYTES : LENGTH_BYTES + count], len(data) - LENGTH_BYTES - count, shard=WEIGHTS)
        try:
            tensors = safetensors.torch.load(data)
        except SafetensorError as fault:
            self._no(f"cannot be read as safetensors ({type(fault).__name__})")
        halves: dict[tuple[int, str], dict[str, Tensor]] = {}
        roots = set()
        for key in sorted(tensors):
            root, place, side = self._place(key)
            roots.add(root)
            halves.setdefault(place, {})[side] = self._checked(key, tensors.pop(key))
        if not roots:
            self._no("holds no weights")
        if len(roots) > 1:
            self._no("mixes the names of several models")
        root = roots.pop()
        self._check_complete(root, halves.keys())
        return {place: self._pair(root, place, sides) for place, sides in halves.items()}

    def _no(self, fault: str, remedy: str = "export the adapter again") -> NoReturn:
        refuse(WEIGHTS, fault, remedy)

    def _place(self, key: str) -> tuple[str, tuple[int, str], str]:
        match = _KEY.match(key)
        shown = key.removeprefix("base_model.model.")[:100]
        if match is None or _OWNERS.get(match["name"]) != match["owner"]:
            self._no(
                f"holds {shown!a}, which is not LoRA on a linear of the language model",
                f"train it with target_modules for {', '.join(_OWNERS)} of the language model alone, or {MERGE}",
            )
        place = int(match["layer"]), match["name"]
        if place not in self._target.shapes:
            self._no(f"holds {shown!a}, and {self._target.model_id} has no such layer", "use it with its own base")
        return match["root"], place, match["side"]

    def _checked(self, key: str, tensor: Tensor) -> Tensor:
        """The tensor in the model's dtype on its device."""
        moved = tensor.to(self._target.device, self._target.dtype)
        if not bool(torch.isfinite(moved).all()):
            self._no(f"holds a number that is not finite in {key!a}", "train the adapter again")
        return moved.contiguous()

    def _check_complete(self, root: str, found: Container[tuple[int, str]]) -> None:
        """Compare the places that have weights with those that the configuration asks for."""
        places = {place: _path(root, place) for place in self._target.shapes}
        for entry in self._config.targets or ():
            if not any(ends_with(path, (entry,)) for path in places.values()):
                refuse(CONFIG, f"target_modules names {entry[:60]!a}, not a linear of the language model", MERGE)
        for place, path in places.items():
            wanted = self._config.wants(path, place[0])
            if wanted is not None and wanted != (place in found):
                self._no(f"{'lacks' if wanted else 'holds'} weights for {path}, unlike {CONFIG}")

    def _pair(self, root: str, place: tuple[int, str], sides: Mapping[str, Tensor]) -> Pair:
        path = _path(root, place)
        for side in "AB":
            if side not in sides:
                self._no(f"lacks lora_{side} of {path}")
        rank, (inputs, outputs) = self._config.rank_of(path), self._target.shapes[place]
        for side, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            if sides[side].shape != shape:
                self._no(
                    f"lora_{side} of {path} is {tuple(sides[side].shape)} and must be {shape}",
                    "use the adapter with its own base and configuration",
                )
        return Pair(sides["A"], sides["B"], self._config.scale_of(path))


def _path(root: str, place: tuple[int, str]) -> str:
    layer, name = place
    return f"{root}.layers.{layer}.{_OWNERS[name]}.{name}"


def _check_files(root: Path) -> None:
    """Refuse whatever is not read and not known to be read by nobody."""
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.is_symlink():
            refuse(entry.name, "is a link", NO_LINKS)
        if entry.is_dir():
            if entry.name != ".cache":
                refuse(entry.name, "is a directory", _ONLY)
        elif entry.name not in (CONFIG, WEIGHTS) and not _BYSTANDERS.match(entry.name):
            refuse(entry.name, "is not a file of an adapter", _ONLY)


def _fits(base: str | None, model_id: str) -> bool | None:
    """Whether two names of a model say the same; a path counts by its last part."""
    if base is None or "unidentified" in model_id:
        return None
    return base.rstrip("/").rpartition("/")[2] == model_id.removesuffix(INT8_SUFFIX).rpartition("/")[2]
