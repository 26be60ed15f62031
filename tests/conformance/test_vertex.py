"""The endpoint resource: verbs, envelope, headers, limits and errors as Vertex has them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from support.wire import ROOT, Endpoint, b64, events, png, said, text

HEADERS = ("X-Vertex-AI-Deployed-Model-Id", "X-Vertex-AI-Model", "X-Vertex-AI-Model-Version-Id")


def resource(endpoint: Endpoint) -> dict[str, Any]:
    found: dict[str, Any] = endpoint.http.get(endpoint.path).json()
    return found


def test_predict_envelope(gemma: Endpoint) -> None:
    """`:predict`: `predictions`, `deployedModelId`, `model`, `modelDisplayName`, `modelVersionId`."""
    body = gemma.post(":predict", {"instances": [text()]}).json()
    deployed = resource(gemma)["deployedModels"][0]

    assert set(body) == {"predictions", "deployedModelId", "model", "modelDisplayName", "modelVersionId"}
    assert body["deployedModelId"] == deployed["id"]
    assert body["model"] == deployed["model"]
    assert body["modelVersionId"] == deployed["modelVersionId"]


def test_predict_needs_instances(gemma: Endpoint) -> None:
    """`:predict` without `instances`: 400 INVALID_ARGUMENT."""
    answer = gemma.post(":predict", text())
    assert answer.status_code == 400
    assert answer.json()["error"]["status"] == "INVALID_ARGUMENT"


def test_raw_predict_is_the_containers_answer(gemma: Endpoint, siglip: Endpoint) -> None:
    """`:rawPredict`: no envelope; which model answered stands in the headers."""
    for endpoint, body in ((gemma, {"instances": [text()]}), (siglip, {"instances": [{"text": "a"}]})):
        answer = endpoint.post(":rawPredict", body)
        assert set(answer.json()) == {"predictions"}
        assert answer.headers[HEADERS[0]] == resource(endpoint)["deployedModels"][0]["id"]
        assert all(header in answer.headers for header in HEADERS)


def test_raw_predict_of_a_bare_chat(gemma: Endpoint) -> None:
    """`:rawPredict` of a bare chat: the bare completion."""
    assert said(gemma.post(":rawPredict", text()).json()) == said(gemma.predict(text()))


def test_stream_raw_predict(gemma: Endpoint) -> None:
    """`:streamRawPredict` with `stream`: server-sent events; without it, the answer."""
    streamed = gemma.post(":streamRawPredict", {**text(), "stream": True})
    assert events(streamed)[-1] == "[DONE]"
    assert streamed.headers[HEADERS[0]] == resource(gemma)["deployedModels"][0]["id"]
    assert said(gemma.post(":streamRawPredict", text()).json()) == said(gemma.predict(text()))
    wrapped = gemma.post(":streamRawPredict", {"instances": [{**text(), "stream": True}]})
    assert events(wrapped)[-1] == "[DONE]"


def test_stream_is_refused_where_nothing_streams(gemma: Endpoint) -> None:
    """`stream` in `:predict` or `:rawPredict` is refused by name."""
    for verb, body in ((":predict", {"instances": [text(stream=True)]}), (":rawPredict", text(stream=True))):
        answer = gemma.post(verb, body)
        assert answer.status_code == 400
        assert answer.json()["error"]["details"][0]["metadata"]["field"].endswith("stream")


@pytest.mark.parametrize("path", ["generate", "v1/chat/completions"])
def test_invoke(gemma: Endpoint, path: str) -> None:
    """`/invoke/*`: any path of the container."""
    body = {"instances": [text()]} if path == "generate" else text()
    answer = gemma.post(f"/invoke/{path}", body)
    assert answer.status_code == 200
    assert answer.headers[HEADERS[0]]


def test_invoke_get(gemma: Endpoint) -> None:
    """`/invoke` with GET: the container's health and models."""
    assert gemma.http.get(f"{gemma.path}/invoke/ping").text == "ok"
    assert gemma.http.get(f"{gemma.path}/invoke/v1/models").json()["data"][0]["id"] == "medgemma"


def test_invoke_of_a_deployed_model(gemma: Endpoint) -> None:
    """`/deployedModels/D/invoke/*`: that deployed model; 404 for another."""
    deployed = resource(gemma)["deployedModels"][0]["id"]
    assert gemma.post(f"/deployedModels/{deployed}/invoke/v1/chat/completions", text()).status_code == 200
    assert gemma.post("/deployedModels/1/invoke/v1/chat/completions", text()).status_code == 404


