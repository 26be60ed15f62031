"""From a checked chat to its answer: tokens for the engine, ``n`` sequences, text and logprobs back.

Both dialects of MedGemma and the raw prompt meet here; what they look like on the wire is not known here.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medport.errors import InputError, MedportError
from medport.wire.chat import (
    ChatReply,
    ChatRequest,
    Choice,
    Generation,
    JsonFormat,
    Logprobs,
    ReplyMessage,
    SchemaFormat,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from medport_local.engine import sequence
from medport_local.engine.protocol import Engine, Handle
from medport_local.engine.reuse import image_digest
from medport_local.engine.sequence import Event, FinishReason, GenerationRequest, Sampling
from medport_local.serving.outcome import Asking, Facts
from medport_local.serving.together import together

if TYPE_CHECKING:
    from medport_local.engine.codecs import PixelValues
    from medport_local.engine.grammar import Grammar


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One prompt, and how often and how to go on from it."""

    tokens: tuple[int, ...] = field(repr=False)
    images: tuple[PixelValues, ...] = field(default=(), repr=False)
    digests: tuple[bytes, ...] = field(default=(), repr=False)
    """Of the images, where the engine will look for what it has computed of them."""
    samplings: tuple[Sampling, ...]
    """One for each answer."""
    adapter: str | None = None
    """The LoRA adapter that is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One answer."""

    text: str = field(repr=False)
    finish_reason: FinishReason | None
    completion_tokens: int
    tokens: tuple[sequence.TokenLogprob, ...] = field(default=(), repr=False)
    """If logprobs were asked for."""


def samplings(request: Generation, *, logprobs: int | None = None, grammar: Grammar | None = None,
              logit_bias: Sequence[tuple[int, float]] = ()) -> tuple[Sampling, ...]:  # fmt: skip
    """How each of the ``n`` answers is drawn: answer ``i`` has the seed ``seed + i``, as in vLLM."""
    return tuple(
        Sampling(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            min_p=request.min_p,
            seed=None if request.seed is None else (request.seed + i) % 2**63,
            stop=tuple(request.stop),
            stop_token_ids=tuple(request.stop_token_ids),
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            repetition_penalty=request.repetition_penalty,
            min_tokens=request.min_tokens,
            ignore_eos=request.ignore_eos,
            include_stop=request.include_stop_str_in_output,
            skip_special_tokens=request.skip_special_tokens,
            logit_bias=tuple(logit_bias),
            logprobs=logprobs,
            grammar=grammar,
        )
        for i in range(request.n)
    )


def job_of(
    engine: Engine,
    tokens: tuple[int, ...],
    images: Sequence[PixelValues],
    samplings: tuple[Sampling, ...],
    adapter: str | None,
) -> Job:
    """A prompt that is ready. CPU work: call it in a decoding thread."""
    looks = engine.capabilities.prefix_cache or len(samplings) > 1
    return Job(
        tokens=tokens,
        images=tuple(images),
        digests=tuple(image_digest(image) for image in images) if looks else (),
        samplings=samplings,
        adapter=adapter,
    )


def chat_job(
    engine: Engine, request: ChatRequest, images: Sequence[PixelValues], adapter: str | None = None
) -> Job:
    """Tokenise a checked chat. CPU work: call it in a decoding thread.

    Raises:
        InputError: the prompt does not fit, or the response format cannot be kept to.
    """
    return job_of(
        engine,
        engine.prompts.build(request.messages),
        images,
        samplings(
            request,
            logprobs=request.top_logprobs if request.logprobs else None,
            grammar=_grammar(engine, request),
            logit_bias=[(int(token), bias) for token, bias in request.logit_bias.items()],
        ),
        adapter,
    )


def _grammar(engine: Engine, request: ChatRequest) -> Grammar | None:
    wanted = request.response_format
    if not isinstance(wanted, JsonFormat | SchemaFormat):
        return None
    if engine.grammars is None:
        raise InputError(
            "this server cannot hold an answer to a format", field="response_format", remedy="leave it out"
        )
    if isinstance(wanted, JsonFormat):
        return engine.grammars.json_object()
    return engine.grammars.json_schema(wanted.json_schema.schema_)


