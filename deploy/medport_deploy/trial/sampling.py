"""What a fleet was seen to do while it was watched: which question is next, how fast, and what is counted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from medport.errors import AuthError, ConfigError, MedportError, PolicyError
from medport.wire.vertex import Pins
from medport_deploy.trial import gates, smoke
from medport_deploy.trial.gates import Samples
from medport_deploy.trial.golden import Golden
from medport_deploy.trial.probing import Door
from medport_deploy.trial.smoke_inputs import Case

_SAMPLES = 20
"""Of the new fleet that a watch tries to see."""
_LONGEST_GAP_S = 15.0
_MOST_ROUNDS = 3
"""Times as many requests as should be enough are sent before it is said that the new fleet answers too seldom."""


class Baseline(BaseModel):
    """What the standing fleet was seen to do before a rollout, as it is kept on the disk."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lock_id: str
    """Of the rollout's lock."""
    answered: int
    failed: int
    golden: dict[str, list[Golden]]

    def samples(self) -> Samples:
        """For gates, which ask for no latency of it."""
        return Samples((0.0,) * self.answered, self.failed, self.golden)


@dataclass(slots=True)
class Tally:
    """What one fleet was seen to do so far."""

    asked: int = 0
    unknown: int = 0
    """Errors that do not say whose they are."""
    wrong: int = 0
    """Answers of the fleet that are not what they should be."""
    latencies_ms: list[float] = field(default_factory=list)
    golden: dict[str, list[Golden]] = field(default_factory=dict)
    settled: Counter[str] = field(default_factory=Counter)
    """By question: how often the fleet answered, or nobody did."""

    def ask(self, door: Door, case: Case, deployed_model_id: str | None, pins: Pins) -> None:
        """Ask once; ``deployed_model_id`` ``None``: whoever answers is the fleet."""
        self.asked += 1
        try:
            answer = door.ask(case)
        except (AuthError, ConfigError, PolicyError):
            raise
        except MedportError:
            self.unknown += 1
            self.settled[case.name] += 1
            return
        if deployed_model_id is not None and answer.deployed_model_id != deployed_model_id:
            return
        self.settled[case.name] += 1
        if smoke.faults(case, answer, pins):
            self.wrong += 1
            return
        self.latencies_ms.append(answer.latency_ms)
        self.golden.setdefault(case.name, []).append(Golden.of(answer))

    def next_of(self, cases: Sequence[Case]) -> Case:
        """The question that the fleet has answered least often: a split may give it every n-th request alone."""
        return min(cases, key=lambda case: self.settled[case.name])

    def samples(self, errors: float) -> Samples:
        """With so many of the errors of unknown origin."""
        return Samples(tuple(self.latencies_ms), self.wrong + errors, self.golden)


@dataclass(frozen=True, slots=True)
class Pace:
    """How many requests, and how fast."""

    planned: int
    """Requests within the watch."""
    most: int
    """Requests after which nothing more is sent, however few of them the new fleet had."""
    needed: int
    """Samples of the new fleet that must be there."""
    gap_s: float
    """From one request to the next, at least."""


def pace_of(questions: int, share: int, watch_s: float, gap_s: float) -> Pace:
    """Such that the new fleet answers each question, twenty requests if the time allows it.

    Args:
        share: of the new fleet, in per cent.
        gap_s: the shortest.
    """
    needed = max(gates.FEWEST, questions)
    enough = math.ceil(needed * 100 / share)
    wanted = max(math.ceil(_SAMPLES * 100 / share), math.ceil(watch_s / _LONGEST_GAP_S))
    planned = max(enough, min(wanted, int(watch_s / gap_s)))
    return Pace(planned, max(planned, _MOST_ROUNDS * enough), needed, max(gap_s, watch_s / planned))
