"""A decode step whose every number comes from tensors on the device, so that it can be recorded once and replayed.

``kvcache.step`` looks at slots and positions to read as little as it can; what it does then fits that step alone.
Here nothing depends on them but the values of four tensors. The price is that a row reads all places of its ring
and so many of its run as the longest row of the step might have. ``kvcache.step`` is what tests compare with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medport_local.engine.blocks import Lease
from medport_local.engine.decoder import Decoder
from medport_local.engine.kvcache import KvCache

_LEAST = 256
"""Tokens of a run that are read at least."""


class Inputs:
    """Four int64 tensors ``[rows]`` on the device: token, position, slot, and where the run begins.

    Args:
        rows: as many as a step has; if it has fewer, the last one stands in for the rest. What such a row computes
            and stores is what the last one does.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows = rows
        # Pinned memory is copied without waiting for it.
        self._host = torch.zeros(4, rows, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._device = torch.zeros(4, rows, dtype=torch.int64, device=device)
        self.tokens, self.positions, self.slots, self.starts = self._device
        self._copied = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def fill(self, tokens: Sequence[int], positions: Sequence[int], leases: Sequence[Lease]) -> None:
        """Take in a step. The one before may still be at work: the device reads its inputs first."""
        columns = [tokens, positions, [lease.slot for lease in leases], [lease.start for lease in leases]]
        missing = self.rows - len(tokens)
        rows = torch.tensor([[*column, *[column[-1]] * missing] for column in columns])
        if self._copied is not None:
            # Until the last copy is over, what it reads must stay.
            self._copied.synchronize()
        self._host.copy_(rows)
        self._device.copy_(self._host, non_blocking=True)
        if self._copied is not None:
            self._copied.record()


def bucket(count: int, least: int = 1) -> int:
    """The power of two that holds ``count``, at least ``least``."""
    return max(least, 1 << (count - 1).bit_length())


def read_tokens(positions: Sequence[int]) -> int:
    """How many tokens of a run a step of these rows reads."""
    return bucket(max(positions) + 1, _LEAST)


class StaticStep:
    """The step in torch's own operators. Runs everywhere.

    Args:
        tokens: of a run that each row reads; no row may stand at or beyond it.
    """

    def __init__(self, decoder: Decoder, cache: KvCache, inputs: Inputs, tokens: int) -> None:
        self._decoder, self._cache, self._inputs = decoder, cache, inputs
        self._tokens = min(tokens, cache.tokens)

    def __call__(self) -> Tensor:
        """float32 ``[rows, vocabulary]`` for what the inputs hold."""
        inputs, cache = self._inputs, self._cache
        attend = _Attend(cache, inputs, self._tokens)
        x = self._decoder.embed(inputs.tokens)
        return self._decoder.logits(self._decoder.forward(x, inputs.positions, attend))


class _Attend:
    def __init__(self, cache: KvCache, inputs: Inputs, tokens: int) -> None:
        self._cache, self._slots = cache, inputs.slots
        positions, device = inputs.positions, cache.device
        self._ring_place = positions % cache.window
        self._run_place = inputs.starts + positions
        # A ring that has wrapped is all valid: place i holds a token of the window whenever i <= position.
        self._ring_mask = _until(positions, cache.window, device)
        self._run_mask = _until(positions, tokens, device)
        # Beyond the arena's end there is nothing to read, and the mask hides what is read instead.
        places = inputs.starts[:, None] + torch.arange(tokens, device=device)
        self._run_places = places.clamp_max_(cache.tokens - 1)  # [rows, tokens]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shape, cache = self._cache.shape, self._cache
        # The heads of a group become query rows of their one KV head, so that it is read once.
        q = q.view(len(q), shape.kv_heads, -1, shape.head_dim)
        if shape.sliding[layer]:
            ring = cache.ring(layer)  # [2, slots, kv_heads, window, head_dim]
            ring[0, self._slots, :, self._ring_place] = k
            ring[1, self._slots, :, self._ring_place] = v
            keys, values = ring[0].index_select(0, self._slots), ring[1].index_select(0, self._slots)
            mask = self._ring_mask
        else:
            arena = cache.arena(layer)  # [2, kv_heads, tokens, head_dim]
            arena[0, :, self._run_place] = k.transpose(0, 1)
            arena[1, :, self._run_place] = v.transpose(0, 1)
            keys, values = (each[:, self._run_places].transpose(0, 1) for each in arena)
            mask = self._run_mask
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=shape.scale)
        return out.reshape(len(out), -1)


def _until(positions: Tensor, tokens: int, device: torch.device) -> Tensor:
    """bool ``[rows, 1, 1, tokens]``: places up to each row's own."""
    return (torch.arange(tokens, device=device) <= positions[:, None])[:, None, None]
