"""Do a list of steps: each in the journal before it is sent, stopped by Ctrl-C between two, gone on with later.

A run that failed, was stopped or died leaves an open journal. The same plan goes on with it; another plan is
refused until what the first left is swept. A run that fails can be told to go all the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medport.errors import Conflict, InputError, MedportError, NotFound, PreconditionFailed
from medport_deploy.control.plane import ControlPlane
from medport_deploy.plan.file import check_maker
from medport_deploy.run import journal, run_lock, steps
from medport_deploy.run.interrupts import Interrupts, Stopped
from medport_deploy.run.journal import Header, Journal
from medport_deploy.run.steps import Event, Step

OnLine = Callable[[journal.Json, bool], None]
"""Told of a line of the journal, and whether it is written."""
TIDIES = ("sweep", "destroy")
"""Verbs that put away what earlier runs have left, and so may begin whatever those were."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did."""

    journal: Path
    resumed: bool
    """It went on with a run that was there."""
    done: tuple[str, ...]
    """Titles of the steps in which something was done."""
    skipped: tuple[str, ...]
    """Titles of those of which nothing was left to do."""


def directory_of(root: Path, deployment: str) -> Path:
    """Where the journals of a deployment are, under the directory of ``medport.yaml``."""
    return root / ".medport" / "deploy" / deployment


def run(
    todo: Sequence[Step],
    header: Header,
    directory: Path,
    *,
    control: ControlPlane,
    interrupts: Interrupts | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    back_on_failure: bool = False,
    leave_open: bool = False,
    still_so: Callable[[], None] = lambda: None,
    on_journal_line: OnLine = lambda line, written: None,
) -> Report:
    """Do all steps that are not done.

    Args:
        header: which run this is; an open journal of the same run is gone on with.
        directory: of ``directory_of``.
        back_on_failure: if a step fails, undo what this run has begun: splits first, then the rest in reverse
            order. Not if it is stopped, and not once a step is done that commits.
        leave_open: ``todo`` is the beginning of a run that is to be gone on with later, or taken back.
        still_so: is called once no other run can work on the deployment, before anything is done; raises if
            ``todo`` is not what is to be done any more.
        on_journal_line: is called before each line of the journal is written, and again when it is.

    Raises:
        Stopped: by the user, between two steps or while one went on at the server.
        Conflict: another run works on it, or has left something behind.
        PreconditionFailed: the run was begun by another version of medport.
        What the failed step raised; after the way back, if there was to be one.
    """
    _distinct(todo)
    interrupts = interrupts or Interrupts()
    with run_lock.held(directory, header.verb), interrupts.listening():
        still_so()
        damaged: set[Path] = set()
        pass_over = (lambda fault: damaged.add(fault.path)) if header.verb in TIDIES else None
        earlier = [each for each in journal.all_of(directory, on_damage=pass_over) if each.open]
        at, resumed = _journal(header, directory, earlier, on_journal_line)
        done, skipped = _all(todo, at, control, interrupts, on_event, back_on_failure)
        if not leave_open:
            at.end("finished")
        if header.verb in TIDIES:
            for each in earlier:
                if each.path != at.path:
                    each.reopen()
                    each.end("swept")
            for path in damaged:
                journal.set_aside(path)
    return Report(at.path, resumed, done, skipped)


