"""A watch asks little, counts rightly and ends by itself. Engines that answer are in e2e; here time and faults."""

from __future__ import annotations

from collections import Counter

import pytest

from medport.errors import AuthError, MedportError, ServerError
from medport.wire.vertex import Pins
from medport_deploy.trial.probing import Answer
from medport_deploy.trial.sampling import Pace, Tally, pace_of
from medport_deploy.trial.smoke_inputs import Case

CASES = [Case("text", name, "Name a bone.") for name in "abcd"]
GOOD = Answer(Pins(), "new", 5.0, text="The humerus.", finish_reason="stop")


class Split:
    """A door that sends every n-th request to the new fleet."""

    def __init__(self, every: int, answer: Answer | MedportError = GOOD) -> None:
        self._every, self._answer = every, answer
        self._asked = 0

    def ask(self, case: Case) -> Answer:
        self._asked += 1
        if self._asked % self._every:
            return Answer(Pins(), "standing", 5.0, text="The ulna.", finish_reason="stop")
        if isinstance(self._answer, MedportError):
            raise self._answer
        return self._answer


def watched(door: Split, requests: int) -> Tally:
    tally = Tally()
    for _ in range(requests):
        tally.ask(door, tally.next_of(CASES), "new", Pins())
    return tally


@pytest.mark.parametrize("every", [1, 2, 4, 20])
def test_new_fleet_gets_each_question_however_the_split_counts(every: int) -> None:
    tally = watched(Split(every), 4 * every)

    assert {name: len(answers) for name, answers in tally.golden.items()} == dict.fromkeys("abcd", 1)


def test_question_that_fails_is_not_asked_for_ever() -> None:
    tally = watched(Split(1, ServerError("down")), 8)

    assert tally.settled == Counter(dict.fromkeys("abcd", 2))
    assert tally.unknown == 8


def test_answer_that_is_not_what_it_should_be_counts_as_an_error_of_the_fleet() -> None:
    tally = watched(Split(2, Answer(Pins(), "new", 5.0, text="", finish_reason="stop")), 8)

    samples = tally.samples(0.5)

    assert (samples.errors, samples.latencies_ms, dict(samples.golden)) == (4.5, (), {})


def test_answers_of_others_are_not_counted() -> None:
    samples = watched(Split(4), 8).samples(0)

    assert (samples.n, samples.latencies_ms) == (2, (5.0, 5.0))


def test_credential_that_ended_is_no_fault_of_the_fleet() -> None:
    with pytest.raises(AuthError):
        watched(Split(1, AuthError("expired")), 1)


@pytest.mark.parametrize(
    ("share", "watch_s", "pace"),
    [
        (100, 0, Pace(4, 12, 4, 0.5)),
        (5, 0, Pace(80, 240, 4, 0.5)),
        (5, 300, Pace(400, 400, 4, 0.75)),  # twenty of the new fleet
        (5, 30, Pace(80, 240, 4, 0.5)),  # no faster than the rate
        (100, 300, Pace(20, 20, 4, 15.0)),
        (100, 3600, Pace(240, 240, 4, 15.0)),  # looked at every quarter of a minute
    ],
)
def test_watch_is_as_long_as_asked_for_and_no_faster_than_the_rate(share: int, watch_s: float, pace: Pace) -> None:
    assert pace_of(4, share, watch_s, 0.5) == pace
