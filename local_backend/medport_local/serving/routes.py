"""The route table: path, handler, and whether a key is needed. Routing and the test of the keys both read it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route as StarletteRoute

from medport.errors import InputError, NotFound
from medport_local.engine.embedder import Embedder
from medport_local.engine.engine import Engine
from medport_local.serving import chat, embed
from medport_local.serving.endpoints import Directory, Served
from medport_local.serving.exchange import JSON, Door, Events, Exchange
from medport_local.serving.guard import KeyCheck

_VERSIONS = ("v1", "v1beta1")
_PARENT = "projects/{project}/locations/{location}"


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the table."""

    method: Literal["GET", "POST"]
    path: str
    handler: Callable[[Exchange], Awaitable[Response | Events]]
    needs_key: bool = True


class Api:
    """The handlers, over the endpoints that are served."""

    def __init__(self, served: Mapping[str, Served], directory: Directory) -> None:
        self._served = served
        """By endpoint id."""
        self._directory = directory

    def table(self) -> tuple[Route, ...]:
        """Every route there is."""
        rows = [
            Route("GET", "/health", self.health, needs_key=False),
            Route("POST", "/v1/chat/completions", self.openai),
        ]
        for version in _VERSIONS:
            parent = f"/{version}/{_PARENT}"
            rows += [
                Route("POST", f"{parent}/endpoints/{{endpoint}}:predict", self.predict),
                Route("POST", f"{parent}/endpoints/{{endpoint}}/chat/completions", self.completions),
                Route("GET", f"{parent}/endpoints", self.list_endpoints),
                Route("GET", f"{parent}/endpoints/{{endpoint}}", self.get_endpoint),
                Route("GET", f"{parent}/models/{{model}}@{{model_version}}", self.get_model),
                Route("GET", f"{parent}/models/{{model}}", self.get_model),
            ]
        return tuple(rows)

    async def health(self, exchange: Exchange) -> Response:
        """``ok`` while every engine takes requests, as the containers answer Vertex's probes."""
        well = bool(self._served) and all(served.engine.healthy for served in self._served.values())
        return PlainTextResponse("ok" if well else "not ok", status_code=200 if well else 503)

    async def predict(self, exchange: Exchange) -> Response:
        served = self._endpoint(exchange)
        body = await exchange.json()
        instances = body.get("instances")
        if not isinstance(instances, list):
            raise InputError(
                "No instances field in request.", field="instances", remedy="send a list of instances"
            )
        if body.get("parameters"):
            raise InputError("parameters are not taken", field="parameters", remedy="put them into each instance")
        if isinstance(served.engine, Embedder):
            return await embed.predict(exchange, served, served.engine, instances)
        return await chat.predict(exchange, served, served.engine, instances)

    async def completions(self, exchange: Exchange) -> Response | Events:
        served = self._endpoint(exchange)
        if isinstance(served.engine, Embedder):
            raise NotFound("this endpoint serves embeddings, not chat", remedy="POST to its :predict")
        return await chat.completions(exchange, served, served.engine, await exchange.json())

    async def openai(self, exchange: Exchange) -> Response | Events:
        """The bare OpenAI path: the one chat model there is."""
        for served in self._served.values():
            if not isinstance(served.engine, Embedder):
                engine: Engine = served.engine
                return await chat.completions(exchange, served, engine, await exchange.json())
        raise NotFound("this server serves no chat model", remedy="start it with --snapshot medgemma=DIR")

    async def list_endpoints(self, exchange: Exchange) -> Response:
        path = exchange.path
        return JSON(self._directory.endpoints(path["project"], path["location"]))

    async def get_endpoint(self, exchange: Exchange) -> Response:
        path = exchange.path
        return JSON(self._directory.endpoint(path["project"], path["location"], path["endpoint"]))

    async def get_model(self, exchange: Exchange) -> Response:
        path = exchange.path
        version = path.get("model_version")
        return JSON(self._directory.model(path["project"], path["location"], path["model"], version))

    def _endpoint(self, exchange: Exchange) -> Served:
        path = exchange.path
        self._directory.endpoint(path["project"], path["location"], path["endpoint"])  # NotFound if there is none
        return self._served[path["endpoint"]]


def starlette_routes(table: tuple[Route, ...], key_check: KeyCheck) -> list[StarletteRoute]:
    """The table for the router. The key is checked in front of each handler, never by looking at a URL."""
    return [
        StarletteRoute(
            row.path,
            Door(row.path, row.handler, (key_check,) if row.needs_key else ()),
            methods=[row.method],
        )
        for row in table
    ]
