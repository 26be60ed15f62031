"""What stands, read from the control plane's JSON."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from support.deploy_plans import MODEL, deployed, lock, spec

from medport.errors import Forbidden, NotFound
from medport_deploy import names, provenance
from medport_deploy.plan import reality
from medport_deploy.plan.reality import EndpointState, Fleet

Json = dict[str, Any]
ACCOUNT = "serving@p.iam.gserviceaccount.com"
PARENT = "projects/1/locations/europe-west4"
ENDPOINT: Json = {
    "name": f"{PARENT}/endpoints/e",
    "etag": "x",
    "displayName": "Reader",
    "labels": {"team": "chest"},
    "dedicatedEndpointEnabled": True,
    "clientConnectionConfig": {"inferenceTimeout": "900s"},
    "encryptionSpec": {"kmsKeyName": "k"},
    "privateServiceConnectConfig": {"enablePrivateServiceConnect": True, "projectAllowlist": ["p"]},
    "trafficSplit": {"1": 100, "2": 0},
    "deployedModels": [
        {
            "id": "1",
            "model": f"{PARENT}/models/m",
            "modelVersionId": "3",
            "displayName": "reader",
            "serviceAccount": ACCOUNT,
            "dedicatedResources": {
                "machineSpec": {
                    "machineType": "g2-standard-24",
                    "acceleratorType": "NVIDIA_L4",
                    "acceleratorCount": 2,
                },
                "minReplicaCount": 2,
                "maxReplicaCount": 4,
                "requiredReplicaCount": 1,
            },
            "status": {"availableReplicaCount": 3},
        }
    ],
}


class Plane:
    """A control plane with fixed answers."""

    def __init__(self, endpoint: Json | None = None, labelled: tuple[Json, ...] = ()) -> None:
        self._endpoint, self._labelled = endpoint, list(labelled)
        self.asked: list[Any] = []

    def get_endpoint(self, endpoint: str, /) -> Json:
        self.asked.append(endpoint)
        if self._endpoint is None:
            raise NotFound(endpoint)
        return self._endpoint

    def list_endpoints(self, labels: Mapping[str, str], /) -> list[Json]:
        self.asked.append(dict(labels))
        return self._labelled

    def list_versions(self, model: str, /) -> list[Json]:
        return [{"name": f"{PARENT}/models/{model}@{number}", "versionId": number} for number in ("10", "9")]


def test_endpoint_is_read_with_all_that_a_plan_compares() -> None:
    assert reality.endpoint_state(ENDPOINT) == EndpointState(
        id="e",
        etag="x",
        display_name="Reader",
        labels={"team": "chest"},
        dedicated=True,
        inference_timeout_s=900.0,
        kms_key_name="k",
        private=True,
        allowed_projects=("p",),
        traffic={"1": 100},
        fleets=(
            Fleet(
                "1",
                "m",
                "3",
                "reader",
                "g2-standard-24",
                "NVIDIA_L4",
                2,
                2,
                4,
                1,
                ACCOUNT,
                3,
            ),
        ),
    )


def test_fleet_that_leaves_its_replicas_out_may_go_to_none_and_has_no_accelerators() -> None:
    said = {
        "id": "1",
        "model": f"{PARENT}/models/m@7",
        "dedicatedResources": {
            "machineSpec": {"machineType": "n1-standard-4", "acceleratorType": "ACCELERATOR_TYPE_UNSPECIFIED"}
        },
    }

    (fleet,) = reality.endpoint_state({"name": "e", "deployedModels": [said]}).fleets

    assert (fleet.version_id, fleet.min, fleet.max, fleet.accelerator, fleet.available) == ("7", 0, 0, None, None)


def test_model_of_another_project_is_told_from_the_endpoints_own() -> None:
    (own,) = reality.endpoint_state(ENDPOINT).fleets
    foreign = {**ENDPOINT["deployedModels"][0], "model": "projects/999/locations/europe-west4/models/m"}
    (other,) = reality.endpoint_state({**ENDPOINT, "deployedModels": [foreign]}).fleets

    assert (own.elsewhere, other.elsewhere) == ("", "projects/999/locations/europe-west4/models/m")


@pytest.mark.parametrize(
    ("place", "said", "unasked"),
    [
        ((), {"checkpointId": "7"}, {"checkpointId": "7"}),
        ((), {"disableContainerLogging": True}, {"disableContainerLogging": True}),
        ((), {"enableAccessLogging": False}, {}),
        (("dedicatedResources",), {"spot": True}, {"spot": True}),
        (
            ("dedicatedResources",),
            {"autoscalingMetricSpecs": [{"metricName": "m", "target": 1}]},
            {"autoscalingMetricSpecs": [{"metricName": "m", "target": 1}]},
        ),
        (
            ("dedicatedResources", "machineSpec"),
            {"reservationAffinity": {"reservationAffinityType": "ANY_RESERVATION"}},
            {"reservationAffinity": {"reservationAffinityType": "ANY_RESERVATION"}},
        ),
        (
            ("dedicatedResources", "machineSpec"),
            {"reservationAffinity": {"reservationAffinityType": "NO_RESERVATION"}},
            {},
        ),
    ],
)
def test_what_medport_never_asks_for_is_kept_by_name(place: tuple[str, ...], said: Json, unasked: Json) -> None:
    changed = copy.deepcopy(ENDPOINT)
    at = changed["deployedModels"][0]
    for step in place:
        at = at[step]
    at |= said

    (fleet,) = reality.endpoint_state(changed).fleets

    assert fleet.unasked == unasked


def test_version_without_labels_is_known_by_its_description() -> None:
    wanted = spec()
    pinned = lock(wanted)

    found = reality.version(
        {"name": f"{PARENT}/models/m@2", "versionDescription": provenance.description(pinned, MODEL)}
    )

    assert (found.model_id, found.version_id) == ("m", "2")
    assert found.pins == provenance.pins_of(pinned, MODEL)


def test_labels_say_more_than_a_description() -> None:
    pinned = lock(spec())
    body = {**provenance.model_body(spec(), pinned, MODEL), "name": "m", "versionDescription": "nothing of ours"}

    found = reality.version(body).pins

    assert replace(found, model_id="", notice=None) == replace(provenance.pins_of(pinned, MODEL), model_id="")


def test_what_is_not_there_is_part_of_the_answer() -> None:
    plane = Plane()

    found = reality.read(plane, spec())

    assert found.models[MODEL].endpoint is None
    assert plane.asked == [names.endpoint_id("chest", MODEL), {names.DEPLOYMENT_LABEL: "chest"}]


def test_versions_are_in_the_order_of_their_numbers() -> None:
    found = reality.read(Plane(), spec())

    assert [each.version_id for each in found.models[MODEL].versions] == ["9", "10"]


def test_only_endpoints_that_the_specification_does_not_name_are_left_over() -> None:
    mine = {"name": f"{PARENT}/endpoints/{names.endpoint_id('chest', MODEL)}"}
    old = {"name": f"{PARENT}/endpoints/old"}

    found = reality.read(Plane(ENDPOINT, (mine, old)), spec())

    assert [each.id for each in found.leftovers] == ["old"]


def test_refusal_is_not_taken_for_absence() -> None:
    class Closed(Plane):
        def get_endpoint(self, endpoint: str, /) -> Json:
            raise Forbidden("no")

    with pytest.raises(Forbidden):
        reality.read(Closed(), spec())


@pytest.mark.parametrize(
    "change",
    [{"etag": "y"}, {"traffic": {}}, {"labels": {}}, {"fleets": ()}, {"inference_timeout_s": 1.0}],
    ids=lambda change: next(iter(change)),
)
def test_fingerprint_moves_with_each_part(change: dict[str, Any]) -> None:
    state = deployed(spec(), lock(spec())).models[MODEL]
    assert state.endpoint is not None

    moved = replace(state, endpoint=replace(state.endpoint, **change))

    assert moved.fingerprint() != state.fingerprint()
    assert replace(state).fingerprint() == state.fingerprint()


def test_replicas_that_come_and_go_by_themselves_do_not_make_a_plan_stale() -> None:
    state = deployed(spec(), lock(spec())).models[MODEL]
    assert state.endpoint is not None
    fleets = tuple(replace(each, available=3) for each in state.endpoint.fleets)

    scaled = replace(state.endpoint, fleets=fleets)

    assert scaled != state.endpoint
    assert replace(state, endpoint=scaled).fingerprint() == state.fingerprint()
    assert reality.fingerprint([scaled]) == reality.fingerprint([state.endpoint])


def test_status_without_a_number_means_that_no_replica_is_up() -> None:
    said = {
        "name": "e",
        "deployedModels": [{"id": "1", "status": {}}, {"id": "2", "status": {"message": "m"}}, {}],
    }

    up = [each.available for each in reality.endpoint_state(said).fleets]

    assert up == [0, 0, None]