def test_invoke_of_an_unknown_path(gemma: Endpoint) -> None:
    """A path that the container does not have: 404."""
    assert gemma.post("/invoke/v1/weights", {}).status_code == 404


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_versions(gemma: Endpoint, version: str) -> None:
    """Every verb under v1 and v1beta1."""
    for verb in (":predict", ":rawPredict", ":streamRawPredict", "/chat/completions"):
        body = {"instances": [text()]} if verb == ":predict" else text()
        assert gemma.http.post(f"/{version}/{ROOT}/endpoints/medgemma{verb}", json=body).status_code == 200


def test_endpoint_resource(gemma: Endpoint, server_address: str) -> None:
    """A dedicated endpoint: `dedicatedEndpointEnabled`, `dedicatedEndpointDns` without scheme, its model."""
    found = resource(gemma)
    assert found["name"] == f"{ROOT}/endpoints/medgemma"
    assert found["dedicatedEndpointEnabled"] is True
    assert found["dedicatedEndpointDns"] == server_address
    assert len(found["deployedModels"]) == 1
    assert found["trafficSplit"] == {found["deployedModels"][0]["id"]: 100}


def test_shared_endpoint_resource(shared: Endpoint) -> None:
    """A shared endpoint: not dedicated, no DNS of its own, its own deployed model."""
    found = resource(shared)
    assert found["dedicatedEndpointEnabled"] is False
    assert "dedicatedEndpointDns" not in found


def test_shared_endpoint_answers_alike(shared: Endpoint, gemma: Endpoint) -> None:
    """A shared endpoint is the same model."""
    assert said(shared.predict(text())) == said(gemma.predict(text()))


def test_shared_body_limit(shared: Endpoint, gemma: Endpoint) -> None:
    """1.5 MB for a shared endpoint, 10 MB for a dedicated one: 413 above."""
    large = text("x" * (2 * 1024 * 1024))
    assert shared.post(":predict", {"instances": [large]}).status_code == 413
    assert gemma.post(":predict", {"instances": [large]}).status_code == 400  # too long a prompt, but let in
    larger = b64(bytes(8 * 1024 * 1024))
    assert gemma.post(":predict", {"instances": [text(larger)]}).status_code == 413


def test_shared_invoke_is_refused(shared: Endpoint) -> None:
    """`/invoke` needs a dedicated endpoint."""
    assert shared.post("/invoke/v1/chat/completions", text()).status_code == 404


def test_error_envelope(gemma: Endpoint) -> None:
    """Errors: `{"error": {"code", "message", "status", "details"}}`."""
    error = gemma.post(":predict", {"instances": [{}]}).json()["error"]
    assert error["code"] == 400
    assert error["status"] == "INVALID_ARGUMENT"
    assert error["details"][0]["@type"].endswith("google.rpc.ErrorInfo")


def test_unknown_endpoint(http: httpx.Client) -> None:
    """An endpoint that is not there: 404 NOT_FOUND."""
    answer = http.post(f"/v1/{ROOT}/endpoints/none:predict", json={"instances": [text()]})
    assert (answer.status_code, answer.json()["error"]["status"]) == (404, "NOT_FOUND")


def test_query_of_the_generated_client(gemma: Endpoint) -> None:
    """Google's generated client, known by its `$alt`, gets `predictions` as a list: a repeated field."""
    answer = gemma.post(":predict?%24alt=json%3Benum-encoding%3Dint", {"instances": [text()]})
    assert [said(each) for each in answer.json()["predictions"]] == [said(gemma.predict(text()))]


def test_parameters_are_refused(siglip: Endpoint) -> None:
    """`parameters` may be there and empty; what is in them would be ignored, and is refused."""
    assert siglip.post(":predict", {"instances": [{"text": "a"}], "parameters": {}}).status_code == 200
    assert siglip.post(":predict", {"instances": [{"text": "a"}], "parameters": {"x": 1}}).status_code == 400


def test_deadline_of_the_caller(gemma: Endpoint) -> None:
    """`X-Request-Timeout-S`: 504 DEADLINE_EXCEEDED when it has passed."""
    body = {"instances": [text(max_tokens=4000, ignore_eos=True)]}
    answer = gemma.post(":predict", body, headers={"X-Request-Timeout-S": "0.2"})
    assert (answer.status_code, answer.json()["error"]["status"]) == (504, "DEADLINE_EXCEEDED")


def test_image_in_every_verb(gemma: Endpoint) -> None:
    """The same image has the same answer by every verb."""
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(png())}"}}
    request = text([part, {"type": "text", "text": "Describe."}])
    answers = {
        said(gemma.predict(request)),
        said(gemma.post(":rawPredict", request).json()),
        said(gemma.post("/chat/completions", request).json()),
        said(gemma.post("/invoke/v1/chat/completions", request).json()),
    }
    assert len(answers) == 1
