"""How likely the chosen tokens were, and the likeliest ones, for all rows that ask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medport_local.engine.largest import Floats, bar, likeliest_first

Told = tuple[float, tuple[tuple[int, float], ...]]
"""The chosen token's logprob; token and logprob of the likeliest, best first."""


def logprobs(logits: Tensor, rows: Sequence[int], tokens: Sequence[int], counts: Sequence[int]) -> list[Told]:
    """Natural logarithms of probabilities, by the logits as they are.

    Args:
        logits: float32 ``[rows, vocabulary]``, on any device; the largest of each row is finite.
        rows: which of them are asked about; at least one.
        tokens: the token that was chosen in each.
        counts: how many of the likeliest are wanted of each. More than there are is all of them.
    """
    if logits.device.type == "cpu":
        values = logits.numpy()
        asked = zip(rows, tokens, counts, strict=True)
        return [_of_row(values[row], token, count) for row, token, count in asked]
    return _of_rows(logits, rows, tokens, counts)


def _of_row(logits: Floats, token: int, count: int) -> Told:
    top = logits.max()
    # float32 adds in pairs: the sum is right to 1e-6 of itself.
    total = float(top) + float(np.log(np.exp(logits - top).sum()))
    own = float(logits[token]) - total
    count = min(count, len(logits))
    if not count:
        return own, ()
    ids = likeliest_first(logits, np.flatnonzero(logits >= np.float32(bar(logits, count))))[:count]
    likely = logits[ids].astype(np.float64) - total
    return own, tuple(zip(ids.tolist(), likely.tolist(), strict=True))


def _of_rows(logits: Tensor, rows: Sequence[int], tokens: Sequence[int], counts: Sequence[int]) -> list[Told]:
    """All rows in one call each, as a GPU would have it. Equal logits come in no promised order."""
    some = logits[torch.tensor(rows, device=logits.device)]
    total = some.logsumexp(dim=-1, keepdim=True)
    own = some.gather(1, torch.tensor(tokens, device=logits.device)[:, None]) - total
    values, likely = some.topk(min(max(counts), logits.shape[1]))
    # All in one transfer: float64 holds every token id.
    table = torch.cat([own.double(), (values - total).double(), likely.double()], dim=1).tolist()
    width = values.shape[1]
    return [
        (row[0], tuple((int(i), value) for i, value in zip(row[1 + width :], row[1 : 1 + width], strict=True))[:n])
        for row, n in zip(table, counts, strict=True)
    ]
