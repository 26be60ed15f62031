"""Models on endpoints: deployed, split, undeployed, rolled out, scaled to zero. What answers is an engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from google.api_core import exceptions
from google.cloud import aiplatform
from google.cloud.aiplatform.preview import models as preview
from support.client_calls import call
from support.polling import wait_until
from support.wire import text

from .conftest import MACHINE, Open, Site, close, upload

ASKED = text("Describe this X-ray.", max_tokens=2)


def version(model: aiplatform.Model, number: str) -> aiplatform.Model:
    return aiplatform.Model(model.resource_name, version=number)


def deployed(endpoint: aiplatform.Endpoint) -> dict[str, str]:
    """Deployed model id → version, as the service says."""
    found = aiplatform.Endpoint(endpoint.resource_name)
    return {each.id: each.model_version_id for each in found.list_models()}


def split(endpoint: aiplatform.Endpoint) -> dict[str, int]:
    """Version → percent, as the service says."""
    versions = deployed(endpoint)
    found = aiplatform.Endpoint(endpoint.resource_name).traffic_split
    return {versions[id_]: share for id_, share in found.items()}


@pytest.fixture
def two(endpoint: Open, model: aiplatform.Model) -> aiplatform.Endpoint:
    """Version 1 with 80 and version 2 with 20 percent of the traffic."""
    made = endpoint(dedicated_endpoint_enabled=True)
    made.deploy(version(model, "1"), **MACHINE)
    made.deploy(version(model, "2"), traffic_percentage=20, **MACHINE)
    return made


@call("Endpoint.deploy(model, machine_type=, accelerator_type=, …) and Endpoint.list_models()")
def test_first_model_gets_all_traffic_and_shows_its_machine(endpoint: Open, model: aiplatform.Model) -> None:
    made = endpoint()

    made.deploy(
        model,
        deployed_model_display_name="reader v1",
        min_replica_count=1,
        max_replica_count=2,
        autoscaling_target_accelerator_duty_cycle=60,
        enable_access_logging=True,
        disable_container_logging=True,
        service_account="reader@radiology.iam.gserviceaccount.com",
        spot=True,
        system_labels={"made-by": "test"},
        **MACHINE,
    )

    (found,) = made.list_models()
    assert made.traffic_split == {found.id: 100}
    assert (found.model, found.model_version_id) == (model.resource_name, "1")
    assert found.display_name == "reader v1"
    assert found.service_account == "reader@radiology.iam.gserviceaccount.com"
    assert (found.enable_access_logging, found.disable_container_logging) == (True, True)
    resources = found.dedicated_resources
    assert resources.machine_spec.machine_type == "g2-standard-24"
    assert (resources.machine_spec.accelerator_type.name, resources.machine_spec.accelerator_count) == (
        "NVIDIA_L4",
        2,
    )
    assert (resources.min_replica_count, resources.max_replica_count, resources.spot) == (1, 2, True)
    assert resources.autoscaling_metric_specs[0].target == 60
    assert found.create_time is not None
    assert len(found.id) == 19


@call("Model.deploy() without an endpoint")
def test_model_that_is_deployed_makes_its_endpoint(model: aiplatform.Model) -> None:
    made = model.deploy(**MACHINE)

    assert split(made) == {"1": 100}
    close(made)


@call("Model.deploy(endpoint=)")
def test_model_is_deployed_to_an_endpoint_that_is_given(endpoint: Open, model: aiplatform.Model) -> None:
    made = endpoint()

    model.deploy(made, **MACHINE)

    assert split(made) == {"1": 100}


@call("Endpoint.deploy(reservation_affinity_…=)")
def test_reservation_is_kept(endpoint: Open, model: aiplatform.Model) -> None:
    made = endpoint()

    made.deploy(
        model,
        reservation_affinity_type="SPECIFIC_RESERVATION",
        reservation_affinity_key="compute.googleapis.com/reservation-name",
        reservation_affinity_values=["projects/radiology/zones/europe-west4-a/reservations/gpus"],
        **MACHINE,
    )

    affinity = made.list_models()[0].dedicated_resources.machine_spec.reservation_affinity
    assert affinity.reservation_affinity_type.name == "SPECIFIC_RESERVATION"
    assert list(affinity.values) == ["projects/radiology/zones/europe-west4-a/reservations/gpus"]


@call("Endpoint.deploy(gpu_partition_size=), which goes by v1beta1")
def test_part_of_a_gpu_is_kept(endpoint: Open, model: aiplatform.Model) -> None:
    made = endpoint()

    made.deploy(
        model,
        machine_type="a3-highgpu-1g",
        accelerator_type="NVIDIA_H100_80GB",
        accelerator_count=1,
        gpu_partition_size="1g.10gb",
    )

    assert split(made) == {"1": 100}
    assert made.list_models()[0].dedicated_resources.machine_spec.gpu_partition_size == "1g.10gb"


@call("Endpoint.deploy(traffic_percentage=20) of a second model")
def test_answers_follow_the_split_and_say_who_gave_them(two: aiplatform.Endpoint) -> None:
    versions = deployed(two)

    answers = [two.predict(instances=[ASKED]) for _ in range(20)]

    assert split(two) == {"1": 80, "2": 20}
    assert Counter(versions[each.deployed_model_id] for each in answers) == {"1": 16, "2": 4}
    assert all(each.model_version_id == versions[each.deployed_model_id] for each in answers)


@call("Endpoint.deploy() of a second model without traffic")
def test_second_model_without_a_percentage_gets_no_traffic(endpoint: Open, model: aiplatform.Model) -> None:
    made = endpoint()
    made.deploy(version(model, "1"), **MACHINE)

    made.deploy(version(model, "2"), **MACHINE)

    assert split(made) == {"1": 100}
    assert sorted(deployed(made).values()) == ["1", "2"]


@call("Endpoint.deploy(traffic_split=)")
def test_split_is_given_with_the_deployment(endpoint: Open, model: aiplatform.Model) -> None:
    made = endpoint()
    made.deploy(version(model, "1"), **MACHINE)
    (old,) = deployed(made)

    made.deploy(version(model, "2"), traffic_split={old: 35, "0": 65}, **MACHINE)

    assert split(made) == {"1": 35, "2": 65}


@call("Endpoint.update(traffic_split=)")
def test_traffic_moves_by_an_update(two: aiplatform.Endpoint) -> None:
    ids = {number: id_ for id_, number in deployed(two).items()}

    two.update(traffic_split={ids["1"]: 0, ids["2"]: 100})

    assert split(two) == {"2": 100}
    assert two.predict(instances=[ASKED]).model_version_id == "2"


@call("Endpoint.undeploy() of one of two models")
def test_traffic_of_the_one_that_goes_is_spread_over_the_rest(two: aiplatform.Endpoint) -> None:
    ids = {number: id_ for id_, number in deployed(two).items()}

    two.undeploy(ids["1"])

    assert split(two) == {"2": 100}
    assert two.predict(instances=[ASKED]).model_version_id == "2"


@call("Endpoint.undeploy_all()")
def test_all_models_go(two: aiplatform.Endpoint) -> None:
    two.undeploy_all()

    found = aiplatform.Endpoint(two.resource_name)
    assert (found.list_models(), found.traffic_split) == ([], {})


@call("Endpoint.delete(force=True)")
def test_endpoint_goes_with_its_models(two: aiplatform.Endpoint) -> None:
    two.delete(force=True)

    with pytest.raises(exceptions.NotFound):
        _ = aiplatform.Endpoint(two.resource_name).display_name


@call("preview.Endpoint.deploy(rollout_options=)")
def test_new_version_takes_the_place_of_the_old_one(endpoint: Open, model: aiplatform.Model) -> None:
    made = endpoint()
    made.deploy(version(model, "1"), **MACHINE)
    (old,) = deployed(made)

    preview.Endpoint(made.resource_name).deploy(
        preview.Model(model.resource_name, version="2"),
        rollout_options=preview.RolloutOptions(
            previous_deployed_model=int(old), max_surge_percentage=50, max_unavailable_replicas=0
        ),
    )
    wait_until(lambda: len(deployed(made)) == 1, 30)

    assert split(made) == {"2": 100}
    found = aiplatform.Endpoint(made.resource_name).list_models()[0]
    assert found.dedicated_resources.machine_spec.machine_type == "g2-standard-24"


@call("preview.Endpoint.deploy(min_replica_count=0, idle_scaledown_period=)")
def test_model_that_nobody_asks_sleeps_and_is_woken_by_a_request(
    site: Site, endpoint: Open, model: aiplatform.Model
) -> None:
    made = endpoint(dedicated_endpoint_enabled=True)
    preview.Endpoint(made.resource_name).deploy(
        preview.Model(model.resource_name),
        min_replica_count=0,
        max_replica_count=1,
        initial_replica_count=1,
        min_scaleup_period=300,
        idle_scaledown_period=300,
        **MACHINE,
    )

    resources = made.list_models()[0].dedicated_resources
    beta = _beta(site, made)["deployedModels"][0]["dedicatedResources"]

    assert resources.min_replica_count == 0
    assert beta["scaleToZeroSpec"]["idleScaledownPeriod"] == "300s"
    assert made.predict(instances=[ASKED]).model_version_id == "1"


def _beta(site: Site, endpoint: aiplatform.Endpoint) -> dict[str, Any]:
    with site.http() as http:
        found: dict[str, Any] = http.get(f"/v1beta1/{endpoint.resource_name}").json()
    return found


@call("PrivateEndpoint.deploy(), .list_models(), .undeploy_all(), .delete()")
def test_private_endpoint_takes_a_model(model: aiplatform.Model) -> None:
    config = aiplatform.PrivateEndpoint.PrivateServiceConnectConfig(project_allowlist=["radiology"])
    made = aiplatform.PrivateEndpoint.create(display_name="private", private_service_connect_config=config)

    made.deploy(model, **MACHINE)
    versions = [each.model_version_id for each in made.list_models()]
    made.undeploy_all()
    rest = aiplatform.Endpoint(made.resource_name).list_models()
    made.delete()

    assert (versions, rest) == (["1"], [])


@call("Model.deploy() of MedSigLIP")
def test_embedder_is_deployed_and_answers(endpoint: Open) -> None:
    made = endpoint(dedicated_endpoint_enabled=True)

    made.deploy(upload("medsiglip"), **MACHINE)

    (found,) = made.predict(instances=[{"text": "a nodule"}]).predictions
    assert len(found["embedding"]) > 1


# --- refused


@call(
    "Endpoint.deploy(traffic_split=) that does not sum to 100", "refused", "by the client, and 400 by the service"
)
def test_shares_sum_to_100(http: httpx.Client, two: aiplatform.Endpoint) -> None:
    ids = list(deployed(two))

    with pytest.raises(ValueError, match="100"):
        two.deploy(aiplatform.Model(two.list_models()[0].model), traffic_split={"0": 30, ids[0]: 60}, **MACHINE)
    with pytest.raises(exceptions.BadRequest, match="100"):
        two.update(traffic_split={ids[0]: 50, ids[1]: 40})

    assert split(two) == {"1": 80, "2": 20}


@call("Endpoint.update(traffic_split=) of a model that is not deployed", "refused", "400 INVALID_ARGUMENT")
def test_split_names_what_is_deployed(two: aiplatform.Endpoint) -> None:
    with pytest.raises(exceptions.BadRequest, match="12345"):
        two.update(traffic_split={"12345": 100})

    assert split(two) == {"1": 80, "2": 20}


@call("Endpoint.undeploy() of an id that is not there", "refused", "by the client, and 404 by the service")
def test_undeploying_what_is_not_there(http: httpx.Client, two: aiplatform.Endpoint) -> None:
    answer = http.post(f"/v1/{two.resource_name}:undeployModel", json={"deployedModelId": "12345"})

    assert answer.status_code == 404
    assert answer.json()["error"]["status"] == "NOT_FOUND"


@call("Endpoint.delete() with models", "refused", "400 FAILED_PRECONDITION")
def test_endpoint_with_models_is_not_deleted(two: aiplatform.Endpoint) -> None:
    with pytest.raises(exceptions.BadRequest, match=r"has deployed or being-deployed DeployedModel\(s\)"):
        two.delete()


@call("Model.delete() of a model that is deployed", "refused", "400 FAILED_PRECONDITION")
def test_model_that_is_deployed_is_not_deleted(served: aiplatform.Endpoint, model: aiplatform.Model) -> None:
    with pytest.raises(exceptions.BadRequest, match="deployed"):
        model.delete()


@call("Endpoint.deploy() of a version that is not there", "refused", "404 NOT_FOUND")
def test_version_that_is_not_there_is_not_deployed(site: Site, http: httpx.Client, endpoint: Open) -> None:
    made = endpoint()
    body = {
        "deployedModel": {"model": f"{site.parent}/models/nobody@1", "dedicatedResources": {"minReplicaCount": 1}}
    }

    answer = http.post(f"/v1/{made.resource_name}:deployModel", json=body)

    assert answer.status_code == 404
    assert deployed(made) == {}


@call("Endpoint.deploy() of a model whose snapshot is not here", "refused", "operation.error 9; nothing stays")
def test_snapshot_that_is_not_here_fails_the_operation(endpoint: Open) -> None:
    made = endpoint()
    unknown = upload(serving_container_args=[], serving_container_environment_variables={
        "MEDPORT_SNAPSHOT_SHA256": "0" * 64
    })  # fmt: skip

    with pytest.raises(exceptions.FailedPrecondition, match="Model server exited unexpectedly"):
        made.deploy(unknown, **MACHINE)

    assert (deployed(made), split(made)) == ({}, {})
    made.delete()


@call("Endpoint.deploy(deployment_resource_pool=)", "501", "dedicated resources")
def test_pools_are_not_offered(endpoint: Open, model: aiplatform.Model) -> None:
    with pytest.raises(exceptions.MethodNotImplemented, match="dedicated"):
        aiplatform.models.DeploymentResourcePool.create("pool", **MACHINE)
    with pytest.raises(exceptions.MethodNotImplemented, match="dedicated"):
        aiplatform.models.DeploymentResourcePool.list()


@call("Endpoint.deploy() of a model with invoke_route_prefix to a shared endpoint", "refused", "400")
def test_arbitrary_routes_are_for_dedicated_endpoints(endpoint: Open) -> None:
    made = endpoint()
    routed = upload(serving_container_predict_route=None, serving_container_invoke_route_prefix="/*")

    with pytest.raises(exceptions.BadRequest, match="dedicated"):
        made.deploy(routed, **MACHINE)


# --- faults on purpose


@pytest.fixture
def fault(http: httpx.Client) -> Iterator[Any]:
    def set_(rule: dict[str, Any]) -> None:
        http.post("/medport/v1/faults", json=rule).raise_for_status()

    yield set_
    http.delete("/medport/v1/faults").raise_for_status()


@call("Endpoint.deploy() beyond the quota (a fault on purpose)", "refused", "operation.error 8")
def test_quota_is_refused_in_googles_words(fault: Any, endpoint: Open, model: aiplatform.Model) -> None:
    fault({"times": 1, "deploy": {"failure": "quota"}})
    made = endpoint()

    with pytest.raises(exceptions.GoogleAPICallError, match="quota metrics exceed quota limits") as refused:
        made.deploy(model, **MACHINE)

    assert type(refused.value).__name__ in ("ResourceExhausted", "TooManyRequests")
    assert deployed(made) == {}


@call(
    "Endpoint.deploy() whose container fails (a fault on purpose)", "refused", "operation.error 9; nothing stays"
)
def test_failing_container_fails_in_googles_words(fault: Any, endpoint: Open, model: aiplatform.Model) -> None:
    fault({"times": 1, "deploy": {"failure": "failing_container"}})
    made = endpoint()

    with pytest.raises(exceptions.FailedPrecondition, match="Model server exited unexpectedly"):
        made.deploy(model, **MACHINE)

    assert deployed(made) == {}


@call("Endpoint.create() that takes its time (a fault on purpose)")
def test_slow_operation_is_polled_to_its_end(fault: Any, endpoint: Open) -> None:
    fault({"times": 1, "operation": {"kind": "createEndpoint", "slowSeconds": 2}})

    made = endpoint(display_name="slow")

    assert aiplatform.Endpoint(made.resource_name).display_name == "slow"
