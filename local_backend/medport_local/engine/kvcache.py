"""Keys and values of all sequences in two tensors a kind, allocated once: what was declared is what there is.

A sliding-window layer has a ring of one window for each slot; a global layer has an arena of tokens, of which each
sequence owns one contiguous run (``blocks.Memory`` says which). Position ``p`` lies at ``p % window`` of the ring
and at ``start + p`` of the arena.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medport_local.engine import segments
from medport_local.engine.decoder import Attend, Shape, image_numbers
from medport_local.engine.segments import SegmentedChunk

if TYPE_CHECKING:
    from medport_local.engine.blocks import Lease

_QUERIES = 512
"""Rows of a chunk that attend at once when the context is long, so that a mask stays small."""
_LONG = 4096
_HULL = 1.5
"""Idle slots between busy ones are computed along up to this factor; above it the rings are copied together."""


def ring_bytes(shape: Shape, window: int, itemsize: int) -> int:
    """Of one slot."""
    return sum(shape.sliding) * 2 * shape.kv_heads * window * shape.head_dim * itemsize


def token_bytes(shape: Shape, itemsize: int) -> int:
    """Of one token of the arena."""
    return (len(shape.sliding) - sum(shape.sliding)) * 2 * shape.kv_heads * shape.head_dim * itemsize


@dataclass(frozen=True, slots=True)
class Kept:
    """A copy of a prompt's beginning: what a later sequence with the same beginning can go on from."""

    rings: Tensor
    """``[2, sliding layers, kv_heads, min(window, tokens), head_dim]``, as they lay."""
    run: Tensor
    """``[2, global layers, kv_heads, tokens, head_dim]``."""

    @property
    def nbytes(self) -> int:
        return self.rings.nbytes + self.run.nbytes


