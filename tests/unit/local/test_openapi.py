"""The OpenAPI document: it has every route, it is valid, and its examples are taken by the server."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis

from medport import errors
from medport_local import inprocess
from medport_local.app import Settings
from medport_local.serving import openapi
from medport_local.serving.routes import ContainerRoutes, Route
from medport_local.serving.routing import DoorRoute

KEY = "a-key-of-some-length"
ENDPOINT_OF = {
    "DicomChatRequest": "medgemma-dicom",
    "DicomInstances": "medgemma-dicom",
    "EmbedInstances": "medsiglip",
}
"""Which endpoint speaks the dialect of an example, if it is not the first."""


@pytest.fixture(scope="module")
def server(
    gemma_folder: Path, siglip_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[inprocess.Server]:
    settings = Settings(
        snapshots={"medgemma": gemma_folder, "medsiglip": siglip_folder},
        api_key=KEY,
        batch_dir=tmp_path_factory.mktemp("jobs"),
        container=ContainerRoutes(predict="/predict", health="/healthz"),
    )
    running = inprocess.Server(settings, socket.create_server(("127.0.0.1", 0)), None)
    running.wait_until_ready()
    with running:
        yield running


@pytest.fixture
def http(server: inprocess.Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.base_url, headers={"x-goog-api-key": KEY}, timeout=30) as client:
        yield client


@pytest.fixture
def document(http: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = http.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def test_document_has_every_route_of_the_server_and_no_other(
    server: inprocess.Server, document: dict[str, Any]
) -> None:
    assert server.app is not None
    routes = {
        (re.sub(r":\w+\}", "}", route.path), method.lower())
        for route in server.app.routes
        if isinstance(route, DoorRoute)
        for method in route.methods - {"HEAD"}
    } - {("/token", "post")}  # OAuth's own protocol, in forms

    assert {(path, method) for path, method, _ in operations(document)} == routes
    assert ("/openapi.json", "get") in routes
    assert ("/predict", "post") in routes


def test_document_is_valid_openapi(document: dict[str, Any]) -> None:
    schemathesis.openapi.from_dict(document).validate()


def test_every_reference_leads_somewhere_and_every_component_is_used(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    pointed = set(re.findall(r'"#/components/(\w+)/([^"]+)"', text))

    for kind, name in pointed:
        assert name in document["components"][kind]
        assert name.isidentifier()
    kinds = set(document["components"]) - {"securitySchemes"}
    assert {(kind, name) for kind in kinds for name in document["components"][kind]} == pointed


def test_version_is_the_packages(document: dict[str, Any]) -> None:
    assert document["info"]["version"] == version("medport")


def test_operation_ids_differ_and_are_names(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document)]

    assert len(set(ids)) == len(ids)
    assert all(each.isidentifier() for each in ids)


def test_every_operation_says_what_it_takes_answers_and_needs(document: dict[str, Any]) -> None:
    refusals = {str(row.http) for row in errors.TABLE}
    for path, method, operation in operations(document):
        answers = operation["responses"]
        assert operation["summary"]
        assert answers["200"]["content"], path
        open_to_all = operation["operationId"].startswith("health")
        assert bool(operation["security"]) != open_to_all
        if not open_to_all:
            assert {"400", "401", "403", "404", "503"} <= answers.keys()
        if method == "post" and not operation["operationId"].startswith("cancel"):
            assert operation["requestBody"]["content"]["application/json"]["schema"]
            assert refusals <= answers.keys()
        named = {each["name"] for each in operation["parameters"] if "name" in each}
        assert named == set(re.findall(r"\{(\w+)\}", path))


def test_ranges_stand_under_the_names_of_json_schema(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    assert schemas["ChatRequest"]["properties"]["n"]["anyOf"][0] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 16,
    }
    assert not re.search(r'"(ge|gt|le|lt)": -?\d', json.dumps(schemas))


@pytest.mark.parametrize("name", ["ChatRequest", "RawRequest", "DicomChatRequest", "EmbeddingsRequest"])
def test_null_is_as_good_as_absence(document: dict[str, Any], name: str) -> None:
    schema = document["components"]["schemas"][name]

    for key in schema["properties"].keys() - set(schema["required"]):
        if key != "@requestFormat":
            assert {"type": "null"} in schema["properties"][key]["anyOf"], key


def test_streams_are_named_with_their_events(document: dict[str, Any]) -> None:
    chat = document["paths"]["/v1/chat/completions"]["post"]
    events = chat["responses"]["200"]["content"]["text/event-stream"]["schema"]

    done, chunk = events["properties"]["data"]["anyOf"]
    assert done == {"const": "[DONE]"}
    assert {"$ref": "#/components/schemas/ChatChunk"} in chunk["contentSchema"]["anyOf"]


def test_server_takes_every_example_of_its_document(http: httpx.Client, document: dict[str, Any]) -> None:
    tried = 0
    for path, method, operation in operations(document):
        if method != "post" or "{path}" in path or "requestBody" not in operation:
            continue
        for name, example in operation["requestBody"]["content"]["application/json"]["examples"].items():
            endpoint = ENDPOINT_OF.get(name, "medgemma")
            if path == "/predict" and endpoint != "medgemma":  # a container has one model
                continue
            target = path.format(project="local", location="europe-west4", endpoint=endpoint)
            response = http.post(target, json=example["value"])
            assert response.status_code == 200, (path, name, response.text)
            assert "error" not in response.json()
            tried += 1
    assert tried > 20


def test_paths_that_may_be_invoked_are_the_containers(http: httpx.Client, document: dict[str, Any]) -> None:
    root = "/v1/projects/{project}/locations/{location}/endpoints/{endpoint}/invoke/{path}"
    for method in ("get", "post"):
        parameters = document["paths"][root][method]["parameters"]
        paths = next(each for each in parameters if each.get("name") == "path")["schema"]["enum"]
        for path in paths:
            endpoint = "medsiglip" if path.endswith("embeddings") else "medgemma"
            target = root.format(project="local", location="europe-west4", endpoint=endpoint, path=path)
            response = http.request(method, target, json={} if method == "post" else None)
            assert response.status_code == (200 if method == "get" else 400), path


def test_document_needs_a_key(server: inprocess.Server) -> None:
    assert httpx.get(f"{server.base_url}/openapi.json").status_code == 401


def test_route_that_is_not_described_is_a_mistake() -> None:
    async def handler(exchange: Any) -> Any: ...

    with pytest.raises(KeyError, match="somethingNew"):
        openapi.document([Route("GET", "/new", handler, "read", "somethingNew")])
