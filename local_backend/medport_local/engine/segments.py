"""Attention of a prompt's chunk without masks: flash attention over segments that see alike.

Text rows see what comes before them; all rows of an image see the image's end. So a chunk falls into segments,
each of which is causal or not, and a sliding layer's window is an argument of the kernel. Under a mask of 512 rows
by 8,192 tokens the same attention takes several times as long.

Source: Dao, "FlashAttention-2", 2023; its windows count from the lower right corner. torch has them only in an
operator that is no part of its public interface, so it is tried before it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from medport_local.engine.blocks import Lease
    from medport_local.engine.decoder import Shape
    from medport_local.engine.kvcache import KvCache

_LARGEST_HEAD = 256


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows ``[first, last)`` of a chunk; a row of an image's segment sees all of it."""

    first: int
    last: int
    causal: bool


def segments(start: int, end: int, blocks: Sequence[tuple[int, int]]) -> list[Segment]:
    """Cut prompt positions ``[start, end)`` at the image blocks inside, none of which they may cut."""
    found = []
    at = start
    for s, e in blocks:
        if e <= start or s >= end:
            continue
        assert start <= s < e <= end, "a chunk's edge lies inside an image block"
        if at < s:
            found.append(Segment(at - start, s - start, causal=True))
        found.append(Segment(s - start, e - start, causal=False))
        at = e
    if at < end:
        found.append(Segment(at - start, end - start, causal=True))
    return found


def usable(shape: Shape, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether flash attention with a window runs for such a model on this device."""
    if device.type != "cuda" or dtype == torch.float32 or shape.head_dim > _LARGEST_HEAD:
        return False
    q = torch.zeros(2, shape.heads, shape.head_dim, dtype=dtype, device=device)
    k = torch.zeros(4, shape.kv_heads, shape.head_dim, dtype=dtype, device=device)
    try:
        return attend(q, k, k, causal=False, before=1, scale=shape.scale).shape == q.shape
    except (RuntimeError, TypeError, AttributeError):
        return False


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, before: int | None, scale: float) -> Tensor:
    """Attention whose last row stands at the last key.

    Args:
        q: ``[rows, heads, head_dim]``.
        k: ``[keys, kv_heads, head_dim]``, at least as many keys as rows.
        v: as ``k``.
        causal: whether a row sees nothing after its own key.
        before: so many keys before its own it sees at most; ``None``: all.

    Returns:
        As ``q``.
    """
    rows, keys = len(q), len(k)
    if q.device.type == "cuda":
        operator: Any = torch.ops.aten._flash_attention_forward
        window = {} if before is None else {"window_size_left": before, "window_size_right": 0 if causal else keys}
        out: Tensor = operator(
            q[None], k[None], v[None], None, None, rows, keys, 0.0, causal, False, scale=scale, **window
        )[0][0]
        return out
    row = torch.arange(keys - rows, keys, device=q.device)[:, None]
    place = torch.arange(keys, device=q.device)[None]
    seen = torch.ones(rows, keys, dtype=torch.bool, device=q.device)
    if causal:
        seen &= place <= row
    if before is not None:
        seen &= place >= row - before
    q, k, v = (each.transpose(0, 1)[None] for each in (q, k, v))
    made = F.scaled_dot_product_attention(
        q, k, v, attn_mask=seen, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return made[0].transpose(0, 1)


class SegmentedChunk:
    """What ``KvCache.chunk`` gives where ``usable`` says so."""

    def __init__(
        self, cache: KvCache, lease: Lease, start: int, end: int, blocks: Sequence[tuple[int, int]]
    ) -> None:
        self._cache, self._lease, self._start, self._end = cache, lease, start, end
        self._segments = segments(start, end, blocks)
        device = cache.device
        self._past = min(start, cache.window - 1)
        self._ring_places = torch.arange(start - self._past, start, device=device) % cache.window
        # The last window of the chunk is what stays.
        self._kept = max(start, end - cache.window)
        self._new_places = torch.arange(self._kept, end, device=device) % cache.window

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shape, cache = self._cache.shape, self._cache
        kv = torch.stack([k, v])  # [2, rows, kv_heads, head_dim]
        if shape.sliding[layer]:
            ring = cache.ring(layer)[:, self._lease.slot]  # [2, kv_heads, window, head_dim]
            seen = torch.cat([ring[:, :, self._ring_places].transpose(1, 2), kv], dim=1) if self._past else kv
            out = self._each(q, seen, self._past, shape.window - 1)
            # Written last: the chunk's first rows still see what its last rows replace.
            ring[:, :, self._new_places] = kv[:, self._kept - self._start :].transpose(1, 2)
        else:
            run = cache.run(layer, self._lease).transpose(1, 2)  # [2, tokens, kv_heads, head_dim]
            run[:, self._start : self._end] = kv
            out = self._each(q, run, self._start, None)
        return out.reshape(self._end - self._start, -1)

    def _each(self, q: Tensor, kv: Tensor, past: int, before: int | None) -> Tensor:
        """Over keys and values of which ``past`` come before the chunk."""
        parts = []
        for each in self._segments:
            end = past + each.last
            begin = 0 if before is None else max(0, past + each.first - before)
            keys, values = kv[:, begin:end]
            parts.append(
                attend(
                    q[each.first : each.last], keys, values,
                    causal=each.causal, before=before, scale=self._cache.shape.scale,
                )
            )  # fmt: skip
        return parts[0] if len(parts) == 1 else torch.cat(parts)
