"""The control plane's table as routes of the server: a request becomes an ``Ask``, and its JSON the answer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from urllib.parse import parse_qsl

from pydantic.alias_generators import to_camel
from starlette.responses import Response

from medport.errors import InputError
from medport_local.control.asks import Api, Ask, Json, Row
from medport_local.control.project import Project
from medport_local.control_document import described
from medport_local.serving import guard
from medport_local.serving.exchange import JSON, Exchange
from medport_local.serving.routes import Route
from medport_local.serving.verbs import action_of

MAX_BODY_BYTES = 1536 * 1024
"""As Vertex's API hosts: 1.5 MB."""
# What every Google API takes in a query: cloud.google.com/apis/docs/system-parameters.
_EVERYWHERE = frozenset((
    "access_token", "alt", "callback", "fields", "key", "oauth_token", "prettyPrint", "quotaUser", "uploadType",
    "upload_protocol", "userIp",
))  # fmt: skip
# By proto name in JSON's spelling, of all calls together: one that another call takes changes nothing.
_KNOWN = frozenset((
    "allVersions", "cleanAllVersions", "deployedModelId", "endpointId", "etag", "filter", "force",
    "huggingFaceToken", "includeEquivalentModelGardenModelDeploymentConfigs", "isHuggingFaceModel",
    "languageCode", "listAllVersions", "modelId", "name", "orderBy", "pageSize", "pageToken", "parentModel",
    "readMask", "returnPartialSuccess", "timeout", "updateMask", "view",
))  # fmt: skip
_MOST_KEYS = 100
_LAST = re.compile(r"\{[^}]*\}")


def routes_of(rows: Iterable[Row], project: Project) -> tuple[Route, ...]:
    """The routes, in the order in which they are to be tried.

    A path's parameter takes anything but a slash, ``:`` and ``@`` too: what has more literal text in its last part
    comes first, so that ``models/{model}@{version}:deleteVersion`` is not read as a model of that name.
    """
    found = [route for row in rows for route in _expanded(row, project)]
    return tuple(sorted(found, key=lambda route: -_literal(route.path)))


def _expanded(row: Row, project: Project) -> list[Route]:
    apis: tuple[Api, ...] = ("v1", "v1beta1") if "{api}" in row.path else (_api_of(row.path),)
    return [
        Route(
            row.method,
            row.path.replace("{api}", api),
            partial(_answer, row, api, project),
            action_of(row.verb),
            row.operation if (said := described(row, api)) else "",
            verb=row.verb,
            described=said,
        )
        for api in apis
    ]


async def _answer(row: Row, api: Api, project: Project, exchange: Exchange) -> Response:
    path = dict(exchange.path)
    if "project" in path:
        project.check(path["project"], path.get("location", "-"))
    if "endpoint" not in path:
        # Whose entries a list shows, and whose model is deployed where, the handler asks ``may``.
        exchange.permit_any()
    ask = Ask(
        api=api,
        path=path,
        query=_query(exchange),
        # What is refused whatever it says may say it in another language, such as gRPC's.
        body={} if row.operation == "unsupported" else await _body(row, exchange),
        caller=exchange.tenant,
        may=exchange.may,
    )
    return JSON(await row.handler(ask))


async def _body(row: Row, exchange: Exchange) -> Json:
    data = await exchange.body(limit=MAX_BODY_BYTES)
    body: Json = guard.parse_json(data) if data.strip() else {}
    if body and row.method == "GET":
        raise InputError("a GET has no body", field="body", remedy="leave it out")
    return body


def _query(exchange: Exchange) -> dict[str, str]:
    """The query's own keys, in JSON's spelling."""
    found: dict[str, str] = {}
    text = exchange.scope["query_string"].decode("latin-1")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_KEYS)
    except ValueError:
        raise InputError(f"has more than {_MOST_KEYS} keys", field="query", remedy="send fewer") from None
    for key, value in pairs:
        if key in _EVERYWHERE or key.startswith("$"):
            continue
        name = to_camel(key)
        if name not in _KNOWN:
            raise InputError(
                f'Invalid JSON payload received. Unknown name "{key:.60}": Cannot bind query parameter. '
                f"Field '{key:.60}' could not be found in request message."
            )
        if name in found:
            raise InputError("is given twice", field=name, remedy="give it once")
        found[name] = value
    return found


def _api_of(path: str) -> Api:
    # Operations keep the version that they were begun with; /ui/ has none of its own.
    return "v1beta1" if path.startswith("/v1beta1/") else "v1"


def _literal(path: str) -> int:
    return len(_LAST.sub("", path.rpartition("/")[2]))
