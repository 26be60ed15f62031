"""A device that runs batches in no time: its clock is a number, and each step costs what a function says."""

from __future__ import annotations

from collections.abc import Callable

from medport_local.engine.blocks import Memory
from medport_local.engine.scheduler import Batch, Scheduler
from medport_local.engine.sequence import GenerationRequest, Sampling, Sequence

ENCODE_SLICES = 2
"""Steps that the device needs for one image."""


def sequence(
    id: int,
    prompt_tokens: int = 2,
    max_tokens: int = 3,
    *,
    images: tuple[tuple[int, int], ...] = (),
    tenant: str = "",
    deadline: float | None = None,
) -> Sequence:
    """A request of so many tokens, with images where ``images`` says."""
    request = GenerationRequest(
        tokens=(1,) * prompt_tokens, sampling=Sampling(max_tokens=max_tokens), tenant=tenant, deadline=deadline
    )
    return Sequence(id=id, request=request, deliver=lambda event: None, image_blocks=images)


def plain_cost(batch: Batch) -> float:
    """Seconds: the weights are read in 10 ms; tokens take 1 ms each."""
    return 0.01 + 0.001 * (batch.end - batch.start if batch.phase == "prefill" else len(batch.sequences))


class Device:
    """Runner, sampler and clock of an engine, without a model."""

    def __init__(self, cost: Callable[[Batch], float] = plain_cost) -> None:
        self.now = 1000.0
        self.cost = cost
        self._slices: dict[int, int] = {}

    def clock(self) -> float:
        return self.now

    def scheduler(
        self,
        *,
        slots: int | None = None,
        tokens: int = 8192,
        max_running: int = 4,
        max_queue: int = 64,
        stall_ms: float = 200.0,
        max_wait_s: float = 1e9,
        max_context: int = 8192,
        restore: Callable[[Sequence], int] = lambda sequence: 0,
    ) -> Scheduler:
        """A scheduler on this device's clock that refuses nobody for a long wait, unless told otherwise."""
        return Scheduler(
            Memory(slots=max_running if slots is None else slots, tokens=tokens),
            max_running=max_running,
            max_queue=max_queue,
            stall_ms=stall_ms,
            max_wait_s=max_wait_s,
            max_context=max_context,
            restore=restore,
            clock=self.clock,
        )

    def step(self, scheduler: Scheduler) -> Batch | None:
        """What an engine's loop does once: sweep, choose, run, account, accept."""
        scheduler.sweep(self.now)
        batch = scheduler.next_batch()
        if batch is not None:
            self.run(scheduler, batch)
            self.accept(scheduler, batch)
        return batch

    def run(self, scheduler: Scheduler, batch: Batch) -> None:
        """Run a batch to its end and tell the scheduler what it took."""
        if batch.phase == "encode":
            (one,) = batch.sequences
            done = self._slices.get(one.id, 0) + 1
            one.encoded += done // ENCODE_SLICES
            self._slices[one.id] = done % ENCODE_SLICES
        seconds = self.cost(batch)
        self.now += seconds
        scheduler.ran(batch, seconds)

    def accept(self, scheduler: Scheduler, batch: Batch) -> None:
        """Give a token to each sequence whose logits the batch gave, and finish those that are complete."""
        if batch.phase == "decode" or (batch.phase == "prefill" and batch.end == batch.sequences[0].prompt_tokens):
            for each in batch.sequences:
                each.generated.append(7)
                if len(each.generated) == each.request.sampling.max_tokens:
                    scheduler.finish(each)

    def steps(self, scheduler: Scheduler, count: int) -> list[tuple[str, list[int]]]:
        """The phases and the sequences' ids of so many steps, fewer if there is nothing more to do."""
        batches = (self.step(scheduler) for _ in range(count))
        return [(batch.phase, [each.id for each in batch.sequences]) for batch in batches if batch is not None]

    def drain(self, scheduler: Scheduler, *, within: int = 10_000) -> list[Batch]:
        """Step until nothing is left to do."""
        batches: list[Batch] = []
        while (batch := self.step(scheduler)) is not None:
            batches.append(batch)
            assert len(batches) <= within, "the scheduler does not come to an end"
        return batches
