"""`aiplatform.Endpoint` without models: created, listed, updated, deleted."""

from __future__ import annotations

from typing import Any

import pytest
from google.api_core import exceptions
from google.cloud import aiplatform
from support.client_calls import call

from .conftest import LOCATION, PROJECT, Open, Site, fresh


@call("Endpoint.create(endpoint_id=, labels=, dedicated_endpoint_enabled=True, inference_timeout=)")
def test_endpoint_has_what_it_was_created_with(site: Site, endpoint: Open) -> None:
    id_ = fresh("chosen")

    made = endpoint(
        display_name="Reading room",
        description="chest",
        endpoint_id=id_,
        labels={"ward": "7"},
        dedicated_endpoint_enabled=True,
        inference_timeout=900,
    )
    found = aiplatform.Endpoint(id_)

    assert made.resource_name == found.resource_name == f"{site.parent}/endpoints/{id_}"
    assert (found.display_name, found.labels) == ("Reading room", {"ward": "7"})
    assert found.gca_resource.description == "chest"
    assert found.dedicated_endpoint_enabled
    assert found.dedicated_endpoint_dns == site.address
    assert found.gca_resource.client_connection_config.inference_timeout.seconds == 900
    assert found.traffic_split == {}
    assert found.list_models() == []


@call("Endpoint.create() with an id that the service chooses")
def test_id_that_the_service_chooses_is_a_number(endpoint: Open) -> None:
    assert endpoint().name.isdecimal()


@call("Endpoint(name) by project id, by number, by bare id")
@pytest.mark.parametrize("name", ["projects/{project}/{rest}", "projects/{number}/{rest}", "{id}"])
def test_endpoint_is_found_by_each_of_its_names(site: Site, endpoint: Open, name: str) -> None:
    made = endpoint()

    rest = f"locations/{LOCATION}/endpoints/{made.name}"
    found = aiplatform.Endpoint(name.format(project=PROJECT, number=site.number, rest=rest, id=made.name))

    assert found.display_name == made.display_name
    assert found.resource_name == made.resource_name


@call("Endpoint.list(filter=, order_by=)")
def test_list_keeps_to_its_filter_and_order(endpoint: Open) -> None:
    label = fresh("set")
    made = [endpoint(labels={"set": label}, display_name=f"{label}-{each}") for each in ("b", "a")]
    endpoint()

    found = aiplatform.Endpoint.list(filter=f'labels.set="{label}"', order_by="display_name")

    assert [each.resource_name for each in found] == [made[1].resource_name, made[0].resource_name]


@call("Endpoint.update(display_name=, labels=, description=)")
def test_update_changes_what_it_names(endpoint: Open) -> None:
    made = endpoint(labels={"a": "1"}, description="before")

    made.update(display_name="Renamed", labels={"b": "2"})

    found = aiplatform.Endpoint(made.resource_name)
    assert (found.display_name, found.labels) == ("Renamed", {"b": "2"})
    assert found.gca_resource.description == "before"


@call("Endpoint.delete()")
def test_endpoint_that_is_deleted_is_not_found(endpoint: Open) -> None:
    made = endpoint()

    made.delete()

    with pytest.raises(exceptions.NotFound):
        _ = aiplatform.Endpoint(made.resource_name).display_name


@call("Endpoint.create(enable_request_response_logging=), which is kept and not acted upon")
def test_request_logging_is_shown_as_it_was_sent(endpoint: Open) -> None:
    made = endpoint(
        enable_request_response_logging=True,
        request_response_logging_sampling_rate=0.1,
        request_response_logging_bq_destination_table="bq://radiology.logs.requests",
    )

    config = aiplatform.Endpoint(made.resource_name).gca_resource.predict_request_response_logging_config
    assert (config.enabled, config.sampling_rate) == (True, 0.1)
    assert config.bigquery_destination.output_uri == "bq://radiology.logs.requests"


@call("PrivateEndpoint.create(private_service_connect_config=) and .delete()")
def test_private_endpoint() -> None:
    config = aiplatform.PrivateEndpoint.PrivateServiceConnectConfig(project_allowlist=[PROJECT])
    made = aiplatform.PrivateEndpoint.create(display_name="private", private_service_connect_config=config)

    listed = [each.resource_name for each in aiplatform.PrivateEndpoint.list()]
    made.delete()

    assert made.resource_name in listed
    assert made.resource_name not in [each.resource_name for each in aiplatform.PrivateEndpoint.list()]


# --- refused


@call("Endpoint.create(endpoint_id=) of an id that is used", "refused", "409 ALREADY_EXISTS")
def test_used_endpoint_id_is_a_conflict(endpoint: Open) -> None:
    made = endpoint(endpoint_id=fresh("used"))

    with pytest.raises(exceptions.Conflict, match="already exists"):
        endpoint(endpoint_id=made.name)


@call("Endpoint.create() of an id or labels that break the rules", "refused", "400 INVALID_ARGUMENT")
@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"endpoint_id": "Upper"}, "endpoint_id"),
        ({"endpoint_id": "ends-"}, "endpoint_id"),
        ({"endpoint_id": "a" * 64}, "endpoint_id"),
        ({"endpoint_id": "0123"}, "endpoint_id"),
        ({"endpoint_id": "12345678901"}, "endpoint_id"),
        ({"labels": {"note": "a" * 70}}, "label"),
        ({"labels": {"7": "ward"}}, "label"),
        ({"inference_timeout": 3601, "dedicated_endpoint_enabled": True}, "inference_timeout"),
    ],
)
def test_rule_that_is_broken_is_named(endpoint: Open, options: dict[str, Any], field: str) -> None:
    with pytest.raises(exceptions.BadRequest, match=field):
        endpoint(**options)


@call("Endpoint.create(location=) of a region that is not served", "refused", "404 NOT_FOUND")
def test_location_that_is_not_served_is_not_found(endpoint: Open) -> None:
    with pytest.raises(exceptions.NotFound, match="location"):
        endpoint(location="us-central1")


@call("Endpoint.create(location='onprem')", "refused", "by the client: no region of Google's")
def test_location_that_is_no_region_is_refused_by_the_client(endpoint: Open) -> None:
    with pytest.raises(ValueError, match="Unsupported region"):
        endpoint(location="onprem")


@call("Endpoint.create(project=) of another project", "refused", "403 PERMISSION_DENIED")
def test_other_project_is_forbidden(endpoint: Open) -> None:
    with pytest.raises(exceptions.Forbidden, match="project"):
        endpoint(project="other-project")


@call("Endpoint.update(labels=) that break the rules", "refused", "400, and nothing is changed")
def test_update_that_is_refused_changes_nothing(endpoint: Open) -> None:
    made = endpoint(labels={"a": "1"})

    with pytest.raises(exceptions.BadRequest, match="label"):
        made.update(display_name="Other", labels={"Bad Key": "x"})

    found = aiplatform.Endpoint(made.resource_name)
    assert (found.display_name, found.labels) == (made.display_name, {"a": "1"})


@call("Endpoint.list(filter=) that is not understood", "refused", "400 INVALID_ARGUMENT")
def test_filter_that_is_not_known_is_refused_and_not_ignored() -> None:
    with pytest.raises(exceptions.BadRequest, match="filter"):
        aiplatform.Endpoint.list(filter="ward ~ 7")
