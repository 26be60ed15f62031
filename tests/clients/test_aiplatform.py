"""google-cloud-aiplatform as it is published, against the server: dedicated endpoints and the shared host."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from google.cloud import aiplatform
from google.oauth2.credentials import Credentials
from support.wire import b64, data_url, picture, text

import medport

from .conftest import LOCATION, PROJECT, QUESTION, Site, Sources

JSON = {"Content-Type": "application/json"}
Open = Callable[[str], aiplatform.Endpoint]


@pytest.fixture(autouse=True)
def initialised(site: Site, tokens: str) -> None:
    """As a program sets it up that is pointed at another API host. The token is the API key."""
    logging.getLogger("google.cloud.aiplatform").setLevel(logging.ERROR)
    aiplatform.init(
        project=PROJECT,
        location=LOCATION,
        api_endpoint=site.url,
        api_transport="rest",
        credentials=refreshable(tokens),
    )


@pytest.fixture
def endpoint(site: Site) -> Iterator[Open]:
    opened: list[aiplatform.Endpoint] = []

    def open_(name: str) -> aiplatform.Endpoint:
        opened.append(aiplatform.Endpoint(site.endpoints[name]))
        return opened[-1]

    yield open_
    for each in opened:
        if each.authorized_session is not None:
            each.authorized_session.close()


def refreshable(token_uri: str) -> Credentials:
    return Credentials(None, refresh_token="r", token_uri=token_uri, client_id="c", client_secret="s")


def chat(content: object = QUESTION, **options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 12, **options}


def said(completion: Any) -> str:
    return str(completion["choices"][0]["message"]["content"])


@pytest.fixture
def answer(client: medport.Client) -> str:
    """What our own client is told."""
    return client.chat(QUESTION, max_tokens=12).text


def test_endpoint_shows_what_the_client_reads_of_it(site: Site, endpoint: Open) -> None:
    found = endpoint("medgemma")

    assert found.dedicated_endpoint_enabled
    assert found.dedicated_endpoint_dns == site.address
    assert found.resource_name == site.endpoints["medgemma"]
    assert sum(found.traffic_split.values()) == 100
    assert [each.id for each in found.list_models()] == list(found.traffic_split)


def test_list_finds_every_endpoint() -> None:
    found = aiplatform.Endpoint.list()

    assert {each.display_name for each in found} == {"medgemma", "medgemma-dicom", "medgemma-shared", "medsiglip"}


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ('display_name="medgemma"', {"medgemma"}),
        ("display_name=none", set()),
        ('labels.medport-dialect="vllm"', {"medgemma", "medgemma-shared"}),
        ("labels.medport-family:*", {"medgemma", "medsiglip"}),
        ('labels.medport-dialect=vllm AND display_name="medgemma-shared"', {"medgemma-shared"}),
    ],
)
def test_list_keeps_to_its_filter(wanted: str, names: set[str]) -> None:
    assert {each.display_name for each in aiplatform.Endpoint.list(filter=wanted)} == names


def test_filter_that_is_not_known_is_refused_and_not_ignored() -> None:
    with pytest.raises(Exception, match="filter") as refused:
        aiplatform.Endpoint.list(filter="create_time > 5")

    assert type(refused.value).__name__ == "BadRequest"


def test_model_behind_an_endpoint_can_be_looked_up(endpoint: Open) -> None:
    model = aiplatform.Model(endpoint("medgemma").list_models()[0].model)

    assert model.version_id == "1"
    assert "default" in model.version_aliases


def test_predict_dedicated(endpoint: Open, answer: str) -> None:
    prediction = endpoint("medgemma").predict(instances=[text(QUESTION)])

    assert said(prediction.predictions) == answer
    assert prediction.deployed_model_id == endpoint("medgemma").list_models()[0].id
    assert prediction.model_version_id == "1"
    assert prediction.model_resource_name.endswith("/models/medgemma")


def test_predict_of_an_image_and_a_system_prompt(endpoint: Open, sources: Sources) -> None:
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "You are an expert radiologist."}]},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}, picture(data_url(sources.picture))]},
    ]
    with_image = {"@requestFormat": "chatCompletions", "messages": messages, "max_tokens": 12, "temperature": 0}

    shown = endpoint("medgemma").predict(instances=[with_image]).predictions
    told = endpoint("medgemma").predict(instances=[text(QUESTION)]).predictions

    assert shown["usage"]["prompt_tokens"] > told["usage"]["prompt_tokens"] + 16


def test_predict_by_raw_predict_reads_the_model_from_the_headers(endpoint: Open, answer: str) -> None:
    prediction = endpoint("medgemma").predict(instances=[text(QUESTION)], use_raw_predict=True)

    assert said(prediction.predictions) == answer
    assert prediction.deployed_model_id == endpoint("medgemma").list_models()[0].id
    assert prediction.model_version_id == "1"


def test_predict_waits_longer_than_the_default(endpoint: Open, answer: str) -> None:
    assert said(endpoint("medgemma").predict(instances=[text(QUESTION)], timeout=300).predictions) == answer


def test_predict_shared_sends_every_number_as_a_double(endpoint: Open, answer: str) -> None:
    instance = text(QUESTION, top_k=-1, seed=7, n=1, stop_token_ids=[5], top_logprobs=2, logprobs=True)

    prediction = endpoint("medgemma_shared").predict(instances=[instance])

    assert said(prediction.predictions[0]) == answer
    assert prediction.deployed_model_id == endpoint("medgemma_shared").list_models()[0].id


def test_predict_shared_gives_an_answer_to_each_instance(endpoint: Open, answer: str) -> None:
    prediction = endpoint("medgemma_shared").predict(instances=[text(QUESTION), text(QUESTION)])

    assert [said(each) for each in prediction.predictions] == [answer, answer]


def test_predict_shared_of_a_raw_prompt(endpoint: Open) -> None:
    instance = {"prompt": "Describe this X-ray. ", "max_tokens": 6, "temperature": 0, "raw_response": True}

    (written,) = endpoint("medgemma_shared").predict(instances=[instance]).predictions

    assert isinstance(written, str)
    assert written


def test_predict_async_dedicated(endpoint: Open, site: Site, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # This call alone asks certifi whom to trust, whatever the environment says.
    monkeypatch.setattr("certifi.where", lambda: site.ca_file)
    found = endpoint("medgemma")

    async def both() -> list[aiplatform.models.Prediction]:
        return await asyncio.gather(*(found.predict_async(instances=[text(QUESTION)]) for _ in range(2)))

    assert [said(each.predictions) for each in asyncio.run(both())] == [answer, answer]


def test_predict_async_shared() -> None:
    pytest.skip("the client speaks gRPC here whatever api_transport says, and this server speaks REST")


def test_raw_predict_passes_the_body_and_the_answer_through(endpoint: Open, answer: str) -> None:
    found = endpoint("medgemma")

    response = found.raw_predict(body=json.dumps({"instances": [text(QUESTION)]}).encode(), headers=JSON)
    bare = found.raw_predict(body=json.dumps(chat()).encode(), headers=JSON)

    assert response.status_code == 200
    assert set(response.json()) == {"predictions"}
    assert said(response.json()["predictions"]) == said(bare.json()) == answer
    assert response.headers["X-Vertex-AI-Deployed-Model-Id"] == found.list_models()[0].id


def test_raw_predict_of_a_bare_dicom_request(endpoint: Open, sources: Sources) -> None:
    image = {"type": "image_dicom", "image_dicom": {"dicom_source": sources.radiograph_uri}}
    body = chat([{"type": "text", "text": QUESTION}, image])

    response = endpoint("medgemma_dicom").raw_predict(body=json.dumps(body).encode(), headers=JSON)

    assert response.status_code == 200
    assert said(response.json())


def test_stream_raw_predict_yields_server_sent_events(endpoint: Open, answer: str) -> None:
    body = json.dumps(chat(stream=True)).encode()

    lines = [each.decode() for each in endpoint("medgemma").stream_raw_predict(body=body, headers=JSON) if each]

    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(each.removeprefix("data: ")) for each in lines[:-1]]
    assert "".join(each["choices"][0]["delta"]["content"] for each in chunks) == answer


def test_stream_raw_predict_of_an_instance(endpoint: Open, answer: str) -> None:
    body = json.dumps({"instances": [text(QUESTION, stream=True)]}).encode()

    lines = [each for each in endpoint("medgemma").stream_raw_predict(body=body, headers=JSON) if each]

    assert lines[-1] == b"data: [DONE]"
    chunks = [json.loads(each.removeprefix(b"data: ")) for each in lines[:-1]]
    assert "".join(each["choices"][0]["delta"]["content"] for each in chunks) == answer


@pytest.mark.parametrize("deployed", [False, True], ids=["endpoint", "deployed-model"])
def test_invoke(endpoint: Open, answer: str, deployed: bool) -> None:
    found = endpoint("medgemma")
    model = found.list_models()[0].id if deployed else None

    response = found.invoke(
        "/v1/chat/completions", json.dumps(chat(model="")).encode(), JSON, deployed_model_id=model
    )

    assert response.status_code == 200
    assert said(response.json()) == answer


@pytest.mark.parametrize("flag", [True, "true"], ids=["bool", "as-its-docstring-has-it"])
def test_invoke_streams(endpoint: Open, answer: str, flag: object) -> None:
    body = json.dumps(chat(model="", stream=flag)).encode()

    lines = [each for each in endpoint("medgemma").invoke("/v1/chat/completions", body, JSON, stream=True) if each]

    assert lines[-1] == b"data: [DONE]"
    chunks = [json.loads(each.removeprefix(b"data: ")) for each in lines[:-1]]
    assert "".join(each["choices"][0]["delta"]["content"] for each in chunks) == answer


def test_invoke_is_for_dedicated_endpoints(endpoint: Open) -> None:
    with pytest.raises(ValueError, match="only supported on dedicated"):
        endpoint("medgemma_shared").invoke("/v1/chat/completions", b"{}", JSON)


@pytest.mark.usefixtures("googles_host")
def test_raw_predict_shared_by_googles_own_host_name(endpoint: Open, answer: str) -> None:
    """These two calls ignore ``api_endpoint`` on a shared endpoint, so a proxy plays Google's host."""
    found = endpoint("medgemma_shared")
    body, streamed = json.dumps(chat()).encode(), json.dumps(chat(stream=True)).encode()

    response = found.raw_predict(body=body, headers=JSON)
    lines = [each for each in found.stream_raw_predict(body=streamed, headers=JSON) if each]

    assert said(response.json()) == answer
    assert lines[-1] == b"data: [DONE]"


