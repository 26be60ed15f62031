"""Predictions by what was deployed: the same calls as on Vertex, answered by an engine on the phantom."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from google.api_core import exceptions
from google.cloud import aiplatform
from support.client_calls import call
from support.wire import text

import medport

from .conftest import Open, Site

JSON = {"Content-Type": "application/json"}
QUESTION = "Describe this X-ray."


def chat(**options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12, "temperature": 0, **options}


def said(completion: Any) -> str:
    return str(completion["choices"][0]["message"]["content"])


@pytest.fixture
def client(site: Site, served: aiplatform.Endpoint) -> Iterator[medport.Client]:
    """Our own client, by the name of the endpoint resource."""
    with medport.Client(
        backend="local", url=site.url, ca_file=site.ca_file, api_key=site.key, medgemma=served.resource_name
    ) as each:
        yield each


@pytest.fixture
def answer(client: medport.Client) -> str:
    """What our own client is told."""
    return client.chat(QUESTION, max_tokens=12, temperature=0).text


@call("Endpoint.predict(), dedicated")
def test_predict_dedicated(served: aiplatform.Endpoint, answer: str) -> None:
    found = served.predict(instances=[{"@requestFormat": "chatCompletions", **chat()}])

    assert said(found.predictions) == answer
    assert found.deployed_model_id == served.list_models()[0].id
    assert (found.model_version_id, found.model_resource_name) == ("1", served.list_models()[0].model)


@call("Endpoint.predict(), on the shared host")
def test_predict_shared(shared: aiplatform.Endpoint, answer: str) -> None:
    found = shared.predict(instances=[{"@requestFormat": "chatCompletions", **chat()}])

    assert said(found.predictions[0]) == answer
    assert found.deployed_model_id == shared.list_models()[0].id


@call("Endpoint.predict(use_raw_predict=True)")
def test_predict_by_raw_predict(served: aiplatform.Endpoint, answer: str) -> None:
    found = served.predict(instances=[{"@requestFormat": "chatCompletions", **chat()}], use_raw_predict=True)

    assert said(found.predictions) == answer
    assert found.deployed_model_id == served.list_models()[0].id


@call("Endpoint.predict_async(), dedicated")
def test_predict_async_dedicated(
    site: Site, served: aiplatform.Endpoint, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This call alone asks certifi whom to trust, whatever the environment says.
    monkeypatch.setattr("certifi.where", lambda: site.ca_file)

    found = asyncio.run(served.predict_async(instances=[{"@requestFormat": "chatCompletions", **chat()}]))

    assert said(found.predictions) == answer


@call(
    "Endpoint.predict_async(), on the shared host",
    "no",
    "the client speaks gRPC here whatever api_transport says, and this server speaks REST",
)
def test_predict_async_shared_is_grpc(shared: aiplatform.Endpoint) -> None:
    async def transport() -> str:
        client = shared._prediction_async_client.select_version("v1")
        name = type(client.transport).__name__
        await client.transport.close()
        return name

    assert asyncio.run(transport()) == "PredictionServiceGrpcAsyncIOTransport"


@call("Endpoint.raw_predict()")
def test_raw_predict(served: aiplatform.Endpoint, answer: str) -> None:
    response = served.raw_predict(body=json.dumps(chat()).encode(), headers=JSON)

    assert said(response.json()) == answer
    assert response.headers["X-Vertex-AI-Deployed-Model-Id"] == served.list_models()[0].id


@call("Endpoint.stream_raw_predict()")
def test_stream_raw_predict(served: aiplatform.Endpoint, answer: str) -> None:
    body = json.dumps(chat(stream=True)).encode()

    lines = [each.decode() for each in served.stream_raw_predict(body=body, headers=JSON) if each]

    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(each.removeprefix("data: ")) for each in lines[:-1]]
    assert "".join(each["choices"][0]["delta"]["content"] for each in chunks) == answer


@call(
    "Endpoint.raw_predict() and .stream_raw_predict(), on the shared host",
    "no",
    "the client hard-codes Google's host and ignores api_endpoint; works through a proxy that plays that host",
)
def test_raw_predict_shared_asks_googles_own_host(shared: aiplatform.Endpoint) -> None:
    # The fixture that keeps clients on this machine says where it wanted to go.
    with pytest.raises(AssertionError, match=r"a client wants to reach europe-west4-aiplatform\.googleapis\.com"):
        shared.raw_predict(body=b"{}", headers=JSON)


@call("Endpoint.invoke('/v1/chat/completions'), also of one deployed model")
@pytest.mark.parametrize("one", [False, True], ids=["endpoint", "deployed-model"])
def test_invoke(served: aiplatform.Endpoint, answer: str, one: bool) -> None:
    response = served.invoke(
        "/v1/chat/completions",
        json.dumps(chat(model="")).encode(),
        JSON,
        deployed_model_id=served.list_models()[0].id if one else None,
    )

    assert said(response.json()) == answer


@call("Endpoint.invoke(stream=True)")
def test_invoke_streams(served: aiplatform.Endpoint, answer: str) -> None:
    body = json.dumps(chat(model="", stream=True)).encode()

    lines = [each for each in served.invoke("/v1/chat/completions", body, JSON, stream=True) if each]

    assert lines[-1] == b"data: [DONE]"
    chunks = [json.loads(each.removeprefix(b"data: ")) for each in lines[:-1]]
    assert "".join(each["choices"][0]["delta"]["content"] for each in chunks) == answer


@call("openai.OpenAI(base_url=…/v1beta1/{endpoint}).chat.completions.create(), also /v1, also streamed")
@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_openai_client_on_the_endpoint(site: Site, served: aiplatform.Endpoint, answer: str, version: str) -> None:
    with openai.OpenAI(base_url=f"{site.url}/{version}/{served.resource_name}", api_key=site.key) as client:
        whole = client.chat.completions.create(
            model="", messages=[{"role": "user", "content": QUESTION}], max_tokens=12, temperature=0
        )
        stream = client.chat.completions.create(
            model="", messages=[{"role": "user", "content": QUESTION}], max_tokens=12, temperature=0, stream=True
        )
        pieces = [each.choices[0].delta.content or "" for each in stream]

    assert whole.choices[0].message.content == "".join(pieces) == answer


@call("medport.Client(endpoint=).chat() with provenance")
def test_own_client_knows_what_answered(client: medport.Client, served: aiplatform.Endpoint) -> None:
    provenance = client.chat(QUESTION, max_tokens=2).provenance

    assert provenance.revision
    assert provenance.snapshot_sha256
    assert provenance.deployed_model_id == served.list_models()[0].id


# --- refused


@call("Endpoint.predict() where nothing is deployed", "refused", "400: doesn't have traffic_split")
def test_endpoint_without_models(endpoint: Open) -> None:
    with pytest.raises(exceptions.BadRequest, match="doesn't have traffic_split"):
        endpoint().predict(instances=[text(QUESTION)])
    with pytest.raises(ValueError, match="doesn't have traffic_split"):
        endpoint(dedicated_endpoint_enabled=True).predict(instances=[text(QUESTION)])


@call("Endpoint.predict() of a request that is wrong", "refused", "400 that names the field")
def test_request_that_is_wrong(served: aiplatform.Endpoint, shared: aiplatform.Endpoint) -> None:
    with pytest.raises(ValueError, match=r"Status code:400, response: .*max_tokens"):
        served.predict(instances=[text(QUESTION, max_tokens=0)])
    with pytest.raises(exceptions.BadRequest, match="max_tokens"):
        shared.predict(instances=[text(QUESTION, max_tokens=0)])


@call("Endpoint.invoke() on a shared endpoint", "refused", "by the client")
def test_invoke_is_for_dedicated_endpoints(shared: aiplatform.Endpoint) -> None:
    with pytest.raises(ValueError, match="only supported on dedicated"):
        shared.invoke("/v1/chat/completions", b"{}", JSON)


@call("Endpoint.invoke(deployed_model_id=) that is not there", "refused", "by the client, and 404 by the service")
def test_invoke_of_a_deployed_model_that_is_not_there(http: httpx.Client, served: aiplatform.Endpoint) -> None:
    path = f"/v1/{served.resource_name}/deployedModels/12345/invoke/v1/chat/completions"

    with pytest.raises(ValueError, match="12345 not found"):
        served.invoke("/v1/chat/completions", b"{}", JSON, deployed_model_id="12345")

    assert http.post(path, json=chat()).status_code == 404


@call("PrivateEndpoint.predict(endpoint_override=)", "no", "the client takes no port, and turns verification off")
def test_override_of_a_private_endpoint_takes_no_port(site: Site) -> None:
    config = aiplatform.PrivateEndpoint.PrivateServiceConnectConfig(project_allowlist=["radiology"])
    made = aiplatform.PrivateEndpoint.create(display_name="private", private_service_connect_config=config)

    with pytest.raises(ValueError, match="Invalid endpoint override"):
        made.predict(instances=[text(QUESTION)], endpoint_override=site.address)

    made.delete()


# --- not offered


@call("Endpoint.explain()", "501", "these models give no explanations")
def test_explain_is_not_offered(shared: aiplatform.Endpoint) -> None:
    with pytest.raises(exceptions.MethodNotImplemented, match="predict"):
        shared.explain(instances=[text(QUESTION)])


@call("Endpoint.direct_predict() and .direct_raw_predict()", "501", "use predict")
def test_direct_predictions_are_not_offered(shared: aiplatform.Endpoint) -> None:
    with pytest.raises(exceptions.MethodNotImplemented, match="predict"):
        shared.direct_predict(inputs=[])
    with pytest.raises(exceptions.MethodNotImplemented, match="predict"):
        shared.direct_raw_predict(method_name="predict", request=b"")


@call("any call by gRPC", "501", "REST only, and it says so")
def test_grpc_is_told_to_use_rest(http: httpx.Client) -> None:
    answer = http.post(
        "/google.cloud.aiplatform.v1.EndpointService/GetEndpoint",
        content=b"\0\0\0\0\0",
        headers={"Content-Type": "application/grpc"},
    )

    assert answer.status_code == 501
    assert "api_transport" in answer.text
