"""The route table: path, handler, what a key must be allowed. Routing, tests of the keys and OpenAPI read it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal
from urllib.parse import parse_qsl

from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route as StarletteRoute

from medport.errors import MedportError, NotFound, Timeout
from medport_local.engine.embedder import Embedder
from medport_local.serving import container, openai, openapi
from medport_local.serving.batch import MAX_BODY_BYTES, Batches
from medport_local.serving.batch_jobs import Job
from medport_local.serving.endpoints import SHARED, Directory, Served
from medport_local.serving.exchange import JSON, Door, Events, Exchange, error_response
from medport_local.serving.guard import Guard
from medport_local.serving.keys import Action
from medport_local.serving.lifecycle import Lifecycle

_VERSIONS = ("v1", "v1beta1")
_PARENT = "projects/{project}/locations/{location}"
_ENDPOINT = f"{_PARENT}/endpoints/{{endpoint}}"


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

    method: Literal["GET", "POST", "DELETE"]
    path: str
    handler: Callable[[Exchange], Awaitable[Response | Events]]
    action: Action | None
    """What a key must be allowed to do; ``None``: open to everybody."""
    operation: str
    """Which operation of the OpenAPI document this is."""


class Api:
    """The handlers, over the endpoints that are served."""

    def __init__(
        self, served: Mapping[str, Served], directory: Directory, lifecycle: Lifecycle, batches: Batches
    ) -> None:
        self._lifecycle = lifecycle
        self._batches = batches
        self._served = served
        """By endpoint id; the first of a kind is the one that answers where none is named."""
        self._directory = directory

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
            parent, endpoint = f"/{version}/{_PARENT}", f"/{version}/{_ENDPOINT}"
            rows += [
                Route("POST", f"{endpoint}:predict", self.predict, "infer", "predict"),
                Route("POST", f"{endpoint}:rawPredict", self.raw_predict, "infer", "rawPredict"),
                Route(
                    "POST", f"{endpoint}:streamRawPredict", self.stream_raw_predict, "infer", "streamRawPredict"
                ),
                Route("POST", f"{endpoint}/chat/completions", self.completions, "infer", "chat"),
                Route("GET", f"{parent}/endpoints", self.list_endpoints, "read", "listEndpoints"),
                Route("GET", endpoint, self.get_endpoint, "read", "getEndpoint"),
                Route("GET", f"{parent}/models/{{model}}@{{model_version}}", self.get_model, "read", "getVersion"),
                Route("GET", f"{parent}/models/{{model}}", self.get_model, "read", "getModelResource"),
            ]
            jobs = f"{parent}/batchPredictionJobs"
            rows += [
                Route("POST", jobs, self.create_job, "infer", "createJob"),
                Route("GET", jobs, self.list_jobs, "infer", "listJobs"),
                Route("GET", f"{jobs}/{{job}}", self.get_job, "infer", "getJob"),
                Route("POST", f"{jobs}/{{job}}:cancel", self.cancel_job, "infer", "cancelJob"),
                Route("DELETE", f"{jobs}/{{job}}", self.delete_job, "infer", "deleteJob"),
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
        return tuple({(row.method, row.path): row for row in rows}.values())

    async def health(self, exchange: Exchange) -> Response:
        """``ok`` while every engine takes requests, as the containers answer Vertex's probes."""
        if not self._lifecycle.ready:
            return container.health([])
        return container.health(list(self._served.values()))

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
        wanted = exchange.path.get("deployed_model", served.deployed_model_id)
        if wanted != served.deployed_model_id:
            raise NotFound(
                "there is no such deployed model",
                field="deployedModel",
                remedy=f"this endpoint has {served.deployed_model_id}",
            )
        if not served.bounds.invokes:
            raise NotFound("invoke needs a dedicated endpoint", remedy="POST to :predict or :rawPredict")
        return await container.invoked(exchange, served, exchange.path["path"])

    async def own_predict(self, exchange: Exchange) -> Response | Events:
        """A container's predict route: it has one model."""
        return await container.raw_predict(exchange, self._entered(exchange, self._first()), streaming=True)

    async def models(self, exchange: Exchange) -> Response:
        exchange.permit_any()
        allowed = {name: each for name, each in self._served.items() if exchange.may(name)}
        return JSON(openai.models(allowed))

    async def model(self, exchange: Exchange) -> Response:
        name = exchange.path["model"]
        served = self._served.get(name.partition("+")[0])
        if served is None:
            raise NotFound("there is no such model", field="model", remedy="see /v1/models")
        exchange.permit(served.endpoint_id)
        return JSON(openai.model(served, served.adapter_of(name)))

    async def openai_chat(self, exchange: Exchange) -> Response | Events:
        body = await exchange.json()
        served = self._entered(exchange, openai.chosen(self._served, body.get("model"), "chat"))
        return await container.chat_of(exchange, served, body)

    async def openai_embeddings(self, exchange: Exchange) -> Response:
        body = await exchange.json()
        served = self._entered(exchange, openai.chosen(self._served, body.get("model"), "embeddings"))
        assert isinstance(served.engine, Embedder)
        return JSON(await openai.embeddings(exchange, served, served.engine, body))

    async def list_endpoints(self, exchange: Exchange) -> Response:
        path = exchange.path
        exchange.permit_any()  # of the list itself; each entry is asked for below
        found = self._directory.endpoints(path["project"], path["location"], _query(exchange).get("filter", ""))
        exchange.permit_any()  # there may be none to ask about
        return JSON({"endpoints": [each for each in found["endpoints"] if exchange.may(_id_of(each["name"]))]})

    async def get_endpoint(self, exchange: Exchange) -> Response:
        path = exchange.path
        return JSON(self._directory.endpoint(path["project"], path["location"], path["endpoint"]))

    async def get_model(self, exchange: Exchange) -> Response:
        path = exchange.path
        exchange.permit(path["model"])
        version = path.get("model_version")
        return JSON(self._directory.model(path["project"], path["location"], path["model"], version))

    async def create_job(self, exchange: Exchange) -> Response:
        """A batch prediction job; it is answered at once and runs on."""
        body = await exchange.json(limit=MAX_BODY_BYTES)
        job = self._batches.read(body, _parent(exchange), tenant=exchange.tenant)
        exchange.permit(job.served.endpoint_id)
        job.served.tell(exchange.facts)  # so that the audit log has who asked which model for a job
        self._batches.start(job)
        return JSON(job.resource())

    async def list_jobs(self, exchange: Exchange) -> Response:
        exchange.permit_any()
        query = _query(exchange)
        jobs, following = self._batches.jobs.page(
            _parent(exchange),
            may=exchange.may,
            wanted=query.get("filter", ""),
            size=query.get("pageSize", ""),
            token=query.get("pageToken", ""),
        )
        page: dict[str, object] = {"batchPredictionJobs": [job.resource() for job in jobs]}
        return JSON(page | ({"nextPageToken": following} if following else {}))

    async def get_job(self, exchange: Exchange) -> Response:
        return JSON(self._job(exchange).resource())

    async def cancel_job(self, exchange: Exchange) -> Response:
        self._batches.cancel(self._job(exchange))
        return JSON({})

    async def delete_job(self, exchange: Exchange) -> Response:
        """Answers an operation that is done, as Vertex answers every deletion."""
        job = self._job(exchange)
        self._batches.jobs.forget(job)
        version = "v1beta1" if exchange.scope["path"].startswith("/v1beta1/") else "v1"
        kind = f"type.googleapis.com/google.cloud.aiplatform.{version}.DeleteOperationMetadata"
        return JSON(
            {
                "name": f"{job.name}/operations/{job.id}",
                "metadata": {"@type": kind, "genericMetadata": {}},
                "done": True,
                "response": {"@type": "type.googleapis.com/google.protobuf.Empty"},
            }
        )

    def _job(self, exchange: Exchange) -> Job:
        exchange.permit_any()  # to learn that there is no such job; whose it is, is asked next
        job = self._batches.jobs.find(_parent(exchange), exchange.path["job"])
        exchange.permit(job.served.endpoint_id)
        return job

    def _endpoint(self, exchange: Exchange) -> Served:
        path = exchange.path
        self._directory.endpoint(path["project"], path["location"], path["endpoint"])  # NotFound if there is none
        return self._entered(exchange, self._served[path["endpoint"]])

    def _entered(self, exchange: Exchange, served: Served) -> Served:
        """The endpoint whose key, limits and names are a request's from now on."""
        exchange.permit(served.endpoint_id)
        exchange.bound(served.bounds.timeout_s)
        if served.bounds is SHARED:
            exchange.render_error = partial(_shared_error, exchange)
        exchange.answer_headers.update(served.headers())
        served.tell(exchange.facts)
        return served

    def _first(self) -> Served:
        for served in self._served.values():
            return served
        raise NotFound("this server serves no model yet")


