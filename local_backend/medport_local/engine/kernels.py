"""The linear products, where nearly all of a step's time goes, and the norm between them.

A decode step multiplies a few rows with every weight of the model, so it is bound by the bytes of the weights. For
few rows torch's ``linear`` reaches half of a CPU's memory bandwidth in bfloat16; the same product with the weight
as the left operand reaches most of it, without a packed copy. Measured by ``tests/benchmarks/kernels.py``.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_ROWS = 32
"""Up to so many rows the weight goes to the left; above, ``linear`` has enough to compute with."""
MANY_ROWS = 128
"""Above it a product of int8 widens its weight: the rows that share the work are enough."""
_FUSED_NORM_ROWS = 64
_FINE = 254
"""Steps of the fine part in one of the coarse part."""


class Linear(Protocol):
    """``y = x @ weight.T``, without bias, as all of Gemma's products are."""

    @property
    def nbytes(self) -> int:
        """Bytes of the weight that a product reads."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """``[rows, in]`` → ``[rows, out]``, in the dtype of ``x``."""
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

    def __call__(self, x: Tensor) -> Tensor:
        if not self._left or len(x) > FEW_ROWS:
            return F.linear(x, self.weight)
        if len(x) == 1:
            return torch.mv(self.weight, x[0])[None]
        return torch.mm(self.weight, x.t()).t().contiguous()


class Int8:
    """A weight of int8 with one scale for each output row; activations keep their precision.

    Each row of ``x`` is split into two rows of int8, its coarse and its fine part, which together hold 15 bits of
    it. One product of integers takes both, and the scales come afterwards. To a product that is bound by the bytes
    of the weight the second row is free. The sums are exact, so a row's result is the same whatever stands beside
    it. For a long chunk the weight is widened to the dtype of ``x`` instead, once for all its rows.

    Args:
        weight: int8 ``[out, in]``.
        scale: float32 ``[out]``; ``weight * scale`` is what the full weight was.
    """

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        assert weight.dtype == torch.int8
        self.weight = weight
        self.scale = scale

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.scale.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) > MANY_ROWS:
            return F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        rows = x.float()
        step = rows.abs().amax(dim=-1, keepdim=True).clamp_min(1e-30) / 127  # [rows, 1]
        coarse = (rows / step).round()
        fine = (rows / step - coarse).mul(_FINE).round()
        parts = torch.cat([coarse, fine]).to(torch.int8)  # [2 * rows, in]
        if len(x) <= FEW_ROWS:
            product = torch._int_mm(self.weight, parts.t()).t()  # int32 [2 * rows, out]
        else:
            product = torch._int_mm(parts, self.weight.t())
        whole = torch.add(product[: len(x)].float(), product[len(x) :], alpha=1 / _FINE)
        return (whole * step * self.scale).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm, ``[…, size]``, rounded once at the end as transformers does it.

    Args:
        weight: float32 ``[size]``, the factor itself; Gemma stores it less one.
    """
    wide = x.float()
    if x.numel() <= _FUSED_NORM_ROWS * len(weight):
        return F.rms_norm(wide, (len(weight),), weight, eps).to(x.dtype)
    # For many rows the single steps are several times faster than the one call on a CPU.
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight).to(x.dtype)