def test_embeddings_dedicated(endpoint: Open, sources: Sources, client: medport.Client) -> None:
    instances = [
        {"text": "a nodule"},
        {"image": {"input_bytes": b64(sources.picture)}},
        {"image": {"gcs_uri": sources.gcs_uri}},
        {"image": {"input_bytes": b64(b"no image")}},
    ]

    of_text, of_bytes, of_gcs, broken = endpoint("medsiglip").predict(instances=instances).predictions

    assert np.allclose(of_text["embedding"], client.embed_texts("a nodule").vectors[0], atol=1e-6)
    assert of_bytes["embedding"] == pytest.approx(of_gcs["embedding"], abs=1e-6)
    assert set(of_bytes) == {"embedding", "input_type", "model_temperature", "model_bias"}
    assert broken["error"]["code"] == "UNHANDLED_GENERIC_BYTES_ERROR"


def test_langchain_style_raw_prompt(endpoint: Open) -> None:
    """Model Garden's LangChain class sends these three keys and strips the echo of the prompt."""
    instance = {"prompt": "Describe this X-ray. ", "temperature": 0.0, "max_tokens": 6}

    (written,) = endpoint("medgemma").predict(instances=[instance]).predictions

    prefix = "Prompt:\nDescribe this X-ray.\nOutput:\n"
    assert written.startswith(prefix)
    assert written != prefix


