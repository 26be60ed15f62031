"""The draw, in a tenth of the time that ``distribution`` takes at 262,144 tokens, and the same token always.

Two short cuts. Where min-p or top-k cut, few tokens are left, and what is certain to be cut is left out first.
Elsewhere the probabilities of all tokens count: they are added up in float32, then, only if rounding could have
changed the answer, in float64. If it still could, the definition itself is computed. How much rounding can do is
bounded (``_SLACK``), so the answer is never another one, only at times a slower one.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medport_local.engine.distribution import drawn
from medport_local.engine.largest import Floats, Ids, bar, likeliest_first
from medport_local.engine.sequence import Sampling

Weights = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]

_SLACK = {torch.float32: 1e-5, torch.float64: 1e-9}
"""How far a cumulated probability can be from the one of ``distribution``, in either direction.

float32: the exponent is off by three roundings, 1.8e-7 of itself, and the mean exponent, weighted by probability,
is at most ln(vocabulary) = 12.5; exp and the sums of 512 add 1e-6. float64: 6e-11 for the definition's own sums.
"""

_NEAR_NOTHING = -80.0
"""Exponents below it weigh as much as it does: 1e-35. Smaller ones would make denormal numbers, which are slow."""

_RARE = (1e-3, 1e-4, 1e-5, 1e-6)
"""Top-p looks for its run among the tokens at least so likely, first; there are at most 1,000, then 10,000 …"""

_PIECE = 32_768
"""So many numbers stay in the cache, and torch adds no threads for them: waiting for those can take longer."""

_LOWEST = float(np.finfo(np.float32).min)


class Drawer:
    """Draws tokens. Keeps room for one row, so it is for one thread at a time.

    Args:
        few: at most so many tokens are sorted whole, in float64.
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
            logits = torch.from_numpy(logits.numpy()[ids])
        if 0 < sampling.top_k < len(logits) or len(logits) <= self._few:
            place = _drawn_of_few(logits.numpy(), top, sampling, point)
        else:
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

    def weights(self, logits: Tensor, top: float, temperature: float, dtype: torch.dtype) -> Weights:
        """``exp((logits - top) / temperature)`` in ``dtype``; zeros fill the last line of ``[lines, columns]``."""
        count, columns = len(logits), max(1, math.isqrt(len(logits)))
        size = -(-count // columns) * columns
        room = self._room.get(dtype)
        if room is None or len(room) < size:
            room = self._room[dtype] = torch.empty(size, dtype=dtype)
        weights = room[:size]
        weights[count:] = 0
        for start in range(0, count, _PIECE):
            piece = weights[start : min(start + _PIECE, count)]
            torch.sub(logits[start : start + _PIECE].to(dtype), top, out=piece)
            if temperature != 1:
                piece.mul_(1 / temperature)
            piece.clamp_(min=_NEAR_NOTHING).exp_()
        return weights.view(-1, columns).numpy()


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
        floor = max(floor, bar(logits, sampling.top_k + 1))
    if floor == _LOWEST and sampling.min_p == 0 and not 0 < sampling.top_k < len(logits):
        return None
    ids: Ids = np.flatnonzero(logits >= np.float32(floor))
    if sampling.min_p > 0:
        scaled = logits[ids].astype(np.float64) / sampling.temperature
        ids = ids[scaled >= scaled.max() + math.log(sampling.min_p)]
    return ids


def nucleus(
    logits: Floats, weights: Weights, top: float, sampling: Sampling, slack: float
) -> tuple[Ids, Doubles, float] | None:
    """What top-p keeps, or ``None`` if weights that are wrong by ``slack`` could hide it.

    Args:
        weights: of ``logits``, by ``Drawer.weights``.

    Returns:
        Tokens, most likely first; their weights, cumulated; and the weight of the whole vocabulary.
    """
    flat = weights.reshape(-1)
    total = float(weights.sum(axis=-1).sum(dtype=np.float64))
    rarest = (1 - sampling.top_p) / (2 * len(logits))  # what is rarer than this is less than half of 1 - top_p
    # Where the tokens at the edge are rarer than the slack, it hides the edge.
    for share in (share for share in (*_RARE, rarest) if share >= max(rarest, 2 * slack)):
        floor = max(_LOWEST, min(top, top + sampling.temperature * math.log(share * total)))
        ids: Ids = np.flatnonzero(logits >= np.float32(floor))
        if float(flat[ids].sum(dtype=np.float64)) > (sampling.top_p + slack) * total:
            break
    else:
        return None
    ids = likeliest_first(logits, ids)
    reached = np.cumsum(flat[ids], dtype=np.float64)
    kept = _kept(reached, sampling.top_p * total, slack * total)
    return None if kept is None else (ids[:kept], reached[:kept], total)


def _drawn_of_few(logits: Floats, top: float, sampling: Sampling, point: float) -> int | None:
    """The token, or ``None`` if rounding leaves it open."""
    slack = _SLACK[torch.float64]
    ids: Ids = np.arange(len(logits))
    cut = 0 < sampling.top_k < len(logits)
    if cut or sampling.top_p < 1:
        ids = likeliest_first(logits, ids)
    if cut:
        ids = ids[: sampling.top_k]
    reached = np.cumsum(np.exp((logits[ids].astype(np.float64) - top) / sampling.temperature))
    total = float(reached[-1])
    if sampling.top_p < 1:
        kept = _kept(reached, sampling.top_p * total, slack * total)
        if kept is None:
            return None
        reached = reached[:kept]
    place = _at(reached, 0.0, point * float(reached[-1]), 2 * slack * total)
    return None if place is None else int(ids[place])


def _kept(reached: Doubles, wanted: float, margin: float) -> int | None:
    """How many tokens top-p keeps; ``None`` if one of the sums is within ``margin`` of what is wanted."""
    kept = 1 + int(np.searchsorted(reached[:-1], wanted))
    around = reached[max(0, kept - 2) : kept]
    return None if np.abs(around - wanted).min() <= margin else kept


def _in_order(weights: Weights, point: float, slack: float) -> int | None:
    """The token at ``point`` with the tokens in the vocabulary's order; ``None`` if ``slack`` leaves it open."""
    sums = np.cumsum(weights.sum(axis=-1), dtype=np.float64)
    total = float(sums[-1])
    line = int(np.searchsorted(sums, point * total, side="right"))
    if line == len(sums):
        return None
    before = float(sums[line - 1]) if line else 0.0
    reached = before + np.cumsum(weights[line], dtype=np.float64)
    place = _at(reached, before, point * total, 2 * slack * total)
    return None if place is None else line * weights.shape[1] + place


def _at(reached: Doubles, before: float, target: float, margin: float) -> int | None:
    """Which step of ``reached`` goes past ``target``; ``None`` if an edge of the step is within ``margin``."""
    place = int(np.searchsorted(reached, target, side="right"))
    if place == len(reached):
        return None
    low = float(reached[place - 1]) if place else before
    if place == 0 and before == 0:
        low = -margin  # nothing comes before the first token, whatever rounding does
    return place if low + margin <= target <= float(reached[place]) - margin else None
