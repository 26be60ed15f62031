"""The OpenAI paths beside the endpoint resources: ``/v1/models``, ``/v1/chat/completions``, ``/v1/embeddings``.

``model`` chooses the endpoint: by its id, by the model's own id, by the endpoint's resource name. Left empty, or a
stand-in that a client library writes for want of a name, it is the one there is. ``name+adapter`` asks for a LoRA
adapter beside it. A name that is not served is refused: an answer by another model than the one asked for would be
taken for its.

Source: OpenAI API reference, Models, Chat, Embeddings.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from medport.errors import InputError, NotFound
from medport.wire import Deferred, Whole, checked
from medport_local.engine.adapter_names import parse_model
from medport_local.serving import embed
from medport_local.serving.endpoints import Served
from medport_local.serving.exchange import Exchange

if TYPE_CHECKING:
    from medport_local.engine.embedder import Embedder

_STAND_INS = frozenset(("", "dummy", "tgi", "default"))
Kind = Literal["chat", "embeddings"]


class ImageInput(Deferred):
    """An image among the inputs: an extension, in the form of a chat's content part."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    type: Literal["image_url"]
    image_url: ImageInputUrl


class ImageInputUrl(Deferred):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    url: str


class EmbeddingsRequest(Deferred):
    """Texts, or images in the form of content parts; not both in one request."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    model: str = ""
    input: str | Annotated[list[str | ImageInput], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Whole | None = None


ImageInput.model_rebuild()


def of_kind(served: Mapping[str, Served], kind: Kind) -> list[Served]:
    """Those that answer that kind of call."""
    return [each for each in served.values() if (each.embedder is not None) == (kind == "embeddings")]


def chosen(served: Mapping[str, Served], model: object, kind: Kind) -> Served:
    """The endpoint that ``model`` names.

    Raises:
        InputError: ``model`` is no text, or what follows its ``+`` is no name.
        NotFound: it is not served, serves the other kind, or has no such adapter.
    """
    if model is not None and not isinstance(model, str):
        raise InputError("is not a text", field="model", remedy="give a model id, or leave it out")
    candidates = of_kind(served, kind)
    asked = (model or "").strip()
    name = asked if "://" in asked else parse_model(asked)[0]
    if name in _STAND_INS or "://" in name:
        if candidates:
            candidates[0].adapter_of(asked)
            return candidates[0]
        raise NotFound(f"this server serves no {kind} model", remedy="start it with --snapshot NAME=DIR")
    for each in candidates:
        if name in (each.endpoint_id, each.model_display_name, f"google/{each.endpoint_id}", each.model):
            each.adapter_of(asked)
            return each
    known = ", ".join(each.endpoint_id for each in candidates) or "none"
    raise NotFound("this model is not served here", field="model", remedy=f"for {kind} there is: {known}")


def models(served: Mapping[str, Served]) -> dict[str, object]:
    """Every endpoint as a model, with the snapshot behind it, and each of its adapters as one more."""
    cards = [model(each, adapter) for each in served.values() for adapter in (None, *each.adapters)]
    return {"object": "list", "data": cards}


def model(each: Served, adapter: str | None = None) -> dict[str, object]:
    """One endpoint as a model; with an adapter, the two together as one whose ``parent`` is the endpoint."""
    pins = each.pins.as_dict()
    del pins["model_id"]  # it is the root
    derived_from = pins.pop("parent")  # which is the key for adapters here
    card: dict[str, object] = {
        "id": each.endpoint_id,
        "object": "model",
        "created": each.since,
        "owned_by": "medport",
        "root": each.model_display_name,
        **pins,
        "derived_from": derived_from,
    }
    if adapter is None:
        return card
    name, sha256 = f"{each.endpoint_id}+{adapter}", each.adapters[adapter]
    return {**card, "id": name, "parent": each.endpoint_id, "adapter_sha256": sha256}


async def embeddings(exchange: Exchange, served: Served, embedder: Embedder, body: Mapping[str, Any]) -> object:
    """Answer ``/v1/embeddings``: unit vectors, as floats or as base64 of little-endian float32."""
    request = checked(EmbeddingsRequest, {key: value for key, value in body.items() if value is not None})
    inputs = [request.input] if isinstance(request.input, str) else list(request.input)
    texts = [each for each in inputs if isinstance(each, str)]
    urls = [each.image_url.url for each in inputs if isinstance(each, ImageInput)]
    if texts and urls:
        raise InputError("mixes texts and images", field="input", remedy="send them in two requests")
    if any(not text for text in texts):
        raise InputError("holds an empty text", field="input", remedy="leave it out")
    if urls:
        vectors = await embed.images(exchange, served, embedder, urls, "input")
    else:
        vectors = await embed.texts(exchange, embedder, texts)
    _check_dimensions(request.dimensions, vectors)
    tokens = embedder.text_length * len(texts)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": _written(vector, request.encoding_format)}
            for i, vector in enumerate(vectors)
        ],
        "model": served.model_display_name,
        # A text is padded to its full length, which is part of the model: that is what is computed.
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _check_dimensions(asked: int | None, vectors: Sequence[npt.NDArray[np.float32]]) -> None:
    if asked is not None and vectors and asked != len(vectors[0]):
        raise InputError(
            f"the vectors have {len(vectors[0])} dimensions and cannot be cut",
            field="dimensions",
            remedy="leave it out",
        )


def _written(vector: npt.NDArray[np.float32], form: Literal["float", "base64"]) -> object:
    return vector if form == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
