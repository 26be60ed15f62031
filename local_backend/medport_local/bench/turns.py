"""All engines stay loaded and take turns: a task goes from one to the next, and each round begins with another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from medport.errors import ConfigError
from medport_local.bench.process import Worker, WorkerFailed
from medport_local.bench.rivals import OWN, Plan, own_worker, rival_worker
from medport_local.bench.tasks import Figure, Task, figures

LOAD_S = 900.0
ANSWER_S = 900.0
"""Longer than any measurement takes on a machine that is worth measuring."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure of one engine in one round."""

    how: str
    round: int
    figure: Figure


@dataclass(slots=True)
class Field:
    """The engines of one run."""

    workers: dict[str, Worker] = field(default_factory=dict)
    facts: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """What each said when it was loaded."""
    absent: dict[str, str] = field(default_factory=dict)
    """Who is not there, or dropped out, and why."""

    def drop(self, name: str, why: str) -> None:
        """Go on without an engine."""
        self.absent[name] = why
        worker = self.workers.pop(name, None)
        if worker is not None:
            worker.close()


@contextmanager
def started(plan: Plan, rivals: Sequence[str], told: Callable[[str], None] = lambda line: None) -> Iterator[Field]:
    """Start medport and its rivals, one after another; end them with the block.

    The rivals are loaded in the dtype that medport chose. Who does not start is a line in ``absent``.

    Args:
        told: takes a line about each.

    Raises:
        WorkerFailed: medport itself does not start.
        ConfigError: a rival is not known.
    """
    there = Field()
    try:
        there.workers[OWN] = own_worker(plan)
        there.facts[OWN] = there.workers[OWN].loaded(LOAD_S)
        told(_loaded(OWN, there.facts[OWN]))
        same = replace(plan, dtype=there.facts[OWN]["dtype"], threads=there.facts[OWN]["threads"])
        for name in rivals:
            try:
                there.workers[name] = rival_worker(name, same)
                there.facts[name] = there.workers[name].loaded(LOAD_S)
                told(_loaded(name, there.facts[name]))
            except (WorkerFailed, ConfigError) as fault:
                there.drop(name, str(fault))
                told(f"{name}: not measured: {fault}")
        yield there
    finally:
        for worker in there.workers.values():
            worker.close()


def take_turns(
    there: Field,
    tasks: Sequence[Task],
    *,
    rounds: int,
    warm_up: int = 1,
    seed: int = 1,
    told: Callable[[Sample], None] = lambda sample: None,
) -> list[Sample]:
    """Do every task with every engine that can, once a round. Who fails is dropped.

    Args:
        warm_up: rounds before those that count: the first run prepares memory and kernels, and medport learns how
            large a chunk may be.
        told: takes each sample as it comes.
    """
    samples = []
    for i in range(warm_up + rounds):
        for number, task in enumerate(tasks):
            names = [name for name in there.workers if task.do in there.facts[name]["can"]]
            turn = i % len(names) if names else 0
            for name in names[turn:] + names[:turn]:
                try:
                    answer = there.workers[name].ask(
                        task.do, ANSWER_S, **task.arguments, seed=seed + 1000 * i + number
                    )
                except WorkerFailed as fault:
                    there.drop(name, f"{task.what}: {fault}")
                    continue
                if i < warm_up:
                    continue
                for figure in figures(task, answer):
                    samples.append(Sample(name, i - warm_up, figure))
                    told(samples[-1])
    return samples


def memory(there: Field) -> list[Sample]:
    """What each process holds at present, and the most that it held."""
    samples = []
    for name, worker in list(there.workers.items()):
        try:
            found = worker.ask("memory", ANSWER_S)
        except WorkerFailed as fault:
            there.drop(name, f"memory: {fault}")
            continue
        for what, key in (("resident memory", "resident_bytes"), ("peak memory", "peak_bytes")):
            if found[key] is not None:
                samples.append(Sample(name, 0, Figure(what, "MiB", (found[key] / 2**20,))))
    return samples


def _loaded(name: str, facts: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{package} {number}" for package, number in facts["versions"].items())
    return f"{name}: loaded in {facts['load_s']:.1f} s ({shown})"
