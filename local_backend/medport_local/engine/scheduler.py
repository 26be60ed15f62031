"""Who runs in the next step. Plain Python: the tests need no torch and no model.

A sequence waits until it is its tenant's turn and there is a place and memory for all of it; then it is prefilled
in chunks, in turn with the other prompts, and decodes together with all that do. While anything decodes, every
other step is a decode step, and what lies between two of them is bounded in time: a chunk is as large as fits into
the stall budget. Sequences join and leave between steps; nothing that was let in is ever put out for another.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from medport.errors import InputError, QuotaExceeded
from medport_local.engine.blocks import Lease, Memory
from medport_local.engine.fairness import DECODE_WEIGHT, PREFILL_WEIGHT, FairQueue
from medport_local.engine.pace import SMALLEST_CHUNK, Pace
from medport_local.engine.sequence import Sequence

Phase = Literal["encode", "prefill", "decode"]

_IDLE_BUDGETS = 4
"""Stall budgets that a chunk may take while nothing decodes. Not more: who arrives meanwhile waits for its end."""
_LONGEST_RETRY_S = 60.0


@dataclass(frozen=True, slots=True)
class Batch:
    """What the next step does, and for whom."""

    phase: Phase
    sequences: tuple[Sequence, ...]
    """One for encode and prefill; for decode all that decode, each of which gets one token."""
    start: int = 0
    """Prefill: the chunk is prompt positions ``start`` to ``end`` (one past)."""
    end: int = 0
    """Where it is the prompt's length, the chunk gives the first token's logits, even if it is empty."""


@dataclass(slots=True)
class _Place:
    """What the scheduler remembers of a running sequence."""

    sequence: Sequence
    encoding_s: float = 0.0
    """Time spent on the image whose features are not ready yet."""
    encoded: int = 0
    answering_since: float | None = None


class Scheduler:
    """Running and waiting sequences.

    Args:
        memory: What is lent to running sequences; nobody else reserves in it.
        max_running: Sequences that run at once.
        max_queue: Sequences that may wait beside them. A tenant with nothing waiting is taken until twice as many
            wait, so that no tenant can lock the others out.
        stall_ms: How long a step may keep decoding sequences from their next token.
        max_wait_s: A request that would wait longer is refused.
        max_context: Tokens of prompt and answer together.
        restore: Called once for a sequence, before its first chunk: fetches what the prefix cache has of its
            prompt, and gives the number of those tokens. The edge must not lie inside an image.
        clock: Seconds; only differences count.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        max_running: int = 16,
        max_queue: int = 64,
        stall_ms: float = 200.0,
        max_wait_s: float = 120.0,
        max_context: int,
        restore: Callable[[Sequence], int] = lambda sequence: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert min(max_running, max_queue, max_context) >= 1
        assert stall_ms > 0
        self._memory = memory
        self._max_running = max_running
        self._max_queue = max_queue
        self._stall_s = stall_ms / 1000
        self._max_wait_s = max_wait_s
        self._max_context = max_context
        self._restore = restore
        self._clock = clock
        self._pace = Pace()
        self._queue = FairQueue()
        self._places: dict[int, _Place] = {}
        self._turns: deque[Sequence] = deque()
        """Running sequences whose prompts are not computed, next one first."""
        self._owe_decode = False
        self._short_of_memory = False

    @property
    def running(self) -> int:
        """How many sequences own memory."""
        return len(self._places)

    @property
    def queued(self) -> int:
        """How many sequences wait for a place."""
        return len(self._queue)

    @property
    def queued_prefill_tokens(self) -> int:
        """Prompt tokens that are still to be computed, of those that wait and those that run."""
        return sum(map(_tokens_left, self.everyone()))

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens computed per second of prefill, lately; 0 before the first chunk."""
        return self._pace.tokens_per_s

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            InputError: names ``max_tokens``: the memory could not hold prompt and answer even if empty.
            QuotaExceeded: too many wait already, or the wait would be too long; says when to come back.
        """
        self._refuse_what_never_fits(sequence)
        tenant = sequence.request.tenant
        # Those that will run at once do not count as waiting, even before the next step has taken them in.
        free = 0 if self._short_of_memory else self._max_running - len(self._places)
        bound = self._max_queue * (1 if self._queue.waiting(tenant) else 2) + free
        if (waiting := len(self._queue)) >= bound:
            raise QuotaExceeded(
                f"the queue is full ({self._max_queue} requests wait)",
                remedy="wait, or send fewer requests at once",
                retry_after_s=_retry_after(self._wait_s(sequence) / waiting),
            )
        if (wait_s := self._wait_s(sequence)) > self._max_wait_s:
            raise QuotaExceeded(
                f"the queue is too long (about {math.ceil(wait_s)} s)",
                remedy="wait, or send fewer or shorter requests at once",
                retry_after_s=_retry_after(wait_s - self._max_wait_s),
            )
        self._queue.add(sequence)

    def next_batch(self) -> Batch | None:
        """What the next step does; ``None`` if there is nothing to do."""
        self._admit()
        decoding = tuple(place.sequence for place in self._places.values() if place.sequence.prefilled)
        self._turns = deque(each for each in self._turns if not each.prefilled)
        if self._turns and not (self._owe_decode and decoding):
            self._owe_decode = True
            sequence = self._next_turn()
            return self._prompt_step(sequence, self._stall_s * (1 if decoding else _IDLE_BUDGETS))
        self._owe_decode = False
        return Batch("decode", decoding) if decoding else None

    def ran(self, batch: Batch, seconds: float) -> None:
        """Note a step that succeeded, before its tokens are accepted."""
        if batch.phase == "decode":
            for sequence in batch.sequences:
                self._queue.charge(sequence, DECODE_WEIGHT)
            return
        (sequence,) = batch.sequences
        place = self._places[sequence.id]
        if batch.phase == "encode":
            # An image costs its tenant as many tokens as could have been prefilled in its time.
            self._queue.charge(sequence, seconds * self._pace.tokens_per_s * PREFILL_WEIGHT)
            place.encoding_s += seconds
            if (ready := sequence.encoded - place.encoded) > 0:
                self._pace.saw_image(place.encoding_s / ready)
                place.encoding_s, place.encoded = 0.0, sequence.encoded
            return
        if batch.end > batch.start:
            self._pace.saw_chunk(batch.end - batch.start, seconds)
        sequence.computed = batch.end
        if batch.end == sequence.prompt_tokens:
            place.answering_since = self._clock()

    def sweep(self, now: float) -> tuple[list[Sequence], list[Sequence]]:
        """Take out, waiting or running, who is cancelled and whose deadline has come.

        Args:
            now: In ``time.monotonic()``, as deadlines are.

        Returns:
            The cancelled and the expired, in no certain order; nobody is in both.
        """

        def late(sequence: Sequence) -> bool:
            deadline = sequence.request.deadline
            return deadline is not None and now >= deadline

        gone = self._queue.drop(lambda sequence: sequence.cancelled or late(sequence))
        for place in list(self._places.values()):
            if place.sequence.cancelled or late(place.sequence):
                self._leave(place.sequence)
                gone.append(place.sequence)
        return [each for each in gone if each.cancelled], [each for each in gone if not each.cancelled]

    def finish(self, sequence: Sequence) -> None:
        """Take out a running sequence that is done or has failed."""
        place = self._leave(sequence)
        if place.answering_since is not None:
            self._pace.saw_answer(self._clock() - place.answering_since)

    def everyone(self) -> list[Sequence]:
        """All that run or wait."""
        return [*(place.sequence for place in self._places.values()), *self._queue]

    def lease(self, sequence: Sequence) -> Lease:
        """The memory of a running sequence."""
        return self._memory.lease(sequence.id)

    def _admit(self) -> None:
        self._short_of_memory = False
        while len(self._places) < self._max_running and (head := self._queue.head()) is not None:
            if self._memory.reserve(head.id, self._reservation(head)) is None:
                # Smaller requests could go on passing a large one for ever.
                self._queue.pin()
                self._short_of_memory = True
                return
            self._queue.take()
            self._places[head.id] = _Place(head)
            self._turns.append(head)

    def _next_turn(self) -> Sequence:
        """The next prompt in turn, which is then the last. One that another of its group computes waits for it."""
        computing = {each.request.group for each in self._turns if each.computed is not None} - {None}
        while self._turns[0].computed is None and self._turns[0].request.group in computing:
            self._turns.rotate(-1)
        self._turns.rotate(-1)
        return self._turns[-1]

    def _prompt_step(self, sequence: Sequence, budget_s: float) -> Batch:
        place = self._places[sequence.id]
        if sequence.computed is None:
            sequence.computed = restored = self._restore(sequence)
            assert 0 <= restored <= sequence.prompt_tokens
            assert not any(first < restored < past for first, past in sequence.image_blocks)
            self._queue.charge(sequence, -restored * PREFILL_WEIGHT)
            # What the restored keys and values hold of an image need not be encoded.
            sequence.encoded = place.encoded = max(sequence.encoded, sequence.images_before(restored))
        start = sequence.computed
        end = legal_end(sequence, start, start + self._pace.chunk_within(budget_s))
        if sequence.encoded < sequence.images_before(end):
            return Batch("encode", (sequence,))
        return Batch("prefill", (sequence,), start, end)

    def _leave(self, sequence: Sequence) -> _Place:
        place = self._places.pop(sequence.id)
        self._memory.release(sequence.id)
        self._queue.leave(sequence)
        if sequence in self._turns:
            self._turns.remove(sequence)
        return place

    def _reservation(self, sequence: Sequence) -> int:
        return min(sequence.prompt_tokens + sequence.request.sampling.max_tokens, self._max_context)

    def _refuse_what_never_fits(self, sequence: Sequence) -> None:
        assert 0 < sequence.prompt_tokens < self._max_context
        needed, room = self._reservation(sequence), self._memory.capacity
        if self._memory.ever_fits(needed):
            return
        left = room - sequence.prompt_tokens
        raise InputError(
            f"a prompt of {sequence.prompt_tokens} tokens and max_tokens {sequence.request.sampling.max_tokens} "
            f"need memory for {needed} tokens; the server has it for {room}",
            field="max_tokens",
            remedy=f"lower max_tokens to {left}" if left > 0 else "shorten the prompt, or send fewer images",
        )

    def _wait_s(self, newcomer: Sequence) -> float:
        """Roughly how long a newcomer would wait for its first chunk; 0 before anything was measured.

        The device computes what is left of the prompts before it, one after the other. And each request before it
        must get a place from an answer that ends; answers go on side by side.
        """
        ahead = self._queue.ahead_of(newcomer.request.tenant, newcomer.prompt_tokens)
        before = [*(place.sequence for place in self._places.values()), *ahead]
        prefill_s = self._pace.prefill_s(sum(map(_tokens_left, before)), sum(map(_images_left, before)))
        side_by_side = max(1, len(self._places)) if self._short_of_memory else self._max_running
        places_short = len(self._places) + len(ahead) + 1 - side_by_side
        return prefill_s + max(0, places_short) * self._pace.answer_s / side_by_side


def legal_end(sequence: Sequence, start: int, end: int) -> int:
    """Where a chunk from ``start`` that should end at ``end`` does end: inside the prompt, and outside its images.

    Tokens of one image see each other in both directions, so they are computed together: an end inside an image
    moves before it or, where that would leave less than the smallest chunk, after it. The last image ends its
    chunk, because the prompt up to there is what the next question about the same images shares.
    """
    end = min(end, sequence.prompt_tokens)
    for first, past in sequence.image_blocks:
        if first < end < past:
            end = first if first - start >= SMALLEST_CHUNK else past
            break
    last = sequence.image_blocks[-1][1] if sequence.image_blocks else 0
    return last if start < last < end else end


def _tokens_left(sequence: Sequence) -> int:
    return sequence.prompt_tokens - (sequence.computed or 0)


def _images_left(sequence: Sequence) -> int:
    return len(sequence.image_blocks) - sequence.encoded


def _retry_after(seconds: float) -> float:
    return float(min(_LONGEST_RETRY_S, max(1.0, math.ceil(seconds))))
