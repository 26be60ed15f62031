"""The calls about batch prediction jobs: made, listed, looked at, cancelled, deleted.

Source: Vertex AI REST reference, projects.locations.batchPredictionJobs.
"""

from __future__ import annotations

from typing import Literal
from urllib.parse import parse_qsl

from starlette.responses import Response

from medport_local.serving.batch import MAX_BODY_BYTES, Batches
from medport_local.serving.batch_state import Job
from medport_local.serving.exchange import JSON, Exchange, Handler
from medport_local.serving.routes import Route

_PARENT = "projects/{project}/locations/{location}"


class BatchCalls:
    """The handlers, over the jobs of one server."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def table(self) -> tuple[Route, ...]:
        """Their rows of the route table."""
        rows: list[Route] = []
        for version in ("v1", "v1beta1"):
            jobs = f"/{version}/{_PARENT}/batchPredictionJobs"
            rows += [
                _route("POST", jobs, self.create, "create"),
                _route("GET", jobs, self.list, "list"),
                _route("GET", f"{jobs}/{{job}}", self.get, "get"),
                _route("POST", f"{jobs}/{{job}}:cancel", self.cancel, "cancel"),
                _route("DELETE", f"{jobs}/{{job}}", self.delete, "delete"),
            ]
        return tuple(rows)

    async def create(self, exchange: Exchange) -> Response:
        """A batch prediction job; it is answered at once and runs on."""
        body = await exchange.json(limit=MAX_BODY_BYTES)
        for kind in ("model", "endpoint"):
            named = body.get(kind)
            if isinstance(named, str) and named:
                # Before it is looked for: what is not the caller's is not told from what is not there.
                exchange.permit(self._batches.scope(**{"model": "", "endpoint": "", kind: named}))
        job = self._batches.read(body, self._parent(exchange), tenant=exchange.tenant)
        exchange.permit(self._scope(job))
        job.target.tell(exchange.facts)  # so that the audit log has who asked which model for a job
        await self._batches.start(job)
        return JSON(job.resource())

    async def list(self, exchange: Exchange) -> Response:
        exchange.permit_any()
        query = dict(parse_qsl(exchange.scope["query_string"].decode("latin-1")))
        jobs, following = self._batches.jobs.page(
            self._parent(exchange), query, may=lambda job: exchange.may(self._scope(job))
        )
        page: dict[str, object] = {"batchPredictionJobs": [job.resource() for job in jobs]}
        return JSON(page | ({"nextPageToken": following} if following else {}))

    async def get(self, exchange: Exchange) -> Response:
        return JSON(self._job(exchange).resource())

    async def cancel(self, exchange: Exchange) -> Response:
        await self._batches.cancel(self._job(exchange))
        return JSON({})

    async def delete(self, exchange: Exchange) -> Response:
        """Answers an operation that is done, as Vertex answers every deletion."""
        job = self._job(exchange)
        api = "v1beta1" if exchange.scope["path"].startswith("/v1beta1/") else "v1"
        return JSON(await self._batches.forget(job, api=api, caller=exchange.tenant))

    def _job(self, exchange: Exchange) -> Job:
        exchange.permit_any()  # to learn that there is no such job; whose it is, is asked next
        job = self._batches.jobs.find(self._parent(exchange), exchange.path["job"])
        exchange.permit(self._scope(job))
        return job

    def _scope(self, job: Job) -> str:
        return self._batches.scope(job.target.model, job.target.endpoint)

    def _parent(self, exchange: Exchange) -> str:
        return self._batches.parent(exchange.path["project"], exchange.path["location"])


def _route(method: Literal["GET", "POST", "DELETE"], path: str, handler: Handler, does: str) -> Route:
    operation = f"{does}Job{'s' if does == 'list' else ''}"
    return Route(method, path, handler, "infer", operation, f"aiplatform.batchPredictionJobs.{does}")
