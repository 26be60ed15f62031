"""The OpenAPI document of a control plane: the calls that it offers, and the forms that bodies are read with."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis

from medport_local import inprocess
from medport_local.settings import ControlPlane, Settings

PARENT = "/v1/projects/{project}/locations/{location}"
HERE = "/v1/projects/local/locations/europe-west4"


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    plane = ControlPlane(directory=tmp_path_factory.mktemp("plane"), allow_faults=True)
    running = inprocess.Server(Settings(control_plane=plane), socket.create_server(("127.0.0.1", 0)), None)
    running.wait_until_ready()
    with running, httpx.Client(base_url=running.base_url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    answer = http.get("/openapi.json")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def test_document_is_valid_openapi(document: dict[str, Any]) -> None:
    schemathesis.openapi.from_dict(document).validate()


def test_every_reference_leads_somewhere_and_every_schema_is_used(document: dict[str, Any]) -> None:
    pointed = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))

    assert pointed == set(document["components"]["schemas"])


def test_operation_ids_differ_and_are_names(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document)]

    assert len(set(ids)) == len(ids)
    assert all(each.isidentifier() for each in ids)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("post", f"{PARENT}/models:upload"),
        ("get", f"{PARENT}/models"),
        ("patch", f"{PARENT}/models/{{model}}"),
        ("delete", f"{PARENT}/models/{{model}}:deleteVersion"),
        ("post", f"{PARENT}/endpoints"),
        ("patch", f"{PARENT}/endpoints/{{endpoint}}"),
        ("post", f"{PARENT}/endpoints/{{endpoint}}:deployModel"),
        ("post", f"{PARENT}/endpoints/{{endpoint}}:undeployModel"),
        ("get", f"{PARENT}/endpoints/{{endpoint}}/operations/{{operation}}"),
        ("post", f"{PARENT}/endpoints/{{endpoint}}:predict"),
    ],
)
def test_a_call_is_in_the_document_in_both_versions(document: dict[str, Any], method: str, path: str) -> None:
    for written in (path, path.replace("/v1/", "/v1beta1/")):
        assert method in document["paths"][written]


def test_what_is_refused_and_what_only_a_client_polls_is_left_out(document: dict[str, Any]) -> None:
    assert not [path for path in document["paths"] if path.startswith("/ui/") or path.endswith(":explain")]


def test_bodies_have_the_fields_that_the_server_takes_and_no_others(document: dict[str, Any]) -> None:
    upload = document["paths"][f"{PARENT}/models:upload"]["post"]
    name = upload["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    form = document["components"]["schemas"][name]

    assert name == "UploadModelForm"
    assert form["additionalProperties"] is False
    assert {"model", "modelId", "parentModel"} <= form["properties"].keys()


def test_a_beta_field_is_in_the_beta_form_alone(document: dict[str, Any]) -> None:
    def deployed(path: str) -> str:
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        names, seen = {body["schema"]["$ref"].rpartition("/")[2]}, ""
        while names:
            schema = json.dumps(document["components"]["schemas"][names.pop()])
            names |= set(re.findall(r'schemas/(\w+)"', schema))
            seen += schema
        return seen

    path = f"{PARENT}/endpoints/{{endpoint}}:deployModel"

    assert '"scaleToZeroSpec"' in deployed(path.replace("/v1/", "/v1beta1/"))
    assert '"scaleToZeroSpec"' not in deployed(path)


def test_lists_say_how_they_are_filtered_and_paged(document: dict[str, Any]) -> None:
    for kind in ("models", "endpoints"):
        parameters = document["paths"][f"{PARENT}/{kind}"]["get"]["parameters"]

        assert {"filter", "pageSize", "pageToken", "orderBy"} <= {each.get("name") for each in parameters}


def test_answers_are_as_the_document_says(http: httpx.Client, document: dict[str, Any]) -> None:
    schema = schemathesis.openapi.from_dict(document)
    made = http.post(f"{HERE}/endpoints?endpointId=chest", json={"displayName": "chest"})
    uploaded = http.post(f"{HERE}/models:upload", json={"modelId": "m", "model": {"displayName": "m"}})
    answers = [
        ("POST", f"{PARENT}/endpoints", made),
        ("POST", f"{PARENT}/models:upload", uploaded),
        ("GET", f"{PARENT}/endpoints", http.get(f"{HERE}/endpoints")),
        ("GET", f"{PARENT}/endpoints/{{endpoint}}", http.get(f"{HERE}/endpoints/chest")),
        ("GET", f"{PARENT}/models", http.get(f"{HERE}/models")),
        ("GET", f"{PARENT}/models/{{model}}", http.get(f"{HERE}/models/m@1")),
        ("GET", f"{PARENT}/models/{{model}}:listVersions", http.get(f"{HERE}/models/m:listVersions")),
        ("GET", f"{PARENT}/operations", http.get(f"{HERE}/operations")),
        ("GET", f"{PARENT}/endpoints/{{endpoint}}", http.get(f"{HERE}/endpoints/nothing")),
        ("POST", f"{PARENT}/endpoints", http.post(f"{HERE}/endpoints", json={"unknown": 1})),
    ]

    assert [answer.status_code for _, _, answer in answers] == [200] * 6 + [200, 200, 404, 400]
    for method, path, answer in answers:
        schema[path][method].validate_response(answer)
