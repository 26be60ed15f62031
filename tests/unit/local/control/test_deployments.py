"""Deploy, undeploy, roll out, change, scale to zero: what callers see, over a real state and no engines."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.planes import PROJECT, Json, Standing, standing
from tests.support.polling import wait_until

from medport.errors import (
    AlreadyExists,
    InputError,
    MedportError,
    NotFound,
    NotReady,
    PreconditionFailed,
    QuotaExceeded,
    Unsupported,
    VerificationError,
)
from medport.wire.vertex import ColdStart
from medport_local.control import engines

ONE = {"dedicatedResources": {"minReplicaCount": 1}}
TO_ZERO = {"dedicatedResources": {"minReplicaCount": 0, "scaleToZeroSpec": {"idleScaledownPeriod": "0.2s"}}}


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Standing]:
    with standing(tmp_path) as made:
        made.endpoint()
        made.model()
        yield made


def until(wanted: Callable[[], bool], timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not wanted():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.005)


def enter_awake(plane: Standing) -> str:
    """A request that is tried until the model is awake."""
    found: list[str] = []

    def tried() -> bool:
        try:
            found.append(plane.enter())
        except ColdStart:
            return False
        return True

    until(tried)
    return found[0]


# Deploy


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


# Deployments that fail


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


# One endpoint in order, several side by side


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


# Undeploy


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
    until(lambda: plane.rows()[0].state == "DRAINING")

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
    until(lambda: plane.rows()[0].state == "DRAINING")
    until(lambda: plane.enter() == "2")

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


# Roll out


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


# Change


def mutate(plane: Standing, resources: Json, mask: str | None = None, **fields: Any) -> Json:
    body: Json = {"deployedModel": {"id": "1", "dedicatedResources": resources, **fields}}
    if mask is not None:
        body["updateMask"] = mask
    return plane.call.done(plane.call("POST", f"/v1beta1/{PROJECT.parent}/endpoints/e:mutateDeployedModel", body))


def test_the_counts_of_replicas_can_be_changed_and_nothing_outside_the_mask_is(plane: Standing) -> None:
    machine = {"machineType": "g2-standard-24"}
    plane.deployed("1", dedicatedResources={"minReplicaCount": 1, "maxReplicaCount": 2, "machineSpec": machine})

    operation = mutate(
        plane, {"maxReplicaCount": 5, "minReplicaCount": 4}, mask="dedicated_resources.max_replica_count"
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
        mutate(plane, {"minReplicaCount": 1}, mask=mask)


def test_what_is_not_deployed_cannot_be_changed(plane: Standing) -> None:
    with pytest.raises(NotFound, match="no DeployedModel 1"):
        mutate(plane, {"maxReplicaCount": 2})


# Scale to zero


def test_a_model_without_requests_sleeps_and_a_request_wakes_it(plane: Standing) -> None:
    plane.deployed("1", **TO_ZERO)
    assert plane.enter() == "1"

    until(lambda: plane.host.keys() == [])
    until(lambda: plane.rows()[0].state == "ASLEEP")

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
    until(lambda: plane.rows()[0].state == "ASLEEP")
    plane.host.failures["1"] = VerificationError("model.safetensors changed")

    with pytest.raises(ColdStart):
        plane.enter()
    until(lambda: "model.safetensors changed" in plane.shown()["1"]["status"]["message"])
    with pytest.raises(NotReady, match=r"could not be started: model\.safetensors changed") as caught:
        plane.enter()
    plane.host.failures.clear()

    assert not isinstance(caught.value, ColdStart)
    time.sleep(0.6)
    assert enter_awake(plane) == "1"
    assert "message" not in plane.shown()["1"]["status"]


def test_a_model_that_cannot_wake_is_not_loaded_by_each_request(plane: Standing) -> None:
    plane.deployed("1", **TO_ZERO)
    until(lambda: plane.rows()[0].state == "ASLEEP")
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
            mutate(
                plane,
                {"minReplicaCount": 1},
                mask="dedicatedResources.minReplicaCount,dedicatedResources.scaleToZeroSpec",
            )
            dozed.append(id_)
        return running

    monkeypatch.setattr(plane.plane.fleet, "doze", meanwhile)
    until(lambda: dozed == ["1"])
    assert plane.plane.quiet(5)

    assert plane.enter() == "1"
    assert (plane.rows()[0].state, plane.host.notes) == ("READY", ["started e/1"])


def test_a_snapshot_is_held_as_long_as_a_model_of_it_is_deployed_asleep_too(plane: Standing) -> None:
    plane.deployed("1", **TO_ZERO)
    until(lambda: plane.rows()[0].state == "ASLEEP")
    sha256 = plane.rows()[0].intent.snapshot_sha256

    until(lambda: plane.host.kept == {sha256})
    plane.undeployed("1")

    until(lambda: plane.host.kept == set())


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


@pytest.mark.parametrize("prefix", ["", "deployed_model.", "deployedModel."])
def test_a_mask_may_name_the_deployed_model_in_either_spelling(plane: Standing, prefix: str) -> None:
    plane.deployed("1")

    mutate(plane, {"minReplicaCount": 1, "maxReplicaCount": 3}, mask=f"{prefix}dedicatedResources.maxReplicaCount")

    assert plane.shown()["1"]["dedicatedResources"]["maxReplicaCount"] == 3


def test_a_deployment_timeout_of_zero_is_none(plane: Standing) -> None:
    plane.model("hasty", deploymentTimeout="0s")

    assert "error" not in plane.call.done(plane.deploying("1", model="hasty"))


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


def test_a_sleeping_model_that_shall_have_a_replica_wakes_without_a_request(plane: Standing) -> None:
    plane.deployed("1", **TO_ZERO)
    until(lambda: plane.rows()[0].state == "ASLEEP")

    mutate(
        plane,
        {"minReplicaCount": 1},
        mask="dedicatedResources.minReplicaCount,dedicatedResources.scaleToZeroSpec",
    )

    until(lambda: plane.host.keys() == ["e/1"])


def test_a_sleeping_model_is_undeployed_without_being_woken(plane: Standing) -> None:
    plane.deployed("1", **TO_ZERO)
    until(lambda: plane.rows()[0].state == "ASLEEP")

    plane.undeployed("1")

    assert plane.host.notes == ["started e/1", "stopped e/1"]
    assert plane.rows() == []


def test_scale_to_zero_goes_with_no_replica_that_stays_only(plane: Standing) -> None:
    resources = {"minReplicaCount": 1, "scaleToZeroSpec": {"idleScaledownPeriod": "300s"}}

    with pytest.raises(InputError, match="min_replica_count of 0"):
        plane.deploying("1", dedicatedResources=resources)
