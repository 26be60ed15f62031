"""langchain-openai as it is published."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import numpy as np
import openai
import pydantic
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr
from support.wire import data_url, picture

import medport

from .conftest import QUESTION, Site, Sources


class Finding(pydantic.BaseModel):
    """A finding on a radiograph."""

    side: Literal["left", "right"]
    certain: bool


def chat(site: Site, **options: Any) -> ChatOpenAI:
    settings = {"base_url": site.base_url(), "api_key": SecretStr(site.key), "max_retries": 0, "temperature": 0}
    return ChatOpenAI(model="medgemma", **{"max_tokens": 12, **settings, **options})


def embeddings(site: Site, **options: Any) -> OpenAIEmbeddings:
    return OpenAIEmbeddings(
        model="medsiglip",
        base_url=f"{site.url}/v1",
        api_key=SecretStr(site.key),
        check_embedding_ctx_length=False,  # else it sends token numbers of a model of OpenAI's
        **options,
    )


@pytest.fixture
def answer(client: medport.Client) -> str:
    return client.chat(QUESTION, max_tokens=12).text


@pytest.mark.parametrize("base", ["endpoint", "v1"])
def test_invoke(site: Site, answer: str, base: str) -> None:
    message = chat(site, base_url=site.base_url() if base == "endpoint" else f"{site.url}/v1").invoke(QUESTION)

    assert message.content == answer
    assert message.usage_metadata is not None
    assert message.usage_metadata["output_tokens"] > 0


def test_stream_and_async(site: Site, answer: str) -> None:
    async def both() -> tuple[str, object]:
        async with openai.DefaultAsyncHttpxClient() as http:
            model = chat(site, http_async_client=http)
            pieces = [str(chunk.content) async for chunk in model.astream(QUESTION)]
            return "".join(pieces), (await model.ainvoke(QUESTION)).content

    assert "".join(str(chunk.content) for chunk in chat(site).stream(QUESTION)) == answer
    assert asyncio.run(both()) == (answer, answer)


def test_stream_tells_its_usage_in_the_end(site: Site) -> None:
    chunks = list(chat(site, stream_usage=True).stream(QUESTION))

    assert any(chunk.usage_metadata and chunk.usage_metadata["output_tokens"] for chunk in chunks)


def test_conversation_with_a_system_prompt(site: Site, client: medport.Client) -> None:
    turns = [
        SystemMessage("You are an expert radiologist."),
        HumanMessage(QUESTION),
        AIMessage("Normal lungs."),
        HumanMessage("Is the heart enlarged?"),
    ]
    own = [
        {"role": "system", "content": "You are an expert radiologist."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "Normal lungs."},
        {"role": "user", "content": "Is the heart enlarged?"},
    ]

    assert chat(site).invoke(turns).content == client.chat(own, max_tokens=12).text


def test_image_in_langchains_own_form_and_in_openais(site: Site, sources: Sources) -> None:
    url = data_url(sources.picture)
    standard = {"type": "image", "source_type": "base64", "data": url.partition(",")[2], "mime_type": "image/png"}
    said = [
        chat(site).invoke([HumanMessage(content=[{"type": "text", "text": QUESTION}, part])])
        for part in (picture(url), standard)
    ]

    assert said[0].content == said[1].content
    told = chat(site).invoke(QUESTION)
    assert said[0].usage_metadata
    assert told.usage_metadata
    assert said[0].usage_metadata["input_tokens"] >= told.usage_metadata["input_tokens"] + 16


def test_batch(site: Site, answer: str) -> None:
    assert [each.content for each in chat(site).batch([QUESTION] * 3)] == [answer] * 3


@pytest.mark.parametrize("strict", [None, True])
def test_with_structured_output(site: Site, strict: bool | None) -> None:
    structured = chat(site, max_tokens=120).with_structured_output(Finding, method="json_schema", strict=strict)

    assert isinstance(structured.invoke(QUESTION), Finding)


def test_tools_are_refused_by_name_and_not_ignored(site: Site) -> None:
    def look_up(name: str) -> str:
        """Look something up."""
        return name

    with pytest.raises(Exception, match="tools"):
        chat(site).bind_tools([look_up]).invoke(QUESTION)


def test_logprobs(site: Site) -> None:
    message = chat(site).bind(logprobs=True, top_logprobs=2).invoke(QUESTION)

    assert all(len(each["top_logprobs"]) == 2 for each in message.response_metadata["logprobs"]["content"])


def test_embeddings(site: Site, client: medport.Client) -> None:
    texts = ["normal lungs", "a nodule"]

    async def made() -> list[list[float]]:
        async with openai.DefaultAsyncHttpxClient() as http:
            return await embeddings(site, http_async_client=http).aembed_documents(texts)

    own = client.embed_texts(texts).vectors

    assert np.allclose(embeddings(site).embed_documents(texts), own, atol=1e-6)
    assert np.allclose(embeddings(site).embed_query(texts[1]), own[1], atol=1e-6)
    assert np.allclose(asyncio.run(made()), own, atol=1e-6)
