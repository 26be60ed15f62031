"""openai as it is published, against ``/v1`` and against an endpoint resource."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import openai
import pydantic
import pytest
from support.wire import data_url, picture

import medport

from .conftest import QUESTION, Site, Sources

ASK: list[Any] = [{"role": "user", "content": QUESTION}]
BASES = ("/v1", "v1", "v1beta1")


class Finding(pydantic.BaseModel):
    side: Literal["left", "right"]
    nodules: int
    certain: bool


def base_url(site: Site, base: str) -> str:
    return f"{site.url}/v1" if base == "/v1" else site.base_url(version=base)


@pytest.fixture
def client_(site: Site) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=site.key, max_retries=0) as each:
        yield each


@pytest.fixture
def answer(client: medport.Client) -> str:
    return client.chat(QUESTION, max_tokens=12).text


@pytest.mark.parametrize("base", BASES)
def test_chat(site: Site, base: str, answer: str) -> None:
    with openai.OpenAI(base_url=base_url(site, base), api_key=site.key) as client:
        completion = client.chat.completions.create(
            model="", messages=ASK, max_completion_tokens=12, temperature=0
        )

    assert completion.choices[0].message.content == answer
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


@pytest.mark.parametrize("base", BASES)
def test_chat_async_streams_what_it_says_at_once(site: Site, base: str, answer: str) -> None:
    async def streamed() -> tuple[str, Any]:
        async with (
            openai.AsyncOpenAI(base_url=base_url(site, base), api_key=site.key) as client,
            await client.chat.completions.create(
                model="", messages=ASK, max_tokens=12, stream=True, stream_options={"include_usage": True}
            ) as stream,
        ):
            chunks = [each async for each in stream]
        return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), chunks[-1]

    written, last = asyncio.run(streamed())

    assert written == answer
    assert last.choices == []
    assert last.usage.completion_tokens > 0


def test_stream_without_the_option_has_a_choice_in_every_chunk(client_: openai.OpenAI, answer: str) -> None:
    with client_.chat.completions.create(model="medgemma", messages=ASK, max_tokens=12, stream=True) as stream:
        chunks = list(stream)

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_helper_puts_the_message_together(client_: openai.OpenAI, answer: str) -> None:
    with client_.chat.completions.stream(model="medgemma", messages=ASK, max_tokens=12) as stream:
        kinds = {event.type for event in stream}
        completion = stream.get_final_completion()

    assert completion.choices[0].message.content == answer
    assert {"chunk", "content.delta", "content.done"} <= kinds


def test_stream_left_early_leaves_the_server_free(client_: openai.OpenAI, answer: str) -> None:
    for _ in range(3):
        options: dict[str, Any] = {"max_tokens": 4000, "extra_body": {"ignore_eos": True}}
        with client_.chat.completions.create(model="", messages=ASK, stream=True, **options) as stream:
            next(iter(stream))

    assert (
        client_.chat.completions.create(model="", messages=ASK, max_tokens=12).choices[0].message.content == answer
    )


def test_parse_gives_an_object_of_the_callers_class(client_: openai.OpenAI) -> None:
    completion = client_.chat.completions.parse(
        model="medgemma", messages=ASK, max_tokens=120, response_format=Finding
    )

    assert isinstance(completion.choices[0].message.parsed, Finding)


def test_parse_by_a_stream(client_: openai.OpenAI) -> None:
    with client_.chat.completions.stream(
        model="medgemma", messages=ASK, max_tokens=120, response_format=Finding
    ) as stream:
        completion = stream.get_final_completion()

    assert isinstance(completion.choices[0].message.parsed, Finding)


def test_parse_async(site: Site) -> None:
    async def parsed() -> object:
        async with openai.AsyncOpenAI(base_url=site.base_url(), api_key=site.key) as client:
            completion = await client.chat.completions.parse(
                model="", messages=ASK, max_tokens=120, response_format=Finding
            )
        return completion.choices[0].message.parsed

    assert isinstance(asyncio.run(parsed()), Finding)


def test_cut_parse_is_this_clients_own_error(client_: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client_.chat.completions.parse(model="medgemma", messages=ASK, max_tokens=2, response_format=Finding)


def test_json_object(client_: openai.OpenAI) -> None:
    completion = client_.chat.completions.create(
        model="medgemma", messages=ASK, max_tokens=200, response_format={"type": "json_object"}, seed=1
    )

    choice = completion.choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content or ""), dict)
    assert (choice.message.content or "").lstrip().startswith("{")


@pytest.mark.parametrize("base", ["/v1", "v1beta1"])
def test_dicom_container_answers_this_client_too(site: Site, base: str, answer: str) -> None:
    url = f"{site.url}/v1" if base == "/v1" else site.base_url("medgemma_dicom")
    with openai.OpenAI(base_url=url, api_key=site.key) as client:
        completion = client.chat.completions.create(model="medgemma-dicom", messages=ASK, max_tokens=12)

    assert completion.choices[0].message.content == answer
    assert completion.model == "placeholder"


def test_image_in_a_message(client_: openai.OpenAI, sources: Sources) -> None:
    content: Any = [{"type": "text", "text": QUESTION}, picture(data_url(sources.picture))]

    shown = client_.chat.completions.create(
        model="medgemma", messages=[{"role": "user", "content": content}], max_tokens=8
    )
    told = client_.chat.completions.create(model="medgemma", messages=ASK, max_tokens=8)

    assert shown.usage
    assert told.usage
    assert shown.usage.prompt_tokens >= told.usage.prompt_tokens + 16


def test_n_answers_and_a_seed(client_: openai.OpenAI) -> None:
    def drawn(seed: int) -> list[str | None]:
        completion = client_.chat.completions.create(
            model="medgemma", messages=ASK, max_tokens=16, n=3, temperature=1.5, seed=seed
        )
        assert [choice.index for choice in completion.choices] == [0, 1, 2]
        return [choice.message.content for choice in completion.choices]

    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)


def test_streams_of_n_answers_are_told_apart(client_: openai.OpenAI, answer: str) -> None:
    texts = ["", ""]
    with client_.chat.completions.create(model="", messages=ASK, max_tokens=12, n=2, stream=True) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""

    assert texts == [answer, answer]


def test_logprobs(client_: openai.OpenAI, answer: str) -> None:
    completion = client_.chat.completions.create(
        model="medgemma", messages=ASK, max_tokens=12, logprobs=True, top_logprobs=3
    )

    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    assert "".join(each.token for each in logprobs.content).startswith(answer)
    for each in logprobs.content:
        assert len(each.top_logprobs) == 3
        assert each.logprob == max(top.logprob for top in each.top_logprobs)  # greedy
        assert each.logprob <= 0


def test_stop(client_: openai.OpenAI, answer: str) -> None:
    word = answer.split()[1]

    completion = client_.chat.completions.create(model="medgemma", messages=ASK, max_tokens=12, stop=[word])

    assert completion.choices[0].message.content == answer[: answer.index(word)]
    assert completion.choices[0].finish_reason == "stop"


def test_key_by_a_function_is_asked_for_at_each_request(site: Site) -> None:
    asked: list[int] = []

    def key() -> str:
        asked.append(1)
        return site.key

    with openai.OpenAI(base_url=site.base_url(), api_key=key) as client:
        for _ in range(2):
            client.chat.completions.create(model="", messages=ASK, max_tokens=1)

    assert len(asked) == 2


def test_models(client_: openai.OpenAI) -> None:
    listed = {each.id for each in client_.models.list()}

    assert listed == {"medgemma", "medgemma-dicom", "medgemma-shared", "medsiglip"}
    assert client_.models.retrieve("medsiglip").object == "model"


def test_with_raw_response_the_headers_name_the_request(client_: openai.OpenAI) -> None:
    raw = client_.chat.completions.with_raw_response.create(model="", messages=ASK, max_tokens=1)

    assert raw.headers["x-request-id"]
    assert raw.parse().choices[0].finish_reason == "length"


def test_embeddings(client_: openai.OpenAI, client: medport.Client) -> None:
    texts = ["normal lungs", "a nodule"]

    floats = client_.embeddings.create(model="medsiglip", input=texts, encoding_format="float")
    packed = client_.embeddings.create(model="medsiglip", input=texts)  # base64 is this client's own choice

    own = client.embed_texts(texts).vectors
    for made in (floats, packed):
        assert np.allclose([each.embedding for each in made.data], own, atol=1e-6)
    assert floats.usage.total_tokens > 0


def test_embeddings_async(site: Site, client: medport.Client) -> None:
    async def embedded() -> list[list[float]]:
        async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=site.key) as each:
            made = await asyncio.gather(*(each.embeddings.create(model="medsiglip", input=t) for t in ("a", "b")))
        return [one.data[0].embedding for one in made]

    assert np.allclose(asyncio.run(embedded()), client.embed_texts(["a", "b"]).vectors, atol=1e-6)


# --- errors, as this client shows them


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_bad_request_names_the_field(client_: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature") as refused:
        client_.chat.completions.create(model="", messages=ASK, temperature=9, stream=stream)

    assert refused.value.body["status"] == "INVALID_ARGUMENT"  # type: ignore[index, call-overload]
    assert refused.value.request_id


def test_broken_image_is_a_bad_request(client_: openai.OpenAI) -> None:
    content: Any = [picture("data:image/png;base64,bm8=")]

    with pytest.raises(openai.BadRequestError, match="image"):
        client_.chat.completions.create(model="", messages=[{"role": "user", "content": content}])


def test_address_that_is_not_allowed_is_not_fetched(client_: openai.OpenAI) -> None:
    content: Any = [picture("http://169.254.169.254/computeMetadata/v1/x.png")]

    with pytest.raises(openai.APIStatusError, match="allow") as refused:
        client_.chat.completions.create(model="", messages=[{"role": "user", "content": content}])

    assert refused.value.status_code in (400, 403)


@pytest.mark.parametrize(("endpoint", "size"), [("medgemma_shared", 2_000_000), ("medgemma", 11_000_000)])
def test_request_that_is_too_large_is_told_so(site: Site, endpoint: str, size: int) -> None:
    content: Any = [picture("data:image/png;base64," + "A" * size)]
    with (
        openai.OpenAI(base_url=site.base_url(endpoint), api_key=site.key, max_retries=0) as client,
        pytest.raises(openai.APIStatusError, match="the request is over") as refused,
    ):
        client.chat.completions.create(model="", messages=[{"role": "user", "content": content}])

    assert refused.value.status_code == 413


def test_wrong_key(site: Site) -> None:
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key="wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="", messages=ASK)


def test_unknown_model(client_: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model"):
        client_.chat.completions.create(model="gpt-5", messages=ASK)
    with pytest.raises(openai.NotFoundError):
        client_.embeddings.create(model="medgemma", input="a")


def test_unknown_path(client_: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client_.responses.create(model="medgemma", input="hello")


def test_rate_limit_is_waited_for(site: Site) -> None:
    """One request a second is let in: the next is refused, and this client waits as long as Retry-After says."""
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=site.slow_key, max_retries=0) as hasty:

        def ask_without_a_pause() -> None:
            for _ in range(20):  # one could take a second by itself
                hasty.chat.completions.create(model="", messages=ASK, max_tokens=1)

        with pytest.raises(openai.RateLimitError) as refused:
            ask_without_a_pause()
        patient = hasty.with_options(max_retries=3)
        assert patient.chat.completions.create(model="", messages=ASK, max_tokens=1).choices

    assert int(refused.value.response.headers["retry-after"]) >= 1
