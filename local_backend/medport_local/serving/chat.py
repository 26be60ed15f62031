"""MedGemma as its default (vLLM) container speaks: chatCompletions instances, raw prompts, the OpenAI path.

Source: Google-Health/medgemma, notebooks/quick_start_with_model_garden.ipynb; vLLM's OpenAI-compatible server for
the parameters beyond OpenAI's.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from starlette.responses import Response

from medport.errors import InputError, MedportError
from medport.wire import checked
from medport.wire.chat import (
    MAX_BIASED_TOKENS,
    MAX_MESSAGES,
    REQUEST_FORMAT,
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    ChunkDelta,
    Usage,
)
from medport_local.engine.protocol import Engine
from medport_local.engine.sequence import Event, FinishReason
from medport_local.serving import generate, raw
from medport_local.serving.endpoints import Served
from medport_local.serving.exchange import JSON, Events
from medport_local.serving.generate import Job
from medport_local.serving.outcome import Asking
from medport_local.serving.raw import RawRequest
from medport_local.serving.sources import codec_of, image_values
from medport_local.serving.together import together

if TYPE_CHECKING:
    from medport_local.engine.codecs import PixelValues

Asked: TypeAlias = ChatRequest | RawRequest

MAX_KEYS = 256

# Keys that change the answer and are not honoured: any value but these is refused, for silence would mislead.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "prompt_logprobs": (0,),
    "use_beam_search": (False,),
    "truncate_prompt_tokens": (-1,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "mm_processor_kwargs": ({}, {"do_pan_and_scan": False}),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "modalities": (["text"],),
    "audio": (),
}


async def predict(
    exchange: Asking, served: Served, engine: Engine, instances: Sequence[object]
) -> dict[str, object]:
    """What the container answers to ``{"instances": […]}``: ``{"predictions": …}``.

    A chat gives an object as ``predictions``, several give a list, raw prompts give a list of strings: so does the
    reference container.
    """
    several = len(instances) != 1
    asked = [_inside_of(f"instances[{i}]", several, each) for i, each in enumerate(instances)]
    for i, each in enumerate(asked):
        if each.stream:
            raise InputError(
                "a prediction does not stream",
                field=f"instances[{i}].stream",
                remedy="POST to …/chat/completions or :streamRawPredict instead",
            )
    if len({type(each) for each in asked}) > 1:
        raise InputError("mix chats and raw prompts", field="instances", remedy="send them in two requests")
    answers = await exchange.attended(_answer_all(exchange, served, engine, asked))
    if isinstance(asked[0], RawRequest):
        return raw.joined([each for each in asked if isinstance(each, RawRequest)], answers)
    return {"predictions": answers if several or served.lists else answers[0]}


async def completions(
    exchange: Asking, served: Served, engine: Engine, body: Mapping[str, object], *, streaming: bool = True
) -> Response | Events:
    """Answer a bare OpenAI request, streaming if it says so."""
    request = read(body)
    if not isinstance(request, ChatRequest):
        raise InputError("this is a raw prompt, not a chat", field="prompt", remedy="send messages")
    if request.stream and not streaming:
        raise InputError(
            "does not go with :rawPredict", field="stream", remedy="POST to :streamRawPredict instead"
        )
    if not request.stream:
        return JSON(await exchange.attended(_answer(exchange, served, engine, request)))
    return await stream(exchange, served, engine, request)


async def stream(exchange: Asking, served: Served, engine: Engine, request: Asked) -> Events:
    """Server-sent events for a chat; JSON values with a NUL after each for a raw prompt."""
    job = await exchange.attended(prepared(exchange, served, engine, request))
    # From here to the return nothing is awaited, so that no handle can get lost.
    handles = generate.submit(engine, job, exchange)
    pairs = _noted(exchange, generate.events(handles), job)
    if isinstance(request, RawRequest):
        exchange.facts.operation = "text_completion"
        values = raw.chunks(pairs, request)
        return Events(
            values, close=lambda: generate.cancel(engine, handles), media_type="application/octet-stream",
            encode=raw.encoded, last=None,
        )  # fmt: skip
    exchange.facts.operation = "chat"
    chunks = _chunks(pairs, request, job, served.name_of(job.adapter))
    return Events(chunks, close=lambda: generate.cancel(engine, handles))


def read(values: object) -> Asked:
    """One request, whichever form it has.

    Raises:
        InputError: names the field.
    """
    if not isinstance(values, Mapping):
        raise InputError("is not a JSON object")
    check_size(values)
    given = {key: value for key, value in values.items() if value is not None}
    if given.pop("@requestFormat", REQUEST_FORMAT) != REQUEST_FORMAT:
        raise InputError(f"only {REQUEST_FORMAT} is served here", field="@requestFormat")
    if "prompt" in given and "messages" not in given:
        return raw.read(given)
    _refuse_unhonoured(given)
    if given.get("stream") in ("true", "false"):  # so it stands in aiplatform's own example of invoke
        given["stream"] = given["stream"] == "true"
    if "max_completion_tokens" in given:
        given["max_tokens"] = given.pop("max_completion_tokens")
    if "guided_json" in given:  # vLLM's older spelling
        schema = {"name": "guided_json", "schema": given.pop("guided_json")}
        given["response_format"] = {"type": "json_schema", "json_schema": schema}
    given["response_format"] = _named_schema(given.get("response_format"))
    request = checked(ChatRequest, given)
    request.check()
    return request


def check_size(values: Mapping[str, object]) -> None:
    """Refuse what no request needs before each item of it is looked at: that takes seconds of everybody's time."""
    for field, value, most in (
        (None, values, MAX_KEYS),
        ("logit_bias", values.get("logit_bias"), MAX_BIASED_TOKENS),
        ("messages", values.get("messages"), MAX_MESSAGES),
    ):
        if isinstance(value, Mapping | list) and len(value) > most:
            raise InputError(f"has more than {most} entries", field=field, remedy="send fewer")