def submit(engine: Engine, job: Job, asking: Asking) -> list[Handle]:
    """All the sequences of a job, or none of them. Nothing is awaited, so that no handle can get lost.

    Several answers are a group, which computes its prompt once. The group's name cannot be guessed: what a group
    shares is found by it.

    Raises:
        QuotaExceeded: the queue has no room for all of them now.
        InputError: it never will.
    """
    room = engine.limits.max_running + engine.limits.max_queue
    if len(job.samplings) > room:
        raise InputError(
            f"is more than the {room} answers that this server writes at once", field="n", remedy="ask for fewer"
        )
    group = secrets.token_urlsafe(16) if len(job.samplings) > 1 else None
    handles: list[Handle] = []
    try:
        for each in job.samplings:
            request = GenerationRequest(
                tokens=job.tokens,
                images=job.images,
                digests=job.digests,
                sampling=each,
                tenant=asking.tenant,
                group=group,
                adapter=job.adapter,
                deadline=asking.deadline,
            )
            handles.append(engine.submit(request))
    except MedportError:
        cancel(engine, handles)
        raise
    return handles


def cancel(engine: Engine, handles: Sequence[Handle]) -> None:
    """Stop what still runs of them."""
    for handle in handles:
        engine.cancel(handle.id)


async def written(engine: Engine, job: Job, asking: Asking) -> list[Written]:
    """Run a job to its end; cancelled, it leaves nothing behind."""
    handles = submit(engine, job, asking)
    try:
        return await together(_whole(handle, asking.first_token) for handle in handles)
    finally:
        cancel(engine, handles)


async def _whole(handle: Handle, first_token: Callable[[], None]) -> Written:
    texts: list[str] = []
    tokens: list[sequence.TokenLogprob] = []
    last: Event | None = None
    async for last in handle:
        first_token()
        texts.append(last.text)
        tokens += last.tokens
    return Written(
        text="".join(texts),
        finish_reason=last.finish_reason if last else None,
        completion_tokens=last.completion_tokens if last else 0,
        tokens=tuple(tokens),
    )


async def events(handles: Sequence[Handle]) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of several sequences as they come, each with its sequence's index."""
    if len(handles) == 1:
        async for event in handles[0]:
            yield 0, event
        return
    arrived: asyncio.Queue[tuple[int, Event | MedportError | None]] = asyncio.Queue()

    async def pump(index: int, handle: AsyncIterator[Event]) -> None:
        try:
            async for event in handle:
                arrived.put_nowait((index, event))
        except MedportError as error:
            arrived.put_nowait((index, error))
        finally:
            arrived.put_nowait((index, None))

    pumps = [asyncio.ensure_future(pump(i, aiter(handle))) for i, handle in enumerate(handles)]
    try:
        running = len(handles)
        while running:
            index, arrival = await arrived.get()
            if isinstance(arrival, MedportError):
                raise arrival
            if arrival is None:
                running -= 1
            else:
                yield index, arrival
    finally:
        for task in pumps:
            task.cancel()


def reply(model: str, job: Job, answers: Sequence[Written]) -> ChatReply:
    """A ``chat.completion``."""
    return ChatReply(
        id=new_id(),
        created=int(time.time()),
        model=model,
        choices=[
            Choice(
                index=i,
                message=ReplyMessage(content=each.text),
                logprobs=logprobs_of(each.tokens) if job.samplings[i].logprobs is not None else None,
                finish_reason=each.finish_reason,
            )
            for i, each in enumerate(answers)
        ],
        usage=usage(len(job.tokens), sum(each.completion_tokens for each in answers)),
    )


def dumped(reply: ChatReply) -> dict[str, object]:
    """The reply as JSON; ``logprobs`` only where they were asked for, as the container writes it."""
    values = reply.model_dump()
    for choice in values["choices"]:
        if choice["logprobs"] is None:
            del choice["logprobs"]
    return values


def tell(facts: Facts, job: Job, answers: Sequence[Written]) -> None:
    """Add a finished job to its request's facts."""
    facts.operation = facts.operation or "chat"
    facts.prompt_tokens += len(job.tokens)
    facts.completion_tokens += sum(each.completion_tokens for each in answers)
    facts.finish_reasons = [*facts.finish_reasons, *(each.finish_reason or "" for each in answers)]


def logprobs_of(tokens: Sequence[sequence.TokenLogprob]) -> Logprobs:
    """Logprobs in OpenAI's form. ``bytes`` is there so that a character cut in two can be put together."""
    return Logprobs(
        content=[
            TokenLogprob(
                token=_text(each.piece),
                bytes=list(each.piece),
                logprob=each.logprob,
                top_logprobs=[
                    TopLogprob(token=_text(piece), bytes=list(piece), logprob=value)
                    for _, piece, value in each.top
                ],
            )
            for each in tokens
        ]
    )


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


def usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
    )


def new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"
