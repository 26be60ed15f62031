"""Calls of the control plane's models and endpoints without a web server: real handlers on a real database."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

from medport_local.control import deployed
from medport_local.control.asks import Api, Ask, Row
from medport_local.control.database import Database
from medport_local.control.deployed import Deployment, State
from medport_local.control.endpoints import Endpoints
from medport_local.control.host import Intent
from medport_local.control.models import Models
from medport_local.control.operations import Operations
from medport_local.control.project import Project

Json = dict[str, Any]
DIGEST = "@sha256:" + "ab" * 32
PROJECT = Project("radiology", "europe-west4", "123456789012")
PARENT = PROJECT.parent


class Calls:
    """One server's models and endpoints; ``changed`` holds the endpoints that were told to have changed."""

    def __init__(
        self, directory: Path, *, require_digest: bool = False, advertised: str | None = "host:8443"
    ) -> None:
        self.database = Database(directory, {"project": PROJECT.id})
        self.operations = Operations(self.database)
        self.changed: list[str] = []
        models = Models(PROJECT, self.database, self.operations, require_digest=require_digest)
        endpoints = Endpoints(
            PROJECT, self.database, self.operations, advertised=advertised, on_change=self.changed.append
        )
        self._rows = [(row, _pattern(row)) for row in (*models.rows(), *endpoints.rows())]

    def close(self) -> None:
        self.database.close()

    def call(
        self,
        method: Literal["GET", "POST", "PATCH", "DELETE"],
        path: str,
        body: object = None,
        *,
        api: Api = "v1",
        may: Callable[[str], bool] = lambda endpoint: True,
    ) -> Json:
        """Answer a call as the server would; ``path`` follows the location and may have a query.

        A path with a verb is taken by the row of that verb, as a web framework does that is asked in this order.
        """
        place, _, query = path.partition("?")
        whole = f"/{api}/{PARENT}{place}"
        hits = [
            (row, found) for row, form in self._rows if row.method == method and (found := form.fullmatch(whole))
        ]
        row, found = max(hits, key=lambda hit: len(hit[0].path))
        ask = Ask(
            api=api,
            path=found.groupdict(),
            query=dict(parse_qsl(query, keep_blank_values=True)),
            body=body if body is not None else {},  # type: ignore[arg-type]
            may=may,
        )
        return asyncio.run(_answered(row, ask))

    def upload(self, body: Json) -> Json:
        """The response of an upload."""
        response: Json = self.call("POST", "/models:upload", body)["response"]
        return response

    def deploy(self, endpoint: str, id_: str, model: str, version: str = "1", state: State = "READY") -> None:
        """Note that a model is deployed; nothing is started."""
        name = f"{PARENT}/endpoints/{endpoint}"
        intent = Intent(
            endpoint=name,
            deployed_model_id=id_,
            model=f"{PARENT}/models/{model}",
            model_version_id=version,
            display_name=model,
        )
        body = {"id": id_, "model": intent.model, "modelVersionId": version, "displayName": model}
        row = Deployment(
            endpoint=name, id=id_, model=intent.model, state=state, body=body, intent=intent, operation="none"
        )
        with self.database.writing() as transaction:
            deployed.insert(transaction, row)


def model(name: str = "chest", **fields: object) -> Json:
    """A Model as a caller uploads it."""
    return {"displayName": name, "containerSpec": {"imageUri": f"serving{DIGEST}"}, **fields}


async def _answered(row: Row, ask: Ask) -> Json:
    return await row.handler(ask)


def _pattern(row: Row) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(row.path)))
