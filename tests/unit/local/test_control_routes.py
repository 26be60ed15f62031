"""A request as the control plane is asked it: which row answers, what of path, query and body it is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from support.doors import serving_routes
from support.running import LoopThread

from medport_local.control.asks import Ask, Json, Row
from medport_local.control.project import Project
from medport_local.control_routes import MAX_BODY_BYTES, routes_of
from medport_local.serving.guard import Guard
from medport_local.serving.routes import starlette_routes

PROJECT = Project("radiology", "europe-west4", "123")
_PARENT = "/{api}/projects/{project}/locations/{location}"
ENDPOINTS, MODELS = f"{_PARENT}/endpoints", f"{_PARENT}/models"


def row(method: Any, path: str) -> Row:
    async def tell(ask: Ask) -> Json:
        return {
            "row": path,
            "api": ask.api,
            "path": dict(ask.path),
            "query": dict(ask.query),
            "body": ask.body,
            "caller": ask.caller,
        }

    return Row(method=method, path=path, handler=tell, verb="aiplatform.endpoints.get", operation="deployModel")


# The least literal first: the order of the table must not matter.
ROWS = (
    row("GET", f"{MODELS}/{{model}}"),
    row("DELETE", f"{MODELS}/{{model}}"),
    row("GET", f"{MODELS}/{{model}}@{{version}}"),
    row("GET", f"{MODELS}/{{model}}:listVersions"),
    row("DELETE", f"{MODELS}/{{model}}@{{version}}:deleteVersion"),
    row("PATCH", f"{ENDPOINTS}/{{endpoint}}"),
    row("GET", ENDPOINTS),
    row("POST", f"{ENDPOINTS}/{{endpoint}}:deployModel"),
    row("GET", "/ui/projects/{project}/locations/{location}/operations/{operation}"),
    row("GET", "/v1beta1/publishers/{publisher}/models/{model}"),
)


@pytest.fixture(scope="module")
def http(loop_thread: LoopThread) -> Iterator[httpx.Client]:
    guard = Guard()
    routes = starlette_routes(routes_of(ROWS, PROJECT), guard)
    with (
        serving_routes(loop_thread, routes, guard) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}") as client,
    ):
        yield client


def asked(http: httpx.Client, method: str, path: str, **more: Any) -> Json:
    answer = http.request(method, path, **more)
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


HERE = "/v1/projects/radiology/locations/europe-west4"


@pytest.mark.parametrize(
    ("method", "path", "template"),
    [
        ("GET", "/models/m", f"{MODELS}/{{model}}"),
        ("GET", "/models/m@2", f"{MODELS}/{{model}}@{{version}}"),
        ("GET", "/models/m@default", f"{MODELS}/{{model}}@{{version}}"),
        ("GET", "/models/m:listVersions", f"{MODELS}/{{model}}:listVersions"),
        ("DELETE", "/models/m", f"{MODELS}/{{model}}"),
        ("DELETE", "/models/m@2:deleteVersion", f"{MODELS}/{{model}}@{{version}}:deleteVersion"),
        ("POST", "/endpoints/e:deployModel", f"{ENDPOINTS}/{{endpoint}}:deployModel"),
        ("PATCH", "/endpoints/e", f"{ENDPOINTS}/{{endpoint}}"),
        ("GET", "/endpoints", ENDPOINTS),
    ],
)
@pytest.mark.parametrize("api", ["v1", "v1beta1"])
def test_path_finds_its_row_in_both_versions(
    http: httpx.Client, method: str, path: str, template: str, api: str
) -> None:
    found = asked(http, method, f"/{api}/projects/123/locations/europe-west4{path}")

    assert (found["row"], found["api"]) == (template, api)


def test_path_is_given_without_the_marks_between_its_parts(http: httpx.Client) -> None:
    found = asked(http, "GET", f"{HERE}/models/m%402")

    assert found["path"] == {"project": "radiology", "location": "europe-west4", "model": "m", "version": "2"}


def test_operation_is_polled_where_the_client_of_google_polls_it(http: httpx.Client) -> None:
    found = asked(http, "GET", "/ui/projects/123/locations/europe-west4/operations/7")

    assert found["path"]["operation"] == "7"


def test_path_without_a_project_is_answered(http: httpx.Client) -> None:
    found = asked(http, "GET", "/v1beta1/publishers/google/models/medgemma@medgemma-4b-it")

    assert (found["api"], found["path"]["model"]) == ("v1beta1", "medgemma@medgemma-4b-it")
    assert http.get("/v1/publishers/google/models/medgemma").status_code == 404


@pytest.mark.parametrize(
    ("project", "location", "status"),
    [
        ("radiology", "europe-west4", 200),
        ("123", "europe-west4", 200),
        ("-", "-", 200),
        ("other", "europe-west4", 403),
        ("radiology", "us-central1", 404),
    ],
)
def test_other_projects_and_locations_are_not_served(
    http: httpx.Client, project: str, location: str, status: int
) -> None:
    assert http.get(f"/v1/projects/{project}/locations/{location}/endpoints").status_code == status


def test_query_of_every_google_client_is_no_part_of_the_question(http: httpx.Client) -> None:
    always = "%24alt=json%3Benum-encoding%3Dint&alt=json&prettyPrint=1&key=k&quotaUser=q&$fields=*&access_token=t"

    found = asked(http, "GET", f"{HERE}/endpoints?{always}&pageSize=5&order_by=name&filter=a%3D%22b%22")

    assert found["query"] == {"pageSize": "5", "orderBy": "name", "filter": 'a="b"'}


def test_query_that_no_call_has_is_refused_by_its_name(http: httpx.Client) -> None:
    answer = http.get(f"{HERE}/endpoints?pagesize=5")

    assert answer.status_code == 400
    assert 'Unknown name "pagesize": Cannot bind query parameter' in answer.json()["error"]["message"]


def test_query_that_is_given_in_two_spellings_is_refused(http: httpx.Client) -> None:
    answer = http.patch(f"{HERE}/endpoints/e?updateMask=labels&update_mask=displayName", json={})

    assert answer.status_code == 400
    assert "updateMask: is given twice" in answer.json()["error"]["message"]


def test_query_of_more_keys_than_any_call_has_is_refused_and_not_a_fault_of_the_server(http: httpx.Client) -> None:
    answer = http.get(f"{HERE}/endpoints?{'&'.join(f'a{number}=1' for number in range(101))}")

    assert answer.status_code == 400
    assert "query: has more than 100 keys" in answer.json()["error"]["message"]


@pytest.mark.parametrize("content", [b"", b"{}", b" \n"])
def test_body_may_be_left_out(http: httpx.Client, content: bytes) -> None:
    assert asked(http, "POST", f"{HERE}/endpoints/e:deployModel", content=content)["body"] == {}
    assert asked(http, "DELETE", f"{HERE}/models/m", content=content)["body"] == {}
    assert asked(http, "GET", f"{HERE}/endpoints", content=content)["body"] == {}


@pytest.mark.parametrize("content", [b"[]", b"1", b"{", b'{"a":NaN}', b"\xff"])
def test_body_that_is_no_json_object_is_refused(http: httpx.Client, content: bytes) -> None:
    answer = http.post(f"{HERE}/endpoints/e:deployModel", content=content)

    assert answer.status_code == 400
    assert answer.json()["error"]["status"] == "INVALID_ARGUMENT"


def test_body_over_the_limit_of_the_api_host_is_refused(http: httpx.Client) -> None:
    most = b'{"a":"' + b"x" * (MAX_BODY_BYTES - 8) + b'"}'

    assert asked(http, "POST", f"{HERE}/endpoints/e:deployModel", content=most)["body"]
    assert http.post(f"{HERE}/endpoints/e:deployModel", content=most + b" ").status_code == 413


def test_get_with_something_in_its_body_is_refused(http: httpx.Client) -> None:
    answer = http.request("GET", f"{HERE}/endpoints", json={"filter": "x"})

    assert answer.status_code == 400


def test_method_that_a_path_does_not_take_is_refused(http: httpx.Client) -> None:
    assert http.put(f"{HERE}/endpoints/e").status_code == 405


def test_call_that_is_only_there_to_be_refused_is_answered_whatever_language_its_body_has(
    loop_thread: LoopThread,
) -> None:
    guard, refused = Guard(), replace(row("POST", f"{ENDPOINTS}/{{endpoint}}:explain"), operation="unsupported")
    routes = starlette_routes(routes_of([refused], PROJECT), guard)

    with serving_routes(loop_thread, routes, guard) as (host, port):
        answer = httpx.post(f"http://{host}:{port}{HERE}/endpoints/e:explain", content=b"\x00\x01")

    assert answer.status_code == 200
