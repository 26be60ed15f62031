"""The route table: path, handler, what a key must be allowed. Routing, tests of the keys and OpenAPI read it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal
from urllib.parse import parse_qsl

from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute

from medport.errors import MedportError, NotFound, Timeout
from medport_local.serving import container, openai, openapi
from medport_local.serving.endpoints import SHARED, Served
from medport_local.serving.exchange import JSON, Door, Events, Exchange, error_response
from medport_local.serving.fleet import Fleet
from medport_local.serving.guard import Guard
from medport_local.serving.lifecycle import Lifecycle
from medport_local.serving.operations import Operation
from medport_local.serving.routing import DoorRoute
from medport_local.serving.verbs import Action

_VERSIONS = ("v1", "v1beta1")
_PARENT = "projects/{project}/locations/{location}"
_ENDPOINT = f"{_PARENT}/endpoints/{{endpoint}}"
# All that runs a model is this permission, on Vertex too; what looks here shows which endpoints there are.
_VERBS = {"infer": "aiplatform.endpoints.predict", "read": "aiplatform.endpoints.list"}


@dataclass(frozen=True, slots=True)
class ContainerRoutes:
    """Where Vertex's custom-container contract wants predictions and health."""

    predict: str
    health: str
    lists: bool = False
    """One instance is answered by a list too: a batch job would walk the keys of an object."""


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the table."""

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    handler: Callable[[Exchange], Awaitable[Response | Events]]
    action: Action | None
    """What a key must be allowed to do; ``None``: open to everybody."""
    operation: str
    """Which operation of the OpenAPI document this is; ``""`` for a protocol of its own, which is not in it."""
    verb: str = ""
    """Google's name of the permission, such as ``aiplatform.endpoints.predict``."""
    described: Operation | None = None
    """What the document says of it, where that does not follow from the operation's name."""


