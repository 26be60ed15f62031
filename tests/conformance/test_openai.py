"""The OpenAI surface beside the endpoint resources."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import pytest
from support.wire import Endpoint, data_url, png, said, text


def chat(**options: object) -> dict[str, Any]:
    return {"messages": text()["messages"], "max_tokens": 8, **options}


def test_models(http: httpx.Client) -> None:
    """`/v1/models`: every endpoint, with the snapshot behind it."""
    listed = http.get("/v1/models").json()
    assert listed["object"] == "list"
    assert {each["id"] for each in listed["data"]} == {
        "medgemma", "medgemma-dicom", "medgemma-shared", "medsiglip",
    }  # fmt: skip
    assert all(len(each["snapshot_sha256"]) == 64 for each in listed["data"])


def test_model(http: httpx.Client) -> None:
    """`/v1/models/ID`: one of them; 404 for another."""
    assert http.get("/v1/models/medsiglip").json()["object"] == "model"
    assert http.get("/v1/models/none").status_code == 404


@pytest.mark.parametrize("model", [None, "", "medgemma", "google/medgemma"])
def test_chat_model(http: httpx.Client, gemma: Endpoint, model: str | None) -> None:
    """`/v1/chat/completions`: `model` is an endpoint, or empty for the one there is."""
    body = chat() if model is None else chat(model=model)
    assert said(http.post("/v1/chat/completions", json=body).json()) == said(gemma.predict(text(max_tokens=8)))


def test_chat_unknown_model(http: httpx.Client) -> None:
    """A model that is not served is refused, and not answered by another: 404."""
    answer = http.post("/v1/chat/completions", json=chat(model="medgemma-27b-it"))
    assert answer.status_code == 404
    assert answer.json()["error"]["details"][0]["metadata"]["field"] == "model"


def test_embeddings_of_texts(http: httpx.Client, siglip: Endpoint) -> None:
    """`/v1/embeddings`: unit vectors, in order, as MedSigLIP's own."""
    answer = http.post("/v1/embeddings", json={"model": "medsiglip", "input": ["a", "b"]}).json()
    own = siglip.predict({"text": "a"}, {"text": "b"})
    assert [each["index"] for each in answer["data"]] == [0, 1]
    for each, other in zip(answer["data"], own, strict=True):
        assert np.allclose(each["embedding"], other["embedding"], atol=1e-6)


def test_embedding_of_one_text(http: httpx.Client) -> None:
    """`input` may be one text."""
    answer = http.post("/v1/embeddings", json={"input": "a"}).json()
    assert len(answer["data"]) == 1
    assert answer["usage"]["total_tokens"] > 0


def test_embeddings_base64(http: httpx.Client) -> None:
    """`encoding_format` base64: little-endian float32."""
    floats = http.post("/v1/embeddings", json={"input": "a"}).json()["data"][0]["embedding"]
    packed = http.post("/v1/embeddings", json={"input": "a", "encoding_format": "base64"}).json()
    assert np.allclose(np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4"), floats)


def test_embeddings_of_images(http: httpx.Client, siglip: Endpoint) -> None:
    """`input` may hold images as content parts: an extension."""
    part = {"type": "image_url", "image_url": {"url": data_url(png())}}
    answer = http.post("/v1/embeddings", json={"input": [part]}).json()
    own = siglip.predict({"image": {"input_bytes": data_url(png()).partition(",")[2]}})
    assert np.allclose(answer["data"][0]["embedding"], own[0]["embedding"], atol=1e-6)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [""]}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 7}, "dimensions"),
        ({"input": "a", "model": "other"}, "model"),
        ({"input": "a", "model": 5}, "model"),
        ({"input": [[1, 2]]}, "input[0]"),
    ],
)
def test_embeddings_violation(http: httpx.Client, body: object, field: str) -> None:
    """What breaks the schema is refused by name."""
    answer = http.post("/v1/embeddings", json=body)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["details"][0]["metadata"]["field"] == field


def test_health(http: httpx.Client) -> None:
    """`/health`, `/health/ready`, `/health/live`, `/ping`: 200 `ok`."""
    for path in ("/health", "/health/ready", "/health/live", "/ping"):
        answer = http.get(path)
        assert (answer.status_code, answer.text) == (200, "ok")
