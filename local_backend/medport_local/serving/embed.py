"""MedSigLIP as its container speaks: a list of instances → a list of embeddings or errors, in the same order.

An instance whose data cannot be used is that instance's error, with the reference's code, and the others are
answered. An instance that breaks the schema fails the request with 400; so does a body without ``instances``. Too
many patches, or an extension that cannot be understood, fail it with 200 and the bare code.

Source: Google-Health/medsiglip, python/serving.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from medport.errors import DicomError, ImageError, InputError, MedportError
from medport.wire import checked
from medport.wire.embed import Code, EmbedImage, EmbedInstance, ItemError
from medport.wire.regions import Patch
from medport_local.serving import regions
from medport_local.serving.endpoints import Served
from medport_local.serving.outcome import Asking
from medport_local.serving.sources import image_values, pixel_values, read_url
from medport_local.serving.together import together

if TYPE_CHECKING:
    from medport_local.engine.codecs import ImageCodec, PixelValues
    from medport_local.engine.embedder import Embedder

Body: TypeAlias = dict[str, object]
MAX_KEYS = 64
BAD_FIELD: Code = "INVALID_REQUEST_FIELD_ERROR"
TOO_MANY: Code = "TOO_MANY_PATCHES_ERROR"
_CODES = frozenset(get_args(Code))
_UNREADABLE: dict[str, Code] = {
    "input_bytes": "UNHANDLED_GENERIC_BYTES_ERROR",
    "gcs_uri": "UNHANDLED_GCS_FILE_ERROR",
    "image_url": "UNHANDLED_HTTP_FILE_ERROR",
    "dicomweb_uri": "DICOM_ERROR",
}


@dataclass(frozen=True, slots=True)
class _View:
    """A part of an image as the model sees it; the whole of it if ``patch`` is not set."""

    values: PixelValues
    patch: Patch | None = None


_Input: TypeAlias = "list[_View] | str | ItemError"


async def predict(exchange: Asking, served: Served, embedder: Embedder, instances: Sequence[object]) -> Body:
    """What the container answers to ``{"instances": [{"image": {…}} | {"text": …}, …]}``."""
    limit = embedder.limits.max_pending
    try:
        asked = [_read(values, f"instances[{i}]") for i, values in enumerate(instances)]
    except InputError as error:
        if ".extensions" in (error.field or ""):
            # Extensions are free-form by the schema: what is wrong in them is found after it, and said so.
            return {"error": BAD_FIELD}
        raise
    if sum(_count(each) for each in asked) > min(limit, embedder.limits.max_per_request or limit):
        return {"error": TOO_MANY}
    return {"predictions": await exchange.attended(_predictions(exchange, served, embedder, asked))}


def _read(values: object, place: str) -> EmbedInstance:
    try:
        instance = checked(EmbedInstance, _without_nulls(values))
        instance.check()
    except InputError as error:
        error.field = f"{place}.{error.field}" if error.field else place
        raise
    return instance


def _without_nulls(values: object, depth: int = 3) -> object:
    """Google's generated client leaves what is not set out, others write it as null.

    As deep as the schema goes: an instance, its image, and what the image holds.
    """
    if not isinstance(values, dict) or depth == 0:
        return values
    if len(values) > MAX_KEYS:
        raise InputError(f"has more than {MAX_KEYS} keys", remedy="see the documentation for those that are known")
    return {key: _without_nulls(value, depth - 1) for key, value in values.items() if value is not None}


def _count(instance: EmbedInstance) -> int:
    patches = instance.image.patch_coordinates_list if instance.image else None
    return len(patches) if patches else 1


async def _predictions(
    exchange: Asking, served: Served, embedder: Embedder, instances: Sequence[EmbedInstance]
) -> list[object]:
    inputs = await together(_input(exchange, served, embedder.images, each) for each in instances)
    images = [view.values for each in inputs if isinstance(each, list) for view in each]
    texts = [each for each in inputs if isinstance(each, str)]
    of_images, of_texts = await asyncio.gather(
        embedder.embed_images(images, tenant=exchange.tenant, deadline=exchange.deadline),
        embedder.embed_texts(texts, tenant=exchange.tenant, deadline=exchange.deadline),
    )
    pictures, sentences = iter(of_images), iter(of_texts)
    predictions: list[object] = []
    for each in inputs:
        if isinstance(each, ItemError):
            predictions.append({"error": each.model_dump()})
        elif isinstance(each, str):
            predictions.append({"embedding": next(sentences), **_standing("text", embedder)})
        elif each[0].patch is None:
            predictions.append({"embedding": next(pictures), **_standing("image", embedder)})
        else:
            patches = [
                {"embedding": next(pictures), "patch_coordinate": view.patch.model_dump()}
                for view in each
                if view.patch is not None
            ]
            predictions.append({"patch_embeddings": patches, **_standing("image", embedder)})
    _tell(exchange, len(images) + len(texts))
    return predictions


def _standing(kind: str, embedder: Embedder) -> dict[str, object]:
    return {"input_type": kind, "model_temperature": embedder.logit_scale, "model_bias": embedder.logit_bias}


async def _input(exchange: Asking, served: Served, codec: ImageCodec, instance: EmbedInstance) -> _Input:
    if instance.text is not None:
        return instance.text
    image = instance.image
    assert image is not None
    try:
        source = await _source(exchange, served, image)
        return await served.threads.decoding(_views, codec, source, image)
    except InputError as error:
        return ItemError(code=_code(error, image), description=str(error)[:1024])


async def _source(exchange: Asking, served: Served, image: EmbedImage) -> bytes | str:
    deadline, credential = exchange.deadline, image.access_credential
    if image.input_bytes is not None:
        # By the one door for data URLs, which checks size and base64.
        return f"data:;base64,{image.input_bytes}"
    if image.dicomweb_uri is not None:
        return await served.threads.fetching(
            served.fetcher.dicom_instance,
            image.dicomweb_uri,
            credential=credential,
            field="image.dicomweb_uri",
            deadline=deadline,
        )
    name = "gcs_uri" if image.gcs_uri is not None else "image_url"
    url = image.gcs_uri or image.image_url
    assert url is not None
    return await read_url(served, url, field=f"image.{name}", credential=credential, deadline=deadline)


def _views(codec: ImageCodec, source: bytes | str, image: EmbedImage) -> list[_View]:
    """CPU work, in a decoding thread."""
    window = image.radiology_dicom_window_level
    field = f"image.{_source_name(image)}"
    seen = regions.embed_images(
        source,
        image,
        side_px=codec.side_px,
        window=(window.center, window.width) if window else None,
        field=field,
    )
    return [_View(pixel_values(codec, each), patch) for each, patch in seen]


def _source_name(image: EmbedImage) -> str:
    return next(name for name in _UNREADABLE if getattr(image, name) is not None)


def _code(error: MedportError, image: EmbedImage) -> Code:
    code = getattr(error, "code", None)
    if code in _CODES:
        known: Code = code  # type: ignore[assignment]
        return known
    if isinstance(error, DicomError):
        return "DICOM_ERROR"
    return _UNREADABLE[_source_name(image)] if isinstance(error, ImageError) else BAD_FIELD


async def texts(exchange: Asking, embedder: Embedder, texts: Sequence[str]) -> list[npt.NDArray[np.float32]]:
    """One unit vector for each text, for the OpenAI path."""
    vectors = await exchange.attended(
        embedder.embed_texts(list(texts), tenant=exchange.tenant, deadline=exchange.deadline)
    )
    _tell(exchange, len(vectors))
    return vectors


async def images(
    exchange: Asking, served: Served, embedder: Embedder, urls: Sequence[str], field: str
) -> list[npt.NDArray[np.float32]]:
    """One unit vector for each image, by ``data:`` or other URL, for the OpenAI path."""

    async def all_of_them() -> list[npt.NDArray[np.float32]]:
        codec = embedder.images
        return await embedder.embed_images(
            await together(
                image_values(exchange, served, codec, url, field=f"{field}[{i}]") for i, url in enumerate(urls)
            ),
            tenant=exchange.tenant,
            deadline=exchange.deadline,
        )

    vectors = await exchange.attended(all_of_them())
    _tell(exchange, len(vectors))
    return vectors


def _tell(exchange: Asking, count: int) -> None:
    exchange.facts.operation = "embeddings"
    exchange.facts.embeddings += count
