"""A model without requests sleeps, and wakes."""

from __future__ import annotations

import time

import pytest
from tests.support.planes import Standing
from tests.support.polling import wait_until

from medport.errors import (
    InputError,
    NotReady,
    VerificationError,
)
from medport.wire.vertex import ColdStart
from medport_local.control import engines

TO_ZERO = {"dedicatedResources": {"minReplicaCount": 0, "scaleToZeroSpec": {"idleScaledownPeriod": "0.2s"}}}


def enter_awake(plane: Standing) -> str:
    """A request that is tried until the model is awake."""
    found: list[str] = []

    def tried() -> bool:
        try:
            found.append(plane.enter())
        except ColdStart:
            return False
        return True

    wait_until(tried)
    return found[0]


def test_a_model_without_requests_sleeps_and_a_request_wakes_it(plane: Standing) -> None:
    plane.deployed("1", **TO_ZERO)
    assert plane.enter() == "1"

    wait_until(lambda: plane.host.keys() == [])
    wait_until(lambda: plane.rows()[0].state == "ASLEEP")

    status = plane.shown()["1"]["status"]
    assert "availableReplicaCount" not in status
    assert "Scaled to zero" in status["message"]
    assert plane.split() == {"1": 100}
    with pytest.raises(ColdStart):
        plane.enter()
    assert enter_awake(plane) == "1"
    assert plane.shown()["1"]["status"]["availableReplicaCount"] == 1


def test_a_wake_that_fails_says_why_and_a_request_tries_again_after_a_while(
    plane: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "AGAIN_S", 0.5)
    plane.deployed("1", **TO_ZERO)
    wait_until(lambda: plane.rows()[0].state == "ASLEEP")
    plane.host.failures["1"] = VerificationError("model.safetensors changed")

    with pytest.raises(ColdStart):
        plane.enter()
    wait_until(lambda: "model.safetensors changed" in plane.shown()["1"]["status"]["message"])
    with pytest.raises(NotReady, match=r"could not be started: model\.safetensors changed") as caught:
        plane.enter()
    plane.host.failures.clear()

    assert not isinstance(caught.value, ColdStart)
    time.sleep(0.6)
    assert enter_awake(plane) == "1"
    assert "message" not in plane.shown()["1"]["status"]


def test_a_model_that_cannot_wake_is_not_loaded_by_each_request(plane: Standing) -> None:
    plane.deployed("1", **TO_ZERO)
    wait_until(lambda: plane.rows()[0].state == "ASLEEP")
    plane.host.failures["1"] = VerificationError("model.safetensors changed")

    for _ in range(20):
        with pytest.raises(NotReady):
            plane.enter()
        assert plane.plane.quiet(5)

    starts = 0
    while plane.host.starting.acquire(blocking=False):
        starts += 1
    assert starts == 2


def test_a_model_that_shall_have_a_replica_just_as_it_falls_asleep_stays_awake(
    plane: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane.deployed("1", **TO_ZERO)
    doze, dozed = plane.plane.fleet.doze, list[str]()

    def meanwhile(endpoint: str, id_: str) -> object:
        running = doze(endpoint, id_)
        if running is not None:
            plane.mutated(
                {"minReplicaCount": 1},
                mask="dedicatedResources.minReplicaCount,dedicatedResources.scaleToZeroSpec",
            )
            dozed.append(id_)
        return running

    monkeypatch.setattr(plane.plane.fleet, "doze", meanwhile)
    wait_until(lambda: dozed == ["1"])
    assert plane.plane.quiet(5)

    assert plane.enter() == "1"
    assert (plane.rows()[0].state, plane.host.notes) == ("READY", ["started e/1"])


def test_a_snapshot_is_held_as_long_as_a_model_of_it_is_deployed_asleep_too(plane: Standing) -> None:
    plane.deployed("1", **TO_ZERO)
    wait_until(lambda: plane.rows()[0].state == "ASLEEP")
    sha256 = plane.rows()[0].intent.snapshot_sha256

    wait_until(lambda: plane.host.kept == {sha256})
    plane.undeployed("1")

    wait_until(lambda: plane.host.kept == set())


def test_a_sleeping_model_that_shall_have_a_replica_wakes_without_a_request(plane: Standing) -> None:
    plane.deployed("1", **TO_ZERO)
    wait_until(lambda: plane.rows()[0].state == "ASLEEP")

    plane.mutated(
        {"minReplicaCount": 1},
        mask="dedicatedResources.minReplicaCount,dedicatedResources.scaleToZeroSpec",
    )

    wait_until(lambda: plane.host.keys() == ["e/1"])


def test_a_sleeping_model_is_undeployed_without_being_woken(plane: Standing) -> None:
    plane.deployed("1", **TO_ZERO)
    wait_until(lambda: plane.rows()[0].state == "ASLEEP")

    plane.undeployed("1")

    assert plane.host.notes == ["started e/1", "stopped e/1"]
    assert plane.rows() == []


def test_scale_to_zero_goes_with_no_replica_that_stays_only(plane: Standing) -> None:
    resources = {"minReplicaCount": 1, "scaleToZeroSpec": {"idleScaledownPeriod": "300s"}}

    with pytest.raises(InputError, match="min_replica_count of 0"):
        plane.deploying("1", dedicatedResources=resources)
