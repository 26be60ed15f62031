"""The int8 weights of a snapshot, taken out of its shards before the rest fills the model.

``NAME.weight`` is int8 ``[out, in]`` and ``NAME.weight_scale`` float32 ``[out]``. A snapshot of int8 weights has
all linears of its language model in this form, and its embedding and head; one that has only some is refused.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from medport.errors import VerificationError
from medport_local.engine.assembly import canonical
from medport_local.engine.kernels import Int8, Workspace
from medport_local.engine.weights import Shard
from medport_local.safetensors_header import StoredTensor

SCALE = "_scale"
"""Ends the name of what a weight's rows are multiplied with."""
_QUANTISED = re.compile(
    r"(layers\.\d+\.)(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)\.weight|embed_tokens\.weight|lm_head\.weight"
)


def is_quantised(name: str) -> bool:
    """Whether a weight, by its canonical name, is one that int8 snapshots hold as int8."""
    return _QUANTISED.fullmatch(name) is not None


class Int8Weights:
    """Collects the int8 weights of one model.

    Args:
        model: the empty model; ``None`` if the snapshot holds no int8.
        device: where they go.
    """

    def __init__(self, model: Any | None, device: torch.device) -> None:
        named = [] if model is None else list(model.named_parameters(remove_duplicate=False))
        self._device = device
        self._shapes: dict[str, torch.Size] = {
            canonical(name): each.shape for name, each in named if is_quantised(canonical(name))
        }
        self._owners: dict[str, int] = {canonical(name): id(each) for name, each in named}
        self._found: dict[str, Tensor] = {}

    @property
    def places(self) -> frozenset[str]:
        """Canonical names of the parameters that stay empty."""
        return frozenset(self._shapes)

    def taken_from(self, shards: Iterable[Shard]) -> Iterator[Shard]:
        """Keep the int8 weights and their scales, and pass on what else the shards hold.

        Raises:
            VerificationError: one of them has another shape or kind of number than the configuration asks for.
        """
        for shard in shards:
            rest = tuple(stored for stored in shard.tensors if not self._take(shard, stored))
            yield dataclasses.replace(shard, tensors=rest)

    def complete(self) -> Mapping[str, Int8]:
        """The weights by the decoder's names, such as ``layers.3.q_proj``; a tied one stands under both its names.

        Raises:
            VerificationError: a weight or its scale is missing.
        """
        weighed = [name for name in self._shapes if name in self._found]
        by_owner = {self._owners[name]: name for name in weighed}
        if len(by_owner) != len(weighed):
            _refuse("holds embedding and head, which config.json says are one")
        workspace = Workspace()
        weights: dict[str, Int8] = {}
        made: dict[str, Int8] = {}
        for name in self._shapes:
            stored = by_owner.get(self._owners[name])
            if stored is None or stored + SCALE not in self._found:
                _refuse(f"lacks {name if stored is None else stored + SCALE} in int8")
            if stored not in made:
                made[stored] = Int8(self._found[stored], self._found[stored + SCALE], workspace)
            weights[_short(name)] = made[stored]
        return weights

    def _take(self, shard: Shard, stored: StoredTensor) -> bool:
        name = canonical(stored.name)
        weight = name.removesuffix(SCALE)
        if weight not in self._shapes:
            if stored.dtype == "I8":
                _refuse(f"holds {stored.name:.100} in int8, which is not read in that form")
            return False
        shape, dtype = (self._shapes[weight], "I8") if name == weight else (self._shapes[weight][:1], "F32")
        if stored.shape != tuple(shape) or stored.dtype != dtype:
            _refuse(f"has another shape or kind of number for {stored.name:.100}")
        if name in self._found:
            _refuse(f"holds twice {stored.name:.100}")
        view = shard.view(stored)
        tensor = view.to(self._device)
        if name != weight and not bool(torch.isfinite(tensor).all()):
            _refuse(f"holds what is no number in {stored.name:.100}")
        self._found[name] = tensor
        if tensor.data_ptr() != view.data_ptr():
            shard.forget(stored)
        return True


def _short(name: str) -> str:
    return name.removesuffix(".weight").replace("self_attn.", "").replace("mlp.", "")


def _refuse(fault: str) -> NoReturn:
    raise VerificationError(
        f"the snapshot {fault}", field="model.safetensors", remedy="make it again: medport quantize"
    )
