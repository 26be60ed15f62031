"""The memory of keys and values, as integers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from medport_local.engine.blocks import Lease, Memory


def test_reservation_is_rounded_up_to_whole_blocks() -> None:
    memory = Memory(slots=2, tokens=256, block=64)

    assert memory.reserve(1, 65) == Lease(slot=0, start=0, tokens=128)
    assert memory.reserve(2, 64) == Lease(slot=1, start=128, tokens=64)


def test_arena_that_is_no_whole_number_of_blocks_is_used_in_whole_blocks() -> None:
    memory = Memory(slots=1, tokens=200, block=64)

    assert memory.capacity == 192
    assert memory.ever_fits(192)
    assert not memory.ever_fits(193)


def test_lowest_free_slot_and_first_hole_that_is_long_enough_are_lent() -> None:
    memory = Memory(slots=4, tokens=512, block=64)
    for id, tokens in ((1, 64), (2, 128), (3, 64)):
        memory.reserve(id, tokens)
    memory.release(1)
    memory.release(2)
    memory.reserve(4, 64)
    memory.release(4)

    assert memory.reserve(5, 192) == Lease(slot=0, start=0, tokens=192)
    assert memory.reserve(6, 64) == Lease(slot=1, start=256, tokens=64)


def test_hole_that_is_too_small_is_passed_over() -> None:
    memory = Memory(slots=3, tokens=512, block=64)
    memory.reserve(1, 64)
    memory.reserve(2, 64)
    memory.release(1)

    assert memory.reserve(3, 128) == Lease(slot=0, start=128, tokens=128)


def test_enough_tokens_in_two_holes_are_not_enough_for_one_run() -> None:
    memory = Memory(slots=3, tokens=192, block=64)
    for id in (1, 2, 3):
        memory.reserve(id, 64)
    memory.release(1)
    memory.release(3)

    assert memory.free_tokens == 128
    assert memory.largest_run == 64
    assert memory.reserve(4, 128) is None
    assert memory.ever_fits(128)


def test_free_run_without_a_free_slot_is_not_lent() -> None:
    memory = Memory(slots=1, tokens=256, block=64)
    memory.reserve(1, 64)

    assert memory.reserve(2, 64) is None
    assert memory.held == 1


def test_full_memory_has_no_run() -> None:
    memory = Memory(slots=2, tokens=128, block=64)
    memory.reserve(1, 128)

    assert (memory.used_tokens, memory.free_tokens, memory.largest_run) == (128, 0, 0)
    assert memory.reserve(2, 1) is None


def test_lease_is_what_was_reserved_until_it_is_released() -> None:
    memory = Memory(slots=1, tokens=128, block=64)
    lent = memory.reserve(7, 100)

    assert memory.lease(7) == lent

    memory.release(7)
    with pytest.raises(KeyError):
        memory.lease(7)


def test_releasing_what_owns_nothing_changes_nothing() -> None:
    memory = Memory(slots=1, tokens=128, block=64)
    memory.reserve(1, 64)

    memory.release(2)

    assert (memory.held, memory.used_tokens) == (1, 64)


def test_second_reservation_of_one_sequence_is_a_fault() -> None:
    memory = Memory(slots=2, tokens=256, block=64)
    memory.reserve(1, 64)

    with pytest.raises(AssertionError):
        memory.reserve(1, 64)


@pytest.mark.parametrize(("slots", "tokens", "block"), [(0, 64, 64), (1, 63, 64), (1, 64, 0)])
def test_memory_that_can_hold_nothing_is_a_fault(slots: int, tokens: int, block: int) -> None:
    with pytest.raises(AssertionError):
        Memory(slots=slots, tokens=tokens, block=block)


@given(st.integers(1, 64), st.data())
def test_ever_fits_is_what_an_empty_memory_lends(block: int, data: st.DataObject) -> None:
    tokens = data.draw(st.integers(block, 2000))
    asked = data.draw(st.integers(1, 2100))
    memory = Memory(slots=1, tokens=tokens, block=block)

    assert memory.ever_fits(asked) == (memory.reserve(1, asked) is not None)


class Lending(RuleBasedStateMachine):
    """Beside the memory, one cell for each token says who owns it: slow, and plain to see."""

    SLOTS, TOKENS, BLOCK = 4, 20, 3

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory(slots=self.SLOTS, tokens=self.TOKENS, block=self.BLOCK)
        self.cells = [0] * (self.TOKENS // self.BLOCK * self.BLOCK)
        self.slots: dict[int, int] = {}
        self.asked: dict[int, int] = {}
        self.ids = itertools.count(1)

    def runs(self) -> list[int]:
        """Lengths of the stretches that nobody owns."""
        return [len(list(group)) for owner, group in itertools.groupby(self.cells) if owner == 0]

    @rule(tokens=st.integers(1, 22))
    def reserve(self, tokens: int) -> None:
        id = next(self.ids)
        blocks = -(-tokens // self.BLOCK) * self.BLOCK
        possible = len(self.slots) < self.SLOTS and max(self.runs(), default=0) >= blocks

        lease = self.memory.reserve(id, tokens)

        assert (lease is not None) == possible
        if lease is None:
            return
        assert lease.tokens == blocks
        assert lease.slot == min(set(range(self.SLOTS)) - set(self.slots.values()))
        assert self.cells[lease.start : lease.start + blocks] == [0] * blocks, "somebody owns it already"
        earlier = "".join(str(min(cell, 1)) for cell in self.cells[: lease.start + blocks - 1])
        assert "0" * blocks not in earlier, "an earlier run was long enough"
        self.cells[lease.start : lease.start + blocks] = [id] * blocks
        self.slots[id], self.asked[id] = lease.slot, tokens

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.slots)))

        self.memory.release(id)

        self.cells = [0 if cell == id else cell for cell in self.cells]
        del self.slots[id], self.asked[id]

    @precondition(lambda self: self.slots)
    @rule()
    def release_everything(self) -> None:
        for id in list(self.slots):
            self.memory.release(id)
        self.slots, self.asked = {}, {}
        self.cells = [0] * len(self.cells)

        fresh = Memory(slots=self.SLOTS, tokens=self.TOKENS, block=self.BLOCK)
        assert vars(self.memory) == vars(fresh)

    @invariant()
    def counts_agree(self) -> None:
        used = sum(cell != 0 for cell in self.cells)
        assert self.memory.used_tokens == used
        assert self.memory.free_tokens == len(self.cells) - used == self.memory.capacity - used
        assert self.memory.held == len(self.slots)
        assert self.memory.largest_run == max(self.runs(), default=0)

    @invariant()
    def leases_are_kept(self) -> None:
        for id, slot in self.slots.items():
            lease = self.memory.lease(id)
            assert lease.slot == slot
            assert self.cells[lease.start : lease.start + lease.tokens].count(id) == lease.tokens >= self.asked[id]


TestLending = Lending.TestCase
TestLending.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)
