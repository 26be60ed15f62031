"""The server on real sockets: routes, forms, errors, keys, limits, and what happens when a caller leaves."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from medport.wire.vertex import EndpointResource, ModelResource, error_from, pins_from_model
from medport_local import inprocess
from medport_local.app import Settings
from medport_local.engine.engine import EngineLimits
from medport_local.serving.guard import MAX_BODY_BYTES

KEY = "a-key-of-some-length"
ROOT = "projects/local/locations/europe-west4"
GEMMA, SIGLIP = f"{ROOT}/endpoints/medgemma", f"{ROOT}/endpoints/medsiglip"
LONG = 440
"""Tokens that keep a sequence busy for a while; the toys take 512 in all."""


@pytest.fixture(scope="module")
def server(gemma_folder: Path, siglip_folder: Path) -> Iterator[inprocess.Server]:
    settings = Settings(
        snapshots={"medgemma": gemma_folder, "medsiglip": siglip_folder},
        api_key=KEY,
        advertised="gpu01:8443",
        engine_limits=EngineLimits(max_running=2, max_queue=2, max_images=3),
        drain_s=1.0,
    )
    listener = socket.create_server(("127.0.0.1", 0))
    running = inprocess.Server(settings, listener, None)
    running.wait_until_ready()
    with running:
        yield running


@pytest.fixture
def http(server: inprocess.Server) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.base_url, headers=headers, timeout=30) as client:
        yield client


@pytest.fixture
def chat_openai(server: inprocess.Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (60, 40), np.uint8)).save(file, "PNG")
    return file.getvalue()


def chat(text: str = "describe", *images: bytes, **options: object) -> dict[str, object]:
    parts: list[object] = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(data).decode()}}
        for data in images
    ]
    message = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
    return {"messages": [message], "max_tokens": 8, **options}


def predict(http: httpx.Client, *instances: object, endpoint: str = GEMMA, **more: Any) -> httpx.Response:
    return http.post(f"/v1/{endpoint}:predict", json={"instances": list(instances)}, **more)


def engine_of(server: inprocess.Server) -> Any:
    assert server.app is not None
    return server.app.state.engines["medgemma"]


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.005)


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == response.status_code
    return error


def test_endpoints_tell_their_family_to_whoever_lists_them(http: httpx.Client) -> None:
    listed = http.get("/v1/projects/-/locations/-/endpoints").json()["endpoints"]

    families = {
        each["labels"]["medport-family"]: EndpointResource.model_validate(each)
        for each in listed
        if "medport-family" in each["labels"]
    }
    assert len(listed) == 4
    assert families["medgemma"].name == GEMMA
    assert families["medsiglip"].name == SIGLIP
    assert families["medgemma"].dedicated_endpoint_dns == "gpu01:8443"
    assert http.get("/v1/projects/other/locations/-/endpoints").json() == {"endpoints": []}


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_model_version_carries_the_pins_of_the_snapshot(http: httpx.Client, version: str) -> None:
    endpoint = EndpointResource.model_validate(http.get(f"/{version}/{GEMMA}").json())
    deployed = endpoint.deployed_models[0]
    body = http.get(f"/{version}/{deployed.model}@{deployed.model_version_id}").json()

    pins = pins_from_model(ModelResource.model_validate(body))

    assert pins.model_id == "medport/medgemma-toy"
    assert pins.revision == "0123456789abcdef0123456789abcdef01234567"
    assert pins.snapshot_sha256 is not None
    assert pins.notice == "Toy model. Not for medical use."
    assert http.get(f"/{version}/{deployed.model}").json() == body
    assert deployed.id.isdecimal()
    assert len(deployed.id) <= 10


@pytest.mark.parametrize(
    "path",
    [
        "projects/p/locations/europe-west4/endpoints/medgemma",
        f"{ROOT}/endpoints/other",
        f"{ROOT}/models/other",
        f"{ROOT}/models/medgemma@2",
        "nothing",
    ],
)
def test_what_is_not_there_is_not_found(http: httpx.Client, path: str) -> None:
    assert error_of(http.get(f"/v1/{path}"))["status"] == "NOT_FOUND"


def test_prediction_is_an_object_in_vertex_envelope(http: httpx.Client, png: bytes) -> None:
    response = predict(http, {"@requestFormat": "chatCompletions", **chat("describe", png)})

    body = response.json()
    completion = body["predictions"]
    assert completion["object"] == "chat.completion"
    assert completion["choices"][0]["finish_reason"] in ("stop", "length")
    usage = completion["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert body["model"] == f"{ROOT}/models/medgemma"
    assert response.headers["X-Vertex-AI-Deployed-Model-Id"] == body["deployedModelId"]
    assert response.headers["X-Vertex-AI-Model"] == body["model"]
    assert response.headers["X-Vertex-AI-Model-Version-Id"] == body["modelVersionId"] == "1"


def test_several_instances_give_a_list_in_order(http: httpx.Client) -> None:
    alone = [predict(http, chat(text)).json()["predictions"]["choices"] for text in ("one", "two words")]

    together = predict(http, chat("one"), chat("two words")).json()["predictions"]

    assert [each["choices"] for each in together] == alone
    assert predict(http).json()["predictions"] == []


def test_all_paths_give_the_same_answer(http: httpx.Client, png: bytes) -> None:
    body = chat("describe", png)

    answers = [
        predict(http, body).json()["predictions"]["choices"],
        http.post("/v1/chat/completions", json=body).json()["choices"],
        http.post(f"/v1/{GEMMA}/chat/completions", json=body).json()["choices"],
        http.post(f"/v1beta1/{GEMMA}/chat/completions", json={**body, "model": ""}).json()["choices"],
    ]

    assert all(answer == answers[0] for answer in answers)


def test_image_changes_the_answer(http: httpx.Client, png: bytes) -> None:
    black = io.BytesIO()
    Image.new("L", (40, 40)).save(black, "PNG")

    first, second = (
        predict(http, chat("describe", data)).json()["predictions"] for data in (png, black.getvalue())
    )

    assert first["usage"]["prompt_tokens"] == second["usage"]["prompt_tokens"]
    assert first["choices"] != second["choices"]


def test_stream_has_the_exact_form_of_the_container(http: httpx.Client) -> None:
    body = chat(stream=True, stream_options={"include_usage": True})
    with http.stream("POST", f"/v1beta1/{GEMMA}/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]

    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    *chunks, usage = (json.loads(line[6:]) for line in lines[:-1])
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] >= 1
    assert all(len(chunk["choices"]) == 1 and "content" in chunk["choices"][0]["delta"] for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["delta"] == {"content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    assert text == predict(http, chat()).json()["predictions"]["choices"][0]["message"]["content"]


def test_stream_without_the_option_sends_no_usage_chunk(http: httpx.Client) -> None:
    response = http.post("/v1/chat/completions", json=chat(stream=True))

    chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    assert all(chunk["choices"] and "usage" not in chunk for chunk in chunks)


def test_openai_client_chats_and_streams(chat_openai: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}

    whole = chat_openai.chat.completions.create(max_completion_tokens=6, **options)
    stream = chat_openai.chat.completions.create(max_tokens=6, stream=True, **options)

    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 6


def test_openai_client_sees_typed_errors(chat_openai: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="prompt is empty"):
        chat_openai.chat.completions.create(model="", messages=[{"role": "user", "content": " "}])


def test_seed_and_stop_are_honoured(http: httpx.Client) -> None:
    def text(**options: object) -> str:
        body = predict(http, chat(max_tokens=30, **options)).json()
        content: str = body["predictions"]["choices"][0]["message"]["content"]
        return content

    drawn = text(temperature=1.0, seed=4)
    assert drawn == text(temperature=1.0, seed=4)
    assert drawn != text(temperature=1.0, seed=5)
    whole = text()
    assert text(stop=whole[4:6]) == whole[: whole.index(whole[4:6])]


UNSUPPORTED = [
    {"tools": [{"type": "function"}]}, {"top_logprobs": 3}, {"best_of": 4}, {"truncate_prompt_tokens": 5},
    {"chat_template_kwargs": {"x": 1}}, {"chat_template": "x"}, {"prompt_logprobs": 1}, {"guided_regex": "a"},
]  # fmt: skip


@pytest.mark.parametrize("option", UNSUPPORTED, ids=lambda option: next(iter(option)))
def test_what_is_not_supported_is_refused_and_not_ignored(http: httpx.Client, option: dict[str, object]) -> None:
    error = error_of(predict(http, chat(**option)))

    assert error["status"] == "INVALID_ARGUMENT"
    assert error["details"][0]["metadata"]["field"].startswith(next(iter(option)))


def test_neutral_values_are_taken(http: httpx.Client) -> None:
    neutral = {
        "n": 1, "response_format": {"type": "text"}, "tools": None, "logprobs": False, "presence_penalty": 0.0,
        "user": "someone", "stop": None, "seed": None, "temperature": None, "top_k": -1,
    }  # fmt: skip
    assert predict(http, chat(**neutral)).status_code == 200


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stop": [""]}, "stop[0]"),
        ({"stream": True}, "instances[0].stream"),
        ({"@requestFormat": "other"}, "@requestFormat"),
    ],
)
def test_wrong_value_is_refused_by_name(http: httpx.Client, changes: dict[str, object], field: str) -> None:
    error = error_of(predict(http, {**chat(), **changes}))

    assert error["details"][0]["metadata"]["field"] == field


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://example.org/a.png", "this server fetches nothing"),
        ("gs://bucket/a.png", "this server fetches nothing"),
        ("file:///etc/passwd", "not a data: URL"),
        ("/etc/passwd", "not a data: URL"),
        ("data:image/png;base64,AAAA", "no known image format"),
        ("data:image/png;base64,%%%", "broken base64"),
    ],
)
def test_image_that_is_none_is_refused(http: httpx.Client, url: str, said: str) -> None:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "x"}]

    response = predict(http, {"messages": [{"role": "user", "content": content}]})

    assert said in error_of(response)["message"]
    assert error_of(response)["details"][0]["metadata"]["field"] == "images[0]"


def test_fault_in_one_of_several_instances_names_it(http: httpx.Client) -> None:
    error = error_of(predict(http, chat(), chat(" ")))

    assert error["details"][0]["metadata"]["field"] == "instances[1].messages[0].content"


def test_chat_at_the_embedding_endpoint_is_not_found(http: httpx.Client) -> None:
    assert http.post(f"/v1/{SIGLIP}/chat/completions", json=chat()).status_code == 404


def test_embeddings_come_in_order_and_unit_length(http: httpx.Client, png: bytes) -> None:
    image = {"image": {"input_bytes": base64.b64encode(png).decode()}}

    body = predict(http, {"text": "normal lungs"}, image, {"text": "a nodule"}, endpoint=SIGLIP).json()

    first, second, third = body["predictions"]
    assert [each["input_type"] for each in (first, second, third)] == ["text", "image", "text"]
    for each in (first, second, third):
        assert np.linalg.norm(each["embedding"]) == pytest.approx(1, abs=1e-6)
        assert (round(each["model_temperature"], 5), each["model_bias"]) == (2.3, -5.0)
    assert first["embedding"] != third["embedding"]
    assert body["model"] == f"{ROOT}/models/medsiglip"


@pytest.mark.parametrize(
    ("instance", "code"),
    [
        ({"image": {"input_bytes": base64.b64encode(b"no image").decode()}}, "UNHANDLED_GENERIC_BYTES_ERROR"),
        ({"image": {"input_bytes": "%%"}}, "UNHANDLED_GENERIC_BYTES_ERROR"),
        ({"image": {"image_url": "https://example.org/x.png"}}, "UNHANDLED_HTTP_FILE_ERROR"),
        ({"image": {"gcs_uri": "gs://b/x.png"}}, "UNHANDLED_GCS_FILE_ERROR"),
    ],
)
def test_bad_instance_is_its_own_error_and_the_others_are_answered(
    http: httpx.Client, instance: object, code: str
) -> None:
    response = predict(http, {"text": "a"}, instance, {"text": "b"}, endpoint=SIGLIP)

    before, bad, after = response.json()["predictions"]
    assert response.status_code == 200
    assert set(bad) == {"error"}
    assert bad["error"]["code"] == code
    assert bad["error"]["description"]
    assert len(before["embedding"]) == len(after["embedding"]) == 16


@pytest.mark.parametrize(
    "instance",
    [
        {"text": "a", "image": {"input_bytes": "AAAA"}},
        {"image": {}},
        {},
        {"text": 5},
        {"image": {"input_bytes": "AAAA", "patch_coordinates_list": []}},
        {"image": {"gcs_uri": "gs://b/x"}},
        "text",
    ],
)
def test_instance_that_breaks_the_schema_fails_the_request(http: httpx.Client, instance: object) -> None:
    error = error_of(predict(http, {"text": "a"}, instance, endpoint=SIGLIP))

    assert error["details"][0]["metadata"]["field"].startswith("instances[1]")


def test_many_embeddings_at_once_equal_each_alone(http: httpx.Client) -> None:
    texts = [f"nodule {i}" for i in range(40)]

    together = predict(http, *({"text": text} for text in texts), endpoint=SIGLIP).json()["predictions"]

    for i in (0, 17, 39):
        alone = predict(http, {"text": texts[i]}, endpoint=SIGLIP).json()["predictions"][0]
        assert np.allclose(alone["embedding"], together[i]["embedding"], atol=1e-6)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"[" * 5000, b'{"instances": 5}', b"{}", b"\xff"])
def test_body_that_is_no_request_is_an_input_error(http: httpx.Client, body: bytes) -> None:
    assert error_of(http.post(f"/v1/{GEMMA}:predict", content=body))["status"] == "INVALID_ARGUMENT"


def test_body_over_the_limit_is_refused_by_its_declared_size(http: httpx.Client) -> None:
    response = http.post(f"/v1/{GEMMA}:predict", content=b" " * (MAX_BODY_BYTES + 1))

    assert response.status_code == 413
    assert response.json()["error"]["details"][0]["reason"] == "REQUEST_TOO_LARGE"


def test_body_over_the_limit_is_refused_while_it_is_counted(http: httpx.Client) -> None:
    chunks = (b" " * 2**16 for _ in range(MAX_BODY_BYTES // 2**16 + 2))

    assert http.post(f"/v1/{GEMMA}:predict", content=chunks).status_code == 413


def test_declared_size_without_a_body_allocates_nothing(server: inprocess.Server) -> None:
    host, port = server.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        head = (
            f"POST /v1/{GEMMA}:predict HTTP/1.1\r\nHost: x\r\nx-goog-api-key: {KEY}\r\nContent-Length: 4000000000"
        )
        raw.sendall(f"{head}\r\n\r\n".encode())
        assert b" 413 " in raw.recv(200)


def test_compressed_body_is_refused(http: httpx.Client) -> None:
    response = http.post(f"/v1/{GEMMA}:predict", content=b"x", headers={"Content-Encoding": "gzip"})

    assert "compressed" in error_of(response)["message"]


def test_every_route_but_health_wants_the_key(server: inprocess.Server) -> None:
    assert server.app is not None
    open_paths = set()
    for route in server.app.routes:
        path = route.path  # type: ignore[attr-defined]
        for parameter, value in {"project": "local", "location": "europe-west4", "path:path": "health"}.items():
            path = path.replace("{" + parameter + "}", value)
        path = re.sub(r"\{\w+\}", "medgemma", path)
        method = "POST" if "POST" in route.methods else "GET"  # type: ignore[attr-defined]
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Basic {KEY}"},
            {"x-goog-api-key": KEY[:-1]},
            {"Authorization": "Bearer ' OR 1=1 --"},
            {"Host": "x/health?x="},
            {"X-Forwarded-For": "127.0.0.1", "X-Original-URL": "/health"},
        ):
            answer = httpx.request(method, server.base_url + path, headers=headers)
            if answer.status_code != 401:
                open_paths.add(path)
    assert open_paths == {"/health", "/health/live", "/health/ready", "/ping", "/token"}


def test_key_is_taken_from_either_header(server: inprocess.Server) -> None:
    for headers in (
        {"Authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY}"},
        {"x-goog-api-key": KEY},
    ):
        assert httpx.get(f"{server.base_url}/v1/{GEMMA}", headers=headers).status_code == 200


def test_health_is_plain_and_open(server: inprocess.Server) -> None:
    response = httpx.get(f"{server.base_url}/health")

    assert (response.status_code, response.text) == (200, "ok")


def test_wrong_method_is_refused_in_the_same_envelope(http: httpx.Client) -> None:
    response = http.get("/v1/chat/completions")

    assert response.status_code == 405
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("given", ["abc-123", "a" * 128])
def test_request_id_of_the_caller_comes_back(http: httpx.Client, given: str) -> None:
    assert http.get("/health", headers={"X-Request-Id": given}).headers["X-Request-Id"] == given


@pytest.mark.parametrize("given", ["", "a b", "a" * 129, "x;y", "../x"])
def test_request_id_that_is_no_token_is_replaced(http: httpx.Client, given: str) -> None:
    made = http.get("/health", headers={"X-Request-Id": given}).headers["X-Request-Id"]

    assert made != given
    assert len(made) == 32


def test_unexpected_failure_is_an_envelope_with_the_id_and_no_content(
    http: httpx.Client, server: inprocess.Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("CANARY of the prompt")

    monkeypatch.setattr(engine_of(server).prompts, "build", broken)
    response = predict(http, chat("CANARY"), headers={"X-Request-Id": "find-me"})

    assert response.status_code == 500
    assert "find-me" in error_of(response)["message"]
    assert "CANARY" not in response.text + caplog.text
    assert "RuntimeError" in caplog.text


def test_log_holds_the_route_and_no_content(
    http: httpx.Client, png: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    http.post(f"/v1/{GEMMA}:predict?key=CANARY1", json={"instances": [chat("CANARY2", png)]})
    http.post("/v1/chat/completions", json=chat("CANARY2", stream=True), headers={"X-Request-Id": "seen-1"})
    http.post(f"/v1/{GEMMA}:predict", content=b"{CANARY3")
    http.post(f"/v1/{GEMMA}:predict", json={"instances": [chat(temperature="CANARY4")]})
    http.get("/v1/CANARY5")

    def said_by(*names: str) -> list[str]:
        return [record.getMessage() for record in list(caplog.records) if record.name.startswith(names)]

    # A line is written after the answer, so the caller may be ahead of it.
    until(lambda: len(said_by("medport_local.access")) == 5)
    said = "\n".join(said_by("medport", "uvicorn", "starlette", "asyncio"))
    assert "CANARY" not in said
    assert KEY not in said
    assert base64.b64encode(png).decode()[:40] not in said
    assert "POST /v1/projects/{project}/locations/{location}/endpoints/{endpoint}:predict 200" in said
    assert "request seen-1" in said
    assert "GET - 404" in said


def test_caller_who_leaves_a_stream_stops_the_work(http: httpx.Client, server: inprocess.Server) -> None:
    engine = engine_of(server)
    before = engine.stats()

    with http.stream("POST", "/v1/chat/completions", json=chat(stream=True, max_tokens=LONG)) as response:
        next(response.iter_lines())

    until(lambda: engine.stats().cancelled == before.cancelled + 1)
    assert engine.stats().held == 0
    assert engine.stats().tokens_generated - before.tokens_generated < LONG


def test_caller_who_leaves_a_prediction_stops_the_work(http: httpx.Client, server: inprocess.Server) -> None:
    engine = engine_of(server)
    before = engine.stats()

    with pytest.raises(httpx.ReadTimeout):
        predict(http, chat(max_tokens=LONG), chat(max_tokens=LONG), timeout=httpx.Timeout(30, read=0.15))

    until(lambda: engine.stats().cancelled == before.cancelled + 2)
    assert engine.stats().held == 0


def test_deadline_of_the_caller_is_kept(http: httpx.Client, server: inprocess.Server) -> None:
    engine = engine_of(server)

    response = predict(http, chat(max_tokens=LONG), headers={"X-Request-Timeout-S": "0.1"})

    assert response.status_code == 504
    assert response.json()["error"]["status"] == "DEADLINE_EXCEEDED"
    until(lambda: engine.stats().held == 0)
    assert http.get("/health", headers={"X-Request-Timeout-S": "soon"}).status_code == 400


def test_deadline_in_mid_stream_is_an_error_event(http: httpx.Client) -> None:
    body = chat(stream=True, max_tokens=LONG)

    response = http.post("/v1/chat/completions", json=body, headers={"X-Request-Timeout-S": "0.2"})

    last = [line for line in response.text.splitlines() if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["status"] == "DEADLINE_EXCEEDED"


def test_full_queue_is_a_quota_error_with_retry_after(http: httpx.Client, server: inprocess.Server) -> None:
    crowd = [chat(max_tokens=LONG)] * 4  # two run, two wait

    def occupy() -> None:
        predict(http, *crowd, headers={"X-Request-Timeout-S": "3"})

    thread = threading.Thread(target=occupy)
    thread.start()
    until(lambda: engine_of(server).stats().queued == 2)

    response = predict(http, chat())

    assert response.status_code == 429
    assert 1 <= int(response.headers["Retry-After"]) <= 60
    typed = error_from(429, response.content, retry_after_s=1.0)
    assert type(typed).__name__ == "QuotaExceeded"
    thread.join()
    until(lambda: engine_of(server).stats().held == 0)
