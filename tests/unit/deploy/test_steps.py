"""One step: it looks before it repeats, writes before it sends, and knows the way back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import deploying
from support.plane_server import KEY

from medport.errors import (
    AlreadyExists,
    Conflict,
    ConnectionFailed,
    InputError,
    MedportError,
    NotFound,
    QuotaExceeded,
    ServerError,
)
from medport_deploy.control.plane import ControlPlane
from medport_deploy.control.polling import Clock, Polling
from medport_deploy.run import steps
from medport_deploy.run.interrupts import Interrupts, Stopped
from medport_deploy.run.journal import Journal
from medport_deploy.run.steps import Doing, Event, Step


@dataclass
class Thing:
    """Something that a step makes, and the calls that it took."""

    there: bool = False
    calls: int = 0
    settled: int = 0
    answers: list[MedportError | None] = field(default_factory=list)
    """What the calls raise in turn; ``None`` and those past the end come through."""
    lost: bool = False
    """Whether a call that raises has worked all the same."""

    def make(self, doing: Doing) -> None:
        self.calls += 1
        fault = self.answers.pop(0) if self.answers else None
        if fault is None or self.lost:
            self.there = True
        if fault is not None:
            raise fault

    def step(self, **more: Any) -> Step:
        def settle(doing: Doing) -> None:
            self.settled += 1

        given = {"do": self.make, "done": lambda: self.there, "settle": settle, **more}
        return Step(kind="thing", name="t", title="make t", **given)


@dataclass
class Run:
    control: ControlPlane
    journal: Journal
    slept: list[float]
    interrupts: Interrupts = field(default_factory=Interrupts)
    events: list[Event] = field(default_factory=list)

    def perform(self, step: Step) -> bool:
        return steps.perform(
            step,
            control=self.control,
            journal=self.journal,
            interrupts=self.interrupts,
            on_event=self.events.append,
        )

    def take_back(self, step: Step) -> bool:
        return steps.take_back(step, control=self.control, journal=self.journal, interrupts=self.interrupts)

    @property
    def states(self) -> list[str]:
        return [record.state for record in self.journal.records]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """With a clock that only notes what is slept, and a server that is never called."""
    slept: list[float] = []
    polling = Polling(clock=Clock(lambda: sum(slept), slept.append))
    with deploying.plane("http://127.0.0.1:1", None, KEY, polling=polling) as control:
        journal = Journal.create(deploying.directory(tmp_path, "chest"), deploying.header("apply", "chest"))
        yield Run(control, journal, slept)


def test_step_is_in_the_journal_before_its_call(run: Run) -> None:
    seen: list[list[str]] = []
    thing = Thing()

    did = run.perform(thing.step(do=lambda doing: seen.append(run.states)))

    assert did
    assert seen == [["before"]]
    assert run.states == ["before", "done"]


def test_step_that_is_done_is_not_sent(run: Run) -> None:
    thing = Thing(there=True)

    did = run.perform(thing.step())

    assert not did
    assert thing.calls == 0
    assert run.states == ["skipped"]


@pytest.mark.parametrize("fault", [ConnectionFailed("x"), ServerError("x")])
def test_call_that_worked_though_its_answer_was_lost_is_not_repeated(run: Run, fault: MedportError) -> None:
    thing = Thing(answers=[fault], lost=True)

    run.perform(thing.step())

    assert (thing.calls, thing.settled) == (1, 1)
    assert run.states == ["before", "done"]


def test_call_that_did_not_work_is_sent_again_after_a_look(run: Run) -> None:
    thing = Thing(answers=[ConnectionFailed("x"), ServerError("x")])

    run.perform(thing.step())

    assert (thing.calls, thing.settled, thing.there) == (3, 2, True)
    assert run.slept == [0.5, 1.0]


def test_what_is_asked_to_wait_is_waited(run: Run) -> None:
    thing = Thing(answers=[QuotaExceeded("x", retry_after_s=7.0)])

    run.perform(thing.step())

    assert run.slept == [7.0]


def test_fourth_failure_is_told_and_in_the_journal(run: Run) -> None:
    thing = Thing(answers=[ServerError(f"no {number}") for number in range(9)])

    with pytest.raises(ServerError, match="no 3"):
        run.perform(thing.step())

    assert run.states == ["before", "failed"]
    assert run.journal.records[-1].error == "ServerError: no 3"


def test_name_that_is_taken_by_our_own_lost_call_is_no_error(run: Run) -> None:
    thing = Thing(answers=[AlreadyExists("x")], lost=True)

    run.perform(thing.step())

    assert thing.calls == 1


def test_name_that_is_taken_by_somebody_else_is_an_error_at_once(run: Run) -> None:
    thing = Thing(answers=[AlreadyExists("x")] * 5)

    with pytest.raises(AlreadyExists):
        run.perform(thing.step())

    assert thing.calls == 1


def test_refusal_is_not_sent_again(run: Run) -> None:
    thing = Thing(answers=[InputError("x")] * 5)

    with pytest.raises(InputError):
        run.perform(thing.step())

    assert thing.calls == 1


def test_test_that_fails_is_a_finding_and_not_repeated(run: Run) -> None:
    thing = Thing(answers=[ServerError("x")] * 5)

    with pytest.raises(ServerError):
        run.perform(thing.step(repeats=False))

    assert thing.calls == 1


def test_what_an_operation_ended_with_is_not_tried_again(run: Run) -> None:
    thing = Thing()

    def do(doing: Doing) -> None:
        thing.calls += 1
        doing.wait({"name": "o", "done": True, "error": {"code": 8, "message": "no quota"}})

    with pytest.raises(QuotaExceeded, match="make t: no quota"):
        run.perform(thing.step(do=do))

    assert thing.calls == 1


def test_resumed_step_settles_before_it_looks(run: Run) -> None:
    order: list[str] = []
    thing = Thing()

    def looked() -> bool:
        order.append("look")
        return True

    run.journal.write("before", step="thing t", kind="thing", name="t")
    run.perform(thing.step(done=looked, settle=lambda doing: order.append("settle")))

    assert order == ["settle", "look"]
    assert run.states == ["before", "done"]


def test_step_that_counts_once_is_not_repeated_whatever_is_there(run: Run) -> None:
    thing = Thing()
    run.perform(thing.step(once=True))
    thing.there = False

    again = run.perform(thing.step(once=True))

    assert not again
    assert thing.calls == 1


def test_step_that_was_taken_back_is_done_again(run: Run) -> None:
    thing = Thing()
    step = thing.step(once=True, undo=lambda doing: setattr(thing, "there", False))
    run.perform(step)
    run.take_back(step)

    again = run.perform(step)

    assert again
    assert thing.calls == 2
    assert run.states == ["before", "done", "undoing", "undone", "before", "done"]


def test_what_was_there_first_is_known_on_the_way_back(run: Run) -> None:
    found: list[object] = []
    splits = iter(({"split": {"1": 100}}, {"split": {"2": 100}}))
    thing = Thing(answers=[InputError("x")])
    step = thing.step(before=lambda: next(splits), undo=lambda doing: found.append(doing.was))
    with pytest.raises(InputError):
        run.perform(step)
    run.perform(step)

    run.take_back(step)

    assert found == [{"split": {"1": 100}}]


@pytest.mark.parametrize(
    ("fault", "undone", "state"), [(NotFound("gone"), True, "undone"), (Conflict("no"), False, "not undone")]
)
def test_way_back_says_whether_it_worked(run: Run, fault: MedportError, undone: bool, state: str) -> None:
    def undo(doing: Doing) -> None:
        raise fault

    assert run.take_back(Thing().step(undo=undo)) is undone
    assert run.states == ["undoing", state]


def test_sleep_ends_when_the_user_asks_to_stop(run: Run) -> None:
    def do(doing: Doing) -> None:
        run.interrupts.ask()
        doing.sleep(3600)

    with pytest.raises(Stopped) as stopped:
        run.perform(Thing().step(do=do))

    assert sum(run.slept) < 1
    assert "medport deploy apply" in str(stopped.value.remedy)
    assert run.states == ["before"]


def test_second_interrupt_leaves_what_goes_on_and_journal_says_its_name(run: Run) -> None:
    said: list[str] = []
    run.interrupts = Interrupts(said.append)

    def do(doing: Doing) -> None:
        run.interrupts.ask()
        run.interrupts.ask()
        doing.wait({"name": "projects/p/locations/l/endpoints/e/operations/7"})

    with pytest.raises(Stopped, match="operations/7"):
        run.perform(Thing().step(do=do))

    assert run.journal.records[-1].operation == "projects/p/locations/l/endpoints/e/operations/7"
    assert run.states == ["before", "running"]
    assert len(said) == 2


def test_first_interrupt_calls_what_is_to_be_told() -> None:
    told: list[str] = []
    interrupts = Interrupts()
    interrupts.on_first = lambda: told.append("terraform")

    interrupts.ask()
    interrupts.ask()

    assert told == ["terraform"]


def test_error_in_the_journal_has_no_token(run: Run) -> None:
    thing = Thing(answers=[InputError("refused Bearer s3cr3t")])

    with pytest.raises(InputError):
        run.perform(thing.step())

    assert "s3cr3t" not in run.journal.path.read_text()


def test_step_knows_whether_an_earlier_attempt_may_have_done_a_part_of_it(run: Run) -> None:
    seen: list[bool] = []
    thing = Thing(answers=[InputError("no"), None])

    def do(doing: Doing) -> None:
        seen.append(doing.again)
        thing.make(doing)

    with pytest.raises(InputError):
        run.perform(thing.step(do=do))
    run.perform(thing.step(do=do))

    assert seen == [False, True]


def test_ctrl_c_reaches_what_a_step_waits_for_and_nothing_after_it(run: Run) -> None:
    told: list[str] = []

    def do(doing: Doing) -> None:
        with doing.stopped_by(lambda: told.append("stop")):
            run.interrupts.ask()
        run.interrupts.on_first()

    run.perform(Thing().step(do=do))

    assert told == ["stop"]


def test_step_does_not_begin_to_wait_for_what_the_user_has_stopped_before(run: Run) -> None:
    begun: list[str] = []
    run.interrupts.ask()

    def do(doing: Doing) -> None:
        with doing.stopped_by(lambda: None):
            begun.append("begun")

    with pytest.raises(Stopped):
        run.perform(Thing().step(do=do))

    assert begun == []


def test_way_back_that_the_user_stops_is_not_held_for_one_that_failed(run: Run) -> None:
    run.interrupts.ask()

    with pytest.raises(Stopped):
        run.take_back(Thing().step(undo=lambda doing: doing.sleep(10)))

    assert run.states == ["undoing"]
