"""What one decode step does between its matrix products, each part as one kernel for an NVIDIA card.

Written in torch these parts are some sixty launches a layer, each of which reads and writes a few kilobytes. Every
rounding is where ``decoder`` has it. Importing this module needs Triton, and the first launch a C compiler;
``fused`` is who finds out.

Source of the attention in parts: Dao et al., "Flash-Decoding for long-context inference", 2023.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

_TOKENS = 64
"""Keys that one program reads at once, where they and their values fit twice into its shared memory."""
_FEW_TOKENS = 32
_WARPS, _STAGES = 4, 2
_GROUP = 16
"""Query rows of one product, the fewest that the matrix units take."""
_PROGRAMS, _LONG_PROGRAMS = 264, 1056
"""Of the attention at least, where there are keys enough: two for each multiprocessor of a large card, and more
for contexts beyond ``_LONG``. These numbers, ``_TOKENS`` and the warps were the best of those tried on an H100."""
_LONG = 2048
_MOST_SPLITS = 64


@triton.jit  # type: ignore[untyped-decorator]
def _norm_kernel(x, w, out, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < SIZE
    wide = tl.load(x + row * SIZE + i, mask=inside, other=0.0).to(tl.float32)
    share = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / SIZE + eps)
    made = wide * share * tl.load(w + i, mask=inside, other=0.0)
    tl.store(out + row * SIZE + i, made.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm_kernel(  # type: ignore[no-untyped-def]
    x, mixed, w_mixed, w_next, total, out, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < SIZE
    dtype = out.dtype.element_ty
    # All that is read is asked for at once: with a row or two the kernel waits for nothing else.
    m = tl.load(mixed + row * SIZE + i, mask=inside, other=0.0).to(tl.float32)
    old = tl.load(x + row * SIZE + i, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(w_mixed + i, mask=inside, other=0.0)
    next_factor = tl.load(w_next + i, mask=inside, other=0.0)
    share = 1.0 / tl.sqrt(tl.sum(m * m, axis=0) / SIZE + eps)
    m = (m * share * factor).to(dtype).to(tl.float32)
    both = (old + m).to(dtype)
    tl.store(total + row * SIZE + i, both, mask=inside)
    wide = both.to(tl.float32)
    share = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / SIZE + eps)
    tl.store(out + row * SIZE + i, (wide * share * next_factor).to(dtype), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _gated_kernel(  # type: ignore[no-untyped-def]
    gate, up, out, gate_row, up_row, size, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    dtype = out.dtype.element_ty
    g = tl.load(gate + row * gate_row + i, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_row + i, mask=inside, other=0.0).to(tl.float32)
    # tanh(z) = 2 sigmoid(2 z) - 1
    inner = 0.7978845608028654 * (g + 0.044715 * g * g * g)
    gelu = (0.5 * g * (1.0 + (2.0 * tl.sigmoid(2.0 * inner) - 1.0))).to(dtype).to(tl.float32)
    tl.store(out + row * size + i, (gelu * u).to(dtype), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _place_kernel(  # type: ignore[no-untyped-def]
    q, k, v, q_row, k_row, v_row, norms, cos, sin, bases, positions, keys, values, q_out, eps, head_stride,
    token_stride, window, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    i = tl.arange(0, HALF)
    inside = i < SIZE // 2
    low, high = i, i + SIZE // 2
    position = tl.load(positions + row)
    place = tl.load(bases + row) + (position % window) * token_stride
    if head >= HEADS + KV_HEADS:
        at = head - HEADS - KV_HEADS
        source = v + row * v_row + at * SIZE
        target = values + place + at * head_stride
        tl.store(target + low, tl.load(source + low, mask=inside), mask=inside)
        tl.store(target + high, tl.load(source + high, mask=inside), mask=inside)
    else:
        dtype = q_out.dtype.element_ty
        if head < HEADS:  # noqa: SIM108  pointers of two tensors
            source = q + row * q_row + head * SIZE
        else:
            source = k + row * k_row + (head - HEADS) * SIZE
        one = tl.load(source + low, mask=inside, other=0.0).to(tl.float32)
        two = tl.load(source + high, mask=inside, other=0.0).to(tl.float32)
        share = 1.0 / tl.sqrt((tl.sum(one * one, axis=0) + tl.sum(two * two, axis=0)) / SIZE + eps)
        factor = norms + head * SIZE
        one = (one * share * tl.load(factor + low, mask=inside, other=0.0)).to(dtype).to(tl.float32)
        two = (two * share * tl.load(factor + high, mask=inside, other=0.0)).to(dtype).to(tl.float32)
        turn = row * SIZE
        cos_low = tl.load(cos + turn + low, mask=inside, other=0.0).to(tl.float32)
        cos_high = tl.load(cos + turn + high, mask=inside, other=0.0).to(tl.float32)
        sin_low = tl.load(sin + turn + low, mask=inside, other=0.0).to(tl.float32)
        sin_high = tl.load(sin + turn + high, mask=inside, other=0.0).to(tl.float32)
        new_one = (one * cos_low).to(dtype).to(tl.float32) + (two * sin_low).to(dtype).to(tl.float32)
        new_two = (two * cos_high).to(dtype).to(tl.float32) + (one * sin_high).to(dtype).to(tl.float32)
        if head < HEADS:
            target = q_out + (row * HEADS + head) * SIZE
        else:
            target = keys + place + (head - HEADS) * head_stride
        tl.store(target + low, new_one.to(dtype), mask=inside)
        tl.store(target + high, new_two.to(dtype), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _attend_kernel(  # type: ignore[no-untyped-def]
    q, keys, values, bases, positions, parts, peaks, sums, scale, head_stride, token_stride, window, splits,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    split = tl.program_id(2)
    each: tl.constexpr = HEADS // KV_HEADS
    g = tl.arange(0, GROUP)
    d = tl.arange(0, WIDTH)
    t = tl.arange(0, TOKENS)
    wanted = (g < each)[:, None] & (d < SIZE)[None, :]
    length = tl.minimum(tl.load(positions + row) + 1, window)
    share = tl.cdiv(tl.cdiv(length, splits), TOKENS) * TOKENS
    first = split * share
    last = tl.minimum(first + share, length)
    rows = row * HEADS + head * each + g
    query = tl.load(q + rows[:, None] * SIZE + d[None, :], mask=wanted, other=0.0)
    base = tl.load(bases + row) + head * head_stride
    peak = tl.full([GROUP], float("-inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    mixed = tl.zeros([GROUP, WIDTH], tl.float32)
    for at in range(first, last, TOKENS):
        token = at + t
        there = token < last
        offset = base + token.to(tl.int64)[:, None] * token_stride + d[None, :]
        seen = there[:, None] & (d < SIZE)[None, :]
        key = tl.load(keys + offset, mask=seen, other=0.0)
        value = tl.load(values + offset, mask=seen, other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(there[None, :], score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, axis=1))
        shrink = tl.exp(peak - higher)
        weight = tl.exp(score - higher[:, None])
        total = total * shrink + tl.sum(weight, axis=1)
        mixed = mixed * shrink[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        peak = higher
    place = rows * splits + split
    tl.store(parts + place[:, None] * SIZE + d[None, :], mixed, mask=wanted)
    tl.store(peaks + place, peak, mask=g < each)
    tl.store(sums + place, total, mask=g < each)


@triton.jit  # type: ignore[untyped-decorator]
def _join_kernel(  # type: ignore[no-untyped-def]
    parts, peaks, sums, out, splits, SIZE: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, SPLITS)
    d = tl.arange(0, WIDTH)
    inside = s < splits
    peak = tl.load(peaks + row * splits + s, mask=inside, other=float("-inf"))
    weight = tl.exp(peak - tl.max(peak, axis=0))
    total = tl.sum(weight * tl.load(sums + row * splits + s, mask=inside, other=0.0), axis=0)
    place = (row * splits + s)[:, None] * SIZE + d[None, :]
    part = tl.load(parts + place, mask=inside[:, None] & (d < SIZE)[None, :], other=0.0)
    mixed = tl.sum(part * weight[:, None], axis=0) / total
    tl.store(out + row * SIZE + d, mixed.to(out.dtype.element_ty), mask=d < SIZE)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``kernels.rms_norm`` of ``[rows, size]``, contiguous."""
    out = torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[1])
    _norm_kernel[(len(x),)](x, weight, out, eps, SIZE=x.shape[1], BLOCK=block, num_warps=8)
    return out


