"""How long a batch takes, by its size: measured where it was run, guessed where it was not."""

from __future__ import annotations

_NEWEST = 0.3
"""Share of the newest measurement in an average."""
_KEPT = 200
"""Batches after which a size that was not run again is unknown again, so that one slow moment is not for ever."""
_WORTH = 0.05
"""A larger batch must save this share of the time; otherwise the smaller one answers sooner for the same work."""
_HOPED = 0.9
"""What an item is hoped to take in a size not run yet, by what it takes in the next smaller one."""


class BatchTime:
    """Seconds of batches of one kind.

    Sizes are kept apart by powers of two: 1, 2, 3-4, 5-8, 9-16 and so on. For a choice an unknown size is hoped to
    be faster per item than the next smaller one, so that it is tried; for the latency budget it is feared to be no
    faster. So from one size to the next there is one step of doubling at a time, and none beyond the budget.
    """

    def __init__(self) -> None:
        self._item_s: dict[int, float] = {}
        self._run_at: dict[int, int] = {}
        self._batches = 0

    @property
    def rate(self) -> float:
        """Items per second at the best of the sizes that were run; 0 before the first."""
        return 1 / min(self._item_s.values()) if self._item_s else 0.0

    def ran(self, size: int, seconds: float) -> None:
        """Learn from a batch."""
        assert size >= 1
        step, item_s = _step(size), max(seconds, 1e-9) / size
        known = self._item_s.get(step, item_s)
        self._item_s[step] = known + _NEWEST * (item_s - known)
        self._batches += 1
        self._run_at[step] = self._batches
        for stale in [each for each, batch in self._run_at.items() if self._batches - batch > _KEPT]:
            del self._item_s[stale], self._run_at[stale]

    def seconds(self, size: int) -> float:
        """What a batch is expected to take, rather too much than too little; 0 before the first."""
        step = _step(size)
        if step in self._item_s:
            return self._item_s[step] * size
        smaller = [each for each in self._item_s if each < step]
        if smaller:
            return self._item_s[max(smaller)] * size
        # No size as small was run: at most what the smallest known one takes.
        return min((item_s * 2**each for each, item_s in self._item_s.items()), default=0.0)

    def best(self, waiting: int, *, most: int, budget_s: float) -> int:
        """The size of the next batch.

        Args:
            waiting: items that could go, at least 1.
            most: the largest batch allowed, at least 1.
            budget_s: what a batch of more than one item may take.

        Returns:
            The size at which all that wait are done soonest; the smaller of two that are equal but for some
            percent. 1 before the first measurement.
        """
        assert min(waiting, most) >= 1
        if not self._item_s:
            return 1
        largest = min(waiting, most)
        sizes = [1 << step for step in range((largest - 1).bit_length())] + [largest]
        totals = {
            size: self._in_all(size, waiting) for size in sizes if size == 1 or self.seconds(size) <= budget_s
        }
        soonest = min(totals.values())
        return next(size for size in totals if totals[size] * (1 - _WORTH) <= soonest)

    def _in_all(self, size: int, waiting: int) -> float:
        """All that wait in batches of ``size``, the rest in a last one."""
        whole, rest = divmod(waiting, size)
        return whole * self._hoped_s(size) + (self._hoped_s(rest) if rest else 0.0)

    def _hoped_s(self, size: int) -> float:
        step = _step(size)
        hope = 1.0 if step in self._item_s or step < min(self._item_s) else _HOPED
        return self.seconds(size) * hope


def _step(size: int) -> int:
    """0 for 1, 1 for 2, 2 for 3 and 4, 3 for 5 to 8."""
    return (size - 1).bit_length()
