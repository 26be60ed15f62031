"""Which images and texts go next, without a model and without waiting."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from medport.errors import InputError, QuotaExceeded, Timeout
from medport_local.engine.batch_time import BatchTime
from medport_local.engine.embedding_queue import EmbeddingQueue, Item, Kind

MAX_BATCH, MAX_ITEMS, MAX_BYTES = 4, 12, 100


class OneSecond(BatchTime):
    """A device on which every batch takes a second, so that the fullest is the best."""

    def __init__(self) -> None:
        super().__init__()
        for step in range(7):
            super().ran(2**step, 1.0)

    def ran(self, size: int, seconds: float) -> None:
        pass


def queue(**limits: Any) -> EmbeddingQueue:
    given = {"max_batch": 4, "max_items": 100, "max_bytes": 10_000, "budget_s": 10.0, "times": OneSecond}
    return EmbeddingQueue(**{**given, **limits})


def items(
    kind: Kind, count: int, *, tenant: str = "", size_bytes: int = 1, deadline: float | None = None
) -> list[Item]:
    return [
        Item(kind=kind, value=f"{tenant}{number}", size_bytes=size_bytes, tenant=tenant, deadline=deadline)
        for number in range(count)
    ]


def values(batch: Sequence[Item]) -> list[str]:
    return [item.value for item in batch]


def run(queue: EmbeddingQueue, batches: int, *, now: float = 0.0) -> list[tuple[Kind, list[str]]]:
    """The next batches, each over before the next one begins."""
    done = []
    for _ in range(batches):
        batch = queue.next_batch(now=now)
        queue.done(batch, seconds=1.0)
        done.append((batch[0].kind, values(batch)))
    return done


def test_empty_queue_gives_no_batch() -> None:
    assert queue().next_batch(now=0) == []


def test_one_item_goes_at_once() -> None:
    waiting = queue()
    waiting.add(items("text", 1), now=0)

    assert values(waiting.next_batch(now=0)) == ["0"]


def test_batches_are_full_and_in_order() -> None:
    waiting = queue()
    waiting.add(items("text", 6), now=0)

    assert run(waiting, 2) == [("text", ["0", "1", "2", "3"]), ("text", ["4", "5"])]


def test_image_waits_for_one_batch_of_texts_at_most() -> None:
    waiting = queue()
    waiting.add(items("text", 50), now=0)
    run(waiting, 1)
    waiting.add(items("image", 1), now=0)

    assert [kind for kind, _ in run(waiting, 3)] == ["image", "text", "text"]


def test_kinds_take_turns_while_both_wait() -> None:
    waiting = queue()
    waiting.add(items("text", 12) + items("image", 8), now=0)

    assert [kind for kind, _ in run(waiting, 5)] == ["image", "text", "image", "text", "text"]


def test_tenants_share_each_batch() -> None:
    waiting = queue()
    waiting.add(items("text", 6, tenant="a"), now=0)
    waiting.add(items("text", 3, tenant="b"), now=0)

    assert run(waiting, 3) == [
        ("text", ["a0", "b0", "a1", "b1"]),
        ("text", ["a2", "b2", "a3", "a4"]),
        ("text", ["a5"]),
    ]


def test_slow_device_gets_batches_within_the_budget() -> None:
    waiting = queue(budget_s=0.25, max_batch=32, times=BatchTime)
    waiting.learn("text", 1, 0.05)
    waiting.add(items("text", 40), now=0)

    sizes = []
    while batch := waiting.next_batch(now=0):
        sizes.append(len(batch))
        waiting.done(batch, seconds=0.02 + 0.03 * len(batch))

    assert 0.15 < 0.02 + 0.03 * max(sizes) <= 0.25
    assert sum(sizes) == 40


def test_item_that_exceeds_the_budget_goes_alone() -> None:
    waiting = queue(budget_s=0.25, times=BatchTime)
    waiting.learn("image", 1, 1.0)
    waiting.add(items("image", 3), now=0)

    assert [len(values) for _, values in run(waiting, 3)] == [1, 1, 1]


def test_all_are_queued_or_none() -> None:
    waiting = queue(max_items=5)
    waiting.add(items("text", 3), now=0)

    with pytest.raises(QuotaExceeded):
        waiting.add(items("image", 3), now=0)
    assert (waiting.waiting, waiting.refused) == (3, 3)


def test_more_than_may_ever_wait_is_the_callers_fault() -> None:
    with pytest.raises(InputError):
        queue(max_items=5).add(items("text", 6), now=0)


def test_bytes_are_bounded_too() -> None:
    waiting = queue(max_bytes=10)
    waiting.add(items("image", 2, size_bytes=4), now=0)

    with pytest.raises(QuotaExceeded):
        waiting.add(items("image", 1, size_bytes=4), now=0)
    waiting.add(items("text", 2, size_bytes=1), now=0)
    assert waiting.pending_bytes == 10


def test_request_larger_than_the_bytes_is_taken_when_nothing_else_is_there() -> None:
    waiting = queue(max_bytes=10)
    waiting.add(items("image", 3, size_bytes=40), now=0)

    with pytest.raises(QuotaExceeded):
        waiting.add(items("text", 1, size_bytes=1), now=0)
    assert waiting.pending_bytes == 120


def test_running_items_hold_their_room_until_they_are_done() -> None:
    waiting = queue(max_items=4, max_bytes=40)
    waiting.add(items("image", 4, size_bytes=10), now=0)
    batch = waiting.next_batch(now=0)

    with pytest.raises(QuotaExceeded):
        waiting.add(items("image", 1, size_bytes=10), now=0)
    waiting.done(batch, seconds=1.0)
    waiting.add(items("image", 1, size_bytes=10), now=0)
    assert (waiting.pending, waiting.pending_bytes) == (1, 10)


def test_refusal_says_when_there_is_room_by_the_measured_rate() -> None:
    waiting = queue(max_items=100, times=BatchTime)
    waiting.learn("text", 1, 2.0)
    waiting.add(items("text", 100), now=0)

    with pytest.raises(QuotaExceeded) as refused:
        waiting.add(items("text", 10), now=0)

    assert refused.value.retry_after_s == 20.0


def test_refusal_before_the_first_batch_says_one_second() -> None:
    waiting = queue(max_items=1, times=BatchTime)
    waiting.add(items("text", 1), now=0)

    with pytest.raises(QuotaExceeded) as refused:
        waiting.add(items("text", 1), now=0)

    assert refused.value.retry_after_s == 1.0


def test_cancelled_items_make_room_at_once() -> None:
    waiting = queue(max_items=3)
    gone = items("text", 3)
    waiting.add(gone, now=0)
    for item in gone:
        item.result.cancel()

    waiting.add(items("image", 3), now=0)

    assert (waiting.waiting, waiting.pending_bytes, waiting.cancelled) == (3, 3, 3)


def test_cancelled_item_is_in_no_batch() -> None:
    waiting = queue()
    three = items("text", 3)
    waiting.add(three, now=0)
    three[1].result.cancel()

    assert values(waiting.next_batch(now=0)) == ["0", "2"]


def test_item_whose_deadline_passed_is_told_so_and_not_run() -> None:
    waiting = queue()
    late, early = items("text", 1, deadline=5.0, tenant="late"), items("text", 1, deadline=9.0, tenant="early")
    waiting.add(late + early, now=0)

    batch = waiting.next_batch(now=5.0)

    assert values(batch) == ["early0"]
    assert isinstance(late[0].result.exception(0), Timeout)
    assert waiting.expired == 1


def test_shrunk_kind_never_gets_larger_batches_and_the_other_one_does() -> None:
    waiting = queue()
    waiting.shrink("image", 2)
    waiting.add(items("image", 4) + items("text", 4), now=0)

    assert [len(values) for _, values in run(waiting, 3)] == [2, 4, 2]


def test_clearing_gives_what_is_still_wanted() -> None:
    waiting = queue()
    three = items("text", 3)
    waiting.add(three, now=0)
    three[0].result.cancel()

    assert values(waiting.clear()) == ["1", "2"]
    assert (waiting.pending, waiting.pending_bytes) == (0, 0)


def test_item_that_is_cancelled_after_the_sweep_is_left_out() -> None:
    waiting = queue()
    two = items("text", 2)
    waiting.add(two, now=0)
    two[0].result.set_running_or_notify_cancel = lambda: False  # type: ignore[method-assign]

    batch = waiting.next_batch(now=0)

    assert values(batch) == ["1"]
    assert (waiting.pending, waiting.pending_bytes) == (1, 1)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["image", "text"]), st.sampled_from("abc")), min_size=1, max_size=40),
    st.integers(1, 8),
)
def test_each_item_runs_once_and_in_its_tenants_order(arrivals: list[tuple[Kind, str]], max_batch: int) -> None:
    waiting = queue(max_batch=max_batch)
    for number, (kind, tenant) in enumerate(arrivals):
        waiting.add([Item(kind=kind, value=(kind, tenant, number), size_bytes=1, tenant=tenant)], now=0)

    ran: list[tuple[Kind, str, int]] = []
    while batch := waiting.next_batch(now=0):
        assert len({item.kind for item in batch}) == 1
        waiting.done(batch, seconds=1.0)
        ran += [item.value for item in batch]

    expected = [(kind, tenant, number) for number, (kind, tenant) in enumerate(arrivals)]
    assert sorted(ran) == sorted(expected)
    for line in {(kind, tenant) for kind, tenant, _ in expected}:
        assert [each for each in ran if each[:2] == line] == [each for each in expected if each[:2] == line]


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 8))
def test_tenant_waits_for_no_more_of_anothers_items_than_its_own(mine: int, others: int, max_batch: int) -> None:
    waiting = queue(max_batch=max_batch)
    waiting.add(items("text", others, tenant="other"), now=0)
    waiting.add(items("text", mine, tenant="mine"), now=0)

    order: list[str] = []
    while batch := waiting.next_batch(now=0):
        waiting.done(batch, seconds=1.0)
        order += [item.tenant for item in batch]

    for place, tenant in enumerate(order):
        if tenant == "mine":
            before = Counter(order[:place])
            assert before["other"] <= before["mine"] + 1


class Life(RuleBasedStateMachine):
    """Arrivals, cancellations, deadlines, batches that run and fail: bounds hold and nothing is lost or kept."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.everyone: list[Item] = []
        self.running: list[Item] = []
        self.refusals: list[tuple[bool, float | None]] = []
        self.queue = EmbeddingQueue(
            max_batch=MAX_BATCH, max_items=MAX_ITEMS, max_bytes=MAX_BYTES, budget_s=1.0, times=BatchTime
        )

    @rule(
        kind=st.sampled_from(["image", "text"]),
        count=st.integers(1, 6),
        size_bytes=st.integers(1, 30),
        tenant=st.sampled_from("ab"),
        patience=st.none() | st.floats(0.1, 5),
    )
    def arrive(self, kind: Kind, count: int, size_bytes: int, tenant: str, patience: float | None) -> None:
        deadline = None if patience is None else self.now + patience
        new = items(kind, count, tenant=tenant, size_bytes=size_bytes, deadline=deadline)
        was_empty = self.queue.pending == 0
        try:
            self.queue.add(new, now=self.now)
        except QuotaExceeded as refused:
            self.refusals.append((was_empty, refused.retry_after_s))
        else:
            self.everyone += new

    @rule(seconds=st.floats(0, 3))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.everyone)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.everyone)).result.cancel()

    @precondition(lambda self: not self.running)
    @rule()
    def begin(self) -> None:
        self.running = self.queue.next_batch(now=self.now)
        assert len(self.running) <= MAX_BATCH
        for item in self.running:
            assert item.result.running()
            assert item.deadline is None or item.deadline > self.now

    @precondition(lambda self: self.running)
    @rule(seconds=st.none() | st.floats(0.01, 4))
    def end(self, seconds: float | None) -> None:
        self.queue.done(self.running, seconds=seconds)
        for item in self.running:
            item.result.set_result(None)
        self.running = []

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.queue.pending <= MAX_ITEMS
        assert self.queue.pending_bytes <= max(MAX_BYTES, 6 * 30)

    @invariant()
    def refusals_say_when_there_is_room(self) -> None:
        for was_empty, retry_after_s in self.refusals:
            assert not was_empty
            assert retry_after_s is not None
            assert retry_after_s >= 1

    @invariant()
    def what_is_wanted_is_pending(self) -> None:
        wanted = [item for item in self.everyone if not item.result.done()]
        assert len(wanted) <= self.queue.pending
        assert sum(item.size_bytes for item in wanted) <= self.queue.pending_bytes

    def teardown(self) -> None:
        if self.running:
            self.end(seconds=1.0)
        while batch := self.queue.next_batch(now=self.now):
            self.queue.done(batch, seconds=1.0)
            for item in batch:
                item.result.set_result(None)
        assert all(item.result.done() for item in self.everyone)
        assert (self.queue.pending, self.queue.pending_bytes) == (0, 0)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_queue_needs_no_torch() -> None:
    code = "import sys, medport_local.engine.embedding_queue; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
