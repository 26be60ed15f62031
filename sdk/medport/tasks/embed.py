"""Embeddings: images and texts → calls under the byte limit → float32 vectors, with an error per item."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import orjson

from medport import images as im
from medport._call import Body, Call, Flow, Reply
from medport.errors import ImageError, InputError, MedportError, ProtocolError, ServerError
from medport.results import Embeddings, Float32, Provenance
from medport.tasks.chat import as_list, prepared, text
from medport.wire import vectors
from medport.wire.vertex import error_in_body

BATCH_BYTES = 1_400_000
"""Under the 1.5 MB of a shared endpoint, so that one rule holds on every backend."""
BATCH_ITEMS = 100
"""What the reference server runs as one batch (its default per batch prediction)."""
_OPEN, _CLOSE = b'{"instances":[', b"]}"
_INPUT_ERRORS = {"INTERNAL_ERROR": ServerError, "INVALID_REQUEST_FIELD_ERROR": InputError}


@dataclass(frozen=True, slots=True)
class Batch:
    """What one request gave: vectors, the scale and bias that came along, errors by position in the batch."""

    vectors: Float32
    scale: float
    bias: float
    errors: Mapping[int, MedportError]
    provenance: Provenance


def image_instances(images: im.Source | Sequence[im.Source]) -> list[bytes | MedportError]:
    """The instance of each image as JSON, or why it has none. CPU work."""
    return [_image_instance(source, f"images[{i}]") for i, source in enumerate(as_list(images))]


def text_instances(texts: str | Sequence[str], field: str = "texts") -> list[bytes | MedportError]:
    """The instance of each text as JSON.

    Raises:
        InputError: a text is empty or not a string; names which.
    """
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, Iterable):
        raise InputError("must be text or a list of texts", field=field, remedy="give some words")
    return [orjson.dumps({"text": text(each, f"{field}[{i}]")}) for i, each in enumerate(texts)]


def _image_instance(source: im.Source, field: str) -> bytes | MedportError:
    try:
        if im.is_remote(source):
            key = "gcs_uri" if str(source).startswith("gs://") else "image_url"
            return orjson.dumps({"image": {key: str(source)}})
        return b'{"image":{"input_bytes":"' + prepared(source, field).base64.encode() + b'"}}'
    except InputError as error:
        return error


def embed(instances: Sequence[bytes | MedportError], field: str) -> Flow[Embeddings]:
    """The job: as many requests as the byte limit asks for, put together in order.

    Raises:
        InputError: nothing was given.
        MedportError: not one item could be embedded.
    """
    if not instances:
        raise InputError(f"there are no {field}", field=field, remedy=f"give at least one of {field}")
    errors: dict[int, MedportError] = {i: e for i, e in enumerate(instances) if isinstance(e, MedportError)}
    good = [(i, e) for i, e in enumerate(instances) if isinstance(e, bytes)]
    if not good:
        raise errors[0]
    rows: dict[int, Float32] = {}
    whole: Batch | None = None
    for group in _batches(good):
        body = Body((_OPEN + b",".join(instance for _, instance in group) + _CLOSE,))
        batch: Batch = yield Call("medsiglip", "predict", body, partial(_read, count=len(group)))
        for at, (position, _) in enumerate(group):
            if at in batch.errors:
                error = batch.errors[at]
                error.field = f"{field}[{position}]"
                errors[position] = error
            else:
                rows[position] = batch.vectors[at]
                whole = batch  # a batch in which nothing could be used brings no scale along
    if whole is None:
        raise errors[min(errors)]
    width = {len(row) for row in rows.values()}
    if len(width) != 1:
        raise ProtocolError("embeddings of different lengths came back", field="embedding")
    vectors = np.full((len(instances), width.pop()), np.nan, np.float32)
    for position, row in rows.items():
        vectors[position] = row
    return Embeddings(vectors, math.exp(whole.scale), whole.bias, dict(sorted(errors.items())), whole.provenance)


def _batches(items: Sequence[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    group: list[tuple[int, bytes]] = []
    size = 0
    for item in items:
        if group and (size + len(item[1]) > BATCH_BYTES or len(group) == BATCH_ITEMS):
            yield group
            group, size = [], 0
        group.append(item)
        size += len(item[1]) + 1
    if group:
        yield group


def _read(reply: Reply, provenance: Provenance, *, count: int) -> Batch:
    plain = vectors.read(reply.body)
    if plain is not None and len(plain.rows) == count:
        return Batch(_normalised(plain.rows), _number(plain.scale), _number(plain.bias), {}, provenance)
    body = reply.json()
    error_in_body(body)
    predictions = body.get("predictions") if isinstance(body, Mapping) else None
    error_in_body(predictions)
    if not isinstance(predictions, list) or len(predictions) != count:
        raise ProtocolError("there is not one prediction for each instance", field="predictions")
    errors = {
        i: _item_error(p)
        for i, p in enumerate(predictions)
        if not isinstance(p, Mapping) or p.get("embedding") is None
    }
    good = [p for i, p in enumerate(predictions) if i not in errors]
    found = _vectors([p["embedding"] for p in good])
    full = np.full((count, found.shape[1]), np.nan, np.float32) if errors else found
    if errors:
        full[[i for i in range(count) if i not in errors]] = found
    scale, bias = (_number(good[0].get(k)) if good else 0.0 for k in ("model_temperature", "model_bias"))
    return Batch(full, scale, bias, errors, provenance)


def _vectors(rows: Sequence[Any]) -> Float32:
    """float32 ``[n, d]``, each row of length one.

    Raises:
        ProtocolError: rows of different lengths, not numbers, or not finite.
    """
    if not rows:
        return np.empty((0, 0), np.float32)
    try:
        # struct reads floats out of a list three times as fast as numpy does.
        pack = struct.Struct(f"{len(rows[0])}f").pack
        found = np.frombuffer(b"".join([pack(*row) for row in rows]), np.float32).reshape(len(rows), -1)
    except (TypeError, ValueError, OverflowError, struct.error):
        raise ProtocolError("the embeddings are not equally long lists of numbers", field="embedding") from None
    return _normalised(found)


def _normalised(rows: Float32) -> Float32:
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(lengths).all():
        raise ProtocolError("an embedding holds a value that is no finite number", field="embedding")
    if (lengths == 0).any():
        raise ProtocolError("an embedding is all zeros", field="embedding")
    return np.asarray(rows / lengths, np.float32)


def _item_error(prediction: object) -> MedportError:
    error = prediction.get("error") if isinstance(prediction, Mapping) else None
    if not isinstance(error, Mapping):
        raise ProtocolError("a prediction holds neither an embedding nor an error", field="predictions")
    code = str(error.get("code") or "UNKNOWN_ERROR")
    kind = _INPUT_ERRORS.get(code, ImageError)
    return kind(f"the server could not use this item ({code})", remedy="check the file")


def _number(value: object) -> float:
    # The scale is a logarithm, the bias at most some tens: neither comes near to what exp can take.
    if not isinstance(value, int | float) or not abs(value) < 500:
        raise ProtocolError("the logit scale or bias is missing or no number", field="model_temperature")
    return float(value)