def _named_schema(wanted: object) -> object:
    """A schema beside ``json_object``, where huggingface_hub ("value") and llama.cpp ("schema") put it.

    To overlook it would give an answer of any other form.
    """
    if isinstance(wanted, Mapping) and wanted.get("type") == "json_object":
        for key in ("schema", "value"):
            if isinstance(wanted.get(key), Mapping):
                return {"type": "json_schema", "json_schema": {"name": key, "schema": wanted[key]}}
    return wanted


def _refuse_unhonoured(given: dict[str, object]) -> None:
    for key in ("multi_modal_data", "raw_response"):
        if key in given:
            raise InputError("belongs to raw prompts", field=key, remedy="put images into the messages")
    best_of = given.pop("best_of", 1)
    if best_of not in (1, given.get("n", 1)):
        raise InputError("is not supported by this server", field="best_of", remedy="leave it out")
    for key, neutral in _NEUTRAL.items():
        if key in given and given[key] not in neutral:
            raise InputError("is not supported by this server", field=key, remedy="leave it out")


def _inside_of(field: str, several: bool, values: object) -> Asked:
    try:
        return read(values)
    except InputError as error:
        if several or error.field is None:
            error.field = inside(field, error.field)
        raise


def inside(outer: str, inner: str | None) -> str | None:
    """A field's name within another."""
    return ".".join(part for part in (outer, inner) if part) or None


async def _answer_all(
    exchange: Asking, served: Served, engine: Engine, asked: Sequence[Asked]
) -> list[dict[str, object]]:
    async def one(i: int) -> dict[str, object]:
        try:
            return await _answer(exchange, served, engine, asked[i])
        except MedportError as error:
            if len(asked) > 1:
                error.field = inside(f"instances[{i}]", error.field)
            raise

    return await together(one(i) for i in range(len(asked)))


async def _answer(exchange: Asking, served: Served, engine: Engine, request: Asked) -> dict[str, object]:
    job = await prepared(exchange, served, engine, request)
    answers = await generate.written(engine, job, exchange)
    generate.tell(exchange.facts, job, answers)
    if isinstance(request, RawRequest):
        exchange.facts.operation = "text_completion"
        return raw.answer(request, answers)
    return generate.dumped(generate.reply(served.name_of(job.adapter), job, answers))


async def prepared(exchange: Asking, served: Served, engine: Engine, request: Asked) -> Job:
    """Fetch, decode and tokenise; the event loop serves others meanwhile."""
    adapter = served.adapter_of(request.model)
    urls = request.images() if isinstance(request, RawRequest) else engine.prompts.check(request.messages)
    images: list[PixelValues] = []
    if urls:
        codec = codec_of(engine)
        images = await together(
            image_values(exchange, served, codec, url, field=f"images[{i}]") for i, url in enumerate(urls)
        )
    build = generate.chat_job if isinstance(request, ChatRequest) else raw.job
    job: Job = await served.threads.decoding(build, engine, request, images, adapter)
    served.tell_adapter(exchange, adapter)
    return job


async def _noted(
    exchange: Asking, pairs: AsyncGenerator[tuple[int, Event], None], job: Job
) -> AsyncGenerator[tuple[int, Event], None]:
    """The same events, counted for the request's facts."""
    facts = exchange.facts
    facts.prompt_tokens += len(job.tokens)
    counts = [0] * len(job.samplings)
    async with aclosing(pairs) as arriving:
        async for i, event in arriving:
            exchange.first_token()
            facts.completion_tokens += event.completion_tokens - counts[i]
            counts[i] = event.completion_tokens
            if event.finish_reason is not None:
                facts.finish_reasons = [*facts.finish_reasons, event.finish_reason]
            yield i, event


async def _chunks(
    pairs: AsyncGenerator[tuple[int, Event], None],
    request: ChatRequest,
    job: Job,
    model: str,
) -> AsyncGenerator[object, None]:
    stream = _Stream(generate.new_id(), int(time.time()), model)
    counts = [0] * request.n
    # The role first and the finish last, each with empty content: readers take content from every chunk.
    for i in range(request.n):
        yield stream.chunk(i, ChunkDelta(role="assistant"))
    async with aclosing(pairs) as arriving:
        async for i, event in arriving:
            counts[i] = event.completion_tokens
            if event.text or event.tokens:
                yield stream.chunk(i, ChunkDelta(content=event.text), event=event if request.logprobs else None)
            if event.finish_reason is not None:
                yield stream.chunk(i, ChunkDelta(), event.finish_reason)
    if request.stream_options is not None and request.stream_options.include_usage:
        yield stream.usage(generate.usage(len(job.tokens), sum(counts)))


@dataclass(frozen=True, slots=True)
class _Stream:
    id: str
    created: int
    model: str

    def chunk(
        self, index: int, delta: ChunkDelta, finish: FinishReason | None = None, event: Event | None = None
    ) -> object:
        logprobs = generate.logprobs_of(event.tokens) if event is not None else None
        choice = ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish)
        return self._dump([choice], None)

    def usage(self, usage: Usage) -> object:
        return self._dump([], usage)

    def _dump(self, choices: list[ChunkChoice], usage: Usage | None) -> object:
        chunk = ChatChunk(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage)
        dumped = chunk.model_dump()
        for choice in dumped["choices"]:
            if choice["delta"]["role"] is None:
                del choice["delta"]["role"]
            if choice["logprobs"] is None:
                del choice["logprobs"]
        if usage is None:
            del dumped["usage"]
        return dumped
