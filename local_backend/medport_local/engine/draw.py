"""The draw, in a tenth of the time that ``distribution`` takes at 262,144 tokens, and the same token always.

Two short cuts. Where min-p or top-k cut, few tokens are left, and what is certain to be cut is left out before the
definition is applied. Elsewhere the probabilities of all tokens count: they are added up in float32, then, only if
rounding could have changed the answer, in float64, and if it still could, the definition itself is computed. How
much rounding can do is bounded (``_SLACK``), so the answer is never another one, only at times a slower one.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medport_local.engine.distribution import drawn
from medport_local.engine.sequence import Sampling

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_SLACK = {torch.float32: 1e-5, torch.float64: 1e-9}
"""How far a cumulated probability can be from the one of ``distribution``, in either direction.

float32: the exponent is off by three roundings, 1.8e-7 of itself, and the mean exponent, weighted by probability,
is at most ln(vocabulary) = 12.5; exp and the sums of 512 add 1e-6. float64: 6e-11 for the definition's own sums.
"""

_NEAR_NOTHING = -80.0
"""Exponents below it weigh as much as it does: 1e-35. Smaller ones would make denormal numbers, which are slow."""

_RARE = (1e-3, 1e-5)
"""Top-p looks for its run among the tokens at least so likely, first; there are at most 1,000, and 100,000."""

_PIECE = 16_384
"""So many numbers stay in the cache, and torch adds no threads for them."""

_LOWEST = float(np.finfo(np.float32).min)


class Drawer:
    """Draws tokens. Keeps room for one row, so it is for one thread at a time.

    Args:
        few: with at most so many tokens left the definition is computed at once.
    """

    def __init__(self, few: int = 2048) -> None:
        self._few = few
        self._room: dict[torch.dtype, Tensor] = {}

    def draw(self, logits: Tensor, top: float, sampling: Sampling, point: float) -> int:
        """What ``distribution.drawn`` gives.

        Args:
            logits: float32 ``[vocabulary]`` on the CPU; minus infinity is allowed, NaN and plus infinity are not.
            top: the largest of them, finite.
            point: 0 up to but not including 1.
        """
        ids = survivors(logits.numpy(), top, sampling)
        if ids is not None:
            logits = logits[torch.from_numpy(ids)]
        cut = 0 < sampling.top_k < len(logits)
        place = None
        if not cut and len(logits) > self._few:
            place = self._drawn_of_many(logits, top, sampling, point)
        if place is None:
            place = drawn(logits, sampling, point)
        return place if ids is None else int(ids[place])

    def _drawn_of_many(self, logits: Tensor, top: float, sampling: Sampling, point: float) -> int | None:
        """The token, or ``None`` if rounding leaves it open."""
        for dtype, slack in _SLACK.items():
            weights = self.weights(logits, top, sampling.temperature, dtype)
            if sampling.top_p < 1:
                run = nucleus(logits.numpy(), weights, top, sampling, slack)
                if run is None:
                    continue
                ids, reached, total = run
                place = _at(reached, 0.0, point * float(reached[-1]), 2 * slack * total)
                token = None if place is None else int(ids[place])
            else:
                token = _in_order(weights, point, slack)
            if token is not None:
                return token
        return None

    def weights(self, logits: Tensor, top: float, temperature: float, dtype: torch.dtype) -> Tensor:
        """``exp((logits - top) / temperature)`` in ``dtype``; zeros fill the last row of ``[rows, columns]``."""
        count, columns = len(logits), max(1, math.isqrt(len(logits)))
        size = -(-count // columns) * columns
        room = self._room.get(dtype)
        if room is None or len(room) < size:
            room = self._room[dtype] = torch.empty(size, dtype=dtype)
        weights = room[:size]
        weights[count:] = 0
        for start in range(0, count, _PIECE):
            piece = weights[start : min(start + _PIECE, count)]
            piece.copy_(logits[start : start + _PIECE])
            piece.sub_(top).mul_(1 / temperature).clamp_(min=_NEAR_NOTHING).exp_()
        return weights.view(-1, columns)


def survivors(logits: Floats, top: float, sampling: Sampling) -> Ids | None:
    """Tokens among which are all that min-p and top-k keep; ``None`` if neither of them cuts.

    Those that min-p keeps are exactly those of ``distribution``. Of what top-k keeps there is at least one token
    more, if there is one: so ``distribution`` sees that it cuts. In the vocabulary's order.
    """
    floor = _LOWEST
    if sampling.min_p > 0:
        below = sampling.temperature * math.log(sampling.min_p)
        # A little lower, so that rounding loses none.
        floor = max(floor, top + below - 1e-6 * (abs(top) + abs(below)))
    if 0 < sampling.top_k < len(logits):
        floor = max(floor, _nth(logits, sampling.top_k + 1))
    if floor == _LOWEST and sampling.min_p == 0 and not 0 < sampling.top_k < len(logits):
        return None
    ids: Ids = np.flatnonzero(logits >= np.float32(floor))
    if sampling.min_p > 0:
        scaled = logits[ids].astype(np.float64) / sampling.temperature
        ids = ids[scaled >= scaled.max() + math.log(sampling.min_p)]
    return ids


def nucleus(
    logits: Floats, weights: Tensor, top: float, sampling: Sampling, slack: float
) -> tuple[Ids, Doubles, float] | None:
    """What top-p keeps, or ``None`` if weights that are wrong by ``slack`` could hide it.

    Args:
        weights: of ``logits``, by ``Drawer.weights``.

    Returns:
        Tokens, most likely first; their weights, cumulated; and the weight of the whole vocabulary.
    """
    flat: npt.NDArray[np.floating] = weights.view(-1).numpy()
    total = float(weights.sum(dim=-1).double().sum())
    rarest = (1 - sampling.top_p) / (2 * len(logits))  # what is rarer than this is less than half of 1 - top_p
    for share in (*(share for share in _RARE if share > rarest), rarest):
        floor = max(_LOWEST, min(top, top + sampling.temperature * math.log(share * total)))
        ids: Ids = np.flatnonzero(logits >= np.float32(floor))
        if float(flat[ids].sum(dtype=np.float64)) > (sampling.top_p + slack) * total:
            break
    else:
        return None
    ids = _likeliest_first(logits, ids)
    reached = np.cumsum(flat[ids], dtype=np.float64)
    kept = 1 + int(np.searchsorted(reached[:-1], sampling.top_p * total))
    around = reached[max(0, kept - 2) : kept]
    if np.abs(around - sampling.top_p * total).min() <= slack * total:
        return None
    return ids[:kept], reached[:kept], total


def _in_order(weights: Tensor, point: float, slack: float) -> int | None:
    """The token at ``point`` with the tokens in the vocabulary's order; ``None`` if ``slack`` leaves it open."""
    sums = np.cumsum(weights.sum(dim=-1).double().numpy())
    total = float(sums[-1])
    row = int(np.searchsorted(sums, point * total, side="right"))
    if row == len(sums):
        return None
    before = float(sums[row - 1]) if row else 0.0
    reached = before + np.cumsum(weights[row].numpy(), dtype=np.float64)
    place = _at(reached, before, point * total, 2 * slack * total)
    return None if place is None else row * weights.shape[1] + place