class Api:
    """The handlers of the data plane, over the engines that run."""

    def __init__(self, fleet: Fleet, lifecycle: Lifecycle) -> None:
        self._fleet = fleet
        self._lifecycle = lifecycle

    def table(self, own: ContainerRoutes | None = None) -> tuple[Route, ...]:
        """Every route there is; with those of a container if it is to be one."""
        rows = [
            Route("GET", "/health", self.health, None, "health"),
            Route("GET", "/health/ready", self.health, None, "health"),
            Route("GET", "/health/live", self.live, None, "health"),
            Route("GET", "/ping", self.health, None, "health"),
            Route("GET", "/v1/models", self.models, "read", "listModels"),
            Route("GET", "/v1/models/{model}", self.model, "read", "getModel"),
            Route("POST", "/v1/chat/completions", self.openai_chat, "infer", "chat"),
            Route("POST", "/v1/embeddings", self.openai_embeddings, "infer", "embeddings"),
        ]
        for version in _VERSIONS:
            endpoint = f"/{version}/{_ENDPOINT}"
            rows += [
                Route("POST", f"{endpoint}:predict", self.predict, "infer", "predict"),
                Route("POST", f"{endpoint}:rawPredict", self.raw_predict, "infer", "rawPredict"),
                Route(
                    "POST", f"{endpoint}:streamRawPredict", self.stream_raw_predict, "infer", "streamRawPredict"
                ),
                Route("POST", f"{endpoint}/chat/completions", self.completions, "infer", "chat"),
            ]
            methods: tuple[Literal["GET", "POST"], ...] = ("POST", "GET")
            for method in methods:
                rows += [
                    Route(method, f"{endpoint}/invoke/{{path:path}}", self.invoke, "infer", "invoke"),
                    Route(
                        method,
                        f"{endpoint}/deployedModels/{{deployed_model}}/invoke/{{path:path}}",
                        self.invoke,
                        "infer",
                        "invoke",
                    ),
                ]
        if own is not None:
            rows += [
                Route("POST", own.predict, self.own_predict, "infer", "containerPredict"),
                Route("GET", own.health, self.health, None, "health"),
            ]
        rows = [replace(row, verb=_VERBS.get(row.action or "", "")) for row in rows]
        return tuple({(row.method, row.path): row for row in rows}.values())

    async def health(self, exchange: Exchange) -> Response:
        """``ok`` while every engine takes requests, as the containers answer Vertex's probes."""
        return container.health(self._fleet.engines(), ready=self._lifecycle.ready)

    async def live(self, exchange: Exchange) -> Response:
        """``ok`` as long as the process answers: whether to restart it, not whether to send it requests."""
        return PlainTextResponse("ok")

    async def predict(self, exchange: Exchange) -> Response:
        served = self._endpoint(exchange)
        body = await exchange.json(limit=served.bounds.max_body_bytes)
        answer = await container.predict(exchange, served, body)
        if "$alt" in _query(exchange) and not isinstance(answer.get("predictions", []), list):
            # Google's generated client reads a PredictResponse, whose predictions are a repeated field.
            answer = {**answer, "predictions": [answer["predictions"]]}
        return JSON(served.envelope(answer))

    async def raw_predict(self, exchange: Exchange) -> Response | Events:
        return await container.raw_predict(exchange, self._endpoint(exchange), streaming=False)

    async def stream_raw_predict(self, exchange: Exchange) -> Response | Events:
        return await container.raw_predict(exchange, self._endpoint(exchange), streaming=True)

    async def completions(self, exchange: Exchange) -> Response | Events:
        return await container.completions(exchange, self._endpoint(exchange))

    async def invoke(self, exchange: Exchange) -> Response | Events:
        served = self._endpoint(exchange)
        if not served.bounds.invokes:
            raise NotFound("invoke needs a dedicated endpoint", remedy="POST to :predict or :rawPredict")
        return await container.invoked(exchange, served, exchange.path["path"])

    async def own_predict(self, exchange: Exchange) -> Response | Events:
        """A container's predict route: it has one model."""
        for endpoint in self._fleet.showing():
            return await container.raw_predict(exchange, self._enter(exchange, endpoint), streaming=True)
        raise NotFound("this server serves no model yet")

    async def models(self, exchange: Exchange) -> Response:
        exchange.permit_any()
        return JSON(openai.models(self._shown(exchange)))

    async def model(self, exchange: Exchange) -> Response:
        name = exchange.path["model"]
        endpoint = name.partition("+")[0]
        exchange.permit(endpoint)
        served = self._fleet.showing().get(endpoint)
        if served is None:
            raise NotFound("there is no such model", field="model", remedy="see /v1/models")
        return JSON(openai.model(served, served.adapter_of(name)))

    async def openai_chat(self, exchange: Exchange) -> Response | Events:
        body = await exchange.json()
        return await container.chat_of(exchange, self._named(exchange, body, "chat"), body)

    async def openai_embeddings(self, exchange: Exchange) -> Response:
        body = await exchange.json()
        served = self._named(exchange, body, "embeddings")
        if served.embedder is None:  # another version than the one that was shown
            raise NotFound("this endpoint serves chat", field="model", remedy="POST to /v1/chat/completions")
        return JSON(await openai.embeddings(exchange, served, served.embedder, body))

    def _named(self, exchange: Exchange, body: Mapping[str, object], kind: openai.Kind) -> Served:
        """What ``model`` in a body names, of what the key is for: others are not told from those that are not."""
        shown = self._shown(exchange)
        try:
            chosen = openai.chosen(shown, body.get("model"), kind)
        except NotFound:
            if not openai.of_kind(shown, kind):
                exchange.permit("")  # the key is for none: that is why
            raise
        return self._enter(exchange, chosen.endpoint_id)

    def _shown(self, exchange: Exchange) -> dict[str, Served]:
        """What the caller may know of, by endpoint id."""
        return {name: each for name, each in self._fleet.showing().items() if exchange.may(name)}

    def _endpoint(self, exchange: Exchange) -> Served:
        """What answers at the endpoint in the path."""
        path = exchange.path
        return self._enter(
            exchange,
            path["endpoint"],
            project=path["project"],
            location=path["location"],
            deployed_model=path.get("deployed_model"),
        )

    def _enter(
        self,
        exchange: Exchange,
        endpoint: str,
        *,
        project: str = "-",
        location: str = "-",
        deployed_model: str | None = None,
    ) -> Served:
        """The model that answers a request, whose limits and names are the request's from then on.

        It stays until the exchange is over, its stream included.
        """
        exchange.permit(endpoint)
        lease = self._fleet.enter(project, location, endpoint, deployed_model)
        exchange.held.callback(lease.release)
        served = lease.served
        most = served.bounds.timeout_s
        # The shared host has one limit for all of its endpoints.
        exchange.bound(most if served.bounds is SHARED else lease.timeout_s or most)
        if served.bounds is SHARED:
            exchange.render_error = partial(_shared_error, exchange)
        exchange.answer_headers.update(served.headers())
        served.tell(exchange.facts)
        return served


def _shared_error(exchange: Exchange, error: MedportError) -> Response:
    """The shared host's own word for what takes longer than it allows; not for a shorter wish of the caller."""
    if isinstance(error, Timeout) and time.monotonic() - exchange.started >= SHARED.timeout_s:
        said = {"code": 503, "message": "Took too long to respond when processing", "status": "UNAVAILABLE"}
        return JSON({"error": said}, status_code=503)
    return error_response(error)


def _query(exchange: Exchange) -> dict[str, str]:
    return dict(parse_qsl(exchange.scope["query_string"].decode("latin-1")))


def starlette_routes(table: tuple[Route, ...], guard: Guard) -> list[BaseRoute]:
    """The table for the router. Keys are checked in front of each handler, never by looking at a URL."""
    rows = [*table]
    # It describes itself too, so it is given the list that it joins.
    rows.append(Route("GET", openapi.PATH, openapi.handler(rows), "read", "openapi"))
    return [DoorRoute(row.path, _door(row, guard), row.method) for row in rows]


def _door(row: Route, guard: Guard) -> Door:
    return Door(row.path, row.handler, row.action, guard, verb=row.verb)