def _shared_error(exchange: Exchange, error: MedportError) -> Response:
    """The shared host's own word for what takes longer than it allows; not for a shorter wish of the caller."""
    if isinstance(error, Timeout) and time.monotonic() - exchange.started >= SHARED.timeout_s:
        said = {"code": 503, "message": "Took too long to respond when processing", "status": "UNAVAILABLE"}
        return JSON({"error": said}, status_code=503)
    return error_response(error)


def _query(exchange: Exchange) -> dict[str, str]:
    return dict(parse_qsl(exchange.scope["query_string"].decode("latin-1")))


def _parent(exchange: Exchange) -> str:
    return f"projects/{exchange.path['project']}/locations/{exchange.path['location']}"


def _id_of(name: str) -> str:
    return name.rpartition("/")[2]


def starlette_routes(table: tuple[Route, ...], guard: Guard) -> list[StarletteRoute]:
    """The table for the router. Keys are checked in front of each handler, never by looking at a URL."""
    rows = [*table]
    # It describes itself too, so it is given the list that it joins.
    rows.append(Route("GET", openapi.PATH, openapi.handler(rows), "read", "openapi"))
    return [
        StarletteRoute(row.path, Door(row.path, row.handler, row.action, guard), methods=[row.method])
        for row in rows
    ]
