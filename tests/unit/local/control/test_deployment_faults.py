"""Deployments that fail, are cancelled or meet others on their way, over a real state and no engines."""

from __future__ import annotations

import pytest
from tests.support.planes import Standing

from medport.errors import (
    QuotaExceeded,
    VerificationError,
)


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (VerificationError("model.safetensors is not the approved one"), 9, "model.safetensors is not"),
        (RuntimeError("/secret/path"), 9, "RuntimeError"),
        (QuotaExceeded("4 GB are needed and 3 are free"), 8, "4 GB"),
    ],
)
def test_an_engine_that_does_not_start_fails_the_operation_and_leaves_nothing(
    plane: Standing, failure: Exception, code: int, said: str
) -> None:
    plane.deployed("1")
    plane.host.failures["2"] = failure

    operation = plane.call.done(plane.deploying("2", split={"0": 20, "1": 80}))

    assert operation["error"]["code"] == code
    assert said in operation["error"]["message"]
    assert "/secret" not in operation["error"]["message"]
    assert (code == 9) == operation["error"]["message"].startswith("Model server exited unexpectedly.")
    assert "response" not in operation
    assert operation["metadata"]["deploymentStage"] == "FAILED_TO_DEPLOY"
    assert plane.split() == {"1": 100}
    assert [row.id for row in plane.rows()] == ["1"]
    assert plane.host.keys() == ["e/1"]


def test_after_a_failure_the_same_id_may_be_deployed_again(plane: Standing) -> None:
    plane.host.failures["1"] = VerificationError("no")
    plane.call.done(plane.deploying("1"))
    plane.host.failures.clear()

    plane.deployed("1")

    assert plane.enter() == "1"


def test_a_deployment_that_takes_longer_than_its_timeout_fails_with_code_4(plane: Standing) -> None:
    plane.model("slow", deploymentTimeout="1s")
    plane.host.hold()

    operation = plane.call.done(plane.deploying("1", model="slow"))

    assert operation["error"]["code"] == 4
    assert "deploymentTimeout" in operation["error"]["message"]
    assert plane.rows() == []


@pytest.mark.parametrize("heedless", [False, True])
def test_a_deployment_that_is_cancelled_stops_and_leaves_nothing(plane: Standing, heedless: bool) -> None:
    plane.host.hold()
    plane.host.heedless = heedless
    operation = plane.deploying("1")
    plane.host.starting.acquire()

    plane.call("POST", f"/v1/{operation['name']}:cancel")
    if heedless:
        plane.host.let_go()
    operation = plane.call.done(operation)

    assert operation["error"]["code"] == 1
    assert plane.rows() == []
    assert plane.host.keys() == []


def test_a_deployment_that_waits_for_its_turn_is_cancelled_at_once(plane: Standing) -> None:
    plane.host.hold()
    first = plane.deploying("1")
    second = plane.deploying("2")
    plane.host.starting.acquire()

    plane.call("POST", f"/v1beta1/{second['name']}:cancel")

    assert plane.call("GET", f"/ui/{second['name']}")["error"]["code"] == 1
    assert [row.id for row in plane.rows()] == ["1"]
    plane.host.let_go()
    plane.call.done(first)
    assert plane.host.notes == ["started e/1"]


def test_deployments_to_one_endpoint_are_done_in_the_order_in_which_they_were_asked_for(plane: Standing) -> None:
    plane.host.hold()
    operations = [plane.deploying(str(i)) for i in range(1, 6)]
    plane.host.let_go()

    for operation in operations:
        plane.call.done(operation)

    assert plane.host.notes == [f"started e/{i}" for i in range(1, 6)]
    assert plane.split() == {"1": 100}


def test_a_slow_deployment_does_not_hold_up_another_endpoint(plane: Standing) -> None:
    plane.endpoint("other")
    plane.model("slow", deploymentTimeout="600s")
    plane.host.hold()
    slow = plane.deploying("1")
    plane.host.starting.acquire()

    other = plane.deploying("1", endpoint="other")

    assert plane.host.starting.acquire(timeout=5)
    plane.host.let_go()
    plane.call.done(slow)
    plane.call.done(other)


def test_a_split_that_is_changed_while_a_model_loads_keeps_its_proportions(plane: Standing) -> None:
    plane.deployed("1")
    plane.deployed("2")
    plane.host.hold()
    operation = plane.deploying("3", split={"0": 20, "1": 80})
    plane.host.starting.acquire()
    plane.share({"1": 50, "2": 50})

    plane.host.let_go()
    plane.call.done(operation)

    assert plane.split() == {"1": 40, "2": 40, "3": 20}


def test_a_split_that_names_a_model_undeployed_meanwhile_fails_as_aborted(plane: Standing) -> None:
    plane.deployed("1")
    plane.deployed("2")
    plane.host.hold()
    first = plane.deploying("9")
    undeploying = plane.undeploying("2")
    operation = plane.deploying("3", split={"0": 20, "1": 40, "2": 40})
    plane.host.let_go()

    plane.call.done(first)
    plane.call.done(undeploying)
    operation = plane.call.done(operation)

    assert operation["error"]["code"] == 10
    assert plane.split() == {"1": 100}
    assert plane.host.keys() == ["e/1", "e/9"]


@pytest.mark.parametrize("place", ["resolve", "install"])
def test_a_fault_that_nobody_thought_of_ends_the_operation_and_leaves_nothing(
    plane: Standing, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def broken(*args: object) -> str:
        raise PermissionError(13, "denied", "/srv/secret")

    monkeypatch.setattr(*((plane.host, place) if place == "resolve" else (plane.plane.fleet, place)), broken)

    operation = plane.call.done(plane.deploying("1"))

    assert operation["error"]["code"] == (9 if place == "resolve" else 13)
    assert "secret" not in str(operation)
    assert (plane.rows(), plane.split()) == ([], {})
