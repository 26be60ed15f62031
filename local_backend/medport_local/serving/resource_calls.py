"""The calls that look at endpoints and models, of a server whose models are the same all its life.

Source: Vertex AI REST reference, projects.locations.endpoints, .models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from starlette.responses import Response

from medport_local.serving.endpoints import Directory
from medport_local.serving.exchange import JSON, Exchange
from medport_local.serving.routes import Route

_Find = Callable[[str, str, str], Mapping[str, Any]]
_PARENT = "projects/{project}/locations/{location}"


class ResourceCalls:
    """The handlers, over what the control plane shows."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def table(self) -> tuple[Route, ...]:
        """Their rows of the route table."""
        rows: list[Route] = []
        for version in ("v1", "v1beta1"):
            parent = f"/{version}/{_PARENT}"
            rows += [
                Route(
                    "GET",
                    f"{parent}/endpoints",
                    self.list_endpoints,
                    "read",
                    "listEndpoints",
                    "aiplatform.endpoints.list",
                ),
                Route(
                    "GET",
                    f"{parent}/endpoints/{{endpoint}}",
                    self.get_endpoint,
                    "read",
                    "getEndpoint",
                    "aiplatform.endpoints.get",
                ),
                Route(
                    "GET",
                    f"{parent}/models",
                    self.list_models,
                    "read",
                    "listModelResources",
                    "aiplatform.models.list",
                ),
                Route(
                    "GET",
                    f"{parent}/models/{{model}}@{{model_version}}",
                    self.get_model,
                    "read",
                    "getVersion",
                    "aiplatform.models.get",
                ),
                Route(
                    "GET",
                    f"{parent}/models/{{model}}",
                    self.get_model,
                    "read",
                    "getModelResource",
                    "aiplatform.models.get",
                ),
            ]
        return tuple(rows)

    async def list_endpoints(self, exchange: Exchange) -> Response:
        return self._list(exchange, "endpoints", self._directory.endpoints)

    async def list_models(self, exchange: Exchange) -> Response:
        # A model has the id of its endpoint.
        return self._list(exchange, "models", self._directory.models)

    async def get_endpoint(self, exchange: Exchange) -> Response:
        path = exchange.path
        return JSON(self._directory.endpoint(path["project"], path["location"], path["endpoint"]))

    async def get_model(self, exchange: Exchange) -> Response:
        path = exchange.path
        exchange.permit(path["model"])
        version = path.get("model_version")
        return JSON(self._directory.model(path["project"], path["location"], path["model"], version))

    def _list(self, exchange: Exchange, kind: str, find: _Find) -> Response:
        path = exchange.path
        exchange.permit_any()  # of the list itself; each entry is asked for below
        wanted = dict(parse_qsl(exchange.scope["query_string"].decode("latin-1"))).get("filter", "")
        found = find(path["project"], path["location"], wanted)
        exchange.permit_any()  # there may be none to ask about
        return JSON({kind: [each for each in found[kind] if exchange.may(_id_of(each["name"]))]})


def _id_of(name: str) -> str:
    return name.rpartition("/")[2]
