"""Logits → tokens. Each sequence draws from its own generator, so its text does not depend on its neighbours."""

from __future__ import annotations

import secrets
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from medport_local.engine.sequence import Sampling, Sequence


class Sampler:
    """Greedy at temperature 0; else temperature, then top-k, then top-p, then one draw."""

    def __init__(self) -> None:
        self._generators: dict[int, torch.Generator] = {}

    def pick(self, logits: Tensor, sequences: Rows[Sequence]) -> list[int]:
        """One token for each row.

        Args:
            logits: float32 ``[rows, vocabulary]``.
            sequences: one for each row.
        """
        greedy: list[int] = logits.argmax(dim=-1).tolist()
        return [
            best if each.request.sampling.temperature == 0 else self._draw(row, each)
            for best, row, each in zip(greedy, logits, sequences, strict=True)
        ]

    def forget(self, sequence: Sequence) -> None:
        """Drop a sequence's generator."""
        self._generators.pop(sequence.id, None)

    def _draw(self, logits: Tensor, sequence: Sequence) -> int:
        sampling = sequence.request.sampling
        generator = self._generators.get(sequence.id)
        if generator is None:
            # On the CPU whatever the device is, so that a seed means the same everywhere.
            generator = torch.Generator(device="cpu")
            generator.manual_seed(secrets.randbits(63) if sampling.seed is None else sampling.seed)
            self._generators[sequence.id] = generator
        probabilities, tokens = distribution(logits.cpu(), sampling)
        point = torch.rand((), generator=generator, dtype=torch.float64)
        place = int(torch.searchsorted(probabilities.cumsum(0), point, right=True))
        return int(tokens[min(place, len(tokens) - 1)])


def distribution(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """What may be drawn, most likely first.

    Args:
        logits: float32 ``[vocabulary]``.

    Returns:
        Probabilities, float64 ``[kept]``, that add up to 1, and their token ids, int64 ``[kept]``. Top-p keeps the
        shortest run whose probability reaches ``top_p``, at least one token.
    """
    scaled, tokens = (logits.double() / sampling.temperature).sort(descending=True, stable=True)
    if sampling.top_k > 0:
        scaled, tokens = scaled[: sampling.top_k], tokens[: sampling.top_k]
    probabilities = scaled.softmax(dim=-1)
    if sampling.top_p < 1:
        before = probabilities.cumsum(0) - probabilities
        kept = int((before < sampling.top_p).sum())
        probabilities, tokens = probabilities[: max(1, kept)], tokens[: max(1, kept)]
        probabilities = probabilities / probabilities.sum()
    return probabilities, tokens
