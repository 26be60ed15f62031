"""Container A's older form: a literal prompt, no chat template, the answer as a string.

``{"prompt": "… <start_of_image>", "multi_modal_data": {"image": URL}, "raw_response": true, …}``. The caller
writes the control tokens, so here, and only here, they are taken for what they say.

Source: Google-Health/medgemma, the notebook of 2025-07; GoogleCloudPlatform/vertex-ai-samples, the vLLM container.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import orjson
from pydantic import ConfigDict, Field

from medport.errors import InputError
from medport.wire import Deferred, Whole, checked
from medport.wire.chat import Generation
from medport_local.engine.protocol import Engine
from medport_local.engine.sequence import Event
from medport_local.serving import generate
from medport_local.serving.generate import Job, Written

if TYPE_CHECKING:
    from medport_local.engine.codecs import PixelValues

_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "best_of": (1,),
    "use_beam_search": (False,),
    "prompt_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "truncate_prompt_tokens": (-1,),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
}


class MultiModalData(Deferred):
    model_config = ConfigDict(extra="forbid")

    image: str | Annotated[list[str], Field(max_length=1024)]


class RawRequest(Generation):
    """One raw prompt. ``logprobs`` is a number here, as in vLLM's own API."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    model: str = ""
    """An extension: ``base+adapter``, as in a chat."""
    prompt: str
    multi_modal_data: MultiModalData | None = None
    raw_response: bool = False
    stream: bool = False
    logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None

    def images(self) -> list[str]:
        """The images' URLs, in order."""
        if self.multi_modal_data is None:
            return []
        image = self.multi_modal_data.image
        return [image] if isinstance(image, str) else image


def read(given: dict[str, object]) -> RawRequest:
    """Validate what holds a ``prompt`` and no ``messages``.

    Raises:
        InputError: names the field.
    """
    for key, neutral in _NEUTRAL.items():
        if key in given and given[key] not in neutral:
            raise InputError("is not supported with a raw prompt", field=key, remedy="send messages instead")
    request = checked(RawRequest, given)
    request.check()
    return request


def job(engine: Engine, request: RawRequest, images: Sequence[PixelValues], adapter: str | None = None) -> Job:
    """Tokenise. CPU work: call it in a decoding thread."""
    return generate.job_of(
        engine,
        engine.prompts.raw(request.prompt, len(images)),
        images,
        # A raw response carries the sum of the logprobs, so the engine has to keep them.
        generate.samplings(request, logprobs=0 if request.raw_response else request.logprobs),
        adapter,
    )


def answer(request: RawRequest, answers: Sequence[Written]) -> dict[str, object]:
    """One prompt's part of the answer, before ``joined`` puts them together."""
    return {
        "predictions": [_said(request, each.text) for each in answers],
        "output_token_counts": [each.completion_tokens for each in answers],
        "cumulative_logprobs": [sum(token.logprob for token in each.tokens) for each in answers],
    }


def joined(asked: Sequence[RawRequest], answers: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """``{"predictions": ["…"]}``; counts and logprobs as well where a raw response was asked for."""
    keys = ["predictions"]
    if all(request.raw_response for request in asked):
        keys += ["output_token_counts", "cumulative_logprobs"]
    return {key: [item for each in answers for item in _list(each[key])] for key in keys}


async def chunks(
    pairs: AsyncGenerator[tuple[int, Event], None], request: RawRequest
) -> AsyncGenerator[object, None]:
    """The text so far, once a step, as the container's own server streams it."""
    texts = [""] * request.n
    async with aclosing(pairs) as arriving:
        async for i, event in arriving:
            texts[i] += event.text
            if event.text or event.finish_reason is not None:
                yield {"predictions": [_said(request, text) for text in texts]}


def encoded(value: object) -> bytes:
    """One value of the stream: JSON, then a NUL."""
    return orjson.dumps(value) + b"\0"


def _said(request: RawRequest, text: str) -> str:
    return text if request.raw_response else f"Prompt:\n{request.prompt.strip()}\nOutput:\n{text}"


def _list(value: object) -> list[object]:
    assert isinstance(value, list)
    return value
