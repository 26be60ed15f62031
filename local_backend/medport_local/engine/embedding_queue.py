"""What waits to be embedded, and which of it goes next. Plain Python: the tests need no torch and no model.

Batches are continuous: whenever the device is free it takes what is there. To let a first item wait for company
while the device idles would only add to its latency, and while the device is busy company comes by itself.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from medport.errors import InputError, QuotaExceeded, Timeout
from medport_local.engine.batch_time import BatchTime

Kind = Literal["image", "text"]
KINDS: tuple[Kind, Kind] = ("image", "text")

_LONGEST_WAIT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderLimits:
    """What an embedder takes at once."""

    max_batch: int = 32
    """Items of one kind in one run of the model."""
    max_pending: int = 4096
    """Items that may wait; one request may not hold more either."""
    max_pending_bytes: int = 1 << 30
    """Of pixels and tokens that wait, or one request's if that alone is more. An image of 448 pixels a side has
    2.4 MB."""
    max_per_request: int | None = None
    """Embeddings in one request, patches counted; the container's MAX_EMBEDDINGS_PER_REQUEST."""
    latency_ms: float = 250.0
    """What a batch of more than one item may take, by what such batches took before. Whoever comes while it runs
    waits as long at most before the device is free again."""

    def __post_init__(self) -> None:
        assert min(self.max_batch, self.max_pending, self.max_pending_bytes) >= 1


@dataclass(slots=True, eq=False, kw_only=True)
class Item:
    """One image or text, and where its vector goes."""

    kind: Kind
    value: Any = field(repr=False)
    size_bytes: int
    tenant: str = ""
    """On whose behalf. Tenants whose items wait get equal shares of each batch."""
    deadline: float | None = None
    """In ``time.monotonic()``: after it nobody waits for the vector any more."""
    result: Future[Any] = field(default_factory=Future, repr=False)


