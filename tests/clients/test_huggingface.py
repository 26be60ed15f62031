"""huggingface_hub's InferenceClient as it is published."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from support.wire import data_url, picture

import medport

from .conftest import QUESTION, Site, Sources

ASK = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def answer(client: medport.Client) -> str:
    return client.chat(QUESTION, max_tokens=12).text


@pytest.mark.parametrize("base", ["v1", "endpoint"])
def test_chat_completion(site: Site, answer: str, base: str) -> None:
    # It puts /v1 in front of /chat/completions itself, unless the address ends with it.
    url = site.url if base == "v1" else f"{site.base_url()}/chat/completions"
    with InferenceClient(base_url=url, api_key=site.key) as client:
        completion = client.chat_completion(ASK, max_tokens=12, temperature=0)

    assert completion.choices[0].message.content == answer
    assert completion.usage.completion_tokens > 0


def test_chat_completion_streams(site: Site, answer: str) -> None:
    with InferenceClient(base_url=f"{site.url}/v1", api_key=site.key) as client:
        stream = client.chat.completions.create(ASK, max_tokens=12, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert text == answer


def test_async(site: Site, answer: str) -> None:
    async def both() -> tuple[Any, str]:
        async with AsyncInferenceClient(base_url=f"{site.url}/v1", api_key=site.key) as client:
            whole = await client.chat_completion(ASK, max_tokens=12)
            stream = await client.chat_completion(ASK, max_tokens=12, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        return whole.choices[0].message.content, text

    assert asyncio.run(both()) == (answer, answer)


def test_image_logprobs_seed_and_stop(site: Site, sources: Sources) -> None:
    content = [{"type": "text", "text": QUESTION}, picture(data_url(sources.picture))]
    with InferenceClient(base_url=f"{site.url}/v1", api_key=site.key) as client:
        completion = client.chat_completion(
            [{"role": "user", "content": content}],
            max_tokens=8,
            logprobs=True,
            top_logprobs=2,
            seed=3,
            stop=["."],
        )

    assert "." not in completion.choices[0].message.content
    assert completion.usage.prompt_tokens > 16
    assert len(completion.choices[0].logprobs.content[0].top_logprobs) == 2


def test_response_format_in_its_own_spelling(site: Site) -> None:
    """It sends a schema as ``{"type": "json_object", "value": …}``."""
    schema = {
        "type": "object",
        "properties": {"certain": {"type": "boolean"}},
        "required": ["certain"],
        "additionalProperties": False,
    }
    with InferenceClient(base_url=f"{site.url}/v1", api_key=site.key) as client:
        completion = client.chat_completion(
            ASK,
            max_tokens=60,
            response_format={"type": "json_schema", "json_schema": {"name": "f", "schema": schema}},
        )

    assert isinstance(json.loads(completion.choices[0].message.content)["certain"], bool)


def test_feature_extraction_is_another_protocol() -> None:
    pytest.skip(
        "feature_extraction posts {'inputs': …} to the base URL itself, the form of Hugging Face's own service; "
        "for embeddings there is /v1/embeddings, which this client has no call for"
    )


def test_wrong_key(site: Site) -> None:
    with (
        InferenceClient(base_url=f"{site.url}/v1", api_key="wrong") as client,
        pytest.raises(HfHubHTTPError) as refused,
    ):
        client.chat_completion(ASK)

    assert refused.value.response.status_code == 401


def test_bad_request_names_the_field(site: Site) -> None:
    with (
        InferenceClient(base_url=f"{site.url}/v1", api_key=site.key) as client,
        pytest.raises(HfHubHTTPError, match="temperature"),
    ):
        client.chat_completion(ASK, temperature=9)
