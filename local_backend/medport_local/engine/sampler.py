"""Logits → tokens. Each sequence has its own state and generator, so its text does not depend on its neighbours.

The order is that of vLLM 0.22 (docs.vllm.ai, ``vllm.v1.sample.sampler``; its structured output masks the logits
before its sampler sees them):

1. logprobs, from the logits as the model gave them;
2. what the grammar forbids, and end tokens before ``min_tokens``;
3. ``logit_bias``;
4. repetition penalty (prompt and answer), then frequency and presence penalties (answer alone);
5. greedy: the largest logit, the first of equal ones. Otherwise temperature, min-p, top-k, top-p, one draw.

Steps 2 to 5 are done on the CPU, so that a seed means the same on every device. Rows that are simply greedy never
leave the device; the others are copied, 1 MB each at 262,144 tokens.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medport.errors import InputError, MedportError, ServerError
from medport_local.engine.draw import Drawer
from medport_local.engine.logprobs import logprobs
from medport_local.engine.sequence import Sequence
from medport_local.engine.shaping import Shape

logger = logging.getLogger(__name__)


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
        self._drawer = Drawer()

    def pick(self, logits: Tensor, sequences: Rows[Sequence]) -> list[Choice | MedportError]:
        """One choice for each row, or why there can be none.

        That is a ``ServerError`` where the model gave NaN, plus infinity, or nothing but minus infinity; an
        ``InputError`` where the grammar became too complex on its way, or the penalties leave no finite number.
        The other rows of the batch come out as they would alone.

        Args:
            logits: float32 ``[rows, vocabulary]``; left as they are.
            sequences: one for each row.
        """
        assert logits.dtype == torch.float32
        assert logits.shape[0] == len(sequences)
        tokens, tops = _largest(logits)
        choices: list[Choice | MedportError] = [
            Choice(token) if math.isfinite(top) else _broken() for token, top in zip(tokens, tops, strict=True)
        ]
        mine = [i for i, each in enumerate(sequences) if math.isfinite(tops[i]) and not _as_it_is(each)]
        for i, row in zip(mine, _on_cpu(logits, mine), strict=True):
            choices[i] = self._choose(row, sequences[i])
        _tell(logits, sequences, choices)
        return choices

    @property
    def held(self) -> int:
        """How many sequences have a state here: those that draw, or that need to know what there was before."""
        return len(self._states)

    def forget(self, sequence: Sequence) -> None:
        """Drop a sequence's generator, counts and matcher."""
        self._states.pop(sequence.id, None)

    def _choose(self, row: Tensor, sequence: Sequence) -> Choice | MedportError:
        sampling = sequence.request.sampling
        state = self._states.get(sequence.id)
        if state is None:
            state = self._states[sequence.id] = _State(sequence, self._eos_ids, len(row))
        try:
            shaped = state.shape.apply(row, len(sequence.generated))
            token = int(shaped.numpy().argmax())
            top = float(shaped[token])
            if not math.isfinite(top):
                return _broken() if sampling.repetition_penalty == 1 else _overdone()
            if not sampling.greedy:
                token = self._drawer.draw(shaped, top, sampling, state.point())
            return Choice(token, state.shape.accept(token))
        except InputError as fault:
            return fault


class _State:
    """What one sequence's next choice depends on beside the logits."""

    def __init__(self, sequence: Sequence, eos_ids: frozenset[int], vocabulary: int) -> None:
        self.shape = Shape(sequence, eos_ids, vocabulary)
        self._seed = sequence.request.sampling.seed
        self._generator: torch.Generator | None = None

    def point(self) -> float:
        """The next uniform number, from 0 up to but not including 1."""
        if self._generator is None:
            self._generator = torch.Generator(device="cpu")
            self._generator.manual_seed(secrets.randbits(63) if self._seed is None else self._seed)
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))


def _largest(logits: Tensor) -> tuple[list[int], list[float]]:
    """Token and logit of each row's largest; NaN is larger than all else."""
    if logits.device.type == "cpu":
        values = logits.numpy()
        best = values.argmax(axis=-1)  # a twentieth of torch's time
        return best.tolist(), values[range(len(best)), best].tolist()
    largest = logits.max(dim=-1)
    # Both in one transfer: float64 holds every token id.
    values, tokens = torch.stack([largest.values.double(), largest.indices.double()]).tolist()
    return [int(token) for token in tokens], values


def _on_cpu(logits: Tensor, rows: list[int]) -> Iterable[Tensor]:
    if logits.device.type == "cpu":
        return (logits[i] for i in rows)
    return logits[rows].cpu() if rows else ()


def _as_it_is(sequence: Sequence) -> bool:
    """Whether the largest logit decides, whatever is to be told about it."""
    sampling = sequence.request.sampling
    return sequence.plain or (sampling.logprobs is not None and replace(sampling, logprobs=None).plain)


def _tell(logits: Tensor, sequences: Rows[Sequence], choices: list[Choice | MedportError]) -> None:
    """Put logprobs into the choices of the rows that ask for them."""
    asked: list[tuple[int, Choice, int]] = []
    for i, (sequence, choice) in enumerate(zip(sequences, choices, strict=True)):
        count = sequence.request.sampling.logprobs
        if count is not None and isinstance(choice, Choice):
            asked.append((i, choice, count))
    if not asked:
        return
    rows, chosen, counts = zip(*asked, strict=True)
    told = logprobs(logits, rows, [choice.token for choice in chosen], counts)
    for i, choice, (logprob, top) in zip(rows, chosen, told, strict=True):
        choices[i] = replace(choice, logprob=logprob, top=top)


def _broken() -> ServerError:
    logger.error("a row of logits has no finite largest number")
    return ServerError(
        "the model gave numbers that are none", remedy="try again; if it lasts, see the server's log"
    )


def _overdone() -> InputError:
    return InputError(
        "leaves no finite number to choose a token by", field="repetition_penalty", remedy="bring it nearer to 1"
    )
