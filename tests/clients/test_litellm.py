"""LiteLLM as it is published: both of its routes to Gemma on Vertex AI, and its two OpenAI-compatible ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import litellm
import numpy as np
import openai
import pytest
from litellm.llms.custom_httpx.http_handler import HTTPHandler
from support.vertex import Account
from support.wire import data_url, picture

import medport

from .conftest import LOCATION, PROJECT, QUESTION, Site, Sources

ASK: list[Any] = [{"role": "user", "content": QUESTION}]
ROUTES = ("gemma", "model-garden", "openai", "hosted-vllm", "openai-on-the-endpoint")
Options = dict[str, Any]


@pytest.fixture(autouse=True)
def quiet(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(litellm, "suppress_debug_info", True)
    monkeypatch.setattr(litellm, "ssl_verify", site.ca_file)
    yield
    # It keeps clients for later, with the certificates of then, and closes none of them.
    for each in litellm.in_memory_llm_clients_cache.cache_dict.values():
        if isinstance(each, HTTPHandler | openai.OpenAI):
            each.close()
    litellm.in_memory_llm_clients_cache.flush_cache()


@pytest.fixture(scope="module")
def credentials(account: Account, tokens: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A service account's file, as people give it; its token server gives the API key."""
    return account.write(tmp_path_factory.mktemp("account"), tokens).read_text()


@pytest.fixture
def route(site: Site, credentials: str) -> Callable[[str], Options]:
    """What ``litellm.completion`` is given to reach MedGemma by a route."""
    vertex = {"vertex_project": PROJECT, "vertex_location": LOCATION, "vertex_credentials": credentials}
    routes: dict[str, Options] = {
        "gemma": {
            "model": "vertex_ai/gemma/medgemma",
            "api_base": f"{site.url}/v1/{site.endpoints['medgemma']}:predict",
            **vertex,
        },
        "model-garden": {"model": "vertex_ai/openai/medgemma", "api_base": site.base_url(), **vertex},
        "openai": {"model": "openai/medgemma", "api_base": f"{site.url}/v1", "api_key": site.key},
        "openai-on-the-endpoint": {"model": "openai/medgemma", "api_base": site.base_url(), "api_key": site.key},
        "hosted-vllm": {"model": "hosted_vllm/medgemma", "api_base": f"{site.url}/v1", "api_key": site.key},
    }
    return routes.__getitem__


@pytest.fixture
def answer(client: medport.Client) -> str:
    return client.chat(QUESTION, max_tokens=12).text


@pytest.mark.parametrize("name", ROUTES)
def test_completion(route: Callable[[str], Options], name: str, answer: str) -> None:
    completion = litellm.completion(messages=ASK, max_tokens=12, temperature=0, num_retries=0, **route(name))

    assert completion.choices[0].message.content == answer
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.prompt_tokens > 0


@pytest.mark.parametrize("name", ROUTES)
def test_stream(route: Callable[[str], Options], name: str, answer: str) -> None:
    stream = litellm.completion(messages=ASK, max_tokens=12, stream=True, **route(name))

    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == answer


@pytest.mark.parametrize("name", ROUTES)
def test_async_completion_and_stream(route: Callable[[str], Options], name: str, answer: str) -> None:
    async def both() -> tuple[str, str]:
        completion = await litellm.acompletion(messages=ASK, max_tokens=12, **route(name))
        stream = await litellm.acompletion(messages=ASK, max_tokens=12, stream=True, **route(name))
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        await litellm.close_litellm_async_clients()
        return completion.choices[0].message.content, "".join(pieces)

    assert asyncio.run(both()) == (answer, answer)


@pytest.mark.parametrize("name", ROUTES)
def test_image(route: Callable[[str], Options], name: str, sources: Sources) -> None:
    content = [{"type": "text", "text": QUESTION}, picture(data_url(sources.picture))]

    shown = litellm.completion(messages=[{"role": "user", "content": content}], max_tokens=8, **route(name))
    told = litellm.completion(messages=ASK, max_tokens=8, **route(name))

    assert shown.usage.prompt_tokens >= told.usage.prompt_tokens + 16


@pytest.mark.parametrize("name", ["openai", "hosted-vllm", "model-garden"])
def test_response_format(route: Callable[[str], Options], name: str) -> None:
    schema = {
        "type": "object",
        "properties": {"side": {"enum": ["left", "right"]}},
        "required": ["side"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "finding", "schema": schema, "strict": True}}

    completion = litellm.completion(messages=ASK, max_tokens=60, response_format=wanted, **route(name))

    assert json.loads(completion.choices[0].message.content)["side"] in ("left", "right")


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_embedding(site: Site, client: medport.Client, provider: str) -> None:
    options = {"api_base": f"{site.url}/v1", "api_key": site.key}

    made = litellm.embedding(model=f"{provider}/medsiglip", input=["normal lungs", "a nodule"], **options)

    vectors = [each["embedding"] for each in made.data]
    assert np.allclose(vectors, client.embed_texts(["normal lungs", "a nodule"]).vectors, atol=1e-6)


@pytest.mark.parametrize("name", ["openai", "hosted-vllm", "gemma"])
def test_bad_request(route: Callable[[str], Options], name: str) -> None:
    with pytest.raises(litellm.BadRequestError, match="temperature") as refused:
        litellm.completion(messages=ASK, temperature=9, num_retries=0, **route(name))

    assert refused.value.status_code == 400


@pytest.mark.parametrize("name", ["openai", "hosted-vllm"])
def test_wrong_key(route: Callable[[str], Options], name: str) -> None:
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(messages=ASK, num_retries=0, **{**route(name), "api_key": "wrong"})


def test_model_garden_route_makes_every_error_its_500(route: Callable[[str], Options]) -> None:
    with pytest.raises(litellm.InternalServerError, match="temperature"):
        litellm.completion(messages=ASK, temperature=9, num_retries=0, **route("model-garden"))


@pytest.mark.parametrize("endpoint", ["medgemma", "medgemma_shared"])
def test_model_garden_route_by_googles_own_host_name(
    site: Site,
    credentials: str,
    answer: str,
    googles_host: str,
    endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without an ``api_base`` it builds the address on the shared host."""
    monkeypatch.setattr(litellm, "ssl_verify", googles_host)

    completion = litellm.completion(
        model=f"vertex_ai/openai/{site.endpoints[endpoint].rpartition('/')[2]}",
        messages=ASK,
        max_tokens=12,
        vertex_project=PROJECT,
        vertex_location=LOCATION,
        vertex_credentials=credentials,
    )

    assert completion.choices[0].message.content == answer
