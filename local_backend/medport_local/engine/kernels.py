"""The linear products, where nearly all of a step's time goes, and the norm between them.

A decode step multiplies a few rows with every weight of the model, so it is bound by the bytes of the weights. For
few rows torch's ``linear`` reaches half of a CPU's memory bandwidth in bfloat16; the same product with the weight
as the left operand reaches most of it, without a packed copy. Measured by ``tests/benchmarks/kernels.py``.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_ROWS = 32
"""Up to so many rows the weight goes to the left; above, ``linear`` has enough to compute with."""
MANY_ROWS = 256
"""Above it a product of int8 widens its weight: the rows that share the work are enough."""
_LEFT_ROWS = 64
"""Up to so many rows a weight of int8 goes to the left."""
_BLOCK_ROWS = 8192
"""Of a head's weight at once: its logits are turned and widened while they are in the cache."""
_LEVELS = 127 * 256
"""The largest integer that a row becomes; its high byte is 127."""
_TINY = 1e-30
_MOST_COLUMNS = 2**17
"""So many products of two bytes fit into the 32 bits of their sum."""
_BLOCK_BYTES = 4 * 2**20
"""Of a weight that is widened at once: it stays in the cache for its product."""


class Linear(Protocol):
    """``y = x @ weight.T``, without bias, as all of Gemma's products are."""

    @property
    def nbytes(self) -> int:
        """Bytes of the weight that a product reads."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """``[rows, in]`` → ``[rows, out]``, in the dtype of ``x``; in any memory layout."""
        ...

    def logits(self, x: Tensor) -> Tensor:
        """``[rows, in]`` → float32 ``[rows, out]``, row after row in memory; made for a long ``out``."""
        ...


class Table(Protocol):
    """The embedding, ``[vocabulary, hidden]``."""

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """int64 ``[rows]`` → ``[rows, hidden]`` in ``dtype``."""
        ...


class Dense:
    """A weight as it is stored, ``[out, in]``. Takes no copy of it."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        # In float32 the plain form is the faster one at every number of rows, and on a GPU it is one kernel.
        self._left = weight.device.type == "cpu" and weight.dtype == torch.bfloat16

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return F.embedding(ids, self.weight).to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        if not self._left or len(x) > FEW_ROWS:
            return F.linear(x, self.weight)
        if len(x) == 1:
            return torch.mv(self.weight, x[0])[None]
        return torch.mm(self.weight, x.t()).t()

    def logits(self, x: Tensor) -> Tensor:
        if not self._left or not 1 < len(x) <= FEW_ROWS:
            return self(x).float()
        y = torch.empty(len(x), len(self.weight))
        columns = x.t()
        for first in range(0, len(self.weight), _BLOCK_ROWS):
            block = self.weight[first : first + _BLOCK_ROWS]
            y[:, first : first + _BLOCK_ROWS] = torch.mm(block, columns).t()
        return y


def joined(first: Dense, second: Dense) -> Dense | None:
    """Both products as one, where their weights lie behind each other in memory, as files often have them."""
    one, two = first.weight, second.weight
    if (
        one.untyped_storage().data_ptr() != two.untyped_storage().data_ptr()
        or one.shape[1] != two.shape[1]
        or not (one.is_contiguous() and two.is_contiguous())
        or one.data_ptr() + one.nbytes != two.data_ptr()
    ):
        return None
    return Dense(torch.as_strided(one, (len(one) + len(two), one.shape[1]), one.stride(), one.storage_offset()))


class Workspace:
    """What the products of one model share. They run one after another, in one thread at a time."""

    def __init__(self) -> None:
        self._rows: Tensor | None = None
        self._halves: tuple[Tensor, Tensor] | None = None
        self._scratch: dict[torch.dtype, Tensor] = {}

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The rows as integers of 16 bits, in two bytes each.

        Remembers the last rows, by identity: several products of a layer take the same ones. Nobody may change
        them in between.

        Returns:
            int8 ``[2 * rows, in]``, first all high bytes and then all low ones, and float32 ``[rows, 1]``, so that
            ``x`` is ``(256 * high + low) * step`` to half a step.
        """
        if self._halves is None or self._rows is not x:
            self._rows, self._halves = x, _halves(x)
        return self._halves

    def scratch(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Memory for ``[rows, columns]``, with anything in it; the next call gives the same."""
        there = self._scratch.get(dtype)
        if there is None or there.numel() < rows * columns:
            # Kept: memory that is asked for anew is filled page by page, which takes longer than the product.
            there = self._scratch[dtype] = torch.empty(rows * columns, dtype=dtype)
        return there[: rows * columns].view(rows, columns)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    count = len(x)
    largest = torch.linalg.vector_norm(x, math.inf, dim=-1, keepdim=True, dtype=torch.float32)
    step = largest.clamp_min_(_TINY).div_(_LEVELS)  # [rows, 1]
    whole = (x / step).round_().to(torch.int16)
    parts = torch.empty(2 * count, x.shape[1], dtype=torch.int8, device=x.device)
    parts[count:] = whole  # the low byte, as a number of -128 … 127
    parts[:count] = whole.add_(128).bitwise_right_shift_(8)
    return parts, step


