"""A step: something to do, how to see that it is done, and the way back. A run is a list of them.

A step is done again without harm: it looks at what is there first. A call whose answer was lost may have
worked, so the step looks before it sends it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from medport.errors import AlreadyExists, Conflict, MedportError, NotFound
from medport_deploy.control.errors import clean
from medport_deploy.control.plane import DEPLOY_S, ControlPlane
from medport_deploy.control.polling import StillRunning
from medport_deploy.run.interrupts import Interrupts, Stopped
from medport_deploy.run.journal import Journal

Json = dict[str, Any]
_ATTEMPTS = 4
_FIRST_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class Event:
    """Something to show."""

    step: str
    """The step's title."""
    state: str
    """A journal's state, ``stage`` or ``said``."""
    text: str = ""


class Doing:
    """A step under way: what its ``do`` and ``undo`` are given."""

    def __init__(
        self,
        step: Step,
        control: ControlPlane,
        journal: Journal,
        interrupts: Interrupts,
        on_event: Callable[[Event], None],
    ) -> None:
        self._step = step
        self._control = control
        self._journal = journal
        self._interrupts = interrupts
        self._on_event = on_event
        self.was: Mapping[str, Any] = journal.first_was(step.key)
        """What stood there before this run first touched it; from ``Step.before``."""
        self.final: MedportError | None = None
        """An error that another try will not mend."""

    def first_was(self, kind: str, prefix: str) -> Mapping[str, Any]:
        """What stood there before the run's first step of a kind whose name begins so; empty if there is none."""
        for record in self._journal.records:
            if record.kind == kind and record.name.startswith(prefix) and record.was is not None:
                return record.was
        return {}

    @property
    def again(self) -> bool:
        """Whether an earlier attempt at the step, such as one of a run that died, may have done a part of it."""
        begun = [each for each in self._journal.records if each.step == self._step.key and each.state == "before"]
        return len(begun) > 1

    @contextmanager
    def stopped_by(self, stop: Callable[[], None]) -> Iterator[None]:
        """Let Ctrl-C stop what is under way in the block. Raises ``Stopped`` if the user has asked before.

        Args:
            stop: is called by the signal's handler, so it must take no lock.
        """
        before, self._interrupts.on_first = self._interrupts.on_first, stop
        try:
            self.check()
            yield
        finally:
            self._interrupts.on_first = before

    def wait(self, operation: Json, *, deadline_s: float = DEPLOY_S) -> Json:
        """An operation once it is done; its name is in the journal first. As ``ControlPlane.wait``."""
        step = self._step
        if not operation.get("done"):
            self._journal.write(
                "running", step=step.key, kind=step.kind, name=step.name, operation=operation["name"]
            )
        try:
            return self._control.wait(
                operation,
                doing=step.title,
                deadline_s=deadline_s,
                on_stage=lambda stage: self._on_event(Event(step.title, "stage", stage)),
                leave=lambda: self._interrupts.leaving,
            )
        except MedportError as error:
            self.final = error
            raise

    def settle(self, *resources: str, deadline_s: float = DEPLOY_S) -> None:
        """Wait for what is under way at resources, however it ends: a dead run of ours began it.

        Args:
            resources: their names.
        """
        for operation in self._under_way(resources):
            try:
                self.wait(operation, deadline_s=deadline_s)
            except StillRunning:
                raise
            except MedportError as error:
                if not self._control.get_operation(operation["name"]).get("done"):
                    raise
                # How it ended is seen in what is there now.
                self.final = None
                self.say(clean(error.message))

    def _under_way(self, resources: tuple[str, ...]) -> list[Json]:
        found = {each["name"]: each for resource in resources for each in self._control.pending(resource)}
        # A list may lag behind, or leave out what is at a resource that is not there yet; the journal knows.
        last = self._journal.last_of(self._step.key)
        if last is not None and last.operation is not None and last.operation not in found:
            try:
                operation = self._control.get_operation(last.operation)
            except NotFound:
                return list(found.values())
            if not operation.get("done"):
                found[last.operation] = operation
        return list(found.values())

    def say(self, text: str) -> None:
        """Show a line."""
        self._on_event(Event(self._step.title, "said", text))

    def check(self) -> None:
        """Raise ``Stopped`` if the user has asked to stop."""
        if self._interrupts.stopping:
            raise stopped(self._journal)

    def sleep(self, seconds: float) -> None:
        """Let time pass, such as to see how a split does. Raises ``Stopped`` at once if the user asks to."""
        self.check()
        clock = self._control.polling.clock
        end = clock.now() + seconds
        while (left := end - clock.now()) > 0:
            self.check()
            clock.sleep(min(0.1, left))


