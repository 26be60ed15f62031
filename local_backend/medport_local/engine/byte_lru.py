"""Caches that are bounded by bytes, alone or several together. Plain Python, no tensors.

Nothing here locks: one thread owns a budget and its caches. Their counters may be read from any thread.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Budget:
    """A bound in bytes that caches share."""

    def __init__(self, max_bytes: int) -> None:
        assert max_bytes >= 0
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._order: OrderedDict[_Held[Any], None] = OrderedDict()

    def _admit(self, held: _Held[Any]) -> bool:
        """Make room for an entry, unless it is larger than the whole budget."""
        if held.nbytes > self.max_bytes:
            return False
        while self.used_bytes + held.nbytes > self.max_bytes:
            next(iter(self._order)).drop()
        self._order[held] = None
        self.used_bytes += held.nbytes
        return True

    def _touch(self, held: _Held[Any]) -> None:
        self._order.move_to_end(held)

    def _release(self, held: _Held[Any]) -> None:
        del self._order[held]
        self.used_bytes -= held.nbytes


@dataclass(slots=True, eq=False)
class _Held(Generic[V]):
    """An entry of a cache, as its budget sees it."""

    value: V = field(repr=False)
    nbytes: int
    used_at: float
    drop: Callable[[], None] = field(repr=False)


class ByteLru(Generic[K, V]):
    """A cache bounded by bytes that forgets the least recently used first.

    Args:
        budget: bytes, or a budget shared with other caches. Zero keeps nothing.
        max_idle_s: what nobody asked for in so many seconds is forgotten too: it may come from a patient.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        budget: int | Budget,
        *,
        max_idle_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget = budget if isinstance(budget, Budget) else Budget(budget)
        self._max_idle_s = max_idle_s
        self._clock = clock
        self._held: OrderedDict[K, _Held[V]] = OrderedDict()
        self.used_bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: K) -> V | None:
        """What is kept under a key, which then counts as just used."""
        self.expire()
        held = self._held.get(key)
        if held is None:
            return None
        self.touch(key)
        return held.value

    def touch(self, key: K) -> None:
        """Count a key that is there as just used."""
        held = self._held[key]
        held.used_at = self._clock()
        self._held.move_to_end(key)
        self._budget._touch(held)

    def put(self, key: K, value: V, nbytes: int) -> bool:
        """Keep a value in place of what the key had. Says whether it fits into the bound at all."""
        assert nbytes > 0
        self.discard(key)
        self.expire()
        held = _Held(value, nbytes, self._clock(), lambda: self.discard(key))
        if not self._budget._admit(held):
            return False
        self._held[key] = held
        self.used_bytes += nbytes
        return True

    def discard(self, key: K) -> None:
        """Forget a key, if it is there."""
        held = self._held.pop(key, None)
        if held is not None:
            self._budget._release(held)
            self.used_bytes -= held.nbytes

    def newest_first(self) -> Iterator[tuple[K, V]]:
        """Everything that is kept, without counting as use."""
        return ((key, held.value) for key, held in reversed(self._held.items()))

    def expire(self) -> None:
        """Forget what has been idle for too long."""
        oldest = self._clock() - self._max_idle_s
        while self._held:
            key, held = next(iter(self._held.items()))
            if held.used_at >= oldest:
                break
            self.discard(key)

    def clear(self) -> None:
        """Forget everything."""
        for key in list(self._held):
            self.discard(key)
