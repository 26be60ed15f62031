"""Vertex AI's three shapes of endpoint, its spellings of an answer, and what a result says it came from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.faults import Answer, dead_port
from support.vertex import (
    LOCATION,
    NUMBER,
    PARENT,
    TEXT,
    Vertex,
    chat_completion,
    cold,
    embedding,
    failure,
    reply,
    stream,
)

import medport
from medport.wire.vertex import DEPLOYED_MODEL_HEADER, MODEL_HEADER, MODEL_VERSION_HEADER, PIN_HEADERS


@pytest.fixture
def client(vertex: Vertex) -> Any:
    with medport.Client(**vertex.settings()) as client:
        yield client


def test_a_dedicated_endpoint_is_asked_at_its_own_host(vertex: Vertex, client: medport.Client) -> None:
    client.chat("hello")

    assert [request.plane for request in vertex.asked(":predict")] == ["data"]
    path = f"/v1/projects/{NUMBER}/locations/{LOCATION}/endpoints/1001:predict"
    assert vertex.asked(":predict")[0].path == path


def test_a_stream_takes_the_openai_path(vertex: Vertex, client: medport.Client) -> None:
    with client.chat_stream("hello") as deltas:
        assert "".join(delta.text for delta in deltas) == TEXT

    asked = vertex.asked("/chat/completions")[0]
    assert asked.path.startswith("/v1beta1/")
    assert asked.json()["stream"] is True
    assert deltas.result.usage.total_tokens == 15


def test_a_shared_endpoint_is_asked_at_the_regional_host(vertex: Vertex) -> None:
    vertex.shape = "shared"

    with medport.Client(**vertex.settings()) as client:
        assert client.chat("hello").text == TEXT

    assert [request.plane for request in vertex.asked(":predict")] == ["control"]


@pytest.mark.parametrize(("shape", "limit"), [("shared", 1_500_000), ("dedicated", 10_000_000)])
def test_the_limit_is_that_of_the_shape_and_nothing_is_sent(vertex: Vertex, shape: Any, limit: int) -> None:
    vertex.shape = shape

    with medport.Client(**vertex.settings()) as client:
        client.chat("x" * (limit - 2_000))
        with pytest.raises(medport.RequestTooLarge) as caught:
            client.chat("x" * limit)

    assert len(vertex.asked(":predict")) == 1
    assert caught.value.backend == "vertex"


def test_a_private_endpoint_is_verified_by_the_name_it_is_given(vertex: Vertex) -> None:
    address = vertex.data_host.replace("localhost", "127.0.0.1")  # the certificate is for localhost alone
    private = vertex.settings(medgemma={"endpoint": "1001", "dns": address})

    with medport.Client(**private, server_name="localhost") as client:
        answer = client.chat("hello")
    with medport.Client(**private) as unnamed, pytest.raises(medport.ConnectionFailed) as caught:
        unnamed.chat("hello")

    assert answer.text == TEXT
    assert vertex.asked(":predict")[0].headers["host"] == "localhost"
    assert not caught.value.retryable


def test_who_may_predict_but_not_look_up_gives_the_host(vertex: Vertex) -> None:
    vertex.lookups = [failure(403, "PERMISSION_DENIED", "aiplatform.endpoints.get denied")] * 2

    with medport.Client(**vertex.settings(medgemma={"endpoint": "1001", "dns": vertex.data_host})) as client:
        answer = client.chat("hello")

    assert answer.text == TEXT
    assert answer.provenance.revision is None


@pytest.mark.parametrize(
    "predictions",
    [
        chat_completion(TEXT),
        [chat_completion(TEXT)],
        [TEXT],
        TEXT,
        [f"Prompt:\nhello\nOutput:\n{TEXT}"],
        chat_completion("", message={"role": "assistant", "content": [{"type": "text", "text": TEXT}]}),
        {"choices": [{"message": {"role": "assistant", "content": TEXT}}]},
    ],
)
def test_every_spelling_of_an_answer_is_read(vertex: Vertex, client: medport.Client, predictions: object) -> None:
    vertex.script = [reply({"predictions": predictions, "deployedModelId": "7001"})]

    assert client.chat("hello").text == TEXT


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (reply({"error": "'hello CANARY' is not valid under any of the given schemas"}), medport.InputError),
        (reply({"predictions": {"error": {"message": "no access", "object": "error"}}}), medport.InputError),
        (reply({"predictions": None}), medport.ProtocolError),
        (reply({"predictions": {"choices": []}}), medport.ProtocolError),
        (reply({"predictions": {"choices": [{"message": {"content": None}}]}}), medport.ProtocolError),
        (reply([1, 2]), medport.ProtocolError),
        (reply(5), medport.ProtocolError),
        (Answer(200, b"<!doctype html>CANARY", {"content-type": "text/html"}), medport.ProtocolError),
        (Answer(200, b"{" * 100_000), medport.ProtocolError),
        (failure(400, "FAILED_PRECONDITION", "The Endpoint has an empty traffic_split."), medport.NotReady),
        (failure(400, "INVALID_ARGUMENT", "x", array=True), medport.InputError),
        (cold(), medport.NotReady),
        (failure(429, "RESOURCE_EXHAUSTED", "Quota", headers={"retry-after": "999"}), medport.QuotaExceeded),
        (failure(413, "INVALID_ARGUMENT", "too large"), medport.RequestTooLarge),
    ],
)
def test_a_bad_answer_is_a_typed_error(
    vertex: Vertex, client: medport.Client, answer: Answer, error: type[medport.MedportError]
) -> None:
    vertex.script = [answer] * 5

    with pytest.raises(medport.MedportError) as caught:
        client.chat("hello CANARY", timeout_s=60)

    assert type(caught.value) is error
    assert "CANARY" not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize("answer", [reply({"foo": 1}), reply([]), reply({"name": 5}), Answer(200, b"<html>")])
def test_an_endpoint_that_cannot_be_read_is_no_fault_of_the_input(vertex: Vertex, answer: Answer) -> None:
    vertex.lookups = [answer] * 2

    with medport.Client(**vertex.settings()) as client, pytest.raises(medport.ProtocolError):
        client.chat("hello")


@pytest.mark.parametrize("streams", [False, True])
def test_an_endpoint_that_moved_is_looked_up_again(vertex: Vertex, streams: bool) -> None:
    gone = {**vertex._endpoint(vertex.models["medgemma"]), "dedicatedEndpointDns": f"localhost:{dead_port()}"}
    vertex.lookups = [reply(gone)]

    with medport.Client(**vertex.settings()) as client:
        if streams:
            answer = "".join(delta.text for delta in client.chat_stream("hello"))
        else:
            answer = client.chat("hello").text

    assert answer == TEXT
    assert len(vertex.asked("/endpoints/1001")) == 2


def test_of_two_deployed_models_the_one_that_answered_is_named(vertex: Vertex, client: medport.Client) -> None:
    served = vertex.models["medgemma"]
    served.others = {"7009": "4"}

    sources = []
    for id in ("7001", "7009"):
        vertex.script = [reply({**vertex.envelope(served, chat_completion(TEXT)), "deployedModelId": id})]
        sources.append(client.chat("hello").provenance)

    assert [source.deployed_model_id for source in sources] == ["7001", "7009"]
    assert [source.revision for source in sources] == [served.revision] * 2


def test_what_an_answer_says_of_its_deployed_model_holds_against_a_look_up_of_before(
    vertex: Vertex, client: medport.Client
) -> None:
    served = vertex.models["medgemma"]
    client.chat("hello")

    vertex.script = [reply({**vertex.envelope(served, chat_completion(TEXT)), "deployedModelId": "7009"})]
    source = client.chat("hello").provenance

    assert source.deployed_model_id == "7009"
    assert source.lock_id is None, "that of the model that was there before"


def test_pins_of_a_version_are_not_told_of_the_next_one_under_the_same_id(
    vertex: Vertex, client: medport.Client
) -> None:
    served = vertex.models["medgemma"]
    said = {
        DEPLOYED_MODEL_HEADER: served.deployed_model_id,
        MODEL_HEADER: f"{PARENT}/models/{served.model}",
        PIN_HEADERS["snapshot_sha256"]: "12" * 32,
    }

    sources = []
    for version in (served.version, "4"):
        answer = reply(vertex.envelope(served, chat_completion(TEXT)))
        headers = {**answer.headers, **said, MODEL_VERSION_HEADER: version}
        vertex.script = [replace(answer, headers=headers)]
        sources.append(client.chat("hello").provenance)

    assert [source.lock_id for source in sources] == [served.lock_id, None]
    assert [source.snapshot_sha256 for source in sources] == ["12" * 32] * 2


def test_an_answer_that_talks_of_a_deployed_model_does_not_pass_for_it(
    vertex: Vertex, client: medport.Client
) -> None:
    served = vertex.models["medgemma"]
    served.others = {"7009": "4"}
    text = '"deployedModelId": "7009"'
    vertex.script = [reply(vertex.envelope(served, chat_completion(text)))]

    answer = client.chat("hello")

    assert answer.text == text
    assert answer.provenance.deployed_model_id == "7001"


def test_pins_are_looked_up_once(vertex: Vertex, client: medport.Client) -> None:
    for _ in range(3):
        client.chat("hello")
        client.embed_texts("hello")

    assert len([request for request in vertex.seen if request.method == "GET"]) == 4


def test_embeddings_know_their_scale(vertex: Vertex, client: medport.Client) -> None:
    found = client.embed_texts(["a", "b"])

    assert found.logit_scale == pytest.approx(np.exp(2.0))
    assert found.logit_bias == -3.0


def test_a_failed_last_batch_does_not_change_the_scale(vertex: Vertex, client: medport.Client) -> None:
    good, bad = embedding(0), {"error": {"code": "UNHANDLED_GENERIC_BYTES_ERROR"}}
    vertex.script = [
        reply({"predictions": [good] * 100, "deployedModelId": "7002"}),
        reply({"predictions": [bad] * 2, "deployedModelId": "7002"}),
    ]

    found = client.embed_texts(["a"] * 102)

    assert found.logit_scale == pytest.approx(np.exp(2.0))
    assert found.logit_bias == -3.0
    assert list(found.errors) == [100, 101]


@pytest.mark.parametrize(
    "prediction",
    [
        5,
        None,
        "x",
        [],
        {"embedding": None},
        {"embedding": 5},
        {"embedding": []},
        {"embedding": ["1"]},
        {"embedding": {}},
        {"embedding": [1e39, 1.0]},
        {"embedding": [0.0]},
        {"embedding": [3e30, 4e30]},
        {"error": "x"},
        {"error": []},
        {**embedding(0), "model_temperature": 1000.0},
        {**embedding(0), "model_temperature": None},
        {**embedding(0), "model_bias": "-3"},
    ],
)
def test_a_prediction_that_is_none_is_refused(vertex: Vertex, client: medport.Client, prediction: object) -> None:
    vertex.script = [reply({"predictions": [prediction]})]

    with pytest.raises(medport.ProtocolError):
        client.embed_texts("hello")


def test_images_and_texts_of_different_lengths_are_not_compared(vertex: Vertex, client: medport.Client) -> None:
    vertex.script = [reply({"predictions": [embedding(0, 8)]}), reply({"predictions": [embedding(0, 6)]})]

    with pytest.raises(medport.ProtocolError):
        client.classify(np.zeros((4, 4), np.uint8), ["a"])


def test_vectors_of_different_lengths_are_refused(vertex: Vertex, client: medport.Client) -> None:
    vertex.script = [reply({"predictions": [embedding(0, 8), embedding(1, 6)]})]

    with pytest.raises(medport.ProtocolError):
        client.embed_texts(["a", "b"])


def test_a_stream_cut_in_the_middle_is_a_broken_connection(vertex: Vertex, client: medport.Client) -> None:
    vertex.script = [Answer(200, stream(["No acute"], done=False), {"content-type": "text/event-stream"})]

    with client.chat_stream("hello") as deltas, pytest.raises(medport.ConnectionFailed) as caught:
        list(deltas)

    assert caught.value.backend == "vertex"
    assert len(vertex.asked("/chat/completions")) == 1


def test_an_error_before_a_stream_begins_may_be_wrapped_in_a_list(vertex: Vertex, client: medport.Client) -> None:
    vertex.script = [failure(400, "INVALID_ARGUMENT", "no", array=True)]

    with client.chat_stream("hello") as deltas, pytest.raises(medport.InputError):
        list(deltas)


def test_a_cold_endpoint_that_then_stumbles_is_still_waited_for(vertex: Vertex, client: medport.Client) -> None:
    waking = Answer(429, cold().body, {"retry-after": "0"})
    stumble = failure(503, "UNAVAILABLE", "upstream", headers={"retry-after": "0"})
    vertex.script = [waking] * 6 + [stumble]

    answer = client.chat("hello", wait_until_ready=30)

    assert answer.provenance.attempts == 8
