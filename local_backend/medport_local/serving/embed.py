"""MedSigLIP's ``:predict``: a list of instances → a list of embeddings or errors, in the same order.

A fault of one instance is that instance's error, as in the reference container, and the others are answered. A
fault of the body (no ``instances``, too many) is an error of the request, in Vertex's envelope.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from starlette.responses import Response

from medport.errors import DicomError, ImageError, InputError, MedportError
from medport.images import load, prepare
from medport.wire import checked
from medport.wire.embed import EmbedInstance, ItemError
from medport_local.engine.codecs import ImageCodec, PixelValues
from medport_local.engine.embedder import Embedder
from medport_local.serving.endpoints import IMAGE_LIMITS, Served
from medport_local.serving.exchange import JSON, Exchange

_Input: TypeAlias = "PixelValues | str | ItemError"

_BAD_FIELD = "INVALID_REQUEST_FIELD_ERROR"
_BAD_BYTES = "UNHANDLED_GENERIC_BYTES_ERROR"
_BAD_DICOM = "DICOM_ERROR"
_REFERENCES = ("gcs_uri", "dicomweb_uri", "image_url")


async def predict(exchange: Exchange, served: Served, embedder: Embedder, instances: Sequence[object]) -> Response:
    """Answer ``{"instances": [{"image": {"input_bytes": …}} | {"text": …}, …]}``."""
    if len(instances) > embedder.limits.max_pending:
        raise InputError(
            f"{len(instances)} instances, and this server takes {embedder.limits.max_pending} in a request",
            field="instances",
            remedy="send several requests",
        )
    predictions = await exchange.attended(_predictions(served, embedder, instances))
    exchange.answer_headers.update(served.headers())
    return JSON(served.envelope(predictions))


async def _predictions(served: Served, embedder: Embedder, instances: Sequence[object]) -> list[object]:
    loop = asyncio.get_running_loop()
    inputs: list[_Input] = await asyncio.gather(
        *(loop.run_in_executor(served.workers, _input, embedder.images, instance) for instance in instances)
    )
    images = [each for each in inputs if isinstance(each, np.ndarray)]
    texts = [each for each in inputs if isinstance(each, str)]
    image_vectors, text_vectors = await asyncio.gather(embedder.embed_images(images), embedder.embed_texts(texts))
    vectors = {"image": iter(image_vectors), "text": iter(text_vectors)}
    predictions: list[object] = []
    for each in inputs:
        if isinstance(each, ItemError):
            predictions.append({"error": each.model_dump()})
        else:
            kind = "text" if isinstance(each, str) else "image"
            predictions.append(_prediction(next(vectors[kind]), kind, embedder))
    return predictions


def _prediction(vector: npt.NDArray[np.float32], kind: str, embedder: Embedder) -> dict[str, object]:
    # The array goes to JSON as it is: the shortest digits that give the same float32 back.
    return {
        "embedding": vector,
        "input_type": kind,
        "model_temperature": embedder.logit_scale,
        "model_bias": embedder.logit_bias,
    }


def _input(codec: ImageCodec, values: object) -> _Input:
    """One instance, decoded; runs in a worker thread."""
    try:
        return _decoded(codec, checked(EmbedInstance, values))
    except InputError as error:
        return ItemError(code=_code(error), description=str(error)[:1024])


def _decoded(codec: ImageCodec, instance: EmbedInstance) -> _Input:
    if (instance.text is None) == (instance.image is None):
        raise InputError("an instance holds exactly one of text and image")
    if instance.text is not None:
        return instance.text
    assert instance.image is not None
    for name in _REFERENCES:
        if getattr(instance.image, name) is not None:
            raise InputError("this server fetches nothing", field=f"image.{name}", remedy="send the image itself")
    if instance.image.access_credential is not None or instance.image.input_bytes is None:
        raise InputError("an image holds input_bytes and nothing else", field="image")
    # By the one door for data URLs, which checks size and base64.
    url = f"data:;base64,{instance.image.input_bytes}"
    return codec.pixel_values(prepare(load(url, field="image.input_bytes", limits=IMAGE_LIMITS)).to_array())


def _code(error: MedportError) -> str:
    if isinstance(error, DicomError):
        return _BAD_DICOM
    return _BAD_BYTES if isinstance(error, ImageError) else _BAD_FIELD
