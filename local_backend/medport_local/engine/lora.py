"""Low-rank adapters: what they add to the linear products of a batch. Each row may have another one, or none.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021; Kalajdzievski, "A Rank Stabilization
Scaling Factor for Fine-Tuning with LoRA", 2023 (the scale is computed where an adapter is loaded).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """What one linear gets: ``y += scale * (x @ a.T) @ b.T``."""

    a: Tensor = field(repr=False)
    """``[rank, in]``, in the model's dtype and on its device."""
    b: Tensor = field(repr=False)
    """``[out, rank]``, as ``a``."""
    scale: float


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Adapter:
    """A LoRA adapter that is ready to be used beside its base."""

    name: str
    sha256: str
    """Of the canonical JSON of its table of files, as a snapshot's."""
    weights: Mapping[tuple[int, str], Pair] = field(repr=False)
    """By layer and name of the linear, such as ``(3, "q_proj")``, at least one; the others stay as they are."""
    base: str | None
    """What the adapter says that it was trained on: a model's id or a directory's name."""
    fits_base: bool | None
    """Whether that is the model it was loaded for, by name; ``None`` if either has none. For a warning only."""

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(iter(self.weights.values())).a.device

    @property
    def rank(self) -> int:
        """The largest rank of its pairs."""
        return max(len(pair.a) for pair in self.weights.values())

    @property
    def linears(self) -> tuple[str, ...]:
        """Names of the linears that it changes in some layer."""
        return tuple(sorted({name for _, name in self.weights}))

    @property
    def nbytes(self) -> int:
        """Bytes of device memory."""
        return sum(pair.a.nbytes + pair.b.nbytes for pair in self.weights.values())


def add(y: Tensor, x: Tensor, pair: Pair) -> Tensor:
    """Add a pair's part to a product, in place.

    Args:
        y: ``[rows, out]``, the base's product for ``x``.
        x: ``[rows, in]``.
    """
    return y.addmm_(x @ pair.a.T, pair.b.T, alpha=pair.scale)


class Side:
    """What the adapters of a batch's rows add to each linear. Rows of the base alone are in no group.

    Args:
        groups: rows of the batch, as a slice or int64 indices on the device, and their adapter. No row is in two.
    """

    def __init__(self, groups: Sequence[tuple[slice | Tensor, Adapter]]) -> None:
        self._groups = tuple(groups)

    def __call__(self, y: Tensor, x: Tensor, layer: int, name: str) -> Tensor:
        """``y [rows, out]``, the base's product for ``x [rows, in]`` → ``y``, changed in place."""
        for rows, adapter in self._groups:
            pair = adapter.weights.get((layer, name))
            if pair is None:
                continue
            if isinstance(rows, slice):
                add(y[rows], x[rows], pair)
            else:
                y.index_add_(0, rows, (x[rows] @ pair.a.T) @ pair.b.T, alpha=pair.scale)
        return y


def of_rows(adapters: Sequence[Adapter | None]) -> Side | None:
    """Group the rows of a batch by their adapters; ``None`` if no row has one: then the base costs nothing more.

    Args:
        adapters: one for each row.
    """
    places: dict[Adapter, list[int]] = {}
    for row, adapter in enumerate(adapters):
        if adapter is not None:
            places.setdefault(adapter, []).append(row)
    if not places:
        return None
    return Side([(_rows(rows, adapter.device), adapter) for adapter, rows in places.items()])


def _rows(rows: list[int], device: torch.device) -> slice | Tensor:
    """A slice where the rows stand together: it reads and writes them where they are."""
    start, end = rows[0], rows[-1] + 1
    return slice(start, end) if end - start == len(rows) else torch.tensor(rows, device=device)
