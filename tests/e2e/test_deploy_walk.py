"""``medport deploy apply`` from a verified lock to another one, stopped at every line of its journal.

Then it is gone on with, and all is as if nothing had happened; or it is swept, and exactly the first lock serves.
Server, engine, specification, plan and history are real; whoever judges finds everything good.

Stopped by SIGKILL after every line, and before every line that follows a call. Left out are places that are the
same as others: before a line since whose predecessor nothing was sent, and a verdict's beginning, as verdicts send
nothing here. SIGINT stops between two steps wherever in a step it comes, so it comes once in each; what it leaves
is what SIGKILL leaves after a step, so it is swept at two places alone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import deploying
from support.command_walk import NEVER_CAME
from support.desks import MIRROR, VARIABLE, Desk
from support.plane_server import KEY, PlaneServer, plane_server

from medport.errors import EXIT_INTERRUPTED
from medport_deploy import names
from medport_deploy.control.plane import ControlPlane
from medport_deploy.past import approved, history, status
from medport_deploy.run.journal import Journal
from medport_deploy.verify import checking
from medport_deploy.work import away, opening
from medport_deploy.work import lock as locking
from medport_deploy.work import plan as planning
from medport_deploy.work.opening import Deployment

pytest.importorskip("google.cloud.aiplatform", reason="medport[deploy] is not installed")

Json = dict[str, Any]
ROLLOUT = {"steps": [50, 100], "bake_s": 0}
STEPS = (
    "version", "deployed_model", "smoke", "baseline", "traffic", "smoke", "gate",
    "traffic", "smoke", "gate", "alias", "record", "undeploy",
)  # fmt: skip
"""What a run does that changes the lock, without traffic before it is tried, and then in two shares."""
VERDICTS = ("smoke", "baseline", "gate")
LAST = len(STEPS) - 1
RECORD = STEPS.index("record")
RUNS = 20
"""After so many the deployment is made anew."""


@dataclass(frozen=True)
class Place:
    """Where a run is stopped."""

    line: str
    turn: int
    """Of several such lines."""
    written: bool
    step: int
    """Index in ``STEPS``; -1 before the first, and their number after the last."""

    def __str__(self) -> str:
        return f"{'after' if self.written else 'before'}-{self.line.replace(' ', '-')}-{self.turn}"

    @property
    def verified(self) -> bool:
        """Whether the new lock is in the history by then."""
        return self.step > RECORD or (self.step == RECORD and self.line.startswith("done"))


def places() -> list[Place]:
    """All that differ."""
    found = [Place("header", 0, True, -1), Place("skipped endpoint", 0, True, -1)]
    for at, kind in enumerate(STEPS):
        turn = STEPS[:at].count(kind)
        if kind not in VERDICTS:
            found.append(Place(f"before {kind}", turn, True, at))
            found.append(Place(f"done {kind}", turn, False, at))
        found.append(Place(f"done {kind}", turn, True, at))
        if kind == "deployed_model":
            found += [Place(f"running {kind}", turn, written, at) for written in (False, True)]
    return [*found, *(Place("ended", 0, written, len(STEPS)) for written in (False, True))]


KILLED = places()
ASKED = [Place("header", 0, True, -1)] + [
    Place(f"before {kind}", STEPS[:at].count(kind), True, at) for at, kind in enumerate(STEPS)
]


@dataclass
class Walk:
    """One deployment that goes from lock to lock."""

    program: subprocess.Popen[str]
    desk: Desk
    control: ControlPlane
    number: int = 0
    """Of the lock that serves."""
    well: bool = False
    """It serves and was verified, and nothing else is there."""
    begun: int = 0
    """How many runs were begun since all was new."""

    @contextmanager
    def opened(self) -> Iterator[Deployment]:
        """The deployment, by a connection that stays."""
        with opening.opened(self.desk.file, will_call=False) as deployment:
            deployment.control = self.control
            yield deployment
            del deployment.control

    def apply(self, place: Place | None = None, by: str = "", *, verb: str = "apply") -> int:
        """The command in a process of its own; its status."""
        where = {"line": place.line, "turn": place.turn, "written": place.written} if place else {"turn": 0}
        job = {"file": str(self.desk.file), "verb": verb, "signal": by, **where}
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.write(json.dumps(job) + "\n")
        self.program.stdin.flush()
        return int(self.program.stdout.readline())

    def write(self, number: int, *, retain_s: int = 0) -> str:
        """Specification and lock with a number; the lock's id."""
        self.desk.write(number=number, rollout={**ROLLOUT, "retain_s": retain_s})
        with self.opened() as deployment:
            return locking.lock(deployment, mirror=MIRROR, offline=True).lock.lock_id

    def plan(self) -> list[Json]:
        """Save a plan; its rows."""
        with self.opened() as deployment:
            rows: list[Json] = planning.plan(deployment).plan.as_dict()["rows"]
        return rows

    def anew(self, *, retain_s: int = 0) -> str:
        """Let one lock serve, and nothing else be there; its id."""
        self.well, self.begun = False, 0
        if self.number:
            assert self.desk.run("destroy", "--yes").code == 0
            # Commands read all that was done before, and that becomes much.
            shutil.rmtree(self.desk.state)
        self.number += 1
        return self.deployed(retain_s=retain_s)

    def deployed(self, *, retain_s: int) -> str:
        """Deploy the lock with the present number; its id."""
        lock_id = self.write(self.number, retain_s=retain_s)
        self.plan()
        assert self.apply() == 0
        return lock_id

    def begin(self) -> tuple[str, str, list[Json]]:
        """A lock that serves, and a plan to let the next one; both ids, and the plan's rows."""
        if not self.well or self.begun == RUNS:
            self.anew()
        self.well = False
        self.begun += 1
        first = self.write(self.number)
        second = self.write(self.number + 1)
        return first, second, self.plan()

    def sweep(self) -> list[str]:
        """What was swept."""
        with self.opened() as deployment:
            found = away.leftovers(deployment)
            away.swept(deployment, found)
        return [f"{each.kind} {each.name}" for each in found]

    def journals(self) -> list[Journal]:
        return self.desk.journals()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaneServer]:
    with plane_server(tmp_path_factory.mktemp("plane"), "--allow-faults") as server:
        yield server


