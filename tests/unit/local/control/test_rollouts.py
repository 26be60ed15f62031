"""One deployed model takes another's place."""

from __future__ import annotations

import pytest
from tests.support.planes import Json, Standing

from medport.errors import (
    NotFound,
    VerificationError,
)


def rolling(previous: str) -> Json:
    return {
        "rolloutOptions": {
            "previousDeployedModel": previous,
            "maxSurgePercentage": 50,
            "maxUnavailableReplicas": 0,
        }
    }


def test_a_rollout_takes_resources_and_share_over_and_the_previous_model_goes(plane: Standing) -> None:
    resources = {"minReplicaCount": 1, "maxReplicaCount": 2, "machineSpec": {"machineType": "g2-standard-24"}}
    plane.model()
    plane.deployed("1", model="m@1", dedicatedResources=resources)
    plane.deployed("2", model="m@1", split={"0": 30, "1": 70})

    plane.deployed("3", model="m@2", split={"1": 70, "0": 0, "2": 30}, **rolling("1"))

    assert plane.split() == {"2": 30, "3": 70}
    assert plane.shown()["3"]["dedicatedResources"] == resources
    assert plane.shown()["3"]["modelVersionId"] == "2"
    assert plane.host.keys() == ["e/2", "e/3"]


def test_during_a_rollout_no_request_fails(plane: Standing) -> None:
    plane.deployed("1")
    plane.host.hold()
    operation = plane.deploying("2", **rolling("1"))
    plane.host.starting.acquire()

    taken = [plane.enter()]
    plane.host.let_go()
    while not plane.call("GET", f"/ui/{operation['name']}")["done"]:
        taken.append(plane.enter())
    taken.append(plane.enter())

    assert taken == sorted(taken)
    assert {taken[0], taken[-1]} == {"1", "2"}


def test_a_rollout_that_fails_leaves_the_previous_model_as_it_was(plane: Standing) -> None:
    plane.deployed("1")
    plane.host.failures["2"] = VerificationError("no")

    operation = plane.call.done(plane.deploying("2", **rolling("1")))

    assert operation["error"]["code"] == 9
    assert plane.split() == {"1": 100}
    assert plane.enter() == "1"


def test_a_rollout_of_what_is_not_deployed_is_refused(plane: Standing) -> None:
    with pytest.raises(NotFound, match="no DeployedModel 1"):
        plane.deploying("2", **rolling("1"))
