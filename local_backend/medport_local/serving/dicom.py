"""MedGemma as the "dicom" container speaks: images from GCS, DICOMweb and slides; errors under HTTP 200.

What is different from the default container: unknown keys are refused, ``max_tokens`` is 500 unless given, nothing
streams, and a request that cannot be answered is answered with 200 and ``{"error": …}``: a string if it breaks
the schema, an object if its data cannot be used. The slices of a CT or MR series are followed by "SLICE 1",
"SLICE 2", and so on.

Source: Google-Health/medgemma, python/serving/predictor.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from medport.errors import InputError
from medport.wire import chat as wire
from medport.wire import checked
from medport.wire.dicom_chat import (
    DicomChatRequest,
    ImageBytesPart,
    ImageDicomPart,
    ImageGcsPart,
    ImagePart,
    ImageUrlPart,
    TextPart,
    UserPart,
    normalised,
    region_of,
)
from medport_local.engine.protocol import Engine
from medport_local.serving import generate, regions
from medport_local.serving.chat import check_size
from medport_local.serving.endpoints import Served
from medport_local.serving.generate import Job
from medport_local.serving.outcome import Asking
from medport_local.serving.sources import codec_of, pixel_values, read_url
from medport_local.serving.together import together

if TYPE_CHECKING:
    from medport_local.engine.codecs import PixelValues

MODEL_NAME = "placeholder"
"""What the reference container writes there, and what its readers have learnt not to read."""
MAX_ERROR = 1024
NOTES_HEADER = "X-Medport-Notes"
"""What looks wrong with a series that was read all the same, in counts. The reply's schema has no place for it."""

Body: TypeAlias = dict[str, object]


@dataclass(frozen=True, slots=True)
class _View:
    """An image as the model sees it, and what is said after it."""

    values: PixelValues
    caption: str | None = None


async def predict(exchange: Asking, served: Served, engine: Engine, instances: Sequence[object]) -> Body:
    """What the container answers to ``{"instances": […]}``: one gives an object, several a list."""
    several = len(instances) != 1
    try:
        asked = [_read(values, f"instances[{i}]" if several else None) for i, values in enumerate(instances)]
    except InputError as error:
        return {"error": str(error)[:MAX_ERROR]}
    answers = await exchange.attended(_answers(exchange, served, engine, asked))
    return {"predictions": answers if several or served.lists else answers[0]}


async def bare(exchange: Asking, served: Served, engine: Engine, body: Mapping[str, object]) -> Body:
    """What the container answers to a request that is not wrapped in ``instances``."""
    try:
        request = _read(body, None)
    except InputError as error:
        return {"error": str(error)[:MAX_ERROR]}
    return await exchange.attended(_answer(exchange, served, engine, request))


def _read(values: object, place: str | None) -> DicomChatRequest:
    if not isinstance(values, Mapping):
        raise InputError("is not a JSON object", field=place)
    try:
        check_size(values)
        request = checked(DicomChatRequest, normalised(values))
        request.check()
    except InputError as error:
        if place:
            error.field = f"{place}.{error.field}" if error.field else place
        raise
    return request


async def _answers(
    exchange: Asking, served: Served, engine: Engine, asked: Sequence[DicomChatRequest]
) -> list[Body]:
    return await together(_answer(exchange, served, engine, request) for request in asked)


async def _answer(exchange: Asking, served: Served, engine: Engine, request: DicomChatRequest) -> Body:
    try:
        job = await _prepared(exchange, served, engine, request)
    except InputError as error:
        return {"error": {"message": str(error)[:MAX_ERROR], "object": "error", "type": "BadRequestError"}}
    answers = await generate.written(engine, job, exchange)
    generate.tell(exchange.facts, job, answers)
    return generate.dumped(generate.reply(MODEL_NAME, job, answers))


