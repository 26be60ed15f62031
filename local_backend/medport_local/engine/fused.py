"""Decode steps and chunks on ``card_kernels``: the products are torch's, what is between them one kernel a part.

Rows may have any slots and lengths: a kernel reads of each row what it has, so one recording serves all contexts.
Needs a card that Triton knows, and a C compiler for its first launch; ``usable`` asks.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from medport_local.engine.decoder import Attend, Decoder
from medport_local.engine.kvcache import KvCache
from medport_local.engine.static_step import Inputs

_LEAST_CAPABILITY = (8, 0)
"""bfloat16 in the matrix units came with it."""
_KERNELS = "medport_local.engine.card_kernels"


def usable(device: torch.device) -> bool:
    """Whether the kernels can be tried on a device; their first launch may still fail."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY
        and find_spec("triton") is not None
    )


def forward(decoder: Decoder, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
    """``Decoder.forward`` without adapters: a chunk's rows cost a fourth of the launches."""
    kernels: Any = import_module(_KERNELS)
    layers, eps = decoder.layers, decoder.eps
    turns = decoder.turns(positions, x.dtype)
    following = [*(layer.before_attention for layer in layers[1:]), decoder.norm]
    x = x.contiguous()
    h = kernels.norm(x, layers[0].before_attention, eps)
    for layer, next_norm in zip(layers, following, strict=True):
        mixed = attend(layer.index, *kernels.turned(layer.qkv_of(h), layer.qk_norm, turns[layer.sliding], eps))
        x, h = kernels.add_norm(x, layer.linears["o_proj"](mixed), layer.after_attention, layer.before_mlp, eps)
        mixed = layer.linears["down_proj"](kernels.gated(*layer.gate_up_of(h)))
        x, h = kernels.add_norm(x, mixed, layer.after_mlp, next_norm, eps)
    return x


class FusedStep:
    """The step; its arguments are those of ``static_step.StaticStep``.

    Raises:
        Exception: whatever Triton raises where it cannot compile, at the first call.
    """

    def __init__(self, decoder: Decoder, cache: KvCache, inputs: Inputs) -> None:
        self._decoder, self._cache, self._inputs = decoder, cache, inputs
        self._kernels: Any = import_module(_KERNELS)
        shape = decoder.shape
        self._attend = {
            sliding: self._kernels.Attention(
                heads=shape.heads,
                kv_heads=shape.kv_heads,
                head_dim=shape.head_dim,
                scale=shape.scale,
                eps=decoder.eps,
                rows=inputs.rows,
                tokens=cache.window if sliding else cache.tokens,
                itemsize=decoder.dtype.itemsize,
                device=decoder.device,
            )
            for sliding in set(shape.sliding)
        }

    def __call__(self) -> Tensor:
        """float32 ``[rows, vocabulary]`` for what the inputs hold."""
        decoder, cache, inputs, kernels = self._decoder, self._cache, self._inputs, self._kernels
        layers, eps = decoder.layers, decoder.eps
        x = decoder.embed(inputs.tokens)
        turns = decoder.turns(inputs.positions, x.dtype)
        # At which element of a layer's keys each row's first token lies.
        bases = {True: inputs.slots * cache.slot_stride, False: inputs.starts * decoder.shape.head_dim}
        following = [*(layer.before_attention for layer in layers[1:]), decoder.norm]
        h = kernels.norm(x, layers[0].before_attention, eps)
        for layer, next_norm in zip(layers, following, strict=True):
            sliding = layer.sliding
            store = cache.ring(layer.index) if sliding else cache.arena(layer.index)
            mixed = self._attend[sliding](
                layer.qkv_of(h),
                layer.qk_norm,
                turns[sliding],
                (store[0], store[1]),
                bases[sliding],
                inputs.positions,
                cache.window if sliding else cache.tokens,
            )
            x, h = kernels.add_norm(
                x, layer.linears["o_proj"](mixed), layer.after_attention, layer.before_mlp, eps
            )
            mixed = layer.linears["down_proj"](kernels.gated(*layer.gate_up_of(h)))
            x, h = kernels.add_norm(x, mixed, layer.after_mlp, next_norm, eps)
        return decoder.head.logits(h)
