"""Bodies that nobody should send, on every route that takes one: a typed answer, never a failure of the server."""

from __future__ import annotations

import copy
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import fuzzing

from medport.wire.chat import ChatRequest
from medport.wire.dicom_chat import DicomChatRequest
from medport.wire.embed import EmbedImage
from medport_local import inprocess
from medport_local.app import Settings
from medport_local.serving import operations
from medport_local.serving.openai import EmbeddingsRequest
from medport_local.serving.raw import RawRequest
from medport_local.serving.routes import ContainerRoutes

KEY = "a-key-of-some-length"
ROOT = "/v1/projects/local/locations/europe-west4/endpoints"
CANARY = "Jane-Doe-1961"
MARKS = "e" + "\u0301" * 1_000_000
DEEP = 10_000


@dataclass(frozen=True)
class Target:
    """A route, and a body that it takes."""

    path: str
    example: str
    """Its name in the OpenAPI document."""
    wrapped: bool = False
    """Whether the request stands in ``instances``."""

    @property
    def body(self) -> dict[str, Any]:
        return copy.deepcopy(operations.EXAMPLES[self.example])


TARGETS = (
    Target("/v1/chat/completions", "ChatRequest"),
    Target("/v1/embeddings", "EmbeddingsRequest"),
    Target(f"{ROOT}/medgemma/chat/completions", "ChatRequest"),
    Target(f"{ROOT}/medgemma:predict", "ChatInstances", wrapped=True),
    Target(f"{ROOT}/medgemma:rawPredict", "RawRequest"),
    Target(f"{ROOT}/medgemma:streamRawPredict", "ChatRequest"),
    Target(f"{ROOT}/medgemma-shared:predict", "ChatInstances", wrapped=True),
    Target(f"{ROOT}/medgemma-dicom:predict", "DicomInstances", wrapped=True),
    Target(f"{ROOT}/medgemma-dicom:rawPredict", "DicomChatRequest"),
    Target(f"{ROOT}/medgemma/invoke/v1/chat/completions", "ChatRequest"),
    Target(f"{ROOT}/medsiglip:predict", "EmbedInstances", wrapped=True),
    Target(f"{ROOT}/medsiglip:rawPredict", "EmbedInstances", wrapped=True),
    Target("/predict", "RawRequest"),
)
each_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.path.rpartition("/")[2])

NAMES = sorted(
    {
        *ChatRequest.model_fields, *RawRequest.model_fields, *DicomChatRequest.model_fields,
        *EmbedImage.model_fields, *EmbeddingsRequest.model_fields,
        "instances", "parameters", "image", "text", "@requestFormat", "tools", "best_of", "guided_json",
        "max_completion_tokens", "url", "schema", "type", "",
    }
)  # fmt: skip
TEXTS = st.one_of(
    st.just(CANARY),
    st.text(max_size=20),
    st.sampled_from(
        ["", " ", "\x00", "\ud800", "<start_of_image>", "<end_of_turn>", "data:image/png;base64,AAAA", "data:,",
         "gs://b/o.png", "http://169.254.169.254/", "file:///etc/passwd", "https://h/studies/1/series/2", "مرحبا"]
    ),
)  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 20),
    st.sampled_from([2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 10**400, 1e308, -0.0, 8.0, 0.5]),
    st.floats(allow_nan=True, allow_infinity=True),  # which json writes as NaN and Infinity
    TEXTS,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def http(gemma_folder: Path, siglip_folder: Path) -> Iterator[httpx.Client]:
    choice = Settings(
        snapshots={"medgemma": gemma_folder, "medsiglip": siglip_folder},
        api_key=KEY,
        container=ContainerRoutes(predict="/predict", health="/healthz"),
    )
    running = inprocess.Server(choice, socket.create_server(("127.0.0.1", 0)), None)
    running.wait_until_ready()
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    with running, httpx.Client(base_url=running.base_url, headers=headers, timeout=30) as client:
        yield client


