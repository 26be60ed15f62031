"""What of a deployed model, and of an endpoint that has one, can be changed."""

from __future__ import annotations

import pytest
from tests.support.planes import Json, Standing

from medport.errors import (
    InputError,
    NotFound,
    PreconditionFailed,
)


def test_the_counts_of_replicas_can_be_changed_and_nothing_outside_the_mask_is(plane: Standing) -> None:
    machine = {"machineType": "g2-standard-24"}
    plane.deployed("1", dedicatedResources={"minReplicaCount": 1, "maxReplicaCount": 2, "machineSpec": machine})

    operation = plane.mutated(
        {"maxReplicaCount": 5, "minReplicaCount": 4}, mask="dedicated_resources.max_replica_count"
    )

    resources = operation["response"]["deployedModel"]["dedicatedResources"]
    assert resources == {"minReplicaCount": 1, "maxReplicaCount": 5, "machineSpec": machine}
    assert plane.shown()["1"]["dedicatedResources"] == resources


@pytest.mark.parametrize(
    "mask", ["display_name", "dedicatedResources.machineSpec", "dedicated_resources.spot", "model"]
)
def test_everything_else_cannot_be_changed(plane: Standing, mask: str) -> None:
    plane.deployed("1")

    with pytest.raises(InputError, match="cannot be changed"):
        plane.mutated({"minReplicaCount": 1}, mask=mask)


def test_what_is_not_deployed_cannot_be_changed(plane: Standing) -> None:
    with pytest.raises(NotFound, match="no DeployedModel 1"):
        plane.mutated({"maxReplicaCount": 2})


@pytest.mark.parametrize("prefix", ["", "deployed_model.", "deployedModel."])
def test_a_mask_may_name_the_deployed_model_in_either_spelling(plane: Standing, prefix: str) -> None:
    plane.deployed("1")

    plane.mutated({"minReplicaCount": 1, "maxReplicaCount": 3}, mask=f"{prefix}dedicatedResources.maxReplicaCount")

    assert plane.shown()["1"]["dedicatedResources"]["maxReplicaCount"] == 3


def patched(plane: Standing, enabled: bool) -> Json:
    return plane.call(
        "PATCH",
        "endpoints/e",
        {"displayName": "changed", "dedicatedEndpointEnabled": enabled},
        updateMask="displayName,dedicatedEndpointEnabled",
    )


def test_an_endpoint_that_is_in_use_does_not_become_dedicated_or_cease_to_be(plane: Standing) -> None:
    plane.host.hold()
    operation = plane.deploying("1")
    with pytest.raises(PreconditionFailed, match=r"dedicatedEndpointEnabled cannot be changed"):
        patched(plane, enabled=False)
    plane.host.let_go()
    plane.call.done(operation)

    with pytest.raises(PreconditionFailed, match=r"has deployed or being-deployed DeployedModel\(s\)"):
        patched(plane, enabled=False)

    assert plane.call("GET", "endpoints/e")["displayName"] == "e"
    assert plane.call("GET", "endpoints/e")["dedicatedEndpointEnabled"]
    assert patched(plane, enabled=True)["displayName"] == "changed"


def test_an_endpoint_that_has_no_model_ceases_to_be_dedicated(plane: Standing) -> None:
    plane.deployed("1")
    plane.undeployed("1")

    assert "dedicatedEndpointEnabled" not in {k: v for k, v in patched(plane, enabled=False).items() if v}
