"""A restart: what was under way goes on, what ran is loaded again, and one bad model is no boot loop."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.no_engines import NoEngines
from tests.support.planes import PROJECT, Standing, standing

from medport.errors import NotFound, NotReady, QuotaExceeded, VerificationError
from medport.wire.vertex import ColdStart
from medport_local.control import deployed
from medport_local.control.database import Database
from medport_local.control.host import Intent

TO_ZERO = {"dedicatedResources": {"minReplicaCount": 0, "scaleToZeroSpec": {"idleScaledownPeriod": "0.1s"}}}


def furnished(plane: Standing) -> Standing:
    plane.endpoint()
    plane.model()
    return plane


def until(wanted: Callable[[], bool], timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not wanted():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.005)


def changed(directory: Path, **fields: Any) -> None:
    """Change the one deployment on the disk, as a process that was killed may leave it."""
    database = Database(directory, {"project": PROJECT.id})
    with database.writing() as tx:
        (row,) = deployed.every(tx)
        deployed.update(tx, replace(row, **fields))
    database.close()


def test_what_was_deployed_is_loaded_again_from_the_same_bytes(tmp_path: Path) -> None:
    with standing(tmp_path) as plane:
        furnished(plane).deployed("1")
        plane.deployed("2", split={"0": 20, "1": 80})
        before = plane.host.running[0].intent
        shown = plane.shown()

    with standing(tmp_path) as plane:
        assert plane.plane.quiet(10)

        assert plane.host.keys() == ["e/1", "e/2"]
        assert plane.host.running[0].intent == before
        assert plane.split() == {"1": 80, "2": 20}
        assert plane.shown().keys() == shown.keys()
        assert plane.enter() == "1"


def test_the_model_with_most_of_the_traffic_is_loaded_first(tmp_path: Path) -> None:
    with standing(tmp_path) as plane:
        furnished(plane).deployed("1")
        plane.deployed("2", split={"0": 90, "1": 10})

    with standing(tmp_path) as plane:
        assert plane.plane.quiet(10)

        assert plane.host.notes == ["started e/2", "started e/1"]


def test_while_a_model_is_loaded_again_it_is_listed_and_its_requests_are_told_to_come_back(
    tmp_path: Path,
) -> None:
    with standing(tmp_path) as plane:
        furnished(plane).deployed("1")
    host = NoEngines()
    host.hold()

    with standing(tmp_path, host) as plane:
        status = plane.shown()["1"]["status"]
        with pytest.raises(NotReady, match="being loaded"):
            plane.enter()
        host.let_go()
        assert plane.plane.quiet(10)

        assert "availableReplicaCount" not in status
        assert "restarted" in status["message"]
        assert "message" not in plane.shown()["1"]["status"]
        assert plane.enter() == "1"


def test_a_model_that_no_longer_verifies_stays_listed_says_why_and_the_others_go_on(tmp_path: Path) -> None:
    with standing(tmp_path) as plane:
        furnished(plane).deployed("1")
        plane.deployed("2", split={"0": 50, "1": 50})
    host = NoEngines(failures={"1": VerificationError("model.safetensors is not the approved one")})

    with standing(tmp_path, host) as plane:
        assert plane.plane.quiet(10)

        assert "not the approved one" in plane.shown()["1"]["status"]["message"]
        assert plane.split() == {"1": 50, "2": 50}
        assert plane.enter(id_="2") == "2"
        with pytest.raises(NotReady, match="not the approved one"):
            plane.enter(id_="1")
        plane.undeployed("1", split={"2": 100})
        assert plane.enter() == "2"


def test_a_model_that_failed_for_a_passing_reason_comes_up_at_the_next_start(tmp_path: Path) -> None:
    with standing(tmp_path) as plane:
        furnished(plane).deployed("1")
    with standing(tmp_path, NoEngines(failures={"1": QuotaExceeded("no memory")})) as plane:
        assert plane.plane.quiet(10)
        assert "no memory" in plane.shown()["1"]["status"]["message"]

    with standing(tmp_path) as plane:
        assert plane.plane.quiet(10)

        assert plane.enter() == "1"


def test_a_model_that_sleeps_goes_on_sleeping(tmp_path: Path) -> None:
    with standing(tmp_path) as plane:
        furnished(plane).deployed("1", **TO_ZERO)
        until(lambda: plane.rows()[0].state == "ASLEEP")

    with standing(tmp_path) as plane:
        assert plane.plane.quiet(10)

        assert plane.host.notes == []
        with pytest.raises(ColdStart):
            plane.enter()
        until(lambda: plane.host.notes[:1] == ["started e/1"])


def test_a_deployment_under_way_when_the_server_stops_goes_on_at_the_next_start(tmp_path: Path) -> None:
    with standing(tmp_path) as plane:
        furnished(plane).host.hold()
        operation = plane.deploying("1")
        plane.host.starting.acquire()
        plane.plane.close()
        (row,) = plane.rows()
        assert (row.state, row.attempts) == ("LOADING", 0)

    with standing(tmp_path) as plane:
        assert "error" not in plane.call.done(operation)
        assert plane.enter() == "1"


def test_a_model_that_ended_the_server_three_times_while_it_was_deployed_fails(tmp_path: Path) -> None:
    with standing(tmp_path) as plane:
        furnished(plane).host.hold()
        operation = plane.deploying("1")
        plane.host.starting.acquire()
        plane.plane.close()
    changed(tmp_path, attempts=3)

    with standing(tmp_path) as plane:
        error = plane.call.done(operation)["error"]

        assert error["code"] == 13
        assert "ended 3 times" in error["message"]
        assert (plane.rows(), plane.host.notes) == ([], [])


def test_each_start_of_an_engine_is_counted_before_it_begins(tmp_path: Path) -> None:
    with standing(tmp_path) as plane:
        furnished(plane).host.hold()
        operation = plane.deploying("1")
        plane.host.starting.acquire()

        assert plane.rows()[0].attempts == 1
        plane.host.let_go()
        plane.call.done(operation)
        assert plane.rows()[0].attempts == 0


def test_a_deployed_model_that_ends_the_server_is_left_out_at_the_fourth_start(tmp_path: Path) -> None:
    with standing(tmp_path) as plane:
        furnished(plane).deployed("1")
    changed(tmp_path, attempts=3)

    with standing(tmp_path) as plane:
        assert plane.plane.quiet(10)
        assert plane.host.notes == []
        assert "ended 3 times" in plane.shown()["1"]["status"]["message"]
        with pytest.raises(NotReady, match="ended 3 times"):
            plane.enter()

    with standing(tmp_path) as plane:
        assert plane.plane.quiet(10)
        assert plane.enter() == "1"


def test_a_deployment_whose_time_ran_out_while_the_server_was_down_fails_with_code_4(tmp_path: Path) -> None:
    with standing(tmp_path) as plane:
        furnished(plane).model("slow", deploymentTimeout="1s")
        plane.host.hold()
        operation = plane.deploying("1", model="slow")
        plane.host.starting.acquire()
        plane.plane.close()
    time.sleep(1.0)

    with standing(tmp_path) as plane:
        assert plane.call.done(operation)["error"]["code"] == 4
        assert plane.rows() == []


def test_a_cancellation_that_the_server_did_not_live_to_heed_is_heeded_by_the_next(tmp_path: Path) -> None:
    with standing(tmp_path) as plane:
        furnished(plane).host.hold()
        plane.host.heedless = True
        operation = plane.deploying("1")
        plane.host.starting.acquire()
        with plane.database.writing() as tx:
            tx.run("UPDATE operation SET cancelled = 1 WHERE name = ?", operation["name"])
        plane.host.heedless = False
        plane.plane.close()

    with standing(tmp_path) as plane:
        assert plane.call.done(operation)["error"]["code"] == 1
        assert plane.rows() == []


def test_a_model_that_was_draining_goes(tmp_path: Path) -> None:
    with standing(tmp_path) as plane:
        furnished(plane).deployed("1")
        plane.plane.fleet.enter("-", "-", "e")
        operation = plane.undeploying("1")
        until(lambda: plane.rows()[0].state == "DRAINING")

    with standing(tmp_path) as plane:
        assert "error" not in plane.call.done(operation)
        assert (plane.rows(), plane.host.notes, plane.split()) == ([], [], {})


def test_an_operation_that_was_done_stays_readable(tmp_path: Path) -> None:
    with standing(tmp_path) as plane:
        operation = furnished(plane).deployed("1")

    with standing(tmp_path) as plane:
        assert plane.call("GET", f"/ui/{operation['name']}") == operation


def test_the_servers_end_stops_every_engine_and_undeploys_none(tmp_path: Path) -> None:
    with standing(tmp_path) as plane:
        furnished(plane).deployed("1")
        plane.plane.close()

        assert plane.host.notes == ["started e/1", "stopped e/1"]
        assert [row.state for row in plane.rows()] == ["READY"]


class Slow:
    """An operator who wishes operations to be slow, all or those of some kinds."""

    def __init__(self, seconds: float, *kinds: str) -> None:
        self.seconds = seconds
        self.kinds = kinds

    def slow(self, kind: str) -> float:
        return self.seconds if not self.kinds or kind in self.kinds else 0.0

    def check_deploy(self, intent: Intent) -> None: ...

    def rows(self) -> tuple[()]:
        return ()


def test_what_is_held_up_is_done_later_and_after_a_restart_too(tmp_path: Path) -> None:
    body = {"displayName": "e", "dedicatedEndpointEnabled": True}
    with standing(tmp_path, faults=Slow(0.5)) as plane:
        begun = plane.call("POST", "endpoints", body, endpointId="e")
        with pytest.raises(NotFound):
            plane.call("GET", "endpoints/e")
        assert not begun["done"]

    with standing(tmp_path) as plane:
        done = plane.call.done(begun)

        assert done["response"]["name"] == f"{PROJECT.parent}/endpoints/e"
        assert plane.call("GET", "endpoints/e")["displayName"] == "e"


def test_what_is_held_up_can_be_cancelled(tmp_path: Path) -> None:
    with standing(tmp_path, faults=Slow(60)) as plane:
        begun = plane.call("POST", "endpoints", {"displayName": "e"}, endpointId="e")

        plane.call("POST", f"/v1/{begun['name']}:cancel")

        assert plane.call.done(begun)["error"]["code"] == 1
        with pytest.raises(NotFound):
            plane.call("GET", "endpoints/e")


def test_a_deployment_that_is_held_up_starts_nothing_until_its_time(tmp_path: Path) -> None:
    with standing(tmp_path, faults=Slow(0.4, "deployModel")) as plane:
        furnished(plane)
        begun = time.monotonic()
        operation = plane.deploying("1")
        time.sleep(0.1)

        assert (plane.host.notes, plane.rows()[0].state) == ([], "PENDING")
        assert "error" not in plane.call.done(operation)
        assert time.monotonic() - begun >= 0.4
        assert plane.enter() == "1"


def test_a_deployment_that_is_held_up_goes_on_after_a_restart(tmp_path: Path) -> None:
    with standing(tmp_path, faults=Slow(0.5, "deployModel")) as plane:
        operation = furnished(plane).deploying("1")

    with standing(tmp_path) as plane:
        assert "error" not in plane.call.done(operation)
        assert plane.enter() == "1"


def test_a_deployment_that_is_held_up_and_cancelled_gives_its_lane_back_at_once(tmp_path: Path) -> None:
    faults = Slow(60, "deployModel")
    with standing(tmp_path, faults=faults) as plane:
        operation = furnished(plane).deploying("1")
        faults.seconds = 0.0

        plane.call("POST", f"/v1/{operation['name']}:cancel")
        plane.deployed("2")

        assert plane.call.done(operation)["error"]["code"] == 1
        assert plane.host.notes == ["started e/2"]


def test_a_deployment_that_is_held_up_beyond_its_deadline_ends_at_it(tmp_path: Path) -> None:
    with standing(tmp_path, faults=Slow(60, "deployModel")) as plane:
        furnished(plane).model("slow", deploymentTimeout="1s")

        operation = plane.call.done(plane.deploying("1", model="slow"))

        assert operation["error"]["code"] == 4
        assert (plane.host.notes, plane.rows()) == ([], [])


def test_an_undeployment_that_is_held_up_leaves_the_traffic_until_its_time(tmp_path: Path) -> None:
    with standing(tmp_path, faults=Slow(0.4, "undeployModel")) as plane:
        furnished(plane).deployed("1")

        operation = plane.undeploying("1")
        time.sleep(0.1)

        assert plane.enter() == "1"
        assert "error" not in plane.call.done(operation)
        assert plane.host.notes == ["started e/1", "stopped e/1"]


def test_what_is_held_up_cancelled_and_forgotten_leaves_no_trace_of_a_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with standing(tmp_path, faults=Slow(60)) as plane:
        begun = plane.call("POST", "endpoints", {"displayName": "e"}, endpointId="e")

        plane.call("POST", f"/v1/{begun['name']}:cancel")
        plane.call("DELETE", f"/v1/{begun['name']}")

        assert plane.plane.quiet(5)
    assert caplog.messages == []


def test_a_cancellation_that_could_not_be_kept_cancels_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with standing(tmp_path) as plane:
        furnished(plane).host.hold()
        operation = plane.deploying("1")
        plane.host.starting.acquire()

        def full() -> None:
            raise NotReady("the disk of the state is full")

        with monkeypatch.context() as patch:
            patch.setattr(plane.database, "_commit", full)
            with pytest.raises(NotReady):
                plane.call("POST", f"/v1/{operation['name']}:cancel")
        time.sleep(0.1)
        plane.host.let_go()

        assert "error" not in plane.call.done(operation)
        assert plane.enter() == "1"


def test_what_would_be_refused_later_is_refused_at_once(tmp_path: Path) -> None:
    with standing(tmp_path) as plane:
        plane.endpoint()

    with standing(tmp_path, faults=Slow(60)) as plane:
        with pytest.raises(Exception, match="already exists"):
            plane.call("POST", "endpoints", {"displayName": "e"}, endpointId="e")
        assert [op for op in plane.call("GET", "operations")["operations"] if not op["done"]] == []


def test_a_state_that_cannot_be_read_for_a_moment_after_a_change_does_not_make_the_change_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with standing(tmp_path, look_s=0.1) as plane:
        furnished(plane).deployed("1")
        plane.deployed("2")
        reread, refused = plane.plane.fleet.reread, list[str]()

        def locked(endpoint: str) -> None:
            if not refused:
                refused.append(endpoint)
                raise NotReady("the state is locked by another program")
            reread(endpoint)

        monkeypatch.setattr(plane.plane.fleet, "reread", locked)

        plane.share({"2": 100})

        until(lambda: plane.enter() == "2")
        assert refused


def test_an_operation_that_cannot_be_picked_up_at_once_is_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with standing(tmp_path, look_s=0.1) as plane:
        furnished(plane)
        pick_up, refused = plane.plane._pick_up, list[str]()

        def locked() -> None:
            if not refused:
                refused.append("")
                raise NotReady("the state is locked by another program")
            pick_up()

        monkeypatch.setattr(plane.plane, "_pick_up", locked)

        assert "error" not in plane.call.done(plane.deploying("1"))
        assert refused


def test_a_disk_that_is_full_for_a_while_holds_a_deployment_up_and_loses_nothing(tmp_path: Path) -> None:
    with standing(tmp_path) as plane:
        furnished(plane).host.hold()
        operation = plane.deploying("1")
        plane.host.starting.acquire()
        commit, refused = plane.database._commit, list[str]()

        def full() -> None:
            refused.append("")
            plane.database._commit = commit  # type: ignore[method-assign]
            fault = sqlite3.OperationalError("database or disk is full")
            fault.sqlite_errorcode, fault.sqlite_errorname = sqlite3.SQLITE_FULL, "SQLITE_FULL"
            raise fault

        plane.database._commit = full  # type: ignore[method-assign]
        plane.host.let_go()

        assert "error" not in plane.call.done(operation)
        assert refused
        assert (plane.enter(), plane.host.notes) == ("1", ["started e/1"])
