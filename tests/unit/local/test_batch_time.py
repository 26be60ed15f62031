"""How batch sizes are learnt, without a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medport_local.engine.batch_time import BatchTime

SIZES = st.integers(1, 64)
SECONDS = st.floats(1e-4, 100)
HISTORIES = st.lists(st.tuples(SIZES, SECONDS), max_size=30)


def learnt(*runs: tuple[int, float]) -> BatchTime:
    times = BatchTime()
    for size, seconds in runs:
        times.ran(size, seconds)
    return times


def settled(item_s: dict[int, float], *, waiting: int, budget_s: float = 1e9, batches: int = 40) -> int:
    """What size is run in the end on a device that takes ``item_s`` per item of a batch up to the size listed."""
    times = learnt((1, item_s[1]))
    for _ in range(batches):
        size = times.best(waiting, most=max(item_s), budget_s=budget_s)
        times.ran(size, size * item_s[min(each for each in item_s if each >= size)])
    return times.best(waiting, most=max(item_s), budget_s=budget_s)


def test_before_the_first_run_one_item_goes_alone() -> None:
    assert BatchTime().best(32, most=32, budget_s=10) == 1
    assert BatchTime().rate == 0
    assert BatchTime().seconds(5) == 0


def test_device_that_gains_from_batches_gets_full_ones() -> None:
    assert settled({1: 1.0, 2: 0.6, 4: 0.4, 8: 0.3, 16: 0.25, 32: 0.22}, waiting=64) == 32


def test_device_that_loses_by_batches_gets_single_items() -> None:
    assert settled({1: 1.0, 2: 1.05, 4: 1.1, 8: 1.2}, waiting=64) == 1


def test_of_equally_fast_sizes_the_smaller_one_is_taken() -> None:
    assert settled({1: 1.0, 2: 0.5, 4: 0.49, 8: 0.49, 16: 0.49, 32: 0.49}, waiting=64) == 2


def test_device_that_is_slower_at_large_sizes_gets_the_best_one() -> None:
    assert settled({1: 1.0, 2: 0.6, 4: 0.4, 8: 0.7, 16: 0.9, 32: 1.2}, waiting=64) == 4


def test_all_that_wait_go_together_where_a_remainder_would_cost_more() -> None:
    # 20 in one run take 5 seconds, 16 and 4 together 4 + 3.2.
    times = learnt((1, 1.0), (2, 1.9), (4, 3.2), (8, 3.6), (16, 4.0), (32, 8.0))

    assert times.best(20, most=32, budget_s=1e9) == 20


def test_larger_sizes_are_tried_one_doubling_at_a_time() -> None:
    times, tried = learnt((1, 1.0)), []
    for _ in range(5):
        tried.append(times.best(32, most=32, budget_s=1e9))
        times.ran(tried[-1], 1.0)

    assert tried == [2, 4, 8, 16, 32]


def test_size_that_one_slow_moment_ruled_out_is_tried_again() -> None:
    times = learnt((1, 1.0), (2, 50.0))
    before = times.best(2, most=2, budget_s=1e9)
    for _ in range(300):
        times.ran(1, 1.0)

    assert before == 1
    assert times.best(2, most=2, budget_s=1e9) == 2


def test_unknown_small_size_takes_no_longer_than_the_known_larger_one() -> None:
    assert learnt((8, 4.0)).seconds(2) == pytest.approx(4.0)


@given(HISTORIES, SIZES, SIZES, st.floats(1e-3, 1e3))
def test_batch_of_several_is_never_expected_to_exceed_the_budget(
    history: list[tuple[int, float]], waiting: int, most: int, budget_s: float
) -> None:
    times = learnt(*history)

    size = times.best(waiting, most=most, budget_s=budget_s)

    assert 1 <= size <= min(waiting, most)
    assert size == 1 or times.seconds(size) <= budget_s


@given(HISTORIES.filter(bool))
def test_rate_lies_between_the_slowest_and_the_fastest_run(history: list[tuple[int, float]]) -> None:
    rates = [size / seconds for size, seconds in history]

    assert min(rates) * 0.999 <= learnt(*history).rate <= max(rates) * 1.001
