"""Models that go: by which calls, when, and what they finish first."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.planes import Standing, standing
from tests.support.polling import wait_until

from medport.errors import (
    InputError,
    NotFound,
    PreconditionFailed,
)


def test_an_undeployed_model_is_gone_and_its_engine_stopped(plane: Standing) -> None:
    plane.deployed("1")

    operation = plane.undeployed("1")

    assert operation["response"] == {
        "@type": "type.googleapis.com/google.cloud.aiplatform.v1.UndeployModelResponse"
    }
    assert (plane.shown(), plane.split(), plane.rows(), plane.host.keys()) == ({}, {}, [], [])


def test_a_model_with_traffic_goes_only_if_the_same_call_shares_it_out(plane: Standing) -> None:
    plane.deployed("1")
    plane.deployed("2", split={"0": 20, "1": 80})

    with pytest.raises(PreconditionFailed, match="80 % of the traffic"):
        plane.undeploying("1")
    with pytest.raises(PreconditionFailed, match="gives traffic to 1"):
        plane.undeploying("1", split={"1": 50, "2": 50})
    with pytest.raises(InputError, match="add up to 90"):
        plane.undeploying("1", split={"2": 90})
    plane.undeployed("1", split={"2": 100})

    assert plane.split() == {"2": 100}
    assert plane.host.keys() == ["e/2"]


def test_what_is_not_deployed_or_goes_already_cannot_be_undeployed(plane: Standing) -> None:
    plane.deployed("1")
    lease = plane.plane.fleet.enter("-", "-", "e")
    operation = plane.undeploying("1")
    wait_until(lambda: plane.rows()[0].state == "DRAINING")

    with pytest.raises(NotFound, match="no DeployedModel 9"):
        plane.undeploying("9")
    with pytest.raises(PreconditionFailed, match="being undeployed"):
        plane.undeploying("1")

    lease.release()
    plane.call.done(operation)


def test_a_model_that_drains_finishes_its_requests_and_takes_no_others(plane: Standing) -> None:
    plane.deployed("1")
    plane.deployed("2")
    lease = plane.plane.fleet.enter("-", "-", "e", "1")

    operation = plane.undeploying("1", split={"2": 100})
    wait_until(lambda: plane.rows()[0].state == "DRAINING")
    wait_until(lambda: plane.enter() == "2")

    assert plane.host.keys() == ["e/1", "e/2"]
    assert plane.shown().keys() == {"1", "2"}
    assert not plane.call("GET", f"/ui/{operation['name']}")["done"]
    lease.release()
    plane.call.done(operation)
    assert plane.host.keys() == ["e/2"]


def test_a_request_that_does_not_end_does_not_keep_its_model_for_ever(tmp_path: Path) -> None:
    with standing(tmp_path, drain_s=0.05) as plane:
        plane.endpoint()
        plane.model()
        plane.deployed("1")
        plane.plane.fleet.enter("-", "-", "e")

        plane.undeployed("1")

        assert plane.host.keys() == []


def test_a_model_that_got_traffic_before_its_turn_to_go_stays(plane: Standing) -> None:
    plane.deployed("1")
    plane.deployed("2")
    plane.host.hold()
    deploying = plane.deploying("3")
    plane.host.starting.acquire()
    operation = plane.undeploying("2")
    plane.share({"2": 100})

    plane.host.let_go()
    plane.call.done(deploying)
    operation = plane.call.done(operation)

    assert operation["error"]["code"] == 9
    assert "100 % of the traffic" in operation["error"]["message"]
    assert plane.split() == {"2": 100}


def test_an_endpoint_or_model_that_is_in_use_cannot_be_deleted_and_later_can(plane: Standing) -> None:
    plane.host.hold()
    operation = plane.deploying("1")
    for path in ("endpoints/e", "models/m"):
        with pytest.raises(PreconditionFailed):
            plane.call("DELETE", path)
    plane.host.let_go()
    plane.call.done(operation)
    with pytest.raises(PreconditionFailed, match=r"has deployed or being-deployed DeployedModel\(s\)"):
        plane.call("DELETE", "endpoints/e")

    plane.undeployed("1")

    for path in ("endpoints/e", "models/m"):
        plane.call.done(plane.call("DELETE", path))


def test_the_etag_of_an_endpoint_moves_on_with_its_deployed_models(plane: Standing) -> None:
    seen = [plane.call("GET", "endpoints/e")["etag"]]

    plane.deployed("1")
    seen.append(plane.call("GET", "endpoints/e")["etag"])
    plane.undeployed("1")
    seen.append(plane.call("GET", "endpoints/e")["etag"])

    assert len(set(seen)) == 3


def test_as_many_endpoints_that_drain_as_there_are_on_a_server_hold_nobody_up(tmp_path: Path) -> None:
    with standing(tmp_path / "drains", drain_s=30) as plane:
        plane.model()
        for number in range(6):
            plane.endpoint(f"e{number}")
            plane.deployed("1", endpoint=f"e{number}")
        leases = [plane.plane.fleet.enter("-", "-", f"e{number}") for number in range(5)]
        for number in range(5):
            plane.undeploying("1", endpoint=f"e{number}")

        plane.undeployed("1", endpoint="e5")

        for lease in leases:
            lease.release()
