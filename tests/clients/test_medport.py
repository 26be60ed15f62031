"""Our own clients, by profile, against every endpoint of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medport
from medport.errors import AuthError, ConfigError, InputError, NotFound

from .conftest import QUESTION, Site, Sources

ENDPOINTS = ("medgemma", "medgemma-dicom", "medgemma-shared")
Settings = Callable[..., dict[str, Any]]


@pytest.fixture
def settings(site: Site) -> Settings:
    def make(endpoint: str | None = None, **changes: Any) -> dict[str, Any]:
        named = {"medgemma": {"endpoint": endpoint}} if endpoint else {}
        return (
            {"backend": "local", "url": site.url, "ca_file": site.ca_file, "api_key": site.key} | named | changes
        )

    return make


@pytest.fixture
def answer(client: medport.Client) -> str:
    return client.chat(QUESTION, max_tokens=12).text


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_chat(settings: Settings, endpoint: str, answer: str) -> None:
    with medport.Client(**settings(endpoint)) as client:
        said = client.chat(QUESTION, max_tokens=12)

    assert said.text == answer
    assert said.provenance.endpoint.endswith(f"/{endpoint}")
    assert said.provenance.snapshot_sha256


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_async_chat_of_an_image(settings: Settings, endpoint: str, sources: Sources) -> None:
    async def ask() -> medport.Chat:
        async with medport.AsyncClient(**settings(endpoint)) as client:
            return await client.chat(QUESTION, images=[sources.radiograph, sources.picture], max_tokens=12)

    with medport.Client(**settings()) as client:
        own = client.chat(QUESTION, images=[sources.radiograph, sources.picture], max_tokens=12)

    assert asyncio.run(ask()).text == own.text


@pytest.mark.parametrize("endpoint", ["medgemma", "medgemma-shared"])
def test_stream(settings: Settings, endpoint: str, answer: str) -> None:
    with medport.Client(**settings(endpoint)) as client, client.chat_stream(QUESTION, max_tokens=12) as stream:
        pieces = [delta.text for delta in stream]

    assert "".join(pieces) == answer
    assert len(pieces) > 1
    assert stream.result.text == answer


def test_stream_of_an_endpoint_that_does_not_stream_is_refused_by_name(settings: Settings) -> None:
    with (
        medport.Client(**settings("medgemma-dicom")) as client,
        client.chat_stream(QUESTION, max_tokens=12) as stream,
        pytest.raises(medport.InputError, match="stream"),
    ):
        list(stream)


def test_full_resource_name_reaches_the_same_endpoint(settings: Settings, site: Site, answer: str) -> None:
    with medport.Client(**settings(site.endpoints["medgemma_shared"])) as client:
        assert client.chat(QUESTION, max_tokens=12).text == answer


def test_profile_of_a_file_names_the_endpoint(site: Site, tmp_path: Path, answer: str, monkeypatch: Any) -> None:
    (tmp_path / "medport.toml").write_text(
        f"""
default_profile = "onprem"
[profiles.onprem]
backend = "local"
url = "{site.url}"
ca_file = "{site.ca_file}"
medgemma = {{ endpoint = "medgemma-dicom" }}
auth = {{ api_key_env = "THE_KEY" }}
"""
    )
    monkeypatch.setenv("THE_KEY", site.key)
    monkeypatch.chdir(tmp_path)

    with medport.Client() as client:
        said = client.chat(QUESTION, max_tokens=12)

    assert said.text == answer
    assert said.provenance.endpoint.endswith("/medgemma-dicom")


def test_embeddings_and_labels(settings: Settings, sources: Sources) -> None:
    async def ask() -> tuple[medport.Embeddings, medport.Classifications]:
        async with medport.AsyncClient(**settings()) as client:
            return await asyncio.gather(
                client.embed_images([sources.picture, sources.radiograph]),
                client.classify([sources.radiograph], ["nodule", "normal"]),
            )

    vectors, labels = asyncio.run(ask())

    with medport.Client(**settings()) as client:
        again = client.embed_images([sources.picture, sources.radiograph])
    assert np.allclose(vectors.vectors, again.vectors, atol=1e-6)
    assert np.allclose(np.linalg.norm(vectors.vectors, axis=1), 1, atol=1e-5)
    assert len(labels) == 1


def test_openai_client_of_ours(settings: Settings, answer: str) -> None:
    with medport.Client(**settings("medgemma-shared")) as client:
        completion = client.openai().chat.completions.create(
            model="", messages=[{"role": "user", "content": QUESTION}], max_tokens=12
        )

    assert completion.choices[0].message.content == answer


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_input_that_is_wrong_names_its_field(settings: Settings, endpoint: str) -> None:
    with medport.Client(**settings(endpoint)) as client, pytest.raises(InputError) as refused:
        client.chat(QUESTION, images=[b"no image"])

    assert refused.value.field == "images[0]"
    assert refused.value.remedy


def test_prompt_that_does_not_fit_is_an_input_error_everywhere(settings: Settings) -> None:
    said = []
    for endpoint in ENDPOINTS:
        with medport.Client(**settings(endpoint)) as client, pytest.raises(InputError) as refused:
            client.chat("word " * 9000, max_tokens=8)
        said.append(refused.value.remedy)

    assert all(said)


def test_wrong_key_unknown_endpoint_and_untrusted_certificate(settings: Settings) -> None:
    with medport.Client(**settings(api_key="wrong")) as client, pytest.raises(AuthError):
        client.chat(QUESTION)
    with medport.Client(**settings("none-such")) as client, pytest.raises(NotFound):
        client.chat(QUESTION)
    with pytest.raises(ConfigError):
        medport.Client(**settings(ca_file="nowhere.pem")).chat(QUESTION)
