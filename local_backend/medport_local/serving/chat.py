"""Chat: ``:predict`` with chatCompletions instances, and the OpenAI path with and without a stream."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass

from starlette.responses import Response

from medport.errors import ImageError, InputError, MedportError, ServerError
from medport.images import is_data_url, is_remote, load, prepare
from medport.wire import checked
from medport.wire.chat import (
    REQUEST_FORMAT,
    ChatChunk,
    ChatReply,
    ChatRequest,
    Choice,
    ChunkChoice,
    ChunkDelta,
    ReplyMessage,
    Usage,
)
from medport_local.engine.codecs import PixelValues
from medport_local.engine.engine import Engine, Handle
from medport_local.engine.sequence import FinishReason, GenerationRequest, Sampling
from medport_local.serving.endpoints import IMAGE_LIMITS, Served
from medport_local.serving.exchange import JSON, Events, Exchange

MAX_INSTANCES = 16

# Keys that change the answer and are not honoured: any value but these is refused, for silence would mislead.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "prompt_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "modalities": (["text"],),
    "audio": (),
}
_NO_TEMPLATE = ("prompt", "multi_modal_data")


async def predict(exchange: Exchange, served: Served, engine: Engine, instances: Sequence[object]) -> Response:
    """Answer ``{"instances": [{"@requestFormat": "chatCompletions", …}]}``.

    One instance gives an object as ``predictions``, several give a list: so does the reference container.
    """
    if len(instances) > MAX_INSTANCES:
        raise InputError(
            f"{len(instances)} instances, and this server takes {MAX_INSTANCES} in a request",
            field="instances",
            remedy="send several requests",
        )
    several = len(instances) != 1
    asked = [_read(instance, f"instances[{i}]", several) for i, instance in enumerate(instances)]
    for i, each in enumerate(asked):
        if each.stream:
            raise InputError(
                "a prediction does not stream",
                field=f"instances[{i}].stream",
                remedy="POST to …/chat/completions instead",
            )

    replies = await exchange.attended(_complete_all(engine, asked, served))
    dumped = [reply.model_dump() for reply in replies]
    exchange.answer_headers.update(served.headers())
    return JSON(served.envelope(dumped if several else dumped[0]))


async def completions(
    exchange: Exchange, served: Served, engine: Engine, body: Mapping[str, object]
) -> Response | Events:
    """Answer a bare OpenAI request, streaming if it says so."""
    request = _read(body, "", False)
    exchange.answer_headers.update(served.headers())
    if not request.stream:
        return JSON((await exchange.attended(_complete(engine, request, served))).model_dump())
    prompt = await exchange.attended(_prompt(engine, request, served))
    # From here to the return nothing is awaited, so that the handle cannot get lost.
    handle = engine.submit(prompt)
    return Events(_chunks(handle, request, served, len(prompt.tokens)), close=lambda: engine.cancel(handle.id))


def _read(values: object, field: str, several: bool) -> ChatRequest:
    try:
        return _request(values)
    except InputError as error:
        if several or error.field is None:
            error.field = _inside(field, error.field)
        raise


def _inside(outer: str, inner: str | None) -> str | None:
    return ".".join(part for part in (outer, inner) if part) or None


def _request(values: object) -> ChatRequest:
    if not isinstance(values, Mapping):
        raise InputError("is not a JSON object")
    given = {key: value for key, value in values.items() if value is not None}
    if given.pop("@requestFormat", REQUEST_FORMAT) != REQUEST_FORMAT:
        raise InputError(f"only {REQUEST_FORMAT} is served here", field="@requestFormat")
    for key in _NO_TEMPLATE:
        if key in given:
            raise InputError("raw prompts are not served here", field=key, remedy="send messages")
    for key, neutral in _NEUTRAL.items():
        if key in given and given[key] not in neutral:
            raise InputError("is not supported by this server", field=key, remedy="leave it out")
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]] if given["stop"] else []
    limit = given.pop("max_completion_tokens", None)
    if limit is not None:
        given["max_tokens"] = limit
    return checked(ChatRequest, given)


async def _complete_all(engine: Engine, asked: Sequence[ChatRequest], served: Served) -> list[ChatReply]:
    async def one(i: int) -> ChatReply:
        try:
            return await _complete(engine, asked[i], served)
        except MedportError as error:
            if len(asked) > 1:
                error.field = _inside(f"instances[{i}]", error.field)
            raise

    tasks = [asyncio.ensure_future(one(i)) for i in range(len(asked))]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _complete(engine: Engine, request: ChatRequest, served: Served) -> ChatReply:
    prompt = await _prompt(engine, request, served)
    handle = engine.submit(prompt)
    texts: list[str] = []
    finish: FinishReason | None = None
    count = 0
    try:
        async for event in handle:
            texts.append(event.text)
            finish, count = event.finish_reason, event.completion_tokens
    finally:
        engine.cancel(handle.id)
    return ChatReply(
        id=_new_id(),
        created=int(time.time()),
        model=served.model_display_name,
        choices=[Choice(message=ReplyMessage(content="".join(texts)), finish_reason=finish)],
        usage=_usage(len(prompt.tokens), count),
    )


async def _chunks(
    handle: Handle, request: ChatRequest, served: Served, prompt_tokens: int
) -> AsyncGenerator[object, None]:
    stream = _Stream(_new_id(), int(time.time()), served.model_display_name)
    # The role first and the finish last, each with empty content: readers take content from every chunk.
    yield stream.chunk(ChunkDelta(role="assistant"))
    count = 0
    async for event in handle:
        count = event.completion_tokens
        if event.text:
            yield stream.chunk(ChunkDelta(content=event.text))
        if event.finish_reason is not None:
            yield stream.chunk(ChunkDelta(), event.finish_reason)
    if request.stream_options is not None and request.stream_options.include_usage:
        yield stream.usage(_usage(prompt_tokens, count))


@dataclass(frozen=True, slots=True)
class _Stream:
    id: str
    created: int
    model: str

    def chunk(self, delta: ChunkDelta, finish: FinishReason | None = None) -> object:
        return self._dump([ChunkChoice(delta=delta, finish_reason=finish)], None)

    def usage(self, usage: Usage) -> object:
        return self._dump([], usage)

    def _dump(self, choices: list[ChunkChoice], usage: Usage | None) -> object:
        chunk = ChatChunk(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage)
        dumped = chunk.model_dump()
        for choice in dumped["choices"]:
            if choice["delta"]["role"] is None:
                del choice["delta"]["role"]
        if usage is None:
            del dumped["usage"]
        return dumped


async def _prompt(engine: Engine, request: ChatRequest, served: Served) -> GenerationRequest:
    """Decoding and tokenising are work for a worker thread; the loop serves others meanwhile."""
    return await asyncio.get_running_loop().run_in_executor(served.workers, _prompt_now, engine, request)


def _prompt_now(engine: Engine, request: ChatRequest) -> GenerationRequest:
    urls = engine.prompts.check(request.messages)
    images = tuple(_pixel_values(engine, url, f"images[{i}]") for i, url in enumerate(urls))
    return GenerationRequest(
        tokens=engine.prompts.build(request.messages),
        images=images,
        sampling=Sampling(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            seed=request.seed,
            stop=tuple(request.stop),
        ),
    )


def _pixel_values(engine: Engine, url: str, field: str) -> PixelValues:
    if is_remote(url):
        raise InputError("this server fetches nothing", field=field, remedy="send the image itself")
    if not is_data_url(url):
        raise ImageError("is not a data: URL", field=field, remedy="send the image itself as a data: URL")
    if engine.images is None:
        raise ServerError("this engine takes no images")
    return engine.images.pixel_values(prepare(load(url, field=field, limits=IMAGE_LIMITS)).to_array())


def _usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
    )


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"