class KvCache:
    """The tensors.

    Args:
        shape: of the decoder.
        slots: rings.
        tokens: of the arena.
        window: of a ring; the model's, or less where a context cannot reach it.
    """

    def __init__(
        self, shape: Shape, *, slots: int, tokens: int, window: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shape = shape
        self.window = window
        sliding = sum(shape.sliding)
        head = (shape.kv_heads, shape.head_dim)
        # Zeros, not whatever lies there: what a mask hides is multiplied by nought, and nought times NaN is NaN.
        self._rings = _zeros((2, sliding, slots, head[0], window, head[1]), dtype, device)
        self._arena = _zeros((2, len(shape.sliding) - sliding, head[0], tokens, head[1]), dtype, device)
        self._segmented = segments.usable(shape, dtype, device)
        counts = {True: 0, False: 0}
        self._places: list[int] = []
        for kind in shape.sliding:
            self._places.append(counts[kind])
            counts[kind] += 1

    @property
    def nbytes(self) -> int:
        return self._rings.nbytes + self._arena.nbytes

    @property
    def device(self) -> torch.device:
        return self._arena.device

    @property
    def tokens(self) -> int:
        """Of the arena."""
        return self._arena.shape[3]

    @property
    def slots(self) -> int:
        """Rings there are."""
        return self._rings.shape[2]

    @property
    def slot_stride(self) -> int:
        """Elements from a layer's ring of one slot to that of the next."""
        return self._rings.stride(2)

    def ring(self, layer: int) -> Tensor:
        """``[2, slots, kv_heads, window, head_dim]`` of a sliding layer."""
        return self._rings[:, self._places[layer]]

    def arena(self, layer: int) -> Tensor:
        """``[2, kv_heads, tokens, head_dim]`` of a global layer, of all sequences."""
        return self._arena[:, self._places[layer]]

    def run(self, layer: int, lease: Lease) -> Tensor:
        """``[2, kv_heads, tokens, head_dim]`` of a global layer."""
        return self._arena[:, self._places[layer], :, lease.start : lease.start + lease.tokens]

    def keep(self, lease: Lease, tokens: int) -> Kept:
        """Copy the first ``tokens`` of a sequence: all that it has computed, if its rings are full."""
        return Kept(
            rings=self._rings[:, :, lease.slot, :, : min(tokens, self.window)].clone(),
            run=self._arena[:, :, :, lease.start : lease.start + tokens].clone(),
        )

    def restore(self, lease: Lease, kept: Kept, tokens: int) -> None:
        """Put the first ``tokens`` of a copy into a sequence's place."""
        ring = min(tokens, self.window)
        self._rings[:, :, lease.slot, :, :ring] = kept.rings[..., :ring, :]
        self._arena[:, :, :, lease.start : lease.start + tokens] = kept.run[..., :tokens, :]

    def scrub(self, lease: Lease) -> None:
        """Clear a ring that may hold numbers which are none, before it is lent again."""
        self._rings[:, :, lease.slot] = 0

    def chunk(self, lease: Lease, start: int, end: int, blocks: Sequence[tuple[int, int]]) -> Attend:
        """Attention for prompt positions ``[start, end)`` of one sequence.

        Args:
            blocks: the prompt's image blocks, whose tokens see each other both ways.
        """
        chunk = SegmentedChunk if self._segmented else MaskedChunk
        return chunk(self, lease, start, end, blocks)

    def step(self, leases: Sequence[Lease], positions: Sequence[int]) -> Attend:
        """Attention for one row of each of several sequences, in the order of their slots."""
        return _Step(self, leases, positions)


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    # Fresh pages that nobody wrote to are zeros and not there yet: a large cache costs what is used of it.
    count = math.prod(size) * dtype.itemsize
    return torch.from_numpy(np.zeros(count, np.uint8)).view(dtype).view(size)


class MaskedChunk:
    """What ``KvCache.chunk`` gives on any device."""

    def __init__(
        self, cache: KvCache, lease: Lease, start: int, end: int, blocks: Sequence[tuple[int, int]]
    ) -> None:
        self._cache, self._lease, self._start, self._end = cache, lease, start, end
        device = cache.device
        window = cache.shape.window
        self._numbers = image_numbers(blocks, start, end, device)
        self._past = min(start, cache.window - 1)
        self._ring_places = torch.arange(start - self._past, start, device=device) % cache.window
        # The last window of the chunk is what stays.
        self._kept = max(start, end - cache.window)
        self._new_places = torch.arange(self._kept, end, device=device) % cache.window
        rows = end - start
        plain = start == 0 and self._numbers is None  # the causal mask, which needs no tensor
        self._sliding_mask = None if plain and rows <= window else self._mask(0, rows, self._past, window)
        size = rows if end <= _LONG else _QUERIES
        # Rows that attend together in a global layer, how many keys they see, and their mask.
        self._parts: list[tuple[int, int, int, Tensor | None]] = []
        for first in range(0, rows, size):
            last = min(rows, first + size)
            keys = end if self._numbers is not None else start + last
            causal = plain and first == 0
            self._parts.append((first, last, keys, None if causal else self._mask(first, last, start, None, keys)))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shape, cache = self._cache.shape, self._cache
        q = q.transpose(0, 1)[None]  # [1, heads, rows, head_dim]
        kv = torch.stack([k, v]).transpose(1, 2)  # [2, kv_heads, rows, head_dim]
        if shape.sliding[layer]:
            ring = cache.ring(layer)[:, self._lease.slot]
            seen = torch.cat([ring[:, :, self._ring_places], kv], dim=2) if self._past else kv
            out = self._attend(q, seen, self._sliding_mask)
            # Written last: the chunk's first rows still see what its last rows replace.
            ring[:, :, self._new_places] = kv[:, :, self._kept - self._start :]
        else:
            run = cache.run(layer, self._lease)
            run[:, :, self._start : self._end] = kv
            out = self._global(q, run)
        return out[0].transpose(0, 1).reshape(self._end - self._start, -1)

    def _global(self, q: Tensor, run: Tensor) -> Tensor:
        parts = [
            self._attend(q[:, :, first:last], run[:, :, :keys], mask) for first, last, keys, mask in self._parts
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _mask(self, first: int, last: int, past: int, window: int | None, keys: int | None = None) -> Tensor:
        """bool ``[last - first, keys]``: which keys a row of the chunk sees; ``past`` of them come before it."""
        device = self._cache.device
        keys = past + self._end - self._start if keys is None else keys
        rows = torch.arange(first, last, device=device)[:, None]
        places = torch.arange(-past, keys - past, device=device)[None]
        seen = places <= rows
        if self._numbers is not None:
            own = self._numbers[first:last, None]
            seen = seen | (own == F.pad(self._numbers, (past, 0), value=-2)[None, :keys]) & (own >= 0)
        return seen if window is None else seen & (places > rows - window)

    def _attend(self, q: Tensor, kv: Tensor, mask: Tensor | None) -> Tensor:
        shape = self._cache.shape
        return F.scaled_dot_product_attention(
            q, kv[:1], kv[1:], attn_mask=mask, is_causal=mask is None, scale=shape.scale,
            enable_gqa=shape.heads != shape.kv_heads,
        )  # fmt: skip


class _Step:
    def __init__(self, cache: KvCache, leases: Sequence[Lease], positions: Sequence[int]) -> None:
        device = cache.device
        self._cache, self._leases, self._positions = cache, leases, positions
        slots = [lease.slot for lease in leases]
        assert slots == sorted(slots)
        self._low, span = slots[0], slots[-1] - slots[0] + 1
        self._slots = torch.tensor(slots, device=device)
        self._hull = span <= _HULL * len(slots)
        self._at = torch.tensor([p % cache.window for p in positions], device=device)
        self._length = min(cache.window, max(positions) + 1)
        # In which rows of the hull the sequences stand; all of them, mostly.
        self._rows = self._slots - self._low if self._hull and span > len(slots) else None
        self._span = span if self._hull else len(slots)
        # A ring that has wrapped is all valid: place i holds a token of the window whenever i <= position.
        lengths = torch.full((self._span,), self._length - 1, device=device)
        where = self._rows if self._rows is not None else slice(None)
        lengths[where] = torch.tensor(positions, device=device)
        even = min(positions) + 1 >= self._length
        places = torch.arange(self._length, device=device)
        self._mask = None if even else (places[None] <= lengths[:, None])[:, None, None]  # [span, 1, 1, length]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shape, cache = self._cache.shape, self._cache
        # The heads of a group become query rows of their one KV head, so that it is read once.
        q = q.view(len(q), shape.kv_heads, -1, shape.head_dim)
        if not shape.sliding[layer]:
            out = torch.cat([self._one(layer, i, q, k, v) for i in range(len(q))])
            return out.reshape(len(q), -1)
        ring = cache.ring(layer)
        ring[0, self._slots, :, self._at] = k
        ring[1, self._slots, :, self._at] = v
        if self._hull:
            seen = ring[:, self._low : self._low + self._span, :, : self._length]
        else:
            seen = ring[:, :, :, : self._length][:, self._slots]
        if self._rows is not None:
            spread = q.new_zeros(self._span, *q.shape[1:])
            spread[self._rows] = q
            q = spread
        out = F.scaled_dot_product_attention(q, seen[0], seen[1], attn_mask=self._mask, scale=shape.scale)
        if self._rows is not None:
            out = out[self._rows]
        return out.reshape(len(out), -1)

    def _one(self, layer: int, i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        position = self._positions[i]
        run = self._cache.run(layer, self._leases[i])
        run[0, :, position], run[1, :, position] = k[i], v[i]
        seen = run[:, :, : position + 1]
        return F.scaled_dot_product_attention(q[i : i + 1], seen[:1], seen[1:], scale=self._cache.shape.scale)