async def _prepared(exchange: Asking, served: Served, engine: Engine, request: DicomChatRequest) -> Job:
    adapter = served.adapter_of(request.model)
    # Roles and texts first: what cannot be served at all should not make the server fetch a study.
    engine.prompts.check([_message(message, None) for message in request.messages])
    messages: list[wire.Message] = []
    images: list[PixelValues] = []
    for i, message in enumerate(request.messages):
        if message.role != "user" or isinstance(message.content, str):
            messages.append(_message(message, None))
            continue
        views = await together(
            _views(exchange, served, engine, part, f"messages[{i}].content[{j}]")
            for j, part in enumerate(message.content)
        )
        messages.append(_message(message, views))
        images += [view.values for part in views for view in part or ()]
    engine.prompts.check(messages)
    job: Job = await served.threads.decoding(_job, engine, request, messages, images, adapter)
    served.tell_adapter(exchange, adapter)
    return job


def _job(
    engine: Engine,
    request: DicomChatRequest,
    messages: Sequence[wire.Message],
    images: Sequence[PixelValues],
    adapter: str | None,
) -> Job:
    tokens = engine.prompts.build(messages)
    return generate.job_of(engine, tokens, images, generate.samplings(request), adapter)


def _message(message: object, views: Sequence[Sequence[_View] | None] | None) -> wire.Message:
    """The message in the form the prompt is built from; each view an image, its caption after it."""
    content = message.content  # type: ignore[attr-defined]
    role = message.role  # type: ignore[attr-defined]
    if content is None:
        return wire.Message(role=role, content="")
    if isinstance(content, str):
        return wire.Message(role=role, content=content)
    parts: list[wire.TextPart | wire.ImagePart] = []
    for j, part in enumerate(content):
        if isinstance(part, TextPart):
            parts.append(wire.TextPart(text=part.text))
        elif region_of(part) is None:
            parts.append(wire.TextPart(text=part.refusal))
        else:
            seen: Sequence[_View | None] = (views[j] if views is not None else None) or [None]
            for view in seen:
                parts.append(wire.ImagePart(image_url=wire.ImageUrl(url="")))
                if view is not None and view.caption is not None:
                    parts.append(wire.TextPart(text=view.caption))
    return wire.Message(role=role, content=parts)


async def _views(
    exchange: Asking, served: Served, engine: Engine, part: UserPart, field: str
) -> list[_View] | None:
    """What the model sees of one content part; ``None`` for text."""
    region = region_of(part)
    if region is None:
        return None
    sources, ordered = await _sources(exchange, served, part, field)
    codec = codec_of(engine)

    notes: list[str] = []

    def views() -> list[_View]:
        seen = regions.chat_images(
            sources,
            region,
            side_px=codec.side_px,
            ordered=ordered,
            field=field,
            most=engine.limits.max_images,
            notes=notes,
        )
        return [_View(pixel_values(codec, image), caption) for image, caption in seen]

    found = await served.threads.decoding(views)
    if notes:
        exchange.answer_headers[NOTES_HEADER] = "; ".join(notes)[:1024]
    return found


async def _sources(exchange: Asking, served: Served, part: UserPart, field: str) -> tuple[list[bytes | str], bool]:
    """The files behind a content part, and whether their order is the caller's."""
    deadline = exchange.deadline
    if isinstance(part, ImageBytesPart):
        return [f"data:;base64,{part.image_bytes.input_bytes}"], True
    if isinstance(part, ImageDicomPart):
        dicom = part.image_dicom
        uris = dicom.dicom_source
        fetcher = served.fetcher
        if isinstance(uris, str) and "/instances/" not in uris:
            series = await served.threads.fetching(
                fetcher.dicom_series, uris, credential=dicom.access_credential, field=field, deadline=deadline
            )
            return list(series), False
        each = [uris] if isinstance(uris, str) else uris
        return await together(
            served.threads.fetching(
                fetcher.dicom_instance, uri, credential=dicom.access_credential, field=field, deadline=deadline
            )
            for uri in each
        ), True
    urls, credential = _urls(part)
    return await together(
        read_url(served, url, field=field, credential=credential, deadline=deadline) for url in urls
    ), True


def _urls(part: UserPart) -> tuple[list[str], str | None]:
    if isinstance(part, ImageUrlPart):
        url: str | list[str] = part.image_url.url
        credential = part.image_url.access_credential
    elif isinstance(part, ImageGcsPart):
        url, credential = part.image_gcs.gcs_source, part.image_gcs.access_credential
    else:
        assert isinstance(part, ImagePart)
        url, credential = part.image, part.access_credential
    return ([url] if isinstance(url, str) else list(url)), credential
