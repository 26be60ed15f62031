"""The linear products, where nearly all of a step's time goes, and the norm between them.

A decode step multiplies a few rows with every weight of the model, so it is bound by the bytes of the weights. For
few rows torch's ``linear`` reaches half of a CPU's memory bandwidth in bfloat16; the same product with the weight
as the left operand reaches most of it, without a packed copy. Measured by ``tests/benchmarks/kernels.py``.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

FEW_ROWS = 32
"""Up to so many rows the weight goes to the left; above, ``linear`` has enough to compute with."""
MANY_ROWS = 32
"""Above it a product of int8 widens its weight: the rows that share the work are enough."""
_FUSED_ROWS = 4
"""torch's own product of bfloat16 and int8 takes so many at once, and unpacks the weight again for the next."""
_FUSED_WORK = 12 * 2**20
"""Up to so many multiplications it is the fastest, as it is one call."""
_FUSED_COLUMNS = 64
"""What the columns of that product must be a multiple of: it reads so many bytes at once."""
_BLOCK_ROWS = 8192
"""Of a head's weight at once: its logits are turned and widened while they are in the cache."""
_LEVELS = 127 * 256
"""The largest integer that a row becomes; its high byte is 127."""
_ROUNDING = 1.5 * 2.0**23
"""Added to a float32 of 16 bits, it leaves the nearest integer in the low bits."""
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
    wide = x.float().contiguous()
    # torch's norm of many rows takes ten times as long.
    step = wide.abs().amax(dim=-1, keepdim=True).clamp_min_(_TINY).div_(_LEVELS)  # [rows, 1]
    whole = (wide / step).add_(_ROUNDING).view(torch.int32)
    parts = torch.empty(2 * count, x.shape[1], dtype=torch.int8, device=x.device)
    parts[count:] = whole  # the low byte, as a number of -128 … 127
    parts[:count] = whole.add_(128).bitwise_right_shift_(8)
    return parts, step


class Int8:
    """A weight of int8 with one scale for each output row; activations keep their precision.

    There are three forms, each where it is the fastest:

    - Little work in bfloat16: torch's product of bfloat16 and int8, which sums in float32.
    - Few rows otherwise: each row of ``x`` is taken as integers of 16 bits, in two rows of int8
      (``Workspace.halves``). One product of integers takes both, and the scales come afterwards. To a product that
      is bound by the bytes of the weight the second row is free. The sums are exact.
    - Many rows, or no fast product of integers: the weight is widened to the dtype of ``x``, block by block, once
      for all rows.

    A row's result in the first two forms is the same to the bit whatever stands beside it. The form follows from
    the number of rows, so in bfloat16 a row may be rounded otherwise alone than among others; in float32 it is the
    same up to ``MANY_ROWS`` rows.

    Args:
        weight: int8 ``[out, in]``.
        scale: float32 ``[out]``; ``weight * scale`` is what the full weight was. Numbers that bfloat16 has, as
            ``quantise`` makes them, allow the first form and a faster third.
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
        short = scale.to(torch.bfloat16)
        self._short = short if bool((short.float() == scale).all()) else None
        aligned = weight.shape[1] % _FUSED_COLUMNS == 0 and weight.is_contiguous()
        # The scales of torch's own product, where it is used.
        self._fused = self._short if weight.device.type == "cpu" and aligned and _fused_works() else None

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.scale.nbytes

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return (self.weight[ids] * self.scale[ids, None]).to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        count = len(x)
        little = count <= _FUSED_ROWS and count * self.weight.numel() <= _FUSED_WORK
        if little and self._fused is not None and x.dtype == torch.bfloat16:
            return torch._weight_int8pack_mm(x.contiguous(), self.weight, self._fused)
        if not self._integers or count > MANY_ROWS:
            return self._widened(x)
        return self._into(x.new_empty(len(self.weight), count).t(), x)

    def logits(self, x: Tensor) -> Tensor:
        if not self._integers or len(x) > MANY_ROWS:
            return self._widened(x).float()
        return self._into(torch.empty(len(x), len(self.weight)), x)

    def _into(self, y: Tensor, x: Tensor) -> Tensor:
        """The product of integers, written to ``y`` in its dtype and layout."""
        parts, step = self._workspace.halves(x)
        count = len(x)
        columns, across = parts.t(), step.t()
        for first in range(0, len(self.weight), _BLOCK_ROWS):
            block = slice(first, first + _BLOCK_ROWS)
            product = torch._int_mm(self.weight[block], columns)  # int32 [out, 2 * rows]
            whole = torch.add(product[:, count:], product[:, :count].float(), alpha=256.0).mul_(across)
            torch.mul(whole, self.scale[block, None], out=y[:, block].t())
        return y

    def _widened(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return (F.linear(x, self.weight.to(x.dtype)) * self.scale).to(x.dtype)
        out, columns = self.weight.shape
        y = x.new_empty(len(x), out)
        scale = self._short if self._short is not None and x.dtype == torch.bfloat16 else self.scale
        size = max(1, _BLOCK_BYTES // (columns * x.dtype.itemsize))
        for first in range(0, out, size):
            block = slice(first, first + size)
            weight = self.weight[block]
            wide = self._workspace.scratch(len(weight), columns, x.dtype).copy_(weight)
            torch.mul(F.linear(x, wide), scale[block], out=y[:, block])
        return y


@cache
def _fused_works() -> bool:
    """Whether torch's product of bfloat16 and int8 is vectorised here, and computes what it is taken for."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    weight = torch.arange(-120, 136, 2, dtype=torch.int16).clamp(-127, 127).to(torch.int8).view(2, _FUSED_COLUMNS)
    x = torch.linspace(-3, 3, 2 * _FUSED_COLUMNS, dtype=torch.bfloat16).view(2, _FUSED_COLUMNS)
    scale = torch.tensor([0.5, 0.25], dtype=torch.bfloat16)
    try:
        found = torch._weight_int8pack_mm(x, weight, scale)
    except (RuntimeError, AttributeError, NotImplementedError, TypeError) as fault:
        logger.info("int8 weights have no product of their own here: %s", type(fault).__name__)
        return False
    return torch.allclose(found.float(), x.float() @ weight.float().t() * scale.float(), rtol=2**-7, atol=0.1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm, ``[…, size]``, rounded once at the end as transformers does it.

    Args:
        weight: float32 ``[size]``, or one for each row of the last two dimensions; the factor itself, which Gemma
            stores less one.
    """
    wide = x.float()
    share = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return (wide * share).mul_(weight).to(x.dtype)
