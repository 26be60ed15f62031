"""Logits → tokens. Each sequence has its own state and generator, so its text does not depend on its neighbours.

The order is that of vLLM 0.22 (docs.vllm.ai, ``vllm.v1.sample.sampler``; its structured output masks the logits
before its sampler sees them):

1. logprobs, from the logits as the model gave them;
2. what the grammar forbids, and end tokens before ``min_tokens``;
3. ``logit_bias``;
4. repetition penalty (prompt and answer), then frequency and presence penalties (answer alone);
5. greedy: the largest logit. Otherwise temperature, min-p, top-k, top-p, one draw.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medport.errors import InputError
from medport_local.engine.sequence import Sampling, Sequence

if TYPE_CHECKING:
    from medport_local.engine.grammar import Matcher

NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Choice:
    """A token, and what was asked about it."""

    token: int
    complete: bool = False
    """The grammar is fulfilled, and nothing may follow."""
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """Token and logprob of the most likely ones, best first."""


class Sampler:
    """Chooses the next tokens of a batch.

    Args:
        eos_ids: the model's end tokens, which ``min_tokens`` holds back.
    """

    def __init__(self, eos_ids: frozenset[int] = frozenset()) -> None:
        self._eos_ids = eos_ids
        self._states: dict[int, _State] = {}

    def pick(self, logits: Tensor, sequences: Rows[Sequence]) -> list[Choice | InputError]:
        """One choice for each row, or why there can be none: a grammar that became too complex on its way.

        Args:
            logits: float32 ``[rows, vocabulary]``; left as they are.
            sequences: one for each row.
        """
        best: list[int] = logits.argmax(dim=-1).tolist()
        if all(each.plain for each in sequences):
            return [Choice(token) for token in best]
        # On the CPU whatever the device is, so that a seed means the same everywhere.
        rows = logits.cpu()
        return [
            Choice(token) if each.plain else self._choose(row, each)
            for token, row, each in zip(best, rows, sequences, strict=True)
        ]

    @property
    def held(self) -> int:
        """How many sequences have a state here."""
        return len(self._states)

    def forget(self, sequence: Sequence) -> None:
        """Drop a sequence's generator, counts and matcher."""
        self._states.pop(sequence.id, None)

    def _choose(self, row: Tensor, sequence: Sequence) -> Choice | InputError:
        sampling = sequence.request.sampling
        state = self._states.get(sequence.id)
        if state is None:
            state = self._states[sequence.id] = _State(sequence, len(row))
        try:
            shaped = self._shape(row, sequence, state)
            token = int(shaped.argmax()) if sampling.greedy else state.draw(shaped, sampling)
            complete = state.accept(token)
        except InputError as fault:
            return fault
        if sampling.logprobs is None:
            return Choice(token, complete)
        total = row.logsumexp(dim=-1)
        values, tokens = row.topk(min(sampling.logprobs, len(row)))
        top = tuple(zip(tokens.tolist(), (values - total).tolist(), strict=True))
        return Choice(token, complete, float(row[token] - total), top)

    def _shape(self, row: Tensor, sequence: Sequence, state: _State) -> Tensor:
        """The logits with all that comes before the temperature."""
        sampling = sequence.request.sampling
        if len(sequence.generated) < sampling.min_tokens:
            ends = [i for i in self._eos_ids.union(sampling.stop_token_ids) if 0 <= i < len(row)]
        else:
            ends = []
        shaped = row
        if state.matcher is not None:
            allowed = torch.from_numpy(state.matcher.allowed())  # bool [tokenizer's vocabulary]
            shaped = torch.where(allowed, row[: len(allowed)], NEVER)
            if len(allowed) < len(row):  # a model's rows are padded to a round number
                shaped = torch.cat([shaped, torch.full((len(row) - len(allowed),), NEVER)])
            if ends:
                held_back = shaped.clone()
                held_back[ends] = NEVER
                # A fulfilled grammar may leave the end as the only way on: then the answer is short.
                shaped = held_back if bool((held_back > NEVER).any()) else shaped
        elif ends:
            shaped = row.clone()
            shaped[ends] = NEVER
        bias = [(token, add) for token, add in sampling.logit_bias if 0 <= token < len(row)]
        if bias:
            places = torch.tensor([token for token, _ in bias])
            shaped = shaped.index_add(0, places, torch.tensor([add for _, add in bias], dtype=shaped.dtype))
        return state.penalise(shaped, sampling)


class _State:
    """What one sequence's next choice depends on beside the logits."""

    def __init__(self, sequence: Sequence, vocabulary: int) -> None:
        sampling = sequence.request.sampling
        self.matcher: Matcher | None = None if sampling.grammar is None else sampling.grammar.start()
        self._generator: torch.Generator | None = None
        self._counts: Tensor | None = None
        if sampling.penalises:
            self._counts = torch.zeros(vocabulary)  # how often the answer holds each token
            self._seen = torch.zeros(vocabulary, dtype=torch.bool)  # in prompt or answer
            self._seen[[token for token in set(sequence.request.tokens) if token < vocabulary]] = True

    def penalise(self, logits: Tensor, sampling: Sampling) -> Tensor:
        if self._counts is None:
            return logits
        factor = sampling.repetition_penalty
        if factor != 1:
            repeated = torch.where(logits > 0, logits / factor, logits * factor)
            logits = torch.where(self._seen, repeated, logits)
        if sampling.frequency_penalty or sampling.presence_penalty:
            logits = logits - sampling.frequency_penalty * self._counts
            logits -= sampling.presence_penalty * (self._counts > 0)
        return logits

    def draw(self, logits: Tensor, sampling: Sampling) -> int:
        if self._generator is None:
            self._generator = torch.Generator(device="cpu")
            self._generator.manual_seed(secrets.randbits(63) if sampling.seed is None else sampling.seed)
        probabilities, tokens = distribution(logits, sampling)
        point = torch.rand((), generator=self._generator, dtype=torch.float64)
        place = int(torch.searchsorted(probabilities.cumsum(0), point, right=True))
        return int(tokens[min(place, len(tokens) - 1)])

    def accept(self, token: int) -> bool:
        """Take note of a choice; says whether it completes the grammar."""
        if self._counts is not None:
            self._counts[token] += 1
            self._seen[token] = True
        if self.matcher is None:
            return False
        self.matcher.accept(token)
        return self.matcher.finished


def distribution(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """What may be drawn; most likely first if top-k or top-p is asked for, else in the vocabulary's order.

    Args:
        logits: float32 ``[vocabulary]``, minus infinity for what is forbidden.

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
        probabilities, order = probabilities[near].sort(descending=True, stable=True)
        tokens = tokens[near][order]
        before = probabilities.cumsum(0) - probabilities
        kept = max(1, int((before < sampling.top_p).sum()))
        probabilities, tokens = probabilities[:kept], tokens[:kept]
        probabilities = probabilities / probabilities.sum()
    return probabilities, tokens
