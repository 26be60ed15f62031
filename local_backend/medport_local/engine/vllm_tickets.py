"""The requests in vLLM's hands: how many, whose turn, and what became of them. No torch; for several threads."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from medport.errors import NotReady, QuotaExceeded
from medport_local.engine.answer import Answer
from medport_local.engine.engine import EngineLimits
from medport_local.engine.handle import Pending
from medport_local.engine.sequence import GenerationRequest

Outcome = Literal["finished", "cancelled", "failed", "expired"]


@dataclass(slots=True, eq=False)
class Ticket:
    """One request. What has a default belongs to the thread of vLLM's event loop."""

    pending: Pending
    request: GenerationRequest = field(repr=False)
    answer: Answer
    room: int
    """Tokens that still fit into the context."""
    priority: int = 0
    queued_at: float = 0.0
    outcome: Outcome | None = None
    """``None`` until it is decided."""
    task: asyncio.Task[None] | None = None
    alarm: asyncio.TimerHandle | None = None


@dataclass(frozen=True, slots=True)
class Census:
    """How many there are, and what they may hold."""

    running: int
    queued: int
    running_tokens: int
    """Of prompts and answers of the running ones."""


class Tickets:
    """At most ``max_running`` and ``max_queue`` more.

    Which of them run is vLLM's decision. It takes the lowest priority first, and that is how many requests its
    tenant already had here: a tenant's second request waits for every other tenant's first.
    """

    def __init__(self, limits: EngineLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._alive: dict[int, Ticket] = {}
        self._tenants: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._mean_s = 1.0
        self._changed = threading.Condition()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether no more are taken."""
        return self._closed

    def add(self, ticket: Ticket) -> None:
        """Take a request in, and set its priority.

        Raises:
            NotReady: closed.
            QuotaExceeded: there are too many; says when to come back.
        """
        with self._changed:
            if self._closed:
                raise NotReady("the server is stopping", remedy="try again in a moment")
            if len(self._alive) >= self._limits.max_running + self._limits.max_queue:
                raise QuotaExceeded(
                    f"the queue is full ({self._limits.max_queue} requests wait)",
                    remedy="wait, or send fewer requests at once",
                    retry_after_s=float(min(60, max(1, math.ceil(self._mean_s / self._limits.max_running)))),
                )
            ticket.priority = self._tenants[ticket.request.tenant]
            ticket.queued_at = self._clock()
            self._tenants[ticket.request.tenant] += 1
            self._alive[ticket.pending.id] = ticket

    def get(self, id: int) -> Ticket | None:
        """The request, unless it is over."""
        with self._changed:
            return self._alive.get(id)

    def everyone(self) -> list[Ticket]:
        """All that are here, in order of arrival."""
        with self._changed:
            return list(self._alive.values())

    def leave(self, ticket: Ticket) -> None:
        """Let go of a request, and count its outcome; nothing happens if it left before."""
        with self._changed:
            if self._alive.pop(ticket.pending.id, None) is None:
                return
            tenant = ticket.request.tenant
            self._tenants[tenant] -= 1
            if not self._tenants[tenant]:
                del self._tenants[tenant]
            self._counts[ticket.outcome or "failed"] += 1
            if ticket.outcome == "finished":
                self._mean_s += 0.2 * (max(0.0, self._clock() - ticket.queued_at) - self._mean_s)
            self._changed.notify_all()

    def close(self, drain_s: float) -> list[Ticket]:
        """Take no more, wait ``drain_s`` seconds for those that are here; gives those that remain."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._alive, timeout=drain_s)
            return list(self._alive.values())

    def count(self, **numbers: int) -> None:
        """Add to the counts."""
        with self._changed:
            self._counts.update(numbers)

    def counts(self) -> Counter[str]:
        """Outcomes, and what ``count`` was told."""
        with self._changed:
            return self._counts.copy()

    def census(self) -> Census:
        """How many there are. vLLM does not tell which of them it runs: the oldest are taken for those."""
        everyone = self.everyone()
        running = everyone[: self._limits.max_running]
        return Census(
            running=len(running),
            queued=len(everyone) - len(running),
            running_tokens=sum(len(each.request.tokens) + each.answer.count for each in running),
        )
