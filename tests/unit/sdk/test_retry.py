"""When a fault is tried again, after how long, how often, until when: the policy alone, without a socket."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import RetryCallState, Retrying

from medport import errors
from medport._call import Deadline
from medport._retry import FIRST_WAIT_S, LONGEST_WAIT_S, READY_POLL_S, policy, wait_s

ALL = [row.error for row in errors.TABLE]


def failed(error: Exception, attempt: int = 1) -> RetryCallState:
    """Where tenacity stands after ``attempt`` failed."""
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = attempt
    state.set_exception((type(error), error, None))
    return state


@given(st.integers(1, 60), st.randoms())
def test_a_wait_is_drawn_between_nothing_and_a_doubling_step(attempt: int, randomness: random.Random) -> None:
    wait = wait_s(failed(errors.ServerError("x"), attempt))

    assert 0 <= wait <= min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1))


def test_waits_are_spread_over_the_whole_step() -> None:
    waits = [wait_s(failed(errors.ServerError("x"), 3)) for _ in range(500)]

    assert min(waits) < 0.1
    assert max(waits) > 0.9
    assert 0.35 < sum(waits) / len(waits) < 0.65


@given(st.floats(0, 3600), st.integers(1, 10))
def test_the_time_a_server_asks_for_is_given_to_it(asked: float, attempt: int) -> None:
    wait = wait_s(failed(errors.QuotaExceeded("x", retry_after_s=asked), attempt))

    assert asked <= wait <= asked + FIRST_WAIT_S


def test_a_cold_endpoint_is_asked_at_a_steady_pace() -> None:
    assert [wait_s(failed(errors.NotReady("x"), attempt)) for attempt in (1, 9)] == [READY_POLL_S] * 2


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_only_what_may_pass_is_tried_again(kind: type[errors.MedportError]) -> None:
    again = policy(Deadline.after(60), max_attempts=5)["retry"]

    expected = kind.retryable and kind is not errors.NotReady
    assert again(failed(kind("x"))) == expected


def test_a_fault_that_is_not_ours_is_not_tried_again() -> None:
    assert not policy(Deadline.after(60), max_attempts=5)["retry"](failed(ValueError("x")))


def test_a_cold_endpoint_is_tried_again_only_by_those_who_wait() -> None:
    state = failed(errors.NotReady("x"))

    assert not policy(Deadline.after(60), max_attempts=5)["retry"](state)
    assert policy(Deadline.after(60), max_attempts=5, ready_by=Deadline.after(60))["retry"](state)


@pytest.mark.parametrize(("attempt", "stops"), [(1, False), (4, False), (5, True), (9, True)])
def test_attempts_are_counted(attempt: int, stops: bool) -> None:
    stop = policy(Deadline.after(60), max_attempts=5)["stop"]

    assert stop(failed(errors.ServerError("x"), attempt)) is stops


@pytest.mark.parametrize(("wait", "stops"), [(1.0, False), (10.5, True), (float("inf"), True)])
def test_a_wait_beyond_the_deadline_is_not_begun(wait: float, stops: bool) -> None:
    state = failed(errors.QuotaExceeded("x"))
    state.upcoming_sleep = wait

    assert policy(Deadline.after(10), max_attempts=5)["stop"](state) is stops


def test_polls_of_a_cold_endpoint_do_not_use_up_the_attempts() -> None:
    stop = policy(Deadline.after(60), max_attempts=2, ready_by=Deadline.after(60))["stop"]

    assert not any(stop(failed(errors.NotReady("x"), attempt)) for attempt in range(1, 20))
    assert not stop(failed(errors.ServerError("x"), 20))
    assert stop(failed(errors.ServerError("x"), 21))


@given(st.integers(2, 5), st.floats(0.1, 1000))
def test_each_link_of_a_chain_gets_an_equal_share_of_what_is_left(parts: int, seconds: float) -> None:
    whole = Deadline.after(seconds)

    share = whole.share(parts).remaining_s()

    assert share == pytest.approx(seconds / parts, abs=0.05)
    assert whole.share(1).at == pytest.approx(whole.at, abs=0.05)


def test_a_share_of_a_deadline_that_has_passed_is_nothing() -> None:
    assert Deadline(time.monotonic() - 5).share(2).remaining_s() <= 0
