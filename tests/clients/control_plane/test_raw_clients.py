"""Google's generated clients over REST, v1 and v1beta1: field masks, etags, operations, deployed models."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import httpx
import pytest
from google.api_core import exceptions
from google.cloud import aiplatform, aiplatform_v1, aiplatform_v1beta1
from google.oauth2.credentials import Credentials
from google.protobuf import duration_pb2, field_mask_pb2
from support.client_calls import call

from .conftest import MACHINE, Open, Site, container, fresh

Mask = field_mask_pb2.FieldMask


@pytest.fixture(params=[aiplatform_v1, aiplatform_v1beta1], ids=["v1", "v1beta1"])
def api(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


def _client(kind: Any, site: Site) -> Any:
    return kind(transport="rest", client_options=site.options, credentials=Credentials(site.key))


@pytest.fixture
def models(api: ModuleType, site: Site) -> Iterator[Any]:
    with _client(api.ModelServiceClient, site) as client:
        yield client


@pytest.fixture
def endpoints(api: ModuleType, site: Site) -> Iterator[Any]:
    with _client(api.EndpointServiceClient, site) as client:
        yield client


def spec() -> dict[str, Any]:
    """The container of the phantom as the message has it."""
    given = container()
    return {
        "image_uri": given["serving_container_image_uri"],
        "args": given["serving_container_args"],
        "env": [
            {"name": name, "value": value}
            for name, value in given["serving_container_environment_variables"].items()
        ],
        "predict_route": "/predict",
        "health_route": "/health",
    }


def resources(api: ModuleType, **more: Any) -> dict[str, Any]:
    machine = {**MACHINE, "accelerator_type": api.AcceleratorType[MACHINE["accelerator_type"]]}
    return {"machine_spec": machine, "min_replica_count": 1, "max_replica_count": 1, **more}


@call("ModelServiceClient.upload_model(), .get_model(), .list_models(), .update_model(), .delete_model()")
def test_life_of_a_model(models: Any, site: Site) -> None:
    name = fresh("raw")

    done = models.upload_model(
        parent=f"projects/{site.project}/locations/{site.location}",
        model={"display_name": name, "container_spec": spec(), "labels": {"a": "1"}},
    ).result(30)
    found = models.get_model(name=f"{done.model}@{done.model_version_id}")
    listed = [
        each.name for each in models.list_models(request={"parent": site.parent, "filter": f"display_name={name}"})
    ]
    changed = models.update_model(
        model={"name": done.model, "description": "new", "display_name": "ignored"},
        update_mask=Mask(paths=["description"]),
    )
    models.delete_model(name=done.model).result(30)

    assert (found.name, found.version_id, found.display_name) == (done.model, "1", name)
    assert listed == [done.model]
    assert (changed.description, changed.display_name, changed.labels) == ("new", name, {"a": "1"})
    with pytest.raises(exceptions.NotFound):
        models.get_model(name=done.model)


@call("ModelServiceClient.list_model_versions(), .merge_version_aliases(), .delete_model_version()")
def test_life_of_a_version(models: Any, site: Site) -> None:
    name = (
        models.upload_model(parent=site.parent, model={"display_name": "v", "container_spec": spec()})
        .result(30)
        .model
    )
    models.upload_model(
        request={
            "parent": site.parent,
            "parent_model": name,
            "model": {"display_name": "v", "container_spec": spec()},
        }
    ).result(30)

    merged = models.merge_version_aliases(name=f"{name}@2", version_aliases=["green"])
    versions = {each.version_id for each in models.list_model_versions(name=name)}
    models.merge_version_aliases(name=f"{name}@1", version_aliases=["default"])
    models.delete_model_version(name=f"{name}@2").result(30)

    assert "green" in merged.version_aliases
    assert versions == {"1", "2"}
    assert {each.version_id for each in models.list_model_versions(name=name)} == {"1"}


@call("EndpointServiceClient.create_endpoint(), .get_endpoint(), .list_endpoints(), .delete_endpoint()")
def test_life_of_an_endpoint(endpoints: Any, site: Site) -> None:
    id_ = fresh("raw")

    made = endpoints.create_endpoint(parent=site.parent, endpoint={"display_name": id_}, endpoint_id=id_).result(
        30
    )
    found = endpoints.get_endpoint(name=made.name)
    listed = [
        each.name
        for each in endpoints.list_endpoints(request={"parent": site.parent, "filter": f'display_name="{id_}"'})
    ]
    endpoints.delete_endpoint(name=made.name).result(30)

    assert found.name == f"{site.parent}/endpoints/{id_}"
    assert found.etag
    assert listed == [found.name]
    with pytest.raises(exceptions.NotFound):
        endpoints.get_endpoint(name=made.name)


@call("EndpointServiceClient.list_endpoints(read_mask=)")
def test_list_answers_the_fields_of_a_read_mask(endpoints: Any, site: Site, endpoint: Open) -> None:
    made = endpoint(labels={"a": "1"})

    (found,) = endpoints.list_endpoints(
        request={
            "parent": site.parent,
            "filter": f'display_name="{made.display_name}"',
            "read_mask": Mask(paths=["name", "labels"]),
        }
    )

    assert (found.name, found.labels, found.display_name) == (made.resource_name, {"a": "1"}, "")


@call("EndpointServiceClient.update_endpoint(update_mask=)")
def test_update_keeps_to_its_mask(endpoints: Any, endpoint: Open) -> None:
    made = endpoint(labels={"a": "1"}, description="kept")

    answered = endpoints.update_endpoint(
        endpoint={"name": made.resource_name, "display_name": "Renamed", "description": "ignored"},
        update_mask=Mask(paths=["display_name"]),
    )

    assert (answered.display_name, answered.description, answered.labels) == ("Renamed", "kept", {"a": "1"})


@call("EndpointServiceClient.update_endpoint() with an etag that is stale", "refused", "409 ABORTED")
def test_stale_etag_is_a_conflict(endpoints: Any, endpoint: Open) -> None:
    made = endpoint()
    read = endpoints.get_endpoint(name=made.resource_name)
    endpoints.update_endpoint(
        endpoint={"name": read.name, "display_name": "Theirs"}, update_mask=Mask(paths=["display_name"])
    )

    with pytest.raises(exceptions.Conflict, match="changed since"):
        endpoints.update_endpoint(
            endpoint={"name": read.name, "display_name": "Ours", "etag": read.etag},
            update_mask=Mask(paths=["display_name"]),
        )

    assert endpoints.get_endpoint(name=read.name).display_name == "Theirs"


@call("EndpointServiceClient.update_endpoint(update_mask=) of a field that is not there", "refused", "400")
def test_mask_that_names_no_field_is_refused(endpoints: Any, endpoint: Open) -> None:
    made = endpoint()

    with pytest.raises(exceptions.BadRequest, match="mask"):
        endpoints.update_endpoint(
            endpoint={"name": made.resource_name, "display_name": "x"}, update_mask=Mask(paths=["colour"])
        )


@call("EndpointServiceClient.update_endpoint_long_running(clientConnectionConfig)")
def test_inference_timeout_is_set_by_the_long_running_update(endpoints: Any, endpoint: Open) -> None:
    made = endpoint(dedicated_endpoint_enabled=True)

    updated = endpoints.update_endpoint_long_running(
        request={
            "endpoint": {
                "name": made.resource_name,
                "client_connection_config": {"inference_timeout": duration_pb2.Duration(seconds=1200)},
            }
        }
    ).result(30)

    assert updated.client_connection_config.inference_timeout.seconds == 1200
    assert (
        aiplatform.Endpoint(made.resource_name).gca_resource.client_connection_config.inference_timeout.seconds
        == 1200
    )


@call("EndpointServiceClient.deploy_model(), .mutate_deployed_model(), .undeploy_model()")
def test_life_of_a_deployed_model(
    api: ModuleType, endpoints: Any, endpoint: Open, model: aiplatform.Model
) -> None:
    made = endpoint()

    done = endpoints.deploy_model(
        endpoint=made.resource_name,
        deployed_model={"model": model.resource_name, "id": "17", "dedicated_resources": resources(api)},
        traffic_split={"0": 100},
    ).result(60)
    changed = endpoints.mutate_deployed_model(
        endpoint=made.resource_name,
        deployed_model={"id": "17", "dedicated_resources": resources(api, max_replica_count=3)},
        update_mask=Mask(paths=["dedicated_resources.max_replica_count"]),
    ).result(30)
    endpoints.undeploy_model(endpoint=made.resource_name, deployed_model_id="17").result(60)

    assert (done.deployed_model.id, done.deployed_model.model_version_id) == ("17", "1")
    assert changed.deployed_model.dedicated_resources.max_replica_count == 3
    assert changed.deployed_model.dedicated_resources.machine_spec.machine_type == "g2-standard-24"
    assert not endpoints.get_endpoint(name=made.resource_name).deployed_models


@call(
    "EndpointServiceClient.mutate_deployed_model() of the machine", "refused", "400: that needs a new deployment"
)
def test_machine_is_not_changed_in_place(api: ModuleType, endpoints: Any, served: aiplatform.Endpoint) -> None:
    with pytest.raises(exceptions.BadRequest, match="machineSpec cannot be changed"):
        endpoints.mutate_deployed_model(
            endpoint=served.resource_name,
            deployed_model={"id": served.list_models()[0].id, "dedicated_resources": resources(api)},
            update_mask=Mask(paths=["dedicated_resources.machine_spec"]),
        )


@call("EndpointServiceClient.deploy_model() of an id that is used", "refused", "409 ALREADY_EXISTS")
def test_chosen_id_is_used_once(api: ModuleType, endpoints: Any, endpoint: Open, model: aiplatform.Model) -> None:
    made = endpoint()
    wanted = {"model": model.resource_name, "id": "17", "dedicated_resources": resources(api)}
    endpoints.deploy_model(endpoint=made.resource_name, deployed_model=wanted).result(60)

    with pytest.raises(exceptions.Conflict, match="17"):
        endpoints.deploy_model(endpoint=made.resource_name, deployed_model=wanted)


@call("EndpointServiceClient.undeploy_model() of a model with traffic, others staying", "refused", "400")
def test_model_with_traffic_is_not_undeployed(
    api: ModuleType, endpoints: Any, endpoint: Open, model: aiplatform.Model
) -> None:
    made = endpoint()
    for id_, split in (("17", {"0": 100}), ("18", {"17": 50, "0": 50})):
        endpoints.deploy_model(
            endpoint=made.resource_name,
            deployed_model={"model": model.resource_name, "id": id_, "dedicated_resources": resources(api)},
            traffic_split=split,
        ).result(60)

    with pytest.raises(exceptions.BadRequest, match="traffic"):
        endpoints.undeploy_model(endpoint=made.resource_name, deployed_model_id="17")

    assert len(endpoints.get_endpoint(name=made.resource_name).deployed_models) == 2


@call("EndpointServiceClient.deploy_model(traffic_split=) that sums to 90", "refused", "400, nothing is begun")
def test_split_is_checked_before_anything_is_begun(
    api: ModuleType, endpoints: Any, endpoint: Open, model: aiplatform.Model
) -> None:
    made = endpoint()

    with pytest.raises(exceptions.BadRequest, match="90"):
        endpoints.deploy_model(
            endpoint=made.resource_name,
            deployed_model={"model": model.resource_name, "dedicated_resources": resources(api)},
            traffic_split={"0": 90},
        )

    made.delete()


# --- operations


def begun(http: httpx.Client, made: aiplatform.Endpoint, model: aiplatform.Model) -> dict[str, Any]:
    """A deployment that has just been asked for."""
    body = {"deployedModel": {"model": model.resource_name, "dedicatedResources": {"minReplicaCount": 1}}}
    answer = http.post(f"/v1/{made.resource_name}:deployModel", json=body)
    answer.raise_for_status()
    operation: dict[str, Any] = answer.json()
    return operation


@call("EndpointServiceClient.get_operation(), .wait_operation(), .list_operations(), .delete_operation()")
def test_operations_are_seen_by_the_mixin(
    http: httpx.Client, endpoints: Any, endpoint: Open, model: aiplatform.Model
) -> None:
    made = endpoint()
    operation = begun(http, made, model)

    waited = endpoints.wait_operation({"name": operation["name"], "timeout": duration_pb2.Duration(seconds=30)})
    got = endpoints.get_operation({"name": operation["name"]})
    listed = [each.name for each in endpoints.list_operations({"name": made.resource_name}).operations]
    endpoints.delete_operation({"name": operation["name"]})

    assert waited.done
    assert got.done
    assert got.response.type_url == "type.googleapis.com/google.cloud.aiplatform.v1.DeployModelResponse"
    assert operation["name"] in listed
    with pytest.raises(exceptions.NotFound):
        endpoints.get_operation({"name": operation["name"]})


@call("EndpointServiceClient.cancel_operation() of a deployment")
def test_cancelled_deployment_is_taken_back_or_was_done(
    http: httpx.Client, endpoints: Any, endpoint: Open, model: aiplatform.Model
) -> None:
    made = endpoint()
    operation = begun(http, made, model)

    endpoints.cancel_operation({"name": operation["name"]})
    ended = endpoints.wait_operation({"name": operation["name"], "timeout": duration_pb2.Duration(seconds=30)})

    assert ended.done
    deployed = endpoints.get_endpoint(name=made.resource_name).deployed_models
    assert (ended.error.code, len(deployed)) in ((1, 0), (0, 1))


@call("GET /ui/, /v1/ and /v1beta1/ {operation}")
@pytest.mark.parametrize("prefix", ["ui", "v1", "v1beta1"])
def test_operation_is_polled_under_each_prefix(http: httpx.Client, endpoint: Open, prefix: str) -> None:
    made = endpoint()
    listed = http.get(f"/v1/{made.resource_name}/operations").json()["operations"]

    answer = http.get(f"/{prefix}/{listed[0]['name']}").json()

    assert answer == listed[0]
    assert answer["done"] is True
    assert answer["metadata"]["@type"].endswith(".v1.CreateEndpointOperationMetadata")
    assert answer["response"]["@type"] == "type.googleapis.com/google.cloud.aiplatform.v1.Endpoint"
