"""Endpoints on the control plane: made, shown, changed by a mask, listed, deleted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.resource_calls import PARENT, PROJECT, Calls

from medport.errors import AlreadyExists, Conflict, InputError, NotFound, PreconditionFailed
from medport_local.control.endpoints import create_endpoint

Json = dict[str, Any]


@pytest.fixture
def calls(tmp_path: Path) -> Iterator[Calls]:
    opened = Calls(tmp_path / "plane")
    yield opened
    opened.close()


def make(calls: Calls, id_: str = "ward", **fields: object) -> Json:
    answered = calls.call("POST", f"/endpoints?endpointId={id_}", {"displayName": "Ward", **fields})
    response: Json = answered["response"]
    return response


def test_an_endpoint_is_made_at_once_under_the_id_that_was_chosen(calls: Calls) -> None:
    answered = calls.call("POST", "/endpoints?endpointId=ward", {"displayName": "Ward", "labels": {"a": "b"}})

    package = "type.googleapis.com/google.cloud.aiplatform.v1"
    response = answered["response"]
    assert answered["done"] is True
    assert answered["metadata"]["@type"] == f"{package}.CreateEndpointOperationMetadata"
    assert response.pop("@type") == f"{package}.Endpoint"
    assert response == calls.call("GET", "/endpoints/ward")
    assert response["name"] == f"{PARENT}/endpoints/ward"
    assert (response["displayName"], response["labels"]) == ("Ward", {"a": "b"})
    assert calls.changed == [f"{PARENT}/endpoints/ward"]


def test_the_id_may_be_spelled_as_in_the_proto_or_be_left_to_the_server(calls: Calls) -> None:
    named = calls.call("POST", "/endpoints?endpoint_id=1234567890", {"display_name": "a"})["response"]["name"]
    made = calls.call("POST", "/endpoints", {"displayName": "b"})["response"]["name"]

    assert named == f"{PARENT}/endpoints/1234567890"
    assert len(made.rpartition("/")[2]) == 19


@pytest.mark.parametrize("id_", ["Ward", "-ward", "ward-", "0123", "ward_1", "a" * 64, "ward/1", "1ward"])
def test_an_id_that_vertex_does_not_take_is_refused(calls: Calls, id_: str) -> None:
    with pytest.raises(InputError, match="endpoint_id"):
        make(calls, id_)


def test_a_used_id_is_refused_and_the_first_owner_keeps_it(calls: Calls) -> None:
    make(calls, labels={"owner": "first"})

    with pytest.raises(AlreadyExists):
        make(calls, labels={"owner": "second"})

    assert calls.call("GET", "/endpoints/ward")["labels"] == {"owner": "first"}


def test_a_dedicated_endpoint_has_this_server_as_its_dns_name_and_a_shared_one_none(calls: Calls) -> None:
    make(calls, "ward", dedicatedEndpointEnabled=True)
    make(calls, "shared")

    assert calls.call("GET", "/endpoints/ward")["dedicatedEndpointDns"] == "host:8443"
    assert "dedicatedEndpointDns" not in calls.call("GET", "/endpoints/shared")
    assert "dedicatedEndpointEnabled" not in calls.call("GET", "/endpoints/shared")


def test_what_terraform_compares_comes_back_as_it_was_sent(calls: Calls) -> None:
    sent: Json = {
        "displayName": "Ward",
        "description": "of the ward",
        "network": "projects/123/global/networks/default",
        "encryptionSpec": {"kmsKeyName": "projects/p/locations/l/keyRings/r/cryptoKeys/k"},
        "predictRequestResponseLoggingConfig": {
            "enabled": True,
            "samplingRate": 0.1,
            "bigqueryDestination": {"outputUri": "bq://p.d.t"},
        },
        "clientConnectionConfig": {"inferenceTimeout": "600s"},
        "labels": {"goog-terraform-provisioned": "true"},
    }

    calls.call("POST", "/endpoints?endpointId=ward", sent)

    shown = calls.call("GET", "/endpoints/ward")
    assert {key: shown[key] for key in sent} == sent


def test_a_private_endpoint_is_kept_as_it_is_asked_for(calls: Calls) -> None:
    config = {
        "enablePrivateServiceConnect": True,
        "projectAllowlist": ["p"],
        "pscAutomationConfigs": [{"projectId": "p", "network": "n", "ipAddress": "10.0.0.1", "state": 2}],
    }

    make(calls, privateServiceConnectConfig=config)

    kept = calls.call("GET", "/endpoints/ward")["privateServiceConnectConfig"]
    assert kept == {**config, "pscAutomationConfigs": [{"projectId": "p", "network": "n"}]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"displayName": " "}, "display_name"),
        ({"displayName": "x" * 129}, "display_name"),
        ({"labels": {"k" * 64: "v"}}, "endpoint.labels"),
        ({"trafficSplit": {"1": 100}}, "endpoint.traffic_split"),
        ({"clientConnectionConfig": {"inferenceTimeout": "3601s"}}, "inference_timeout"),
        ({"clientConnectionConfig": {"inferenceTimeout": "0s"}}, "inference_timeout"),
        ({"predictRequestResponseLoggingConfig": {"samplingRate": 1.5}}, "sampling_rate"),
        ({"colour": "red"}, "Unknown name \"colour\" at 'endpoint'"),
        (
            {"network": "n", "privateServiceConnectConfig": {"enablePrivateServiceConnect": True}},
            "network and privateServiceConnectConfig",
        ),
        (
            {
                "dedicatedEndpointEnabled": True,
                "privateServiceConnectConfig": {"enablePrivateServiceConnect": True},
            },
            "exclude each other",
        ),
    ],
)
def test_what_breaks_a_rule_is_refused_by_its_name(calls: Calls, change: Json, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make(calls, **change)

    assert calls.call("GET", "/endpoints") == {}
    assert calls.changed == []


def test_the_whole_endpoint_sent_back_changes_only_what_the_mask_names(calls: Calls) -> None:
    make(calls, labels={"a": "1"}, description="kept")
    calls.deploy("ward", "7", "chest")
    seen = calls.call("GET", "/endpoints/ward")

    body = {**seen, "displayName": "New", "labels": {"b": "2"}, "description": "other", "deployedModels": []}
    shown = calls.call("PATCH", "/endpoints/ward?updateMask=displayName,labels", body)

    assert (shown["displayName"], shown["labels"], shown["description"]) == ("New", {"b": "2"}, "kept")
    assert [each["id"] for each in shown["deployedModels"]] == ["7"]
    assert shown["etag"] != seen["etag"]
    assert calls.call("GET", "/endpoints/ward") == shown


def test_a_field_in_the_mask_that_the_body_lacks_is_cleared(calls: Calls) -> None:
    make(calls, labels={"a": "1"}, description="d")

    shown = calls.call("PATCH", "/endpoints/ward?updateMask=description%2Clabels", {})

    assert "description" not in shown
    assert "labels" not in shown


def test_a_split_is_changed_and_told_once_it_is_on_the_disk(calls: Calls) -> None:
    make(calls)
    calls.deploy("ward", "7", "chest")
    calls.deploy("ward", "8", "chest")
    calls.changed.clear()

    shown = calls.call(
        "PATCH", "/endpoints/ward?update_mask=traffic_split", {"trafficSplit": {"7": "20", "8": 80, "9": 0}}
    )

    assert shown["trafficSplit"] == {"7": 20, "8": 80}
    assert calls.changed == [f"{PARENT}/endpoints/ward"]


@pytest.mark.parametrize(
    "split", [{"7": 99}, {"7": 50, "9": 50}, {"7": -1, "8": 101}, {"7": 50.5, "8": 49.5}, {"7": True}, {"0": 100}]
)
def test_a_split_that_cannot_be_is_refused_and_the_old_one_stays(calls: Calls, split: Json) -> None:
    make(calls)
    calls.deploy("ward", "7", "chest")
    calls.deploy("ward", "8", "chest")
    calls.deploy("ward", "9", "chest", state="LOADING")
    calls.call("PATCH", "/endpoints/ward?updateMask=trafficSplit", {"trafficSplit": {"7": 100}})

    with pytest.raises(InputError, match="traffic_split"):
        calls.call("PATCH", "/endpoints/ward?updateMask=trafficSplit", {"trafficSplit": split})

    assert calls.call("GET", "/endpoints/ward")["trafficSplit"] == {"7": 100}


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ("", "update_mask is required"),
        ("deployedModels", ":deployModel"),
        ("network", "make another endpoint"),
        ("colour", "colour"),
        ("labels.team", "name labels"),
        ("dis play", "Invalid field mask path"),
    ],
)
def test_a_mask_that_this_call_cannot_serve_is_refused(calls: Calls, mask: str, said: str) -> None:
    make(calls)

    with pytest.raises(InputError, match=said):
        calls.call("PATCH", f"/endpoints/ward?updateMask={mask}", {"displayName": "x"})


def test_a_stale_etag_is_a_conflict_and_none_is_not(calls: Calls) -> None:
    make(calls)
    seen = calls.call("GET", "/endpoints/ward")
    calls.call("PATCH", "/endpoints/ward?updateMask=displayName", {**seen, "displayName": "first"})

    with pytest.raises(Conflict, match="etag"):
        calls.call("PATCH", "/endpoints/ward?updateMask=displayName", {**seen, "displayName": "second"})
    shown = calls.call("PATCH", "/endpoints/ward?updateMask=displayName", {"displayName": "third"})

    assert shown["displayName"] == "third"


def test_the_inference_timeout_is_changed_by_an_operation(calls: Calls) -> None:
    make(calls, dedicatedEndpointEnabled=True, labels={"a": "1"})
    seen = calls.call("GET", "/endpoints/ward")

    body = {"endpoint": {**seen, "clientConnectionConfig": {"inferenceTimeout": {"seconds": 900}}}}
    answered = calls.call("POST", "/endpoints/ward:update", body, api="v1beta1")

    assert answered["done"] is True
    assert answered["metadata"]["@type"].endswith("v1beta1.UpdateEndpointOperationMetadata")
    assert answered["response"]["clientConnectionConfig"] == {"inferenceTimeout": "900s"}
    assert calls.call("GET", "/endpoints/ward")["labels"] == {"a": "1"}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"displayName": "other"}, InputError),
        ({"dedicatedEndpointEnabled": True}, InputError),
        ({"clientConnectionConfig": None}, InputError),
        ({"etag": "999"}, Conflict),
    ],
)
def test_that_operation_changes_nothing_else(calls: Calls, change: Json, error: type[Exception]) -> None:
    make(calls)
    body = {"clientConnectionConfig": {"inferenceTimeout": "900s"}, **change}

    with pytest.raises(error):
        calls.call("POST", "/endpoints/ward:update", {"endpoint": body})

    assert "clientConnectionConfig" not in calls.call("GET", "/endpoints/ward")


@pytest.mark.parametrize("state", ["PENDING", "LOADING", "READY", "ASLEEP", "DRAINING"])
def test_an_endpoint_with_models_is_not_deleted_whatever_state_they_are_in(calls: Calls, state: Any) -> None:
    make(calls)
    calls.deploy("ward", "7", "chest", state=state)

    with pytest.raises(PreconditionFailed, match=r"has deployed or being-deployed DeployedModel\(s\)\."):
        calls.call("DELETE", "/endpoints/ward")

    assert calls.call("GET", "/endpoints/ward")["displayName"] == "Ward"


def test_a_deleted_endpoint_is_gone_and_its_id_is_free(calls: Calls) -> None:
    make(calls)

    answered = calls.call("DELETE", "/endpoints/ward")

    assert answered["response"] == {"@type": "type.googleapis.com/google.protobuf.Empty"}
    for method, path in (("GET", ""), ("DELETE", ""), ("PATCH", "?updateMask=labels"), ("POST", ":update")):
        with pytest.raises(NotFound):
            calls.call(method, f"/endpoints/ward{path}", {"endpoint": {}} if method == "POST" else {})  # type: ignore[arg-type]
    assert make(calls)["name"] == f"{PARENT}/endpoints/ward"


def test_the_list_holds_what_the_caller_may_know_and_fills_its_pages(calls: Calls) -> None:
    for number in range(7):
        make(calls, f"e{number}")

    def odd(endpoint: str) -> bool:
        return endpoint in ("e1", "e3", "e5")

    first = calls.call("GET", "/endpoints?pageSize=2", may=odd)
    second = calls.call("GET", f"/endpoints?pageSize=2&pageToken={first['nextPageToken']}", may=odd)

    assert [each["name"].rpartition("/")[2] for each in first["endpoints"]] == ["e1", "e3"]
    assert [each["name"].rpartition("/")[2] for each in second["endpoints"]] == ["e5"]
    assert "nextPageToken" not in second


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        ("endpoint=ward", ["ward"]),
        ("endpoint!=ward", ["lab"]),
        (f'name="{PARENT}/endpoints/lab"', ["lab"]),
        ('displayName="The \\"ward\\""', ["ward"]),
        ('labels.site="a" OR labels.site="b"', ["ward", "lab"]),
        ("labels.site:* -labels.site=a", ["lab"]),
        ("labels:site AND create_time<2020-01-01", []),
    ],
)
def test_endpoints_are_found_by_what_vertex_documents(calls: Calls, wanted: str, ids: list[str]) -> None:
    make(calls, "ward", displayName='The "ward"', labels={"site": "a"})
    make(calls, "lab", labels={"site": "b"})

    found = calls.call("GET", f"/endpoints?filter={wanted}").get("endpoints", [])

    assert [each["name"].rpartition("/")[2] for each in found] == ids


def test_another_part_can_make_an_endpoint_within_its_own_transaction(calls: Calls) -> None:
    with calls.database.writing() as transaction:
        made = create_endpoint(transaction, PROJECT, {"endpointId": "mg-1", "endpoint": {"displayName": "MG"}})

    assert made["name"] == f"{PARENT}/endpoints/mg-1"
    assert calls.call("GET", "/endpoints/mg-1")["displayName"] == "MG"


def test_where_clients_reach_the_server_by_no_name_an_endpoint_has_no_dns(tmp_path: Path) -> None:
    calls = Calls(tmp_path / "plane", advertised=None)

    shown = make(calls, dedicatedEndpointEnabled=True)
    calls.close()

    assert shown["dedicatedEndpointEnabled"] is True
    assert "dedicatedEndpointDns" not in shown
