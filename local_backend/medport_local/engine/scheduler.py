"""Who runs in the next step. Plain Python: the tests need no torch and no model.

A prompt is prefilled alone and whole; after it comes a step of decoding, so that a row of arrivals cannot stall
the sequences that are already talking. Sequences join and leave between steps.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

from medport.errors import QuotaExceeded
from medport_local.engine.sequence import Sequence

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences that take one step together."""

    phase: Phase
    sequences: tuple[Sequence, ...]


class Scheduler:
    """Running, at most ``max_running``; and waiting, at most ``max_queue`` more, in order of arrival."""

    def __init__(self, *, max_running: int = 8, max_queue: int = 64) -> None:
        assert min(max_running, max_queue) >= 1
        self._max_running = max_running
        self._max_queue = max_queue
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._owe_decode = False
        self._mean_s = 1.0

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def queued(self) -> int:
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            QuotaExceeded: the queue is full; says when to come back.
        """
        # Those that will run at once do not count as waiting, even before the next step has taken them in.
        if len(self._waiting) + len(self._running) >= self._max_running + self._max_queue:
            raise QuotaExceeded(
                f"the queue is full ({self._max_queue} requests wait)",
                remedy="wait, or send fewer requests at once",
                retry_after_s=self._wait_s(),
            )
        self._waiting.append(sequence)

    def next_batch(self) -> Batch | None:
        """The next step's sequences; ``None`` if there is nothing to do."""
        can_join = self._waiting and len(self._running) < self._max_running
        if can_join and not (self._owe_decode and self._running):
            sequence = self._waiting.popleft()
            self._running.append(sequence)
            self._owe_decode = True
            return Batch("prefill", (sequence,))
        self._owe_decode = False
        if self._running:
            return Batch("decode", tuple(self._running))
        return None

    def sweep(self) -> list[Sequence]:
        """Take out every cancelled sequence; gives those that were running, whose memory must be freed."""
        self._waiting = deque(each for each in self._waiting if not each.cancelled)
        gone = [each for each in self._running if each.cancelled]
        self._running = [each for each in self._running if not each.cancelled]
        return gone

    def finish(self, sequence: Sequence, *, now: float) -> None:
        """Take out a sequence that is done."""
        self._running.remove(sequence)
        self._mean_s += 0.2 * (max(0.0, now - sequence.queued_at) - self._mean_s)

    def everyone(self) -> list[Sequence]:
        """All that wait or run."""
        return [*self._waiting, *self._running]

    def _wait_s(self) -> float:
        """Roughly when the queue has room again: the time one of the running sequences takes."""
        return float(min(60, max(1, math.ceil(self._mean_s / self._max_running))))
