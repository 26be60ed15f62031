"""What the options of one request, and the answer so far, do to its logits before a token is chosen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medport_local.engine.distribution import NEVER
from medport_local.engine.sequence import Sampling, Sequence

if TYPE_CHECKING:
    from medport_local.engine.grammar import Matcher

Floats = npt.NDArray[np.float32]

_PIECE = 32_768


class Shape:
    """Grammar, end tokens, bias and penalties of one sequence.

    Args:
        sequence: at the beginning of its answer.
        eos_ids: the model's end tokens, which ``min_tokens`` holds back.
        vocabulary: how many logits there are.
    """

    def __init__(self, sequence: Sequence, eos_ids: frozenset[int], vocabulary: int) -> None:
        sampling = sequence.request.sampling
        self._sampling = sampling
        self._matcher: Matcher | None = None if sampling.grammar is None else sampling.grammar.start()
        ends = sorted(i for i in eos_ids.union(sampling.stop_token_ids) if 0 <= i < vocabulary)
        self._ends = np.array(ends if sampling.min_tokens else [], dtype=np.int64)
        bias = [(token, add) for token, add in sampling.logit_bias if 0 <= token < vocabulary]
        self._biased = np.array([token for token, _ in bias], dtype=np.int64)
        self._bias = np.array([add for _, add in bias], dtype=np.float32)
        self._seen: _Seen | None = None
        if sampling.penalises:
            self._seen = _Seen(token for token in sequence.request.tokens if 0 <= token < vocabulary)

    def apply(self, logits: Tensor, generated: int) -> Tensor:
        """The logits by which the next token is chosen.

        Args:
            logits: float32 ``[vocabulary]`` on the CPU; left as they are.
            generated: how many tokens the answer has.

        Returns:
            As many; ``logits`` themselves where there is nothing to change. Penalties can make them infinite.

        Raises:
            InputError: the grammar became too complex on its way.
        """
        held = self._ends if generated < self._sampling.min_tokens else self._ends[:0]
        shaped = logits if self._matcher is None else _only(logits, self._matcher.allowed())
        if shaped is logits and (len(held) or len(self._biased) or self._seen is not None):
            shaped = torch.from_numpy(logits.numpy().copy())
        values: Floats = shaped.numpy()
        if len(held):
            there = values[held]
            values[held] = NEVER
            # A fulfilled grammar may leave the end as the only way on: then the answer is short.
            if values.max() == NEVER:
                values[held] = there
        if len(self._biased):
            np.add.at(values, self._biased, self._bias)
        if self._seen is not None:
            self._seen.penalise(values, self._sampling)
        return shaped

    def accept(self, token: int) -> bool:
        """Take note of a choice; says whether it completes the grammar.

        Raises:
            InputError: as ``apply``.
        """
        if self._seen is not None:
            self._seen.add(token)
        if self._matcher is None:
            return False
        self._matcher.accept(token)
        return self._matcher.finished


class _Seen:
    """The tokens of prompt and answer, each once, and how often the answer holds them.

    So a penalty changes only the logits that it is about: hundreds instead of all.
    """

    def __init__(self, prompt: Iterable[int]) -> None:
        unique = list(dict.fromkeys(prompt))
        self._places = {token: place for place, token in enumerate(unique)}
        self._tokens = np.array(unique, dtype=np.int64)
        self._counts = np.zeros(len(unique), dtype=np.float32)

    def add(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._tokens):
            more = max(64, place)
            self._tokens = np.concatenate([self._tokens, np.zeros(more, dtype=np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(more, dtype=np.float32)])
        self._tokens[place] = token
        self._counts[place] += 1

    def penalise(self, logits: Floats, sampling: Sampling) -> None:
        """Change ``logits`` in place: repetition (prompt and answer), then frequency and presence (answer)."""
        tokens, counts = self._tokens[: len(self._places)], self._counts[: len(self._places)]
        values = logits[tokens]
        factor = np.float32(sampling.repetition_penalty)
        # Infinity is no fault here: who calls looks at what comes out.
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            if factor != 1:
                values = np.where(values > 0, values / factor, values * factor)
            values -= np.float32(sampling.frequency_penalty) * counts
            values -= np.float32(sampling.presence_penalty) * (counts > 0)
        logits[tokens] = values


def _only(logits: Tensor, allowed: npt.NDArray[np.bool_]) -> Tensor:
    """A copy in which all else is forbidden, and what the tokenizer has no token for: rows are padded."""
    shaped = torch.full_like(logits, NEVER)
    size = min(len(allowed), len(logits))
    flags, never = torch.from_numpy(allowed), torch.tensor(NEVER)
    # In pieces that torch does not divide among threads: waiting for those takes longer than the work.
    for start in range(0, size, _PIECE):
        piece = slice(start, min(start + _PIECE, size))
        torch.where(flags[piece], logits[piece], never, out=shaped[piece])
    return shaped
