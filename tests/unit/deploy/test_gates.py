"""Gates judge what was seen of a new fleet; no engine is needed to say what is too much."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from medport_deploy.trial import gates
from medport_deploy.trial.gates import GateFailed, Samples
from medport_deploy.trial.golden import Golden


@dataclass(frozen=True)
class Limits:
    error_ratio: float = 0.1
    p95_ms: float | None = None
    golden_drift: float | None = None


def text(said: str) -> Golden:
    return Golden(sha256=said, beginning=said)


def samples(answers: int = 10, errors: float = 0, *, ms: float = 100, **golden: str) -> Samples:
    return Samples((ms,) * answers, errors, {name: [text(said)] for name, said in golden.items()})


def test_error_ratio_at_its_limit_passes_and_over_it_fails() -> None:
    at, over = samples(9, 1), samples(8, 2)

    passed, failed = (gates.judge(Limits(0.1), each, None)[0] for each in (at, over))

    assert (passed.passed, passed.measured, passed.n) == (True, 0.1, 10)
    assert (failed.passed, failed.said) == (False, "error_ratio 0.2, limit 0.1, n = 10")


def test_no_limit_is_no_verdict() -> None:
    assert [each.gate for each in gates.judge(Limits(), samples(), None)] == ["error_ratio"]
    whole = gates.judge(Limits(0.1, 500, 0.1), samples(a="x"), samples(a="x"))
    assert [each.gate for each in whole] == ["error_ratio", "p95_ms", "golden_drift"]
    assert all(each.passed for each in whole)


@pytest.mark.parametrize("answers", range(gates.FEWEST))
def test_too_few_samples_are_no_pass(answers: int) -> None:
    verdicts = gates.judge(Limits(1, 1e6), samples(answers), None)

    assert [each.passed for each in verdicts] == [False, False]
    assert f"{answers} samples of the new fleet, {gates.FEWEST} are needed" in verdicts[0].said


def test_fleet_that_fails_all_it_is_asked_has_no_latency_to_pass_with() -> None:
    errors, p95 = gates.judge(Limits(1, 1e6), samples(0, 10), None)

    assert errors.passed
    assert not p95.passed


@pytest.mark.parametrize(
    ("count", "expected"), [(1, 1), (4, 4), (19, 19), (20, 19), (21, 20), (100, 95), (101, 96)]
)
def test_p95_is_the_nearest_rank(count: int, expected: int) -> None:
    assert gates.nearest_rank([float(each) for each in range(count, 0, -1)]) == expected


def test_one_slow_answer_of_twenty_is_no_p95_and_two_are() -> None:
    one, two = Samples((9.0,) * 19 + (900.0,)), Samples((9.0,) * 18 + (900.0,) * 2)

    verdicts = [gates.judge(Limits(p95_ms=500), each, None)[1] for each in (one, two)]

    assert [(each.passed, each.measured, each.n) for each in verdicts] == [(True, 9.0, 20), (False, 900.0, 20)]


def test_drift_is_the_share_of_the_questions_that_both_answered() -> None:
    standing = samples(a="x", b="y", c="z", d="w", only_here="v")
    new = samples(a="x", b="OTHER", c="z", d="w", only_there="u")

    at, over = (gates.judge(Limits(golden_drift=limit), new, standing)[1] for limit in (0.25, 0.2))

    assert (at.measured, at.n, at.passed) == (0.25, 4, True)
    assert not over.passed


def test_question_that_the_standing_fleet_answers_now_so_now_so_says_nothing() -> None:
    standing = Samples(golden={"a": [text("x"), text("y")], "b": [text("z"), text("z")]})

    unsteady, none = (
        gates.judge(Limits(golden_drift=0), each, standing)[1] for each in (samples(a="q", b="z"), samples(a="x"))
    )

    assert (unsteady.passed, unsteady.n) == (True, 1)
    assert (none.passed, none.n) == (False, 0)
    assert "no question was answered by both fleets" in none.said


def test_nothing_drifts_where_nothing_stood() -> None:
    verdict = gates.judge(Limits(golden_drift=0), samples(a="x"), None)[1]

    assert verdict.passed
    assert "no standing fleet" in verdict.said


@pytest.mark.parametrize(
    ("unknown", "share", "ratio", "own"),
    [
        (6, 50, 0.0, 6.0),  # nobody failed before
        (6, 50, 0.1, 1.0),  # 5 of the standing fleet's 50 were to be expected
        (6, 50, 0.5, 0.0),
        (6, 100, 0.5, 6.0),  # it has all the traffic
        (0, 5, 0.0, 0.0),
    ],
)
def test_errors_of_nobody_are_the_new_fleets_but_for_what_the_standing_one_failed_before(
    unknown: int, share: int, ratio: float, own: float
) -> None:
    assert gates.own_errors(unknown, asked=100, share=share, standing_ratio=ratio) == pytest.approx(own)


@pytest.mark.parametrize(
    ("limits", "new", "to_come", "lost"),
    [
        (Limits(0.1), samples(7, 1), 2, False),  # 1 of 10 at the end
        (Limits(0.1), samples(7, 1), 1, True),
        (Limits(0), samples(0, 3), 0, False),  # too few to say
        (Limits(0), samples(3, 1), 1000, True),
        (Limits(1, p95_ms=500), Samples((900.0,) * 4), 76, False),  # 4 of 80 are 5 %
        (Limits(1, p95_ms=500), Samples((900.0,) * 4), 75, True),
        (Limits(1, golden_drift=0.5), samples(a="x", b="y"), 10, False),
        (Limits(1, golden_drift=0.4), samples(a="x", b="y"), 10, True),
    ],
)
def test_watch_ends_only_when_nothing_that_comes_can_mend_it(
    limits: Limits, new: Samples, to_come: int, lost: bool
) -> None:
    standing = samples(a="x", b="OTHER")

    assert gates.hopeless(limits, new, standing, to_come=to_come) is lost


def test_failure_names_model_share_gate_limit_and_what_was_measured() -> None:
    verdicts = gates.judge(Limits(0.1, 50), samples(8, 2), None)

    with pytest.raises(GateFailed) as failed:
        gates.check(verdicts, name="reader", share=25)

    assert failed.value.message == (
        "reader at 25 % of the traffic: error_ratio 0.2, limit 0.1, n = 10; p95_ms 100, limit 50, n = 8"
    )
    assert failed.value.field == "rollout.gates.error_ratio"


def test_verdicts_that_all_passed_raise_nothing() -> None:
    gates.check(gates.judge(Limits(), samples(), None), name="reader", share=25)
