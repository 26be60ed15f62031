"""One endpoint as its own container answers, without what Vertex wraps around it.

``:rawPredict`` and ``/invoke`` hand a body through to it, and our own image on Vertex is nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from starlette.responses import PlainTextResponse, Response

from medport.errors import InputError, MedportError, NotFound, ServerError, row_of
from medport_local.serving import chat, dicom, embed, openai
from medport_local.serving.endpoints import Served
from medport_local.serving.exchange import JSON, Events, Exchange, error_response
from medport_local.serving.outcome import Asking

PREDICT_PATHS = frozenset(("predict", "generate", "infer"))
MAX_CHATS = 16
"""Instances of a chat in one request; each costs a sequence of the engine."""
HEALTH_PATHS = frozenset(("health", "ping"))
_CHAT_PATHS = frozenset(("v1/chat/completions", "chat/completions"))


async def invoked(exchange: Exchange, served: Served, path: str) -> Response | Events:
    """The container's answer at one of its own paths."""
    path = path.strip("/")
    method = exchange.scope["method"]
    if method == "POST" and path in PREDICT_PATHS:
        return await raw_predict(exchange, served, streaming=True)
    if method == "POST" and path in _CHAT_PATHS:
        return await completions(exchange, served)
    if method == "POST" and path == "v1/embeddings" and served.embedder is not None:
        return JSON(await openai.embeddings(exchange, served, served.embedder, await exchange.json()))
    if method == "GET" and path == "v1/models":
        return JSON(openai.models({served.endpoint_id: served}))
    if method == "GET" and path in HEALTH_PATHS:
        return health([served])
    raise NotFound("the container has no such path", remedy="see the list of routes in the documentation")


def health(served: Iterable[Served], *, ready: bool = True) -> Response:
    """``ok`` while every engine takes requests, as the containers answer Vertex's probes."""
    well = ready and all(each.engine.healthy for each in served)
    return PlainTextResponse("ok" if well else "not ok", status_code=200 if well else 503)


async def predict(exchange: Asking, served: Served, body: Mapping[str, object]) -> dict[str, object]:
    """The answer to ``{"instances": […]}`` at the predict route."""
    instances = body.get("instances")
    if not isinstance(instances, list):
        raise InputError("No instances field in request.", field="instances", remedy="send a list of instances")
    if body.get("parameters"):
        raise InputError("parameters are not taken", field="parameters", remedy="put them into each instance")
    if not instances:
        return {"predictions": []}
    embedder = served.embedder
    most = MAX_CHATS if embedder is None else embedder.limits.max_pending
    if len(instances) > most:
        raise InputError(
            f"{len(instances)} instances, and this server takes {most} in a request",
            field="instances",
            remedy="send several requests",
        )
    if embedder is not None:
        return await embed.predict(exchange, served, embedder, instances)
    if served.dialect == "dicom":
        return await dicom.predict(exchange, served, served.generator, instances)
    return await chat.predict(exchange, served, served.generator, instances)


async def raw_predict(exchange: Exchange, served: Served, *, streaming: bool) -> Response | Events:
    """Any body that the predict route takes; ``stream: true`` in it streams where that may be."""
    if served.dialect != "vllm":
        exchange.render_error = plain_error
    body = await exchange.json(limit=served.bounds.max_body_bytes)
    if served.embedder is not None:
        return JSON(await predict(exchange, served, body))
    engine = served.generator
    if served.dialect == "dicom":
        wrapped = "instances" in body
        answer = predict(exchange, served, body) if wrapped else dicom.bare(exchange, served, engine, body)
        return JSON(await answer)
    if "instances" not in body and "prompt" not in body:
        return await chat.completions(exchange, served, engine, body, streaming=streaming)
    instances = body.get("instances", [body])
    only = instances[0] if isinstance(instances, list) and len(instances) == 1 else None
    if streaming and isinstance(only, Mapping) and only.get("stream") is True:
        return await chat.stream(exchange, served, engine, chat.read(only))
    return JSON(await predict(exchange, served, {"instances": instances}))


async def completions(exchange: Exchange, served: Served) -> Response | Events:
    """The OpenAI path: a bare chat request, its answer or its stream."""
    if served.dialect == "dicom":
        exchange.render_error = plain_error
    return await chat_of(exchange, served, await exchange.json(limit=served.bounds.max_body_bytes))


async def chat_of(exchange: Exchange, served: Served, body: Mapping[str, object]) -> Response | Events:
    """The answer to a bare chat request that has been read."""
    if served.embedder is not None:
        raise NotFound("this endpoint serves embeddings, not chat", remedy="POST to its :predict")
    if served.dialect == "dicom":
        return JSON(await dicom.bare(exchange, served, served.generator, body))
    return await chat.completions(exchange, served, served.generator, body)


def plain_error(error: MedportError) -> Response:
    """An error as MedSigLIP's and the "dicom" container write it: ``{"error": "…"}``.

    What is not the container's own word, such as a full queue, keeps Google's envelope.
    """
    if isinstance(error, ServerError):
        return JSON({"error": "Internal server error."}, status_code=500)
    if isinstance(error, InputError) and row_of(error).http == 400:
        said = "No JSON body." if error.field == "body" else str(error)
        return JSON({"error": said[:1024]}, status_code=400)
    return error_response(error)
