"""From logits to what may be drawn, written as it is defined. ``draw`` finds the same token sooner.

Temperature, min-p, top-k, top-p, one draw: the order of vLLM 0.22 (docs.vllm.ai, ``vllm.v1.sample.sampler``). The
draw inverts the cumulated probability at one uniform number, so one number from a seed is one token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medport_local.engine.sequence import Sampling

NEVER = float("-inf")
"""The logit of a token that is forbidden."""


def distribution(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """What may be drawn; most likely first if top-k or top-p cut, else in the vocabulary's order.

    Equal logits stand in the vocabulary's order, so which of them a cut spares is defined too.

    Args:
        logits: float32 ``[vocabulary]`` on the CPU, minus infinity for what is forbidden; one is finite, none is
            NaN or plus infinity.

    Returns:
        Probabilities, float64 ``[kept]``, that add up to 1, and their token ids, int64 ``[kept]``. Top-p keeps the
        shortest run whose probability reaches ``top_p``, at least one token.
    """
    scaled = logits.double() / sampling.temperature
    floor = scaled.max() + math.log(sampling.min_p) if sampling.min_p > 0 else torch.tensor(NEVER)
    tokens = ((scaled >= floor) & (scaled > NEVER)).nonzero().squeeze(1)
    scaled = scaled[tokens]
    if 0 < sampling.top_k < len(scaled):
        near = scaled >= scaled.topk(sampling.top_k).values[-1]
        scaled, order = scaled[near].sort(descending=True, stable=True)
        tokens = tokens[near][order][: sampling.top_k]
        scaled = scaled[: sampling.top_k]
    probabilities = scaled.softmax(dim=-1)
    if sampling.top_p < 1:
        # All that is rarer than this adds up to less than 1 - top_p, so the run ends before it: sort the rest.
        near = probabilities >= (1 - sampling.top_p) / len(probabilities)
        # By the logits: exp makes some that differ equal.
        order = scaled[near].sort(descending=True, stable=True).indices
        probabilities, tokens = probabilities[near][order], tokens[near][order]
        before = probabilities.cumsum(0) - probabilities
        kept = max(1, int((before < sampling.top_p).sum()))
        probabilities, tokens = probabilities[:kept], tokens[:kept]
        probabilities = probabilities / probabilities.sum()
    return probabilities, tokens


def drawn(logits: Tensor, sampling: Sampling, point: float) -> int:
    """The token at ``point`` of the cumulated distribution.

    Args:
        logits: as for ``distribution``.
        point: 0 up to but not including 1.
    """
    probabilities, tokens = distribution(logits, sampling)
    place = int(torch.searchsorted(probabilities.cumsum(0), point, right=True))
    return int(tokens[min(place, len(tokens) - 1)])
