"""Scheduling without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from medport.errors import QuotaExceeded
from medport_local.engine.scheduler import Scheduler
from medport_local.engine.sequence import GenerationRequest, Sampling, Sequence


def sequence(number: int) -> Sequence:
    request = GenerationRequest(tokens=(1, 2), sampling=Sampling(max_tokens=3))
    return Sequence(id=number, request=request, deliver=lambda event: None)


def plan(scheduler: Scheduler, steps: int) -> list[tuple[str, list[int]]]:
    batches = (scheduler.next_batch() for _ in range(steps))
    return [(batch.phase, [each.id for each in batch.sequences]) for batch in batches if batch is not None]


def test_nothing_to_do_is_no_batch() -> None:
    assert Scheduler().next_batch() is None


def test_arrivals_are_prefilled_in_order_with_a_decode_between() -> None:
    scheduler = Scheduler(max_running=2)
    for number in (1, 2, 3):
        scheduler.add(sequence(number))

    assert plan(scheduler, 5) == [
        ("prefill", [1]),
        ("decode", [1]),
        ("prefill", [2]),
        ("decode", [1, 2]),
        ("decode", [1, 2]),
    ]


def test_finished_sequence_makes_room_for_the_next() -> None:
    scheduler = Scheduler(max_running=1)
    first, second = sequence(1), sequence(2)
    scheduler.add(first)
    scheduler.add(second)
    plan(scheduler, 2)

    scheduler.finish(first, now=1.0)

    assert plan(scheduler, 2) == [("prefill", [2]), ("decode", [2])]


def test_full_queue_refuses_and_says_how_long_to_wait() -> None:
    scheduler = Scheduler(max_running=1, max_queue=2)
    for number in (1, 2, 3):
        scheduler.add(sequence(number))

    with pytest.raises(QuotaExceeded) as refused:
        scheduler.add(sequence(4))
    assert refused.value.retry_after_s == 1


def test_sweep_takes_out_the_cancelled_and_gives_those_that_ran() -> None:
    scheduler = Scheduler(max_running=1)
    running, waiting = sequence(1), sequence(2)
    scheduler.add(running)
    scheduler.add(waiting)
    plan(scheduler, 1)
    running.cancelled = waiting.cancelled = True

    assert scheduler.sweep() == [running]
    assert (scheduler.running, scheduler.queued) == (0, 0)


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("medport_local", {"torch", "transformers", "starlette"}),
        ("medport_local.snapshot", {"torch", "transformers", "starlette"}),
        ("medport_local.engine.scheduler", {"torch", "transformers", "starlette"}),
        ("medport_local.engine.grammar", {"torch", "transformers", "starlette", "llguidance"}),
        ("medport_local.engine.schema", {"torch", "transformers", "starlette", "llguidance"}),
        ("medport_local.engine.detokenizer", {"torch", "transformers", "starlette"}),
        ("medport_local.control.resources", {"torch", "transformers", "starlette"}),
        ("medport_local.cli", {"torch", "transformers", "starlette"}),
        ("medport_local.engine.engine", {"starlette", "uvicorn"}),
    ],
)
def test_module_does_not_import_what_it_must_not(module: str, banned: set[str]) -> None:
    script = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not banned & set(loaded.stdout.split())
