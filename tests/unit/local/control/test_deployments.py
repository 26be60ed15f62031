"""Models are deployed, or refused: what callers see, over a real state and no engines."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from tests.support.planes import PROJECT, Json, Standing, standing
from tests.support.polling import wait_until

from medport.errors import (
    AlreadyExists,
    InputError,
    MedportError,
    NotFound,
    PreconditionFailed,
    Unsupported,
)

ONE = {"dedicatedResources": {"minReplicaCount": 1}}


def test_the_first_model_takes_all_traffic_and_its_operation_answers_the_deployed_model(plane: Standing) -> None:
    operation = plane.call.done(plane.deploying("1", displayName="first", **ONE))

    shown = operation["response"]["deployedModel"]
    assert operation["response"]["@type"].endswith("aiplatform.v1beta1.DeployModelResponse")
    assert operation["metadata"]["deploymentStage"] == "SUCCESSFULLY_DEPLOYED"
    assert (shown["id"], shown["displayName"], shown["modelVersionId"]) == ("1", "first", "1")
    assert shown["model"] == f"{PROJECT.parent}/models/m"
    assert shown["status"]["availableReplicaCount"] == 1
    assert plane.split() == {"1": 100}
    assert plane.shown()["1"] == shown
    assert plane.enter() == "1"


def test_a_generated_id_has_nineteen_digits(plane: Standing) -> None:
    body = {"deployedModel": {"model": "m", **ONE}}

    operation = plane.call.done(plane.call("POST", "endpoints/e:deployModel", body))

    assert len(operation["response"]["deployedModel"]["id"]) == 19
    assert list(plane.split().values()) == [100]


def test_a_model_that_is_being_deployed_is_not_shown_and_takes_nothing(plane: Standing) -> None:
    plane.host.hold()
    operation = plane.deploying("1")
    plane.host.starting.acquire()

    assert plane.shown() == {}
    assert plane.split() == {}
    with pytest.raises(PreconditionFailed, match="traffic_split"):
        plane.enter()

    plane.host.let_go()
    plane.call.done(operation)
    assert plane.enter() == "1"


def test_a_second_model_with_20_percent_takes_two_of_ten_requests(plane: Standing) -> None:
    plane.deployed("1")
    plane.deployed("2", split={"0": 20, "1": 80})

    assert plane.split() == {"1": 80, "2": 20}
    assert Counter(plane.enter() for _ in range(10)) == {"1": 8, "2": 2}


def test_a_second_model_without_a_split_takes_nothing(plane: Standing) -> None:
    plane.deployed("1")
    plane.deployed("2")

    assert plane.split() == {"1": 100}
    assert sorted(plane.shown()) == ["1", "2"]
    assert plane.enter(id_="2") == "2"


def test_a_first_model_may_be_deployed_without_traffic(plane: Standing) -> None:
    plane.deployed("1", split={"0": 0})

    assert plane.split() == {}


@pytest.mark.parametrize("reference", ["m@1", "m@default", "m", f"{PROJECT.parent}/models/m@1"])
def test_a_model_is_named_by_version_alias_or_neither_whole_or_by_its_id(plane: Standing, reference: str) -> None:
    body = {"deployedModel": {"id": "1", "model": reference, **ONE}}

    plane.call.done(plane.call("POST", "endpoints/e:deployModel", body))

    assert plane.shown()["1"]["modelVersionId"] == "1"


def test_what_was_sent_is_kept_with_names_for_enums_and_without_what_was_not(plane: Standing) -> None:
    machine = {"machineType": "g2-standard-24", "accelerator_type": 11, "acceleratorCount": 2}
    affinity = {"reservationAffinityType": 1, "key": "k", "values": ["v"]}
    resources = {
        "machine_spec": {**machine, "reservationAffinity": affinity},
        "minReplicaCount": 1,
        "maxReplicaCount": 2,
        "requiredReplicaCount": 1,
        "spot": True,
        "autoscalingMetricSpecs": [{"metricName": "aiplatform.googleapis.com/x", "target": 60}],
    }

    plane.deployed(
        "1",
        dedicatedResources=resources,
        serviceAccount="sa@x.example",
        enableAccessLogging=True,
        systemLabels={"k": "v"},
    )

    shown = plane.shown()["1"]
    assert shown["dedicatedResources"]["machineSpec"] == {
        "machineType": "g2-standard-24",
        "acceleratorType": "NVIDIA_L4",
        "acceleratorCount": 2,
        "reservationAffinity": {**affinity, "reservationAffinityType": "NO_RESERVATION"},
    }
    assert shown["dedicatedResources"]["maxReplicaCount"] == 2
    assert (shown["serviceAccount"], shown["enableAccessLogging"]) == ("sa@x.example", True)
    assert "disableContainerLogging" not in shown


def test_the_engine_is_started_from_the_version_and_the_bytes_that_it_meant(plane: Standing) -> None:
    plane.deployed("1")

    intent = plane.host.running[0].intent
    assert intent.version["containerSpec"]["predictRoute"] == "/predict"
    assert intent.dedicated
    assert intent.snapshot_sha256 == plane.host.resolve(intent)


REFUSED: dict[str, tuple[Json, type[MedportError], str]] = {
    "an unknown field": ({**ONE, "colour": 1}, InputError, 'Unknown name "colour" at .deployed_model'),
    "no resources": ({}, InputError, "dedicated_resources: is missing"),
    "a pool": ({"sharedResources": "x"}, Unsupported, "dedicated_resources"),
    "automatic resources": ({"automaticResources": {}}, InputError, "DEDICATED_RESOURCES"),
    "explanations": ({**ONE, "explanationSpec": {"x": 1}}, Unsupported, "explanation_spec"),
    "no replica in v1": ({"dedicatedResources": {"minReplicaCount": 0}}, InputError, "at least 1 in v1"),
    "fewer at most": (
        {"dedicatedResources": {"minReplicaCount": 2, "maxReplicaCount": 1}},
        InputError,
        "max_replica_count: is less",
    ),
    "two replicas": ({"dedicatedResources": {"minReplicaCount": 2}}, PreconditionFailed, "runs one engine"),
    "more required": (
        {"dedicatedResources": {"minReplicaCount": 1, "requiredReplicaCount": 2}},
        InputError,
        "more than min",
    ),
    "an unknown accelerator": (
        {"dedicatedResources": {"machineSpec": {"acceleratorType": "ABACUS"}}},
        InputError,
        "accelerator_type",
    ),
    "an id with letters": ({**ONE, "id": "a1"}, InputError, "deployed_model.id"),
    "an id of eleven digits": ({**ONE, "id": "12345678901"}, InputError, "deployed_model.id"),
    "zero as the id": ({**ONE, "id": "0"}, InputError, "is no id"),
    "a rollout in v1": (
        {**ONE, "rolloutOptions": {"previousDeployedModel": "1"}},
        InputError,
        'Unknown name "rollout',
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_deployment_that_cannot_be_is_refused_at_once_and_leaves_nothing(plane: Standing, name: str) -> None:
    fields, error, said = REFUSED[name]
    body = {"deployedModel": {"model": "m", **fields}}

    with pytest.raises(error, match=said):
        plane.call("POST", "endpoints/e:deployModel", body)

    assert plane.rows() == []
    assert [op for op in plane.call("GET", "endpoints/e/operations")["operations"] if not op["done"]] == []


def test_a_version_without_a_digest_from_before_the_policy_is_not_deployed_under_it(tmp_path: Path) -> None:
    with standing(tmp_path) as made:
        made.endpoint()
        made.model("tagged", imageUri="registry.example/serve:latest")
        made.model("pinned")
        made.deployed("1", model="tagged")

    with standing(tmp_path, require_digest=True) as strict:
        wait_until(lambda: strict.host.keys() == ["e/1"])
        with pytest.raises(PreconditionFailed, match="by digest only"):
            strict.deploying("2", model="tagged")
        strict.deployed("3", model="pinned")


def test_a_split_that_does_not_add_up_is_refused_before_an_operation_begins(plane: Standing) -> None:
    plane.deployed("1")

    with pytest.raises(InputError, match="add up to 110"):
        plane.deploying("2", split={"0": 20, "1": 90})
    with pytest.raises(InputError, match="9 is not deployed"):
        plane.deploying("2", split={"0": 20, "9": 80})

    assert [row.id for row in plane.rows()] == ["1"]


def test_a_chosen_id_that_is_taken_is_a_conflict_while_it_is_being_deployed_too(plane: Standing) -> None:
    plane.host.hold()
    operation = plane.deploying("1")

    with pytest.raises(AlreadyExists, match="DeployedModel 1 is at this endpoint"):
        plane.deploying("1")

    plane.host.let_go()
    plane.call.done(operation)
    with pytest.raises(AlreadyExists):
        plane.deploying("1")


@pytest.mark.parametrize("path", [{"endpoint": "none"}, {"model": "none"}, {"model": "m@9"}, {"model": "m@x"}])
def test_what_is_not_there_is_not_found(plane: Standing, path: dict[str, str]) -> None:
    with pytest.raises(NotFound):
        plane.deploying("1", **path)


def test_a_model_with_an_invoke_route_goes_to_dedicated_endpoints_only(plane: Standing) -> None:
    plane.model("routes", predictRoute="", invokeRoutePrefix="/*")
    plane.endpoint("shared", dedicatedEndpointEnabled=False)

    with pytest.raises(PreconditionFailed, match="dedicated endpoints only"):
        plane.deploying("1", endpoint="shared", model="routes")
    plane.deployed("1", endpoint="e", model="routes")


def test_with_fewer_required_than_wanted_the_shortfall_is_told(plane: Standing) -> None:
    plane.deployed("1", dedicatedResources={"minReplicaCount": 3, "requiredReplicaCount": 1})

    status = plane.shown()["1"]["status"]
    assert status["availableReplicaCount"] == 1
    assert status["message"].startswith("1 of 3 replicas")


def test_a_deployment_timeout_of_zero_is_none(plane: Standing) -> None:
    plane.model("hasty", deploymentTimeout="0s")

    assert "error" not in plane.call.done(plane.deploying("1", model="hasty"))