def _nothing(doing: Doing) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step. All of its functions may raise errors of ours."""

    kind: str
    """Such as ``endpoint``, ``version``, ``deployed_model``, ``traffic``, ``alias``; sweeping knows these."""
    name: str
    """What it makes or changes, such as an endpoint's id; with ``kind`` it is one of a kind within a run."""
    title: str
    """For people, such as ``deploy medgemma at 0 %``."""
    do: Callable[[Doing], None]
    done: Callable[[], bool] = lambda: False
    """Whether what is there says that nothing is left to do."""
    undo: Callable[[Doing], None] | None = None
    """The way back; may be called whether or not ``do`` came through, and more than once."""
    before: Callable[[], Json] = dict
    """What stands there now, for ``undo``: is kept in the journal, so no secrets."""
    settle: Callable[[Doing], None] = field(default=_nothing)
    """Wait for what an attempt may have begun whose answer was lost."""
    repeats: bool = True
    """Whether ``do`` is tried again after an error that may pass; not for a test whose failure is a finding."""
    commits: bool = False
    """Once it is done, the run is not taken back any more: what follows only tidies up."""
    once: bool = False
    """Its being done is in the journal, not in what is there: a share of traffic that a later step changed, a test
    that passed."""

    @property
    def key(self) -> str:
        """By which the journal knows it."""
        return f"{self.kind} {self.name}"


def perform(
    step: Step,
    *,
    control: ControlPlane,
    journal: Journal,
    interrupts: Interrupts,
    on_event: Callable[[Event], None] = lambda event: None,
) -> bool:
    """Do a step if it is not done; gives whether anything was done.

    Raises:
        Stopped: the user left while it went on.
        What the step raises; the journal says that it failed.
    """

    def say(state: Any, **more: Any) -> None:
        journal.write(state, step=step.key, kind=step.kind, name=step.name, **more)
        on_event(Event(step.title, state, more.get("error") or ""))

    begun = journal.last_of(step.key)
    if step.once and begun is not None and begun.state == "done":
        on_event(Event(step.title, "skipped"))
        return False
    try:
        if begun is not None and begun.state not in ("done", "skipped"):
            step.settle(Doing(step, control, journal, interrupts, on_event))
        if step.done():
            say("skipped" if begun is None or begun.state == "skipped" else "done")
            return False
        say("before", was=step.before())
        _tried(step, lambda: Doing(step, control, journal, interrupts, on_event), interrupts, control)
    except StillRunning as left:
        raise stopped(journal, left.remedy) from left
    except Stopped:
        raise
    except MedportError as error:
        say("failed", error=f"{type(error).__name__}: {clean(str(error))}")
        raise
    say("done")
    return True


def take_back(
    step: Step,
    *,
    control: ControlPlane,
    journal: Journal,
    interrupts: Interrupts,
    on_event: Callable[[Event], None] = lambda event: None,
) -> bool:
    """Undo a step; gives whether that worked. What did not is in the journal; only ``Stopped`` is raised."""
    if step.undo is None:
        if step.once:
            journal.write("undone", step=step.key, kind=step.kind, name=step.name)
        return True
    doing = Doing(step, control, journal, interrupts, on_event)

    def say(state: Any, **more: Any) -> None:
        journal.write(state, step=step.key, kind=step.kind, name=step.name, **more)
        on_event(Event(step.title, state, more.get("error") or ""))

    say("undoing")
    try:
        step.settle(doing)
        step.undo(doing)
    except NotFound:
        pass
    except StillRunning as left:
        raise stopped(journal, left.remedy) from left
    except Stopped:
        raise
    except MedportError as error:
        say("not undone", error=f"{type(error).__name__}: {clean(str(error))}")
        return False
    say("undone")
    return True


def _tried(step: Step, begin: Callable[[], Doing], interrupts: Interrupts, control: ControlPlane) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        doing = begin()
        try:
            step.do(doing)
        except MedportError as error:
            # What an operation ended with, and what no repeat changes, is for the caller.
            again = step.repeats and (error.retryable or isinstance(error, Conflict))
            if doing.final is not None or interrupts.leaving or not again:
                raise
            # It may have worked all the same, or be under way: only what is there tells.
            step.settle(doing)
            if step.done():
                return
            if attempt == _ATTEMPTS or isinstance(error, AlreadyExists):
                raise
            control.polling.clock.sleep(max(_FIRST_WAIT_S * 2 ** (attempt - 1), error.retry_after_s or 0.0))
        else:
            return


def stopped(journal: Journal, remedy: str | None = None) -> Stopped:
    """What says that the user stopped a run, and how to go on."""
    return Stopped(
        "stopped; what was done is kept",
        field=journal.header.verb,
        remedy=remedy or f"to go on: medport deploy {journal.header.verb}; to tidy up: medport deploy sweep",
    )