def back(
    todo: Sequence[Step],
    header: Header,
    directory: Path,
    *,
    control: ControlPlane,
    interrupts: Interrupts | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    on_journal_line: OnLine = lambda line, written: None,
) -> Report:
    """Take an open run back: its splits first, so that the old fleets serve, then the rest in reverse order.

    Args:
        todo: all steps of the run, as for ``run``.
        header: of the run that is to go back.
        directory: of ``directory_of``.

    Raises:
        Stopped: by the user; the same call goes on.
        NotFound: no such run is open.
        Conflict: another run works on the deployment.
        PreconditionFailed: the run has come too far; or something did not go back, and the run is still open.
    """
    _distinct(todo)
    interrupts = interrupts or Interrupts()
    with run_lock.held(directory, "rollback"), interrupts.listening():
        at = next((each for each in journal.all_of(directory) if each.open and each.header.same_run(header)), None)
        if at is None:
            raise NotFound(
                f"no such run of {header.deployment} is open", field="journal", remedy="medport deploy status"
            )
        if _committed(todo, at):
            raise PreconditionFailed(
                "the run has been verified and recorded, and only tidies up now",
                field="journal",
                remedy="finish it, medport deploy apply; then go back to the lock before, medport deploy rollback",
            )
        at.on_line = on_journal_line
        at.reopen()
        undone = _back(todo, at, control, interrupts, on_event)
        if not all(undone.values()):
            left = ", ".join(step.title for step in todo if not undone.get(step.key, True))
            raise PreconditionFailed(
                f"did not go back: {left}", field="journal", remedy="put away what it left: medport deploy sweep"
            )
        at.end("taken back")
    return Report(at.path, True, tuple(step.title for step in todo if step.key in undone), ())


def _journal(header: Header, directory: Path, earlier: Sequence[Journal], on_line: OnLine) -> tuple[Journal, bool]:
    for each in earlier:
        if each.header.same_run(header):
            each.on_line = on_line
            each.reopen()
            return each, True
    if header.verb not in TIDIES:
        for each in earlier:
            if each.header.verb in TIDIES:
                continue
            same = replace(each.header, medport=header.medport).same_run(header)
            if same:
                check_maker(each.header.medport, header.medport)
            raise Conflict(
                f"the {each.header.verb} of {each.header.at} by process {each.header.pid} on {each.header.host},"
                " with another plan, has not come to its end",
                field="journal",
                remedy="apply that plan again to go on, or put away what it left: medport deploy sweep",
            )
        for each in earlier:
            # What it has not taken away this run found standing, and its plan was made of that.
            each.reopen()
            each.end("given up")
    return Journal.create(directory, header, on_line=on_line), False


def _all(
    todo: Sequence[Step],
    at: Journal,
    control: ControlPlane,
    interrupts: Interrupts,
    on_event: Callable[[Event], None],
    back: bool,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    done: list[str] = []
    skipped: list[str] = []
    for step in todo:
        if interrupts.stopping:
            raise steps.stopped(at)
        try:
            did = steps.perform(step, control=control, journal=at, interrupts=interrupts, on_event=on_event)
        except Stopped:
            raise
        except MedportError:
            if back and not _committed(todo, at) and all(_back(todo, at, control, interrupts, on_event).values()):
                at.end("taken back")
            raise
        (done if did else skipped).append(step.title)
    return tuple(done), tuple(skipped)


def _back(
    todo: Sequence[Step],
    at: Journal,
    control: ControlPlane,
    interrupts: Interrupts,
    on_event: Callable[[Event], None],
) -> dict[str, bool]:
    touched = {record.step for record in at.touched()}
    begun = [step for step in reversed(todo) if step.key in touched]
    # Those who ask now come first: every old fleet serves again before any new one goes. Then it is forgotten
    # what was found of the new ones: whoever goes on all the same tries what is deployed by then.
    begun.sort(key=lambda step: 0 if step.kind == "traffic" else 1 if step.undo is None else 2)
    # Whatever fails, the rest goes back all the same; what did not is in the journal for sweep.
    return {
        step.key: steps.take_back(step, control=control, journal=at, interrupts=interrupts, on_event=on_event)
        for step in begun
    }


def _committed(todo: Sequence[Step], at: Journal) -> bool:
    last = (at.last_of(step.key) for step in todo if step.commits)
    return any(record is not None and record.state == "done" for record in last)


def _distinct(todo: Sequence[Step]) -> None:
    keys = [step.key for step in todo]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"two steps are called {key}", field="steps", remedy="give one of them another name")