def add_norm(
    x: Tensor, mixed: Tensor, mixed_weight: Tensor, next_weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The residual after a part of a layer, ``x + norm(mixed)``, and its norm for the next part.

    All ``[rows, size]``, contiguous.
    """
    total, out = torch.empty_like(x), torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[1])
    _add_norm_kernel[(len(x),)](
        x, mixed, mixed_weight, next_weight, total, out, eps, SIZE=x.shape[1], BLOCK=block, num_warps=8
    )
    return total, out


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``gelu(gate) * up`` in the tanh form, ``[rows, size]``; rows may lie apart."""
    rows, size = gate.shape
    out = gate.new_empty(rows, size)
    grid = (rows, triton.cdiv(size, 1024))
    _gated_kernel[grid](gate, up, out, gate.stride(0), up.stride(0), size, BLOCK=1024, num_warps=4)
    return out


def turned(
    qkv: tuple[Tensor, Tensor, Tensor], norms: Tensor, turn: tuple[Tensor, Tensor], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys normed and turned, and the values beside them.

    Args:
        qkv: ``[rows, heads * head_dim]`` and twice ``[rows, kv_heads * head_dim]``; rows may lie apart.
        norms, turn: as ``Attention`` takes them.

    Returns:
        ``[rows, heads, head_dim]`` and twice ``[rows, kv_heads, head_dim]``.
    """
    q, k, v = qkv
    rows, size = len(q), norms.shape[1]
    heads, kv_heads = q.shape[1] // size, k.shape[1] // size
    query, keys = q.new_empty(rows, heads, size), q.new_empty(2, rows, kv_heads, size)
    # Each row has room for one token, at its own place.
    bases = torch.arange(rows, device=q.device) * (kv_heads * size)
    half = max(16, triton.next_power_of_2(size // 2))
    _place_kernel[(rows, heads + 2 * kv_heads)](
        q, k, v, q.stride(0), k.stride(0), v.stride(0), norms, *turn, bases, bases, keys[0], keys[1], query,
        eps, size, size, 1, HEADS=heads, KV_HEADS=kv_heads, SIZE=size, HALF=half, num_warps=1,
    )  # fmt: skip
    return query, keys[0], keys[1]


class Attention:
    """Attention of one row of each sequence, over keys and values where they lie.

    Args:
        heads, kv_heads, head_dim, scale, eps: of the model.
        rows: sequences in a step.
        tokens: of the longest context.
        itemsize: bytes of one number of the keys.
        device: the card.
    """

    def __init__(
        self,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        scale: float,
        eps: float,
        rows: int,
        tokens: int,
        itemsize: int,
        device: torch.device,
    ) -> None:
        self._heads, self._kv_heads, self._size = heads, kv_heads, head_dim
        self._scale, self._eps = scale, eps
        self._shape: dict[str, Any] = {"HEADS": heads, "KV_HEADS": kv_heads, "SIZE": head_dim}
        self._tokens = _tokens(rows, tokens, 2 * _STAGES * head_dim * itemsize, device)
        programs = _LONG_PROGRAMS if tokens > _LONG else _PROGRAMS
        wanted = triton.cdiv(programs, rows * kv_heads)
        self._splits = max(1, min(_MOST_SPLITS, wanted, triton.cdiv(tokens, self._tokens)))
        self._width = max(16, triton.next_power_of_2(head_dim))
        self._group = max(_GROUP, triton.next_power_of_2(heads // kv_heads))

    def __call__(
        self,
        qkv: tuple[Tensor, Tensor, Tensor],
        norms: Tensor,
        turn: tuple[Tensor, Tensor],
        store: tuple[Tensor, Tensor],
        bases: Tensor,
        positions: Tensor,
        window: int,
    ) -> Tensor:
        """Norm and turn queries and keys, store keys and values, attend.

        Args:
            qkv: ``[rows, heads * head_dim]`` and twice ``[rows, kv_heads * head_dim]``; rows may lie apart.
            norms: float32 ``[heads + kv_heads, head_dim]``.
            turn: ``Decoder.turns`` of the layer's kind.
            store: where keys and values lie, ``[…, kv_heads, tokens, head_dim]`` with the same strides.
            bases: int64 ``[rows]``: at which element of ``store`` each sequence's first token lies.
            positions: int64 ``[rows]``.
            window: tokens that a sequence has room for; later ones take the places of the first.

        Returns:
            ``[rows, heads * head_dim]``.
        """
        q, k, v = qkv
        keys, values = store
        rows = len(q)
        head_stride, token_stride = keys.stride(-3), keys.stride(-2)
        query = q.new_empty(rows, self._heads * self._size)
        half = max(16, triton.next_power_of_2(self._size // 2))
        _place_kernel[(rows, self._heads + 2 * self._kv_heads)](
            q, k, v, q.stride(0), k.stride(0), v.stride(0), norms, *turn, bases, positions, keys, values, query,
            self._eps, head_stride, token_stride, window, **self._shape, HALF=half, num_warps=1,
        )  # fmt: skip
        splits = self._splits
        parts = torch.empty(rows * self._heads * splits, self._size, device=q.device)
        peaks = torch.empty(rows * self._heads * splits, device=q.device)
        sums = torch.empty_like(peaks)
        _attend_kernel[(rows, self._kv_heads, splits)](
            query, keys, values, bases, positions, parts, peaks, sums, self._scale, head_stride, token_stride,
            window, splits, **self._shape, WIDTH=self._width, GROUP=self._group, TOKENS=self._tokens,
            num_warps=_WARPS, num_stages=_STAGES,
        )  # fmt: skip
        out = torch.empty_like(query)
        _join_kernel[(rows * self._heads,)](
            parts, peaks, sums, out, splits, SIZE=self._size, WIDTH=self._width,
            SPLITS=triton.next_power_of_2(splits), num_warps=4,
        )  # fmt: skip
        return out


def _tokens(rows: int, tokens: int, token_bytes: int, device: torch.device) -> int:
    """Keys that one program reads at once; fewer where programs would be too few, or too large for the card."""
    if rows == 1 and tokens <= _LONG:
        return _FEW_TOKENS
    properties: Any = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    room = 0 if properties is None else properties.shared_memory_per_block_optin
    # Some of the room goes to what is between the two products.
    return _TOKENS if _TOKENS * token_bytes <= 0.8 * room else _FEW_TOKENS