class EmbeddingQueue:
    """Images and texts in lines apart, bounded by number and by bytes.

    An item moves ``add`` → ``next_batch`` → ``done``. Whoever calls holds a lock: nothing here is thread-safe but
    the items' futures.

    Args:
        max_batch: items of one kind in one batch.
        max_items: items that may wait or run.
        max_bytes: of values that may wait or run. What alone is more is taken when nothing else is there: its
            values are in memory already, and a refusal would not make it smaller.
        budget_s: what a batch of more than one item may take, so that whoever comes next waits no longer for the
            device.
        times: what batches take; a fresh ``BatchTime`` for each kind by default.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        max_items: int,
        max_bytes: int,
        budget_s: float,
        times: Callable[[], BatchTime] = BatchTime,
    ) -> None:
        assert min(max_batch, max_items, max_bytes) >= 1
        self.expired = 0
        """Items whose deadline passed while they waited."""
        self.cancelled = 0
        """Items whose caller left while they waited."""
        self.refused = 0
        """Items that found no room."""
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._budget_s = budget_s
        self._most: dict[Kind, int] = dict.fromkeys(KINDS, max_batch)
        self._times: dict[Kind, BatchTime] = {kind: times() for kind in KINDS}
        self._lines: dict[Kind, _Line] = {kind: _Line() for kind in KINDS}
        self._running = 0
        self._bytes = 0
        self._last: Kind = "text"

    @property
    def waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    @property
    def pending(self) -> int:
        """Items that wait or run."""
        return self.waiting + self._running

    @property
    def pending_bytes(self) -> int:
        """Bytes of the values that wait or run."""
        return self._bytes

    def rate(self, kind: Kind) -> float:
        """Items per second, at the best batch size measured; 0 before the first."""
        return self._times[kind].rate

    def add(self, items: Sequence[Item], *, now: float) -> None:
        """Queue all of ``items`` or none.

        Raises:
            QuotaExceeded: they find no room; says when so much will have left.
            InputError: they are more than there will ever be room for.
        """
        self.check_room(len(items), sum(item.size_bytes for item in items), now=now)
        for item in items:
            self._lines[item.kind].put(item)
            self._bytes += item.size_bytes

    def check_room(self, count: int, size_bytes: int, *, now: float) -> None:
        """Raise what ``add`` would raise for so many items of so many bytes together."""
        if count > self._max_items:
            raise InputError(
                f"more than {self._max_items} embeddings in one request", remedy="send them in several requests"
            )
        if self._surplus(count, size_bytes) > 0:
            # Those who left may hold the room.
            self._sweep(now)
        if (surplus := self._surplus(count, size_bytes)) > 0:
            self.refused += count
            raise QuotaExceeded(
                f"more than {self._max_items} embeddings or {self._max_bytes:,} bytes of them would wait",
                remedy="send fewer at once, or wait",
                retry_after_s=float(math.ceil(min(_LONGEST_WAIT_S, max(1.0, surplus * self._work_s())))),
            )

    def next_batch(self, *, now: float) -> list[Item]:
        """Items of one kind, which the caller must run and then tell to ``done``; empty if nothing waits.

        If both kinds wait they take turns. Within a kind each tenant gives one item in turn, its oldest.
        """
        self._sweep(now)
        kind: Kind = "image" if self._last == "text" else "text"
        if not self._lines[kind]:
            kind = self._last
        line = self._lines[kind]
        if not line:
            return []
        size = self._times[kind].best(len(line), most=self._most[kind], budget_s=self._budget_s)
        batch: list[Item] = []
        while line and len(batch) < size:
            item = line.take()
            # A caller in another thread can still leave after the sweep.
            if item.result.set_running_or_notify_cancel():
                batch.append(item)
            else:
                self.cancelled += 1
                self._bytes -= item.size_bytes
        self._running += len(batch)
        self._last = kind
        return batch

    def done(self, batch: Sequence[Item], *, seconds: float | None) -> None:
        """Forget a batch that has run. ``seconds`` is what it took; ``None`` if it failed."""
        if batch and seconds is not None:
            self.learn(batch[0].kind, len(batch), seconds)
        self._running -= len(batch)
        self._bytes -= sum(item.size_bytes for item in batch)

    def learn(self, kind: Kind, size: int, seconds: float) -> None:
        """Note what a batch took, such as one that warms the device up."""
        self._times[kind].ran(size, seconds)

    def shrink(self, kind: Kind, most: int) -> None:
        """Never again give more than ``most`` of a kind at once: the device's memory does not hold them."""
        self._most[kind] = max(1, min(self._most[kind], most))

    def clear(self) -> list[Item]:
        """Take out all that waits and is still wanted."""
        gone = [item for line in self._lines.values() for item in line.drop(lambda item: True)]
        self._bytes -= sum(item.size_bytes for item in gone)
        return [item for item in gone if item.result.set_running_or_notify_cancel()]

    def _surplus(self, count: int, size_bytes: int) -> float:
        """The share of what is pending that must leave first; 0 or less if there is room."""
        items = (self.pending + count - self._max_items) / max(1, self.pending)
        over = self._bytes + size_bytes - self._max_bytes
        return max(items, over / self._bytes if self._bytes and size_bytes else 0.0)

    def _work_s(self) -> float:
        """Seconds of work that is pending; 0 for a kind of which none was run yet."""
        rates = ((len(line), self._times[kind].rate) for kind, line in self._lines.items())
        return sum(count / rate for count, rate in rates if rate)

    def _sweep(self, now: float) -> None:
        for line in self._lines.values():
            for item in line.drop(lambda item: _is_over(item, now)):
                self._bytes -= item.size_bytes
                if item.result.set_running_or_notify_cancel():
                    self.expired += 1
                    item.result.set_exception(
                        Timeout("the deadline passed before there was an embedding", remedy="send fewer at once")
                    )
                else:
                    self.cancelled += 1


def _is_over(item: Item, now: float) -> bool:
    return item.result.cancelled() or (item.deadline is not None and item.deadline <= now)


class _Line:
    """What waits of one kind: in order of arrival for a tenant, tenants in turn."""

    def __init__(self) -> None:
        self._tenants: dict[str, deque[Item]] = {}
        """Only tenants with something waiting; the next one first."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        for items in self._tenants.values():
            yield from items

    def put(self, item: Item) -> None:
        self._tenants.setdefault(item.tenant, deque()).append(item)
        self._count += 1

    def take(self) -> Item:
        """The next tenant's oldest item; somebody must wait."""
        tenant = next(iter(self._tenants))
        items = self._tenants.pop(tenant)
        item = items.popleft()
        if items:
            self._tenants[tenant] = items
        self._count -= 1
        return item

    def drop(self, unwanted: Callable[[Item], bool]) -> list[Item]:
        """Take out what will not run."""
        gone = [item for item in self if unwanted(item)]
        if gone:
            out = set(map(id, gone))
            kept = {
                tenant: deque(item for item in items if id(item) not in out)
                for tenant, items in self._tenants.items()
            }
            self._tenants = {tenant: items for tenant, items in kept.items() if items}
            self._count -= len(gone)
        return gone
