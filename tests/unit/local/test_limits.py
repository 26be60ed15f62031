"""The token bucket and the count of each key, with a clock that the test turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medport.errors import InputError, QuotaExceeded
from medport_local.serving.limits import Limiter, Rate


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize(
    ("text", "rate"),
    [("60/min", Rate(60, 60)), ("2/s", Rate(2, 1)), ("5/h", Rate(5, 3600)), ("9/d", Rate(9, 86400))],
)
def test_rate_is_read_from_text(text: str, rate: Rate) -> None:
    assert Rate.parse(text) == rate


@pytest.mark.parametrize(
    "text", ["", "60", "0/min", "-1/s", "1/week", "1.5/s", "1/s ", "1/s\n", "9999999999/s", "٣/s"]
)
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="rate"):
        Rate.parse(text)


def test_key_may_send_its_whole_rate_at_once_and_then_waits(clock: Clock) -> None:
    limiter = Limiter(clock)
    for _ in range(3):
        limiter.enter("a", Rate(3, 60), None)

    with pytest.raises(QuotaExceeded) as refused:
        limiter.enter("a", Rate(3, 60), None)

    assert refused.value.retry_after_s == pytest.approx(20)


def test_request_comes_in_when_retry_after_has_passed_and_not_before(clock: Clock) -> None:
    limiter = Limiter(clock)
    limiter.enter("a", Rate(1, 10), None)
    clock.now += 9.9
    with pytest.raises(QuotaExceeded) as refused:
        limiter.enter("a", Rate(1, 10), None)

    clock.now += (refused.value.retry_after_s or 0) + 1e-6

    limiter.enter("a", Rate(1, 10), None)


def test_keys_do_not_use_up_each_others_rate(clock: Clock) -> None:
    limiter = Limiter(clock)
    limiter.enter("a", Rate(1, 60), None)

    limiter.enter("b", Rate(1, 60), None)


def test_place_is_free_again_once_a_request_is_over(clock: Clock) -> None:
    limiter = Limiter(clock)
    leave = limiter.enter("a", None, 1)
    with pytest.raises(QuotaExceeded, match="at once"):
        limiter.enter("a", None, 1)

    leave()

    limiter.enter("a", None, 1)


def test_request_refused_for_want_of_a_place_costs_no_rate(clock: Clock) -> None:
    limiter = Limiter(clock)
    leave = limiter.enter("a", Rate(2, 60), 1)
    for _ in range(5):
        with pytest.raises(QuotaExceeded, match="at once"):
            limiter.enter("a", Rate(2, 60), 1)
    leave()

    limiter.enter("a", Rate(2, 60), 1)


def test_rate_that_was_lowered_holds_at_once(clock: Clock) -> None:
    limiter = Limiter(clock)
    limiter.enter("a", Rate(100, 60), None)

    limiter.enter("a", Rate(1, 60), None)

    with pytest.raises(QuotaExceeded):
        limiter.enter("a", Rate(1, 60), None)


@given(st.lists(st.floats(0, 30), max_size=80), st.integers(1, 5), st.sampled_from([1.0, 7.0, 60.0]))
def test_never_more_than_the_rate_and_one_burst_pass(pauses: list[float], count: int, period: float) -> None:
    clock = Clock()
    limiter, passed, began = Limiter(clock), 0, clock.now
    waits: list[float] = []
    for pause in pauses:
        clock.now += pause
        try:
            limiter.enter("a", Rate(count, period), None)
            passed += 1
        except QuotaExceeded as refused:
            waits.append(refused.retry_after_s or 0)

    assert all(0 < wait <= period for wait in waits)
    assert passed <= count + (clock.now - began) * count / period + 1e-6