def places(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to everything inside a body."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key))


def inside(body: Any, place: tuple[str | int, ...]) -> Any:
    for step in place:
        body = body[step]
    return body


@st.composite
def spoilt(draw: Callable[..., Any], body: dict[str, Any]) -> dict[str, Any]:
    """A body with one to three of its parts replaced, removed or added."""
    body = copy.deepcopy(body)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(body))
        if not found:
            break
        *way, last = draw(st.sampled_from(found))
        holder = inside(body, tuple(way))
        match draw(st.sampled_from(["replace", "replace", "remove", "add"])):
            case "replace":
                holder[last] = draw(VALUES)
            case "remove":
                del holder[last]
            case "add" if isinstance(holder, dict):
                holder[draw(st.sampled_from(NAMES))] = draw(VALUES)
            case _:
                holder.append(draw(VALUES))
    return body


def post(http: httpx.Client, target: Target, body: object) -> httpx.Response:
    fuzzing.bound(body)
    return http.post(target.path, content=json.dumps(body))


def check(response: httpx.Response) -> dict[str, Any]:
    """An answer, or a refusal in one of the three forms in which there are refusals, that quotes nothing."""
    assert response.status_code < 500, (response.status_code, response.text, response.request.content[:2000])
    if response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.endswith("data: [DONE]\n\n")
        return {}
    said: dict[str, Any] = response.json()
    error = said.get("error")
    if response.status_code == 200 and error is None:
        return said
    assert isinstance(error, str | dict)
    assert CANARY not in json.dumps(error)
    if isinstance(error, dict) and response.status_code != 200:
        assert error["code"] == response.status_code
        assert error["status"]
        assert error["message"]
    return said


def refused(response: httpx.Response, field: str) -> None:
    """It is, and ``field`` is named."""
    error = check(response)["error"]
    named = error if isinstance(error, str) else error.get("details", [{}])[0].get("metadata", {}).get("field")
    assert named is not None
    assert field in named


