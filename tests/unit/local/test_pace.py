"""What past steps predict."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medport_local.engine.pace import LARGEST_CHUNK, SMALLEST_CHUNK, Pace


def affine(weights_s: float, tokens_per_s: float) -> Callable[[int], float]:
    """A device that reads its weights for each chunk and then computes."""
    return lambda tokens: weights_s + tokens / tokens_per_s


def chunks(pace: Pace, cost: Callable[[int], float], budget_s: float, count: int) -> list[int]:
    """The sizes of so many chunks, each measured before the next is chosen."""
    sizes = []
    for _ in range(count):
        sizes.append(size := pace.chunk_within(budget_s))
        pace.saw_chunk(size, cost(size))
    return sizes


def test_nothing_is_predicted_before_the_first_measurement() -> None:
    pace = Pace()

    assert (pace.tokens_per_s, pace.image_s, pace.answer_s) == (0, 0, 0)
    assert pace.prefill_s(1000, 10) == 0
    assert pace.chunk_within(1e9) == pace.chunk_within(1e-9) == 32


def test_rate_is_tokens_over_seconds_whatever_the_chunks_were() -> None:
    pace = Pace()
    pace.saw_chunk(10, 1.0)
    pace.saw_chunk(90, 1.0)

    assert pace.tokens_per_s == pytest.approx(50, rel=0.01)


def test_rate_follows_the_last_few_thousand_tokens() -> None:
    pace = Pace()
    for _ in range(100):
        pace.saw_chunk(100, 1.0)
    for _ in range(41):
        pace.saw_chunk(100, 0.1)

    assert 150 < pace.tokens_per_s < 250  # half-forgotten: 100 tokens/s before, 1,000 since

    for _ in range(400):
        pace.saw_chunk(100, 0.1)

    assert pace.tokens_per_s == pytest.approx(1000, rel=0.02)


def test_prefill_is_predicted_from_the_rate_and_the_time_of_an_image() -> None:
    pace = Pace()
    pace.saw_chunk(100, 2.0)
    pace.saw_image(5.0)

    assert pace.prefill_s(25, 0) == pytest.approx(0.5)
    assert pace.prefill_s(0, 3) == pytest.approx(15.0)
    assert pace.prefill_s(25, 3) == pytest.approx(15.5)


def test_times_of_images_and_answers_are_averages_of_their_own() -> None:
    pace = Pace()
    pace.saw_image(4.0)
    pace.saw_image(2.0)
    pace.saw_answer(10.0)

    assert pace.image_s == 3.0
    assert pace.answer_s == 10.0


def test_size_that_was_never_measured_is_taken_in_proportion_to_the_only_known_one() -> None:
    pace = Pace()
    pace.saw_chunk(32, 0.1)

    assert pace.chunk_within(0.15) == 48
    assert pace.chunk_within(0.2) == 64


def test_chunk_at_most_doubles_beyond_what_was_measured() -> None:
    pace = Pace()
    pace.saw_chunk(32, 0.001)

    assert pace.chunk_within(10.0) == 64

    pace.saw_chunk(64, 0.001)
    assert pace.chunk_within(10.0) == 128


def test_between_two_measured_sizes_time_is_interpolated() -> None:
    pace = Pace()
    pace.saw_chunk(64, 0.2)
    pace.saw_chunk(128, 0.3)

    assert pace.chunk_within(0.25) == 96
    assert pace.chunk_within(0.2) == 64


def test_beyond_two_measured_sizes_time_goes_on_as_between_them() -> None:
    pace = Pace()
    pace.saw_chunk(64, 0.2)
    pace.saw_chunk(128, 0.3)

    assert pace.chunk_within(0.35) == 160  # 149 in proportion


def test_budget_below_the_only_measured_size_asks_for_the_smallest_chunk() -> None:
    pace = Pace()
    pace.saw_chunk(64, 1.0)

    assert pace.chunk_within(0.9) == SMALLEST_CHUNK


def test_budget_that_cannot_be_kept_is_overrun_by_half_the_least_chunk() -> None:
    weights_bound = affine(0.27, 220)
    pace = Pace()

    *_, last = chunks(pace, weights_bound, budget_s=0.2, count=30)

    assert weights_bound(last) <= 1.6 * weights_bound(SMALLEST_CHUNK)
    assert last >= 2 * SMALLEST_CHUNK


def test_chunk_is_never_larger_than_the_largest() -> None:
    pace = Pace()

    sizes = chunks(pace, affine(0.001, 1e6), budget_s=100.0, count=12)

    assert sizes == [32, 64, 128, 256, 512, 1024, *[LARGEST_CHUNK] * 6]


def test_chunk_that_cost_nothing_allows_the_largest() -> None:
    pace = Pace()
    pace.saw_chunk(64, 0.0)

    assert pace.chunk_within(0.2) == LARGEST_CHUNK
    assert pace.tokens_per_s == 0


def test_few_tokens_at_a_prompt_end_teach_no_size() -> None:
    pace = Pace()
    pace.saw_chunk(SMALLEST_CHUNK - 1, 5.0)

    assert pace.chunk_within(0.2) == 32
    assert pace.tokens_per_s == pytest.approx(3.0)


def test_one_slow_start_does_not_keep_chunks_small() -> None:
    cost = affine(0.02, 1000)
    pace = Pace()
    pace.saw_chunk(32, 3.0)

    sizes = chunks(pace, cost, budget_s=0.2, count=15)

    assert sizes[0] == SMALLEST_CHUNK
    assert sizes[-1] >= 128


def test_one_slow_moment_of_a_large_size_does_not_put_it_out_of_use() -> None:
    cost = affine(0.02, 1000)
    pace = Pace()
    before = chunks(pace, cost, budget_s=0.2, count=30)[-1]
    pace.saw_chunk(before, 5.0)

    assert pace.chunk_within(0.2) < before / 2

    after = chunks(pace, cost, budget_s=0.2, count=30)[-1]
    assert after >= 0.9 * before


def test_chunks_shrink_as_attention_grows_with_the_position() -> None:
    pace, position, times, sizes = Pace(), 0, [], []
    while position < 30_000:
        size = pace.chunk_within(0.2)
        position += size
        seconds = 0.02 + size / 2000 * (1 + position / 8000)
        pace.saw_chunk(size, seconds)
        times.append(seconds)
        sizes.append(size)

    assert max(times) < 0.3
    assert min(times[-20:]) > 0.12
    assert sizes[-1] < max(sizes) / 2


def test_larger_budget_never_gives_a_smaller_chunk() -> None:
    pace = Pace()
    for size, seconds in ((16, 0.2), (40, 0.1), (100, 0.4), (300, 0.3), (900, 1.0)):
        pace.saw_chunk(size, seconds)

    sizes = [pace.chunk_within(budget / 100) for budget in range(20, 400)]

    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


@settings(deadline=None, max_examples=300)
@given(
    weights_s=st.floats(1e-4, 1.0),
    tokens_per_s=st.floats(30, 30_000),
    budget_s=st.floats(0.02, 2.0),
)
def test_chunks_approach_the_budget_and_overrun_it_by_an_eighth_at_most(
    weights_s: float, tokens_per_s: float, budget_s: float
) -> None:
    cost = affine(weights_s, tokens_per_s)
    pace = Pace()

    sizes = chunks(pace, cost, budget_s, count=60)

    assert all(SMALLEST_CHUNK <= size <= LARGEST_CHUNK for size in sizes)
    ideal = min(LARGEST_CHUNK, (budget_s - weights_s) * tokens_per_s)
    if ideal >= SMALLEST_CHUNK:
        assert max(cost(size) for size in sizes[1:]) <= max(1.126 * budget_s, cost(SMALLEST_CHUNK))
    if ideal >= SMALLEST_CHUNK and weights_s <= 0.9 * budget_s:
        assert sizes[-1] >= 0.55 * ideal


@example(seen=[(32, 5e-324)], budget_s=1.0)  # seconds per token would be 0
@given(
    seen=st.lists(st.tuples(st.integers(1, 4000), st.floats(0, 100)), max_size=30),
    budget_s=st.floats(1e-6, 1e6),
)
def test_any_measurements_give_a_legal_chunk(seen: list[tuple[int, float]], budget_s: float) -> None:
    pace = Pace()
    for tokens, seconds in seen:
        pace.saw_chunk(tokens, seconds)

    size = pace.chunk_within(budget_s)

    assert SMALLEST_CHUNK <= size <= LARGEST_CHUNK
    assert size % max(1, 2 ** (size.bit_length() - 4)) == 0