class Int8:
    """A weight of int8 with one scale for each output row; activations keep their precision.

    Each row of ``x`` is taken as integers of 16 bits, in two rows of int8 (``Workspace.halves``). One product of
    integers takes both, and the scales come afterwards. To a product that is bound by the bytes of the weight the
    second row is free. The sums are exact, so a row's result is the same whatever stands beside it. For a long
    chunk the weight is widened to the dtype of ``x`` instead, once for all its rows; so it is where torch has no
    fast product of integers.

    Args:
        weight: int8 ``[out, in]``.
        scale: float32 ``[out]``; ``weight * scale`` is what the full weight was.
        workspace: that of the model; one of its own if none.
    """

    def __init__(self, weight: Tensor, scale: Tensor, workspace: Workspace | None = None) -> None:
        assert weight.dtype == torch.int8
        assert weight.shape[1] <= _MOST_COLUMNS
        self.weight = weight
        self.scale = scale
        self._workspace = workspace or Workspace()
        # Without oneDNN the product of integers is three plain loops; on a GPU it refuses most numbers of rows.
        fast: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        # For a single column torch 2.13 gives memory that nobody wrote to.
        self._integers = weight.device.type == "cpu" and fast and weight.shape[1] > 1

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.scale.nbytes

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return (self.weight[ids] * self.scale[ids, None]).to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        if not self._integers or len(x) > MANY_ROWS:
            return self._widened(x)
        return self._into(x.new_empty(len(x), len(self.weight)), x)

    def logits(self, x: Tensor) -> Tensor:
        if not self._integers or len(x) > MANY_ROWS:
            return self._widened(x).float()
        return self._into(torch.empty(len(x), len(self.weight)), x)

    def _into(self, y: Tensor, x: Tensor) -> Tensor:
        """The product of integers, written to ``y`` in its dtype."""
        parts, step = self._workspace.halves(x)
        count = len(x)
        left = count <= _LEFT_ROWS
        columns, across = parts.t(), step.t()
        for first in range(0, len(self.weight), _BLOCK_ROWS):
            block = self.weight[first : first + _BLOCK_ROWS]
            scale = self.scale[first : first + _BLOCK_ROWS]
            if left:
                product = torch._int_mm(block, columns)  # int32 [out, 2 * rows]
                whole = torch.add(product[:, count:], product[:, :count].float(), alpha=256.0)
                y[:, first : first + _BLOCK_ROWS] = whole.mul_(scale[:, None]).mul_(across).t()
            else:
                product = torch._int_mm(parts, block.t())  # int32 [2 * rows, out]
                whole = torch.add(product[count:], product[:count].float(), alpha=256.0)
                y[:, first : first + _BLOCK_ROWS] = whole.mul_(scale).mul_(step)
        return y

    def _widened(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return (F.linear(x, self.weight.to(x.dtype)) * self.scale).to(x.dtype)
        out, columns = self.weight.shape
        y = x.new_empty(len(x), out)
        size = max(1, _BLOCK_BYTES // (columns * x.dtype.itemsize))
        for first in range(0, out, size):
            block = self.weight[first : first + size]
            wide = self._workspace.scratch(len(block), columns, x.dtype).copy_(block)
            y[:, first : first + size] = F.linear(x, wide) * self.scale[first : first + size]
        return y


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm, ``[…, size]``, rounded once at the end as transformers does it.

    Args:
        weight: float32 ``[size]``, or one for each row of the last two dimensions; the factor itself, which Gemma
            stores less one.
    """
    wide = x.float()
    share = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return (wide * share).mul_(weight).to(x.dtype)
