"""One row of a batch job: asked for in the list form, and its answer checked to be one of its model's.

An object that is walked as a list gives a row ``{"prediction": "id"}``: a job can succeed with nothing in it. So
what counts as a result is decided here and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson

from medport.errors import InputError, MedportError, NotReady, QuotaExceeded, ServerError, row_of
from medport_local.serving import container, guard
from medport_local.serving.endpoints import Served
from medport_local.serving.outcome import Facts

T = TypeVar("T")

MAX_ROW_BYTES = guard.MAX_BODY_BYTES
_MAX_WAIT_S = 10.0

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Row:
    """Who asks, when nobody waits at a connection."""

    tenant: str = ""
    deadline: float | None = None
    facts: Facts = field(default_factory=Facts)
    answer_headers: dict[str, str] = field(default_factory=dict)

    async def attended(self, work: Coroutine[Any, Any, T]) -> T:
        return await work

    def first_token(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Answered:
    """A row's line, JSON and a newline."""

    line: bytes = field(repr=False)
    status: str | None
    """Of its error, such as ``INVALID_ARGUMENT``; ``None``: it is a result."""


async def answer(
    served: Served, number: int, line: bytes | None, *, tenant: str = "", container_form: bool = False
) -> Answered:
    """Ask for one row.

    Args:
        served: answers in the list form.
        number: the row's, from 1; a line that cannot be given back is told by it.
        line: ``None`` for one that is over ``MAX_ROW_BYTES``.
        tenant: on whose behalf.
        container_form: give the container's whole answer as the prediction.

    Raises:
        NotReady: the model answers no more; no row would have an answer.
    """
    given = b"null"
    error: MedportError
    try:
        instance = _read(number, line)
        given = line or given
        body = await _asked(served, instance, tenant)
        prediction = checked(body, served, instance)
        if container_form:
            prediction = {"predictions": [prediction] if isinstance(prediction, str) else prediction}
        return Answered(_line(given, prediction=prediction), None)
    except NotReady:
        raise
    except MedportError as fault:
        error = fault
    except Exception as fault:
        # As a request would be answered, so that one row's fault is not the job's. The type only.
        logger.error("a row failed: %s", type(fault).__name__)
        error = ServerError("the server failed", remedy="see its log")
    row = row_of(error)
    said = {"code": row.http, "message": str(error), "status": row.status}
    return Answered(_line(given, error=said, row=number), row.status)


def status_of(line: bytes | None) -> str:
    """The status of a line of errors that was written."""
    try:
        return str(orjson.loads(line or b"")["error"]["status"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "UNKNOWN"


def _read(number: int, line: bytes | None) -> Mapping[str, object]:
    place = f"row {number}"
    if line is None or len(line) > MAX_ROW_BYTES:
        raise InputError(f"is over {MAX_ROW_BYTES} bytes", field=place, remedy="send fewer or smaller images")
    try:
        return guard.parse_json(line)
    except InputError:
        raise InputError(
            "is not a JSON object, or has too many entries", field=place, remedy="write one instance a line"
        ) from None


async def _asked(served: Served, instance: Mapping[str, object], tenant: str) -> Mapping[str, object]:
    while True:
        try:
            return await container.predict(Row(tenant=tenant), served, {"instances": [instance]})
        except QuotaExceeded as busy:
            # Online requests go first, for as long as they fill the queue.
            await asyncio.sleep(min(busy.retry_after_s or 1.0, _MAX_WAIT_S))


def checked(body: Mapping[str, object], served: Served, instance: Mapping[str, object]) -> object:
    """The row's prediction, if it is one of the model's.

    Raises:
        InputError: it is an error in the model's own form.
        ServerError: it is something else than this model answers.
    """
    predictions = body.get("predictions")
    if "error" in body:
        raise _told(body["error"])
    if not isinstance(predictions, list) or not predictions:
        raise ServerError("the model gave no list of answers")
    prediction = predictions[0]
    if isinstance(prediction, Mapping) and "error" in prediction:
        raise _told(prediction["error"])
    raw = "prompt" in instance and "messages" not in instance and served.dialect == "vllm"
    if raw and len(predictions) > 1 and all(isinstance(each, str) for each in predictions):
        raise InputError("a row has one answer", field="n", remedy="write the row once for each")
    if len(predictions) > 1:
        raise ServerError("the model gave several answers to one row")
    if raw:
        fits = isinstance(prediction, str)
    elif served.dialect == "medsiglip":
        fits = _has(prediction, "embedding") or _has(prediction, "patch_embeddings")
    else:
        fits = _has(prediction, "choices")
    if not fits:
        raise ServerError("the answer is none of this model's")
    return prediction


def _has(prediction: object, key: str) -> bool:
    return isinstance(prediction, Mapping) and prediction.get(key) is not None and len(prediction[key]) > 0


def _told(error: object) -> InputError:
    """An error that the model's container tells in a field of its own."""
    if isinstance(error, Mapping):
        error = ": ".join(str(error[key]) for key in ("code", "description", "message") if error.get(key))
    return InputError(str(error) or "the model gave an error")


def _line(given: bytes, **rest: object) -> bytes:
    """The instance stands in it byte for byte as it came."""
    return orjson.dumps(
        {"instance": orjson.Fragment(given), **rest}, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    )
