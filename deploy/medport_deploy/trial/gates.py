"""Gates: what a new fleet must not exceed before it gets more traffic. Pure: samples in, verdicts out.

An error seldom says which fleet it came from. What the standing fleet was seen to fail before the new one had any
traffic is taken off in proportion; the rest counts against the new fleet, even where it was innocent: better a
rollout too few than one too many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from medport.errors import VerificationError
from medport_deploy.trial import golden
from medport_deploy.trial.golden import Golden

FEWEST = 4
"""Samples of the new fleet under which nothing is said of it."""


class Limits(Protocol):
    """A specification's ``rollout.gates``."""

    @property
    def error_ratio(self) -> float: ...
    @property
    def p95_ms(self) -> float | None: ...
    @property
    def golden_drift(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Samples:
    """What one fleet was seen to do."""

    latencies_ms: tuple[float, ...] = ()
    """Of its answers."""
    errors: float = 0.0
    """How many requests it failed; a share of one where it is not known whose they were."""
    golden: Mapping[str, Sequence[Golden]] = field(default_factory=dict)
    """Its answers by the name of the question."""

    @property
    def n(self) -> float:
        """How many requests it had."""
        return len(self.latencies_ms) + self.errors

    @property
    def error_ratio(self) -> float:
        """0 if it had none."""
        return self.errors / self.n if self.n else 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one gate."""

    gate: str
    """As the specification calls it."""
    limit: float
    measured: float | None
    """``None``: nothing to measure."""
    n: int
    """Of how many samples."""
    passed: bool
    said: str
    """In words."""


class GateFailed(VerificationError):
    """A new fleet is not to get more traffic."""


def judge(limits: Limits, new: Samples, standing: Samples | None) -> list[Verdict]:
    """A verdict for each gate that has a limit. Too few samples are no pass.

    Args:
        standing: the fleet that the new one is compared with; ``None``: there was none, and nothing drifts. Where
            there was one and nobody knows any more what it did, do not ask.
    """
    verdicts = [_errors(limits.error_ratio, new)]
    if limits.p95_ms is not None:
        verdicts.append(_p95(limits.p95_ms, new))
    if limits.golden_drift is not None:
        verdicts.append(_drift(limits.golden_drift, new, standing))
    return verdicts


def check(verdicts: Sequence[Verdict], *, name: str, share: int) -> None:
    """Raise ``GateFailed`` if one did not pass: names model, share, gate, limit, what was measured, and its n.

    Args:
        name: of the model in the specification.
        share: of the new fleet, in per cent.
    """
    failed = [each for each in verdicts if not each.passed]
    if failed:
        raise GateFailed(
            f"{name} at {share} % of the traffic: " + "; ".join(each.said for each in failed),
            field=f"rollout.gates.{failed[0].gate}",
        )


def hopeless(limits: Limits, new: Samples, standing: Samples | None, *, to_come: int) -> bool:
    """Whether a gate can no longer pass, were all that is to come faultless and fast.

    Args:
        to_come: how many requests the new fleet will have at most.
    """
    if new.n < FEWEST:
        return False
    if new.errors > limits.error_ratio * (new.n + to_come):
        return True
    if limits.p95_ms is not None:
        total = len(new.latencies_ms) + to_come
        slow = sum(each > limits.p95_ms for each in new.latencies_ms)
        if slow > total - _rank(total):
            return True
    if limits.golden_drift is not None and standing is not None:
        # No more questions can be compared than the standing fleet has answered.
        differing, _ = golden.drift(new.golden, standing.golden)
        return differing > limits.golden_drift * len(standing.golden)
    return False


def own_errors(unknown: int, *, asked: int, share: int, standing_ratio: float) -> float:
    """How many errors of unknown origin count against the new fleet.

    Args:
        unknown: how many there were.
        asked: how many requests were sent.
        share: of the new fleet, in per cent.
        standing_ratio: of requests that the standing fleet was seen to fail.
    """
    expected = standing_ratio * asked * (100 - share) / 100
    return max(0.0, unknown - expected)


def nearest_rank(values: Sequence[float], share: float = 0.95) -> float:
    """The smallest value that so much of them does not exceed: the nearest-rank percentile. Not of nothing."""
    return sorted(values)[_rank(len(values), share) - 1]


def _rank(count: int, share: float = 0.95) -> int:
    return max(1, math.ceil(share * count))


def _errors(limit: float, new: Samples) -> Verdict:
    n = round(new.n)
    if new.n < FEWEST:
        return _too_few("error_ratio", limit, n)
    said = f"error_ratio {new.error_ratio:.3g}, limit {limit:g}, n = {n}"
    return Verdict("error_ratio", limit, new.error_ratio, n, new.error_ratio <= limit, said)


def _p95(limit: float, new: Samples) -> Verdict:
    n = len(new.latencies_ms)
    if n < FEWEST:
        return _too_few("p95_ms", limit, n)
    measured = nearest_rank(new.latencies_ms)
    return Verdict(
        "p95_ms", limit, measured, n, measured <= limit, f"p95_ms {measured:.0f}, limit {limit:g}, n = {n}"
    )


def _drift(limit: float, new: Samples, standing: Samples | None) -> Verdict:
    gate = "golden_drift"
    if standing is None:
        return Verdict(gate, limit, None, 0, True, f"{gate}: no standing fleet to compare with")
    differing, n = golden.drift(new.golden, standing.golden)
    if not n:
        said = f"{gate} cannot be measured: no question was answered by both fleets, by the standing one steadily"
        return Verdict(gate, limit, None, 0, False, said)
    measured = differing / n
    said = f"{gate} {measured:.3g}, limit {limit:g}, n = {n}"
    return Verdict(gate, limit, measured, n, measured <= limit, said)


def _too_few(gate: str, limit: float, n: int) -> Verdict:
    said = f"{gate} cannot be judged: {n} samples of the new fleet, {FEWEST} are needed"
    return Verdict(gate, limit, None, n, False, said)