@pytest.fixture(scope="module")
def walk(server: PlaneServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    with (
        pytest.MonkeyPatch.context() as patch,
        deploying.plane(server.url, server.line["ca_file"], KEY) as control,
        subprocess.Popen(
            [sys.executable, "-m", "support.command_walk"],
            cwd=Path(__file__).parents[1],
            env={**os.environ, VARIABLE: KEY},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as program,
    ):
        patch.setenv(VARIABLE, KEY)
        assert program.stdout is not None
        assert program.stdin is not None
        assert program.stdout.readline() == "ready\n"
        walk = Walk(program, Desk(server, tmp_path_factory.mktemp("desk"), "walk"), control)
        yield walk
        walk.desk.close()
        program.stdin.close()


def assert_serves(walk: Walk, lock_id: str) -> None:
    """Exactly the fleet of one lock is there, with all traffic, and all that can be asked says so."""
    with walk.opened() as deployment:
        there = deployment.at_lock(*approved.load(deployment.directory, lock_id))
        there.control = walk.control
        lock, spec_bytes = there.locked(), there.spec_bytes
        report = checking.check(there.spec, lock, walk.control, spec_bytes=spec_bytes, retained=there.retained())
        shown = status.read(there.spec, lock, walk.control, deployment.directory, spec_bytes=spec_bytes)
        assert away.leftovers(deployment) == []
        assert not away.unfinished(deployment)
    (fleet,) = shown.models["reader"].fleets
    assert report.findings == ()
    assert (fleet.lock_id, fleet.percent, fleet.verified) == (lock_id, 100, True)
    assert shown.last_verified is not None
    assert shown.last_verified["lock_id"] == lock_id
    assert shown.runs == ()
    assert not list((walk.desk.state / "runs").glob("*"))
    walk.well = True


def assert_gone_on(walk: Walk, second: str) -> None:
    """The same command again, and the plan has nothing more to do."""
    assert walk.apply() == 0
    walk.number += 1
    assert {row["action"] for row in walk.plan()} == {"none"}
    assert_serves(walk, second)


@pytest.mark.parametrize("place", KILLED, ids=str)
def test_run_that_is_killed_is_gone_on_with_as_if_nothing_had_been(walk: Walk, place: Place) -> None:
    _, second, _ = walk.begin()

    status = walk.apply(place, "SIGKILL")

    assert status == -signal.SIGKILL
    if place.line == "ended" and place.written:
        # It was over. What it was made of is forgotten by the next one.
        walk.number += 1
        assert {row["action"] for row in walk.plan()} == {"none"}
        walk.well = True
        _, second, _ = walk.begin()
    assert_gone_on(walk, second)


@pytest.mark.parametrize("place", [each for each in KILLED if not each.verified], ids=str)
def test_run_that_is_killed_is_swept_and_exactly_the_lock_before_serves(walk: Walk, place: Place) -> None:
    first, second, rows = walk.begin()

    status = walk.apply(place, "SIGKILL")
    walk.sweep()

    assert status == -signal.SIGKILL
    assert_serves(walk, first)
    assert walk.plan() == rows
    alias = names.version_alias(second)
    versions = walk.control.list_versions(walk.desk.spec.model_id("reader"))
    assert not [each for each in versions if alias in each["versionAliases"]]


@pytest.mark.parametrize("place", [each for each in KILLED if each.verified], ids=str)
def test_run_that_is_killed_once_verified_is_swept_and_the_new_lock_serves(walk: Walk, place: Place) -> None:
    _, second, _ = walk.begin()

    walk.apply(place, "SIGKILL")
    swept = walk.sweep()

    assert not [each for each in swept if "endpoint" in each]
    with walk.opened() as deployment:
        serving = history.serving(deployment.history())
    assert serving is not None
    assert serving.lock_id == second
    assert walk.desk.split() == {serving.models["reader"].deployed_model: 100}
    # The fleet before it may still stand. A plan says so, and its run takes it away.
    assert {row["action"] for row in walk.plan()} <= {"none", "destroy"}
    assert_gone_on(walk, second)


@pytest.mark.parametrize("place", ASKED, ids=str)
def test_run_that_is_interrupted_is_gone_on_with_as_if_nothing_had_been(walk: Walk, place: Place) -> None:
    _, second, _ = walk.begin()

    status = walk.apply(place, "SIGINT")

    # Behind the last step there is no place to stop any more.
    assert status == (EXIT_INTERRUPTED if place.step < LAST else 0)
    states = [record.state for record in walk.journals()[-1].records]
    assert states.count("before") == states.count("done")
    assert set(states[-1:]) <= {"done", "skipped"}
    if status:
        assert_gone_on(walk, second)
    else:
        walk.number += 1
        assert_serves(walk, second)


@pytest.mark.parametrize(
    "place", [each for each in ASKED if each.line in ("before deployed_model", "before alias")], ids=str
)
def test_run_that_is_interrupted_is_swept_and_exactly_the_lock_before_serves(walk: Walk, place: Place) -> None:
    first, _, rows = walk.begin()

    status = walk.apply(place, "SIGINT")
    walk.sweep()

    assert status == EXIT_INTERRUPTED
    assert_serves(walk, first)
    assert walk.plan() == rows


def test_run_that_nothing_stops_does_just_the_steps_at_which_others_were_stopped(walk: Walk) -> None:
    _, second, _ = walk.begin()

    status = walk.apply(Place("a line that never comes", 0, True, 0), "SIGKILL")

    walk.number += 1
    records = walk.journals()[-1].records
    assert status == NEVER_CAME
    assert [each.kind for each in records if each.state == "done"] == list(STEPS)
    assert {each.kind for each in records if each.state == "running"} >= {"deployed_model"}
    assert_serves(walk, second)


KEPT_S = 3600
LEAVING = [
    Place(line, 0, written, 0)
    for line in ("done traffic", "done undeploy", "done record")
    for written in (False, True)
]


@pytest.mark.parametrize("place", LEAVING, ids=str)
def test_rollback_that_is_killed_goes_on_to_the_same_lock(walk: Walk, place: Place) -> None:
    walk.anew(retain_s=KEPT_S)
    walk.number += 1
    second = walk.deployed(retain_s=KEPT_S)
    walk.number += 1
    walk.deployed(retain_s=KEPT_S)

    status = walk.apply(place, "SIGKILL", verb="rollback")
    again = walk.apply(verb="rollback")

    assert (status, again) == (-signal.SIGKILL, 0)
    with walk.opened() as deployment:
        serving = history.serving(deployment.history())
        assert not away.unfinished(deployment)
    assert serving is not None
    assert serving.lock_id == second
    assert walk.desk.split() == {serving.models["reader"].deployed_model: 100}


@pytest.mark.parametrize("place", LEAVING[2:], ids=str)
def test_promotion_that_is_killed_is_gone_on_with(walk: Walk, place: Place) -> None:
    walk.anew(retain_s=KEPT_S)
    walk.number += 1
    second = walk.deployed(retain_s=KEPT_S)

    status = walk.apply(place, "SIGKILL", verb="promote")
    again = walk.apply(verb="promote")

    assert (status, again) == (-signal.SIGKILL, 0)
    assert_serves(walk, second)
    walk.well = False  # its specification is another one
