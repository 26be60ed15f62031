"""How often, and how many at once: a token bucket and a count for each API key."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from medport.errors import InputError, QuotaExceeded

_PERIODS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_RATE = re.compile(r"([1-9][0-9]{0,8})/(s|min|h|d)")


@dataclass(frozen=True, slots=True)
class Rate:
    """``count`` requests in ``period_s`` seconds, all of which may come at once after a pause."""

    count: int
    period_s: float

    @classmethod
    def parse(cls, text: str) -> Rate:
        """``"60/min"``; also ``/s``, ``/h``, ``/d``.

        Raises:
            InputError: it has another form.
        """
        if not (found := _RATE.fullmatch(text)):
            raise InputError("is not a rate", field="rate", remedy="write it like 60/min; also /s, /h, /d")
        return cls(int(found[1]), _PERIODS[found[2]])

    @property
    def per_second(self) -> float:
        return self.count / self.period_s


@dataclass(slots=True)
class _State:
    tokens: float
    at: float
    running: int = 0


class Limiter:
    """Counts the requests of each key. Belongs to one event loop; ``clock`` gives seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._states: dict[str, _State] = {}

    def enter(self, key: str, rate: Rate | None, concurrent: int | None) -> Callable[[], None]:
        """Let a request in; what is returned says, called once, that it is over.

        A request that is refused counts against nothing.

        Raises:
            QuotaExceeded: with the seconds after which the next request would be let in.
        """
        if rate is None and concurrent is None:
            return _nothing
        now = self._clock()
        state = self._states.setdefault(key, _State(rate.count if rate else 0.0, now))
        if concurrent is not None and state.running >= concurrent:
            raise QuotaExceeded(
                f"this key may run {concurrent} requests at once",
                remedy="wait until one is answered",
                retry_after_s=1.0,
            )
        if rate is not None:
            # Capped at each look, so that a rate that was lowered in the file holds at once.
            state.tokens = min(rate.count, state.tokens + (now - state.at) * rate.per_second)
            state.at = now
            if state.tokens < 1:
                raise QuotaExceeded(
                    f"this key may send {rate.count} requests in {rate.period_s:g} s",
                    remedy="wait as long as Retry-After says",
                    retry_after_s=(1 - state.tokens) / rate.per_second,
                )
            state.tokens -= 1
        state.running += 1

        def leave() -> None:
            state.running -= 1

        return leave


def _nothing() -> None:
    pass