@each_target
@settings(max_examples=60, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_spoilt_body_gets_a_typed_answer(http: httpx.Client, target: Target, data: st.DataObject) -> None:
    check(post(http, target, data.draw(spoilt(target.body))))


@each_target
@settings(max_examples=25, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=VALUES)
def test_any_json_gets_a_typed_answer(http: httpx.Client, target: Target, body: object) -> None:
    check(post(http, target, body))


NO_JSON = {
    "nothing": b"",
    "not-a-number": b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
    "infinity": b'{"instances": [{"text": "a"}], "parameters": -Infinity}',
    "lone-surrogate": rb'{"messages": [{"role": "user", "content": "\ud800"}]}',
    "lone-surrogate-as-bytes": b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
    "no-utf-8": b'{"messages": [{"role": "user", "content": "\xff"}]}',
    "utf-16": '{"instances": []}'.encode("utf-16"),
    "byte-order-mark": b'\xef\xbb\xbf{"instances": []}',
    "deep-lists": b'{"instances": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep-objects": b'{"instances":' * DEEP + b"[]" + b"}" * DEEP,
    "unclosed": b"[" * DEEP,
    "two": b'{"instances": []}{"instances": []}',
    "control-character": b'{"prompt": "a\x00b"}',
    "comma": b'{"instances": [],}',
    "list": b"[1]",
    "text": b'"messages"',
    "number": b"1" * 5000,
    # JSON has no limit, but there is no such double.
    "number-without-end": b'{"max_tokens": 1' + b"0" * 400 + b"}",
}


@each_target
@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
def test_what_is_no_json_object_is_refused(http: httpx.Client, target: Target, body: bytes) -> None:
    response = http.post(target.path, content=body)

    assert response.status_code == 400
    check(response)


@each_target
def test_deep_nesting_in_a_field_is_no_failure(http: httpx.Client, target: Target) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        deep = opening * 900 + "1" + closing * 900
        for name in ("messages", "prompt", "input", "instances", "response_format", "extensions"):
            check(http.post(target.path, content=f'{{"max_tokens": 2, "{name}": {deep}}}'))


@each_target
def test_deep_nesting_in_an_instance_is_no_failure(http: httpx.Client, target: Target) -> None:
    deep = '{"a":' * 900 + "1" + "}" * 900
    for field in ("image", "text", "messages", "response_format", "multi_modal_data"):
        check(http.post(target.path, content=f'{{"instances": [{{"{field}": {deep}}}]}}'))


@each_target
def test_twice_the_same_key_is_an_answer_of_some_kind(http: httpx.Client, target: Target) -> None:
    first, second = json.dumps(target.body)[1:-1], '"messages": 1, "instances": 1, "prompt": 1, "input": 1'

    check(http.post(target.path, content=f"{{{first}, {second}}}"))
    check(http.post(target.path, content=f"{{{second}, {first}}}"))


@each_target
def test_a_million_combining_marks_are_only_a_long_text(http: httpx.Client, target: Target) -> None:
    text = json.dumps(target.body)
    for short in ("Describe the image.", "Name two signs of pneumonia.", "a chest X-ray"):
        text = text.replace(json.dumps(short), json.dumps(MARKS, ensure_ascii=False))
    text = text.replace("Name two signs of pneumonia on a chest radiograph.", MARKS)
    assert len(text) > 1_000_000

    check(http.post(target.path, content=text.encode()))


@each_target
def test_empty_texts_are_a_typed_answer(http: httpx.Client, target: Target) -> None:
    for place in list(places(target.body)):
        body = target.body
        holder = inside(body, place[:-1])
        if isinstance(holder[place[-1]], str):
            holder[place[-1]] = ""
            check(post(http, target, body))


CHATS = [each for each in TARGETS if each.example not in ("EmbedInstances", "EmbeddingsRequest")]
each_chat = pytest.mark.parametrize("target", CHATS, ids=lambda target: target.path.rpartition("/")[2])
WHOLE = ("max_tokens", "n", "top_k", "seed", "min_tokens")


def with_option(target: Target, name: str, value: object) -> dict[str, Any]:
    body = target.body
    asked = body["instances"][0] if target.wrapped else body
    asked["max_tokens"] = 2
    asked[name] = value
    return body


@each_chat
@pytest.mark.parametrize("name", WHOLE)
def test_whole_number_may_come_as_a_double(http: httpx.Client, target: Target, name: str) -> None:
    body = with_option(target, name, 2.0)

    response = http.post(target.path, content=json.dumps(body))

    assert response.status_code == 200, response.text
    assert "error" not in response.json()


@each_chat
@pytest.mark.parametrize("value", [True, 2.5, "2", [2], -(10**30)], ids=str)
@pytest.mark.parametrize("name", ["max_tokens", "n", "top_k", "seed"])
def test_what_is_no_whole_number_is_refused_by_its_name(
    http: httpx.Client, target: Target, name: str, value: object
) -> None:
    refused(http.post(target.path, content=json.dumps(with_option(target, name, value))), name)


def test_patch_may_be_told_in_doubles(http: httpx.Client) -> None:
    patch = {"x_origin": 0.0, "y_origin": 0.0, "width": 28.0, "height": 28.0}
    body = operations.EXAMPLES["EmbedInstances"]["instances"][1]
    instance = {"image": {**body["image"], "patch_coordinates_list": [patch]}}

    response = http.post(f"{ROOT}/medsiglip:predict", json={"instances": [instance]})

    prediction = response.json()["predictions"][0]
    # Not of a pixel, to be sure; but it was read.
    assert prediction["error"]["code"] == "PATCH_OUTSIDE_OF_IMAGE_DIMENSIONS_ERROR"


@pytest.mark.parametrize("value", [True, 0.5, -1, 2**31, 10**30, "0"], ids=str)
@pytest.mark.parametrize("name", ["x_origin", "width"])
def test_patch_of_no_whole_number_is_refused_by_its_name(http: httpx.Client, name: str, value: object) -> None:
    patch = {"x_origin": 0, "y_origin": 0, name: value}
    instance = {"image": {"input_bytes": "AAAA", "patch_coordinates_list": [patch]}}

    response = http.post(f"{ROOT}/medsiglip:predict", content=json.dumps({"instances": [instance]}))

    refused(response, f"instances[0].image.patch_coordinates_list[0].{name}")