# --- errors, as this client shows them


def test_error_of_a_dedicated_prediction_is_a_value_error_that_names_the_field(endpoint: Open) -> None:
    with pytest.raises(ValueError, match=r"Status code:400, response: .*max_tokens"):
        endpoint("medgemma").predict(instances=[text(QUESTION, max_tokens=0)])


def test_error_of_a_shared_prediction_is_an_api_exception(endpoint: Open) -> None:
    with pytest.raises(Exception, match="max_tokens") as refused:
        endpoint("medgemma_shared").predict(instances=[text(QUESTION, max_tokens=0)])

    assert type(refused.value).__name__ == "BadRequest"


@pytest.mark.parametrize(("name", "size"), [("medgemma_shared", 2_000_000), ("medgemma", 11_000_000)])
def test_request_that_is_too_large_is_told_so(endpoint: Open, name: str, size: int) -> None:
    with pytest.raises(Exception, match="413"):
        endpoint(name).predict(instances=[text("a" * size)])


def test_error_of_a_raw_prediction_is_a_response(endpoint: Open) -> None:
    response = endpoint("medgemma").raw_predict(body=b"not json", headers=JSON)

    assert response.status_code == 400
    assert response.json()["error"]["status"] == "INVALID_ARGUMENT"


def test_error_of_a_stream_is_its_first_line(endpoint: Open) -> None:
    body = json.dumps(chat(stream=True, temperature=9)).encode()

    lines = [each for each in endpoint("medgemma").stream_raw_predict(body=body, headers=JSON) if each]

    assert json.loads(b"".join(lines))["error"]["code"] == 400


def test_error_of_the_dicom_container_is_a_plain_200(endpoint: Open) -> None:
    body = json.dumps(chat(unheard_of=1)).encode()

    response = endpoint("medgemma_dicom").raw_predict(body=body, headers=JSON)

    assert response.status_code == 200
    assert isinstance(response.json()["error"], str)


def test_endpoint_that_is_not_there_is_not_found() -> None:
    with pytest.raises(Exception, match="no such endpoint") as refused:
        _ = aiplatform.Endpoint(f"projects/{PROJECT}/locations/{LOCATION}/endpoints/12345").display_name

    assert type(refused.value).__name__ == "NotFound"


def test_key_that_is_not_known_is_unauthenticated(site: Site, tokens: str) -> None:
    other = refreshable(f"{tokens}/other")

    with pytest.raises(Exception, match="API key") as refused:
        _ = aiplatform.Endpoint(site.endpoints["medgemma"], credentials=other).display_name

    assert type(refused.value).__name__ == "Unauthorized"