def _at(reached: Doubles, before: float, target: float, margin: float) -> int | None:
    """Which step of ``reached`` goes past ``target``; ``None`` if an edge of the step is within ``margin``."""
    place = int(np.searchsorted(reached, target, side="right"))
    if place == len(reached):
        return None
    low = float(reached[place - 1]) if place else before
    if place == 0 and before == 0:
        low = -margin  # nothing comes before the first token, whatever rounding does
    return place if low + margin <= target <= float(reached[place]) - margin else None


def _nth(logits: Floats, n: int) -> float:
    """A number that the ``n`` largest logits reach, and not many more do."""
    columns = math.isqrt(len(logits))
    if n <= columns // 2:
        # The largest of each column are different tokens, so the n-th largest of them will do.
        rows = len(logits) // columns
        peaks = logits[: rows * columns].reshape(rows, columns).max(axis=0)
        return float(np.partition(peaks, columns - n)[columns - n])
    return float(np.partition(logits, len(logits) - n)[len(logits) - n])


def _likeliest_first(logits: Floats, ids: Ids) -> Ids:
    """Sorted by logit, equal ones by id, as one sort of integers: numpy's stable sort takes ten times as long."""
    bits = (logits[ids] + np.float32(0)).view(np.int32)  # minus zero is zero
    rising = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)
    keys = (~rising).astype(np.int64) << 32 | ids
    keys.sort()
    return keys & 0xFFFFFFFF
