"""What holds in the scheduler whatever comes, goes, fails or is given up, in whatever order."""

from __future__ import annotations

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.scheduling import Device, sequence

from medport.errors import InputError, QuotaExceeded
from medport_local.engine.blocks import Memory
from medport_local.engine.pace import LARGEST_CHUNK
from medport_local.engine.scheduler import Batch, Scheduler
from medport_local.engine.sequence import Sequence

BLOCK, CONTEXT = 16, 600
IMAGE = 16


@st.composite
def requests(draw: st.DrawFn) -> Sequence:
    """A prompt of texts and images in turn, its id to be set; some texts are empty."""
    texts = draw(st.lists(st.integers(0, 150), min_size=1, max_size=4))
    images, position = [], 0
    for text in texts[:-1]:
        position += text
        images.append((position, position + IMAGE))
        position += IMAGE
    tokens = min(CONTEXT - 1, max(1, position + texts[-1]))
    return sequence(
        0,
        tokens,
        draw(st.integers(1, 12)),
        images=tuple(images),
        tenant=draw(st.sampled_from(["a", "b", "c"])),
        deadline=draw(st.none() | st.floats(1000, 1030)),
    )


class Serving(RuleBasedStateMachine):
    """An engine's loop, step by step, with faults and people who lose patience."""

    @initialize(
        max_running=st.integers(1, 4),
        max_queue=st.integers(1, 6),
        spare_slots=st.integers(0, 1),
        blocks=st.integers(8, 80),
        stall_ms=st.sampled_from([15.0, 60.0, 400.0]),
        reuse=st.booleans(),
    )
    def start(
        self, max_running: int, max_queue: int, spare_slots: int, blocks: int, stall_ms: float, reuse: bool
    ) -> None:
        self.device = Device()
        self.max_running, self.max_queue = max_running, max_queue
        self.memory = Memory(slots=max_running + spare_slots, tokens=blocks * BLOCK, block=BLOCK)
        self.reuse = reuse
        self.asked: list[int] = []
        self.scheduler = Scheduler(
            self.memory,
            max_running=max_running,
            max_queue=max_queue,
            stall_ms=stall_ms,
            max_wait_s=1e9,
            max_context=CONTEXT,
            restore=self.restore,
            clock=self.device.clock,
        )
        self.ids = itertools.count(1)
        self.alive: dict[int, Sequence] = {}
        self.edges: dict[int, int] = {}
        """Where the next chunk of a sequence must start."""
        self.passed_over: dict[int, int] = {}
        """Steps since a decoding sequence got its last token."""
        self.starved: set[int] = set()
        """Who waited then."""
        self.starved_of: int | None = None
        """The largest run there was when a free place could not be filled; the next one let in needs more."""

    def restore(self, one: Sequence) -> int:
        """A prefix cache that holds each prompt up to the end of its last image, or all of it."""
        self.asked.append(one.id)
        assert self.asked.count(one.id) == 1
        found = 0
        if self.reuse and one.id % 3:
            found = (
                one.prompt_tokens if one.id % 3 == 1 else max((past for _, past in one.image_blocks), default=0)
            )
        self.edges[one.id] = found
        return found

    # What happens

    @rule(drawn=requests())
    def ask(self, drawn: Sequence) -> None:
        one = Sequence(
            id=next(self.ids), request=drawn.request, deliver=drawn.deliver, image_blocks=drawn.image_blocks
        )
        needed = self.needed(one)
        before = self.scheduler.everyone()
        try:
            self.scheduler.add(one)
        except InputError:
            assert needed > self.memory.capacity
            assert self.scheduler.everyone() == before
        except QuotaExceeded:
            assert len(before) >= self.max_queue
            assert self.scheduler.everyone() == before
        else:
            assert needed <= self.memory.capacity
            self.alive[one.id] = one

    @rule()
    def step(self) -> None:
        if (batch := self.choose()) is not None:
            self.device.run(self.scheduler, batch)
            self.account(batch)
            self.device.accept(self.scheduler, batch)
            self.forget_finished(batch)

    @precondition(lambda self: self.alive)
    @rule()
    def fail(self) -> None:
        """The device runs out of memory, say: all in the batch have failed."""
        if (batch := self.choose()) is not None:
            for one in batch.sequences:
                self.scheduler.finish(one)
                self.gone(one)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def stop_early(self, data: st.DataObject) -> None:
        """An end token, or a choice that is an error."""
        running = [one for one in self.alive.values() if one.prefilled]
        if running:
            one = data.draw(st.sampled_from(running))
            self.scheduler.finish(one)
            self.gone(one)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        self.alive[data.draw(st.sampled_from(sorted(self.alive)))].cancelled = True

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.device.now += seconds

    # What must hold

    def choose(self) -> Batch | None:
        """Sweep and choose, and look at what was chosen."""
        cancelled, expired = self.scheduler.sweep(self.device.now)
        now = self.device.now
        late = {
            id
            for id, one in self.alive.items()
            if one.request.deadline is not None and one.request.deadline <= now
        }
        unwanted = {id for id, one in self.alive.items() if one.cancelled}
        assert {one.id for one in cancelled} == unwanted
        assert {one.id for one in expired} == late - unwanted
        for one in (*cancelled, *expired):
            self.gone(one)

        waited = {one.id for one in self.waiting()}
        hole = self.memory.largest_run
        batch = self.scheduler.next_batch()
        self.check_admission([one for one in self.alive.values() if one.id in waited], hole)
        assert (batch is None) == (not self.alive), "somebody waits, and nothing is done"
        if batch is not None:
            self.check(batch)
        return batch

    def check_admission(self, waited: list[Sequence], hole: int) -> None:
        waiting = {one.id for one in self.waiting()}
        let_in = [one for one in waited if one.id not in waiting]
        # Whoever waited for the memory may have left meanwhile; then it is another's turn.
        if self.starved_of is not None and let_in and self.starved <= self.alive.keys():
            assert any(self.needed(one) > self.starved_of for one in let_in), (
                "a smaller one passed the one that waits"
            )
        for tenant in "abc":
            mine = [one for one in waited if one.request.tenant == tenant]
            assert mine[: len(mine) - sum(one.id in waiting for one in mine)] == [
                one for one in mine if one.id not in waiting
            ], "somebody passed another of the same tenant"
        self.starved_of = None
        if waiting and self.scheduler.running < self.max_running:
            self.starved_of = self.memory.largest_run
            self.starved = waiting
            assert any(self.needed(one) > self.starved_of for one in self.waiting()), (
                "a place is kept free for nobody"
            )

    def check(self, batch: Batch) -> None:
        decoding = {one.id for one in self.alive.values() if one.prefilled}
        if batch.phase == "decode":
            assert {one.id for one in batch.sequences} == decoding != set()
            assert len(batch.sequences) == len(decoding)
            self.passed_over = dict.fromkeys(decoding, 0)
            return
        for id in decoding:
            self.passed_over[id] = self.passed_over.get(id, 0) + 1
            assert self.passed_over[id] <= 1, "a decoding sequence was passed over twice"
        (one,) = batch.sequences
        assert one.id in self.alive
        assert not one.prefilled
        self.scheduler.lease(one)
        if batch.phase == "encode":
            assert one.encoded < len(one.image_blocks)
            _, past = one.image_blocks[one.encoded]
            assert past > self.edges[one.id], "the image is not needed: its keys and values are there"
            return
        assert batch.start == self.edges[one.id] == one.computed
        assert batch.start <= batch.end <= one.prompt_tokens
        assert batch.start < batch.end or batch.end == one.prompt_tokens
        assert batch.end - batch.start <= LARGEST_CHUNK + IMAGE
        for first, past in one.image_blocks:
            assert not first < batch.end < past, "an image is cut"
        assert one.encoded >= one.images_before(batch.end), "an image is not encoded"
        if one.image_blocks:
            last = one.image_blocks[-1][1]
            assert not batch.start < last < batch.end, "the prefix up to the last image is not a chunk's end"

    def account(self, batch: Batch) -> None:
        if batch.phase == "prefill":
            (one,) = batch.sequences
            self.edges[one.id] = batch.end
            assert one.computed == batch.end

    def forget_finished(self, batch: Batch) -> None:
        for one in batch.sequences:
            if len(one.generated) == one.request.sampling.max_tokens:
                self.gone(one)

    def gone(self, one: Sequence) -> None:
        del self.alive[one.id]
        self.passed_over.pop(one.id, None)

    def needed(self, one: Sequence) -> int:
        tokens = min(one.prompt_tokens + one.request.sampling.max_tokens, CONTEXT)
        return -(-tokens // BLOCK) * BLOCK

    def waiting(self) -> list[Sequence]:
        """Those that own no memory, in order of arrival."""
        waiting = []
        for one in self.scheduler.everyone():
            try:
                self.scheduler.lease(one)
            except KeyError:
                waiting.append(one)
        return sorted(waiting, key=lambda one: one.id)

    @invariant()
    def nobody_is_lost(self) -> None:
        everyone = self.scheduler.everyone()
        assert sorted(one.id for one in everyone) == sorted(self.alive)
        assert self.scheduler.running + self.scheduler.queued == len(self.alive)
        assert self.scheduler.queued == len(self.waiting())

    @invariant()
    def bounds_are_kept(self) -> None:
        assert self.scheduler.running <= self.max_running
        assert self.scheduler.queued <= 2 * self.max_queue + self.max_running
        assert self.memory.used_tokens <= self.memory.capacity
        assert self.memory.held == self.scheduler.running

    @invariant()
    def memory_is_large_enough_and_owned_by_one(self) -> None:
        waiting = {one.id for one in self.waiting()}
        leases = [(one, self.scheduler.lease(one)) for one in self.alive.values() if one.id not in waiting]
        assert len({lease.slot for _, lease in leases}) == len(leases)
        assert all(lease.tokens == self.needed(one) for one, lease in leases)
        runs = sorted((lease.start, lease.start + lease.tokens) for _, lease in leases)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(runs))

    @invariant()
    def prompts_to_be_computed_are_counted(self) -> None:
        left = sum(one.prompt_tokens - (one.computed or 0) for one in self.alive.values())
        assert self.scheduler.queued_prefill_tokens == left

    def teardown(self) -> None:
        """Every request ends, and leaves nothing behind."""
        for _ in range(20_000):
            if not self.alive:
                break
            self.step()
        assert not self.alive
        assert (self.scheduler.running, self.scheduler.queued, self.scheduler.next_batch()) == (0, 0, None)
        assert (self.memory.held, self.memory.largest_run) == (0, self.memory.capacity)
        assert not self.scheduler._turns
        assert not self.scheduler._queue._waiting
        assert not any(self.scheduler._queue._running.values())


TestServing = Serving.TestCase
TestServing.settings = settings(deadline=None, max_examples=30, stateful_step_count=50)
