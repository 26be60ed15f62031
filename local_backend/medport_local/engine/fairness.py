"""Whose turn it is among the waiting: equal service for tenants, order of arrival for one tenant's requests.

The Virtual Token Counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024,
arxiv.org/abs/2401.00588), algorithm 2: each tenant has a counter of weighted tokens it was served, and the tenant
with the least is next. A tenant that had nothing waiting is lifted to the least of those who had, so that nobody
saves up service while absent. It never leaves the device idle while anyone waits.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator

from medport_local.engine.sequence import Sequence

PREFILL_WEIGHT = 1.0
"""What a prompt token costs a tenant."""
DECODE_WEIGHT = 2.0
"""What a generated token costs: the paper's choice, after the usual price lists."""


class FairQueue:
    """The waiting requests of all tenants, and what each tenant was served.

    A request moves ``add`` → ``take`` → ``leave``, or from the queue straight out by ``drop``.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Sequence]] = {}
        """Only tenants with something waiting."""
        self._running: Counter[str] = Counter()
        self._served: dict[str, float] = {}
        self._last: str | None = None
        self._pinned: Sequence | None = None

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Sequence]:
        for line in self._waiting.values():
            yield from line

    def waiting(self, tenant: str) -> int:
        """How many requests of one tenant wait."""
        return len(self._waiting.get(tenant, ()))

    def served(self, tenant: str) -> float:
        """A tenant's counter, in weighted tokens; 0 for one that is not known, or no longer."""
        return self._served.get(tenant, 0.0)

    def add(self, sequence: Sequence) -> None:
        """Queue a request behind those of its tenant."""
        tenant = sequence.request.tenant
        if tenant not in self._waiting:
            floor = self._floor()
            self._forget_below(floor)
            self._served[tenant] = max(floor, self.served(tenant))
        self._waiting.setdefault(tenant, deque()).append(sequence)

    def head(self) -> Sequence | None:
        """Whose turn it is; ``None`` if nobody waits. Of equal tenants, the one whose request came first."""
        if self._pinned is not None:
            return self._pinned
        heads = (line[0] for line in self._waiting.values())
        return min(heads, key=lambda head: (self._served[head.request.tenant], head.id), default=None)

    def pin(self) -> None:
        """Let the head stay the head until it goes, whoever comes and whatever is charged."""
        self._pinned = self.head()

    def take(self) -> Sequence:
        """Take the head out of the queue to run; somebody must wait. Its prompt is charged at once.

        At once, because a tenant whose requests are let in together would otherwise pay for none of them before
        all are in.
        """
        sequence = self.head()
        assert sequence is not None
        tenant = sequence.request.tenant
        self._remove(sequence)
        self._running[tenant] += 1
        self._last = tenant
        self.charge(sequence, sequence.prompt_tokens * PREFILL_WEIGHT)
        return sequence

    def charge(self, sequence: Sequence, cost: float) -> None:
        """Put weighted tokens on the account of a running request's tenant; a negative cost gives some back."""
        self._served[sequence.request.tenant] += cost

    def leave(self, sequence: Sequence) -> None:
        """Note that a request no longer runs, and give back the part of its prompt that was not computed."""
        self.charge(sequence, ((sequence.computed or 0) - sequence.prompt_tokens) * PREFILL_WEIGHT)
        self._running[sequence.request.tenant] -= 1

    def drop(self, unwanted: Callable[[Sequence], bool]) -> list[Sequence]:
        """Take requests out of the queue that will not run."""
        gone = [sequence for sequence in self if unwanted(sequence)]
        for sequence in gone:
            self._remove(sequence)
        return gone

    def ahead_of(self, tenant: str, prompt_tokens: int) -> list[Sequence]:
        """Who will be served before a request that ``tenant`` adds now, as far as prompts tell.

        Of each tenant as many as make up equal service: so all of the tenant's own.
        """
        share = prompt_tokens + sum(each.prompt_tokens for each in self._waiting.get(tenant, ()))
        ahead: list[Sequence] = []
        for line in self._waiting.values():
            room = share
            for sequence in line:
                if room <= 0:
                    break
                ahead.append(sequence)
                room -= sequence.prompt_tokens
        return ahead

    def _floor(self) -> float:
        """What the counter of a tenant is lifted to that had nothing waiting."""
        if self._waiting:
            return min(self._served[tenant] for tenant in self._waiting)
        return 0.0 if self._last is None else self._served[self._last]

    def _forget_below(self, floor: float) -> None:
        """Forget counters that say nothing: of absent tenants, who would be lifted above them on their return."""
        for tenant in [tenant for tenant, served in self._served.items() if served <= floor]:
            if tenant not in self._waiting and self._running[tenant] == 0 and tenant != self._last:
                del self._served[tenant], self._running[tenant]

    def _remove(self, sequence: Sequence) -> None:
        line = self._waiting[sequence.request.tenant]
        line.remove(sequence)
        if not line:
            del self._waiting[sequence.request.tenant]
        if self._pinned is sequence:
            self._pinned = None
