"""The OpenAPI document: the route table, and the types that requests are checked with.

Source: OpenAPI Specification 3.1.1.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import orjson
from pydantic import BaseModel
from starlette.responses import Response

from medport import errors
from medport.wire.vertex import (
    DEPLOYED_MODEL_HEADER,
    MODEL_HEADER,
    MODEL_VERSION_HEADER,
    NOTICE_HEADER,
    PIN_HEADERS,
    REQUEST_ID_HEADER,
    TIMEOUT_HEADER,
)
from medport_local.serving import schemas
from medport_local.serving.operations import (
    ASKING_THE_CONTAINER,
    EVENTS,
    EXAMPLES,
    INVOKED,
    JSON,
    OPENMETRICS,
    OPERATIONS,
    PATH_PARAMETERS,
    QUERY_PARAMETERS,
    TAGS,
    TEXT,
    Json,
    Operation,
)
from medport_local.serving.schemas import any_of, pointer

if TYPE_CHECKING:
    from medport_local.serving.exchange import Exchange
    from medport_local.serving.routes import Route

VERSION = "3.1.1"
PATH = "/openapi.json"


def handler(table: Sequence[Route]) -> Callable[[Exchange], Awaitable[Response]]:
    """Serves the document of ``table``, which may grow until the first request; written once, in some 50 ms."""

    @functools.cache
    def written() -> bytes:
        return orjson.dumps(document(table))

    async def show(exchange: Exchange) -> Response:
        exchange.permit_any()
        return Response(written(), media_type=JSON)

    return show


def document(table: Sequence[Route]) -> Json:
    """The OpenAPI document with every route of the table.

    Raises:
        KeyError: a route's operation or path parameter is not described here.
    """
    forms, forms_schemas = schemas.of_forms({form for row in table if (form := _form(row)) is not None})
    paths: dict[str, Json] = {}
    known: set[str] = set()
    for row in table:
        if not row.operation:
            continue
        item = paths.setdefault(_template(row.path), {})
        item[row.method.lower()] = _operation(row, _operation_id(row, known), _name_of(row, forms))
    answers = _error_responses()
    return {
        "openapi": VERSION,
        "info": {
            "title": "medport",
            "version": version("medport"),
            "summary": "MedGemma and MedSigLIP as their serving containers and Vertex AI endpoints answer.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": name, "description": said} for name, said in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": schemas.used({**schemas.every(), **forms_schemas}, paths, answers),
            "parameters": _PARAMETERS,
            "headers": _HEADERS,
            "responses": answers,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-goog-api-key"},
            },
        },
    }


_PARAMETERS: Json = {
    "RequestId": {
        "name": REQUEST_ID_HEADER,
        "in": "header",
        "description": "Comes back with the answer and stands in the logs, if it is up to 128 letters, digits and "
        "`._:~-`; another one is given to the request if it is not.",
        "schema": {"type": "string"},
    },
    "Timeout": {
        "name": TIMEOUT_HEADER,
        "in": "header",
        "description": "Seconds after which the caller gives up; work on the request stops then.",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 86_400},
    },
}
_HEADERS: Json = {
    "RequestId": {
        "description": "Under which the request stands in the logs.",
        "required": True,
        "schema": {"type": "string"},
    },
    "RetryAfter": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}},
    "DeployedModelId": {"description": "Whose answer it is.", "schema": {"type": "string"}},
    "Model": {"description": "Its model's resource name.", "schema": {"type": "string"}},
    "ModelVersionId": {"description": "Its model's version.", "schema": {"type": "string"}},
    "Pin": {
        "description": "Which bytes gave the answer, as far as it is known; what no header may hold as in a URL.",
        "schema": {"type": "string"},
    },
}
_ANSWER_HEADERS = {
    DEPLOYED_MODEL_HEADER: "DeployedModelId",
    MODEL_HEADER: "Model",
    MODEL_VERSION_HEADER: "ModelVersionId",
    **dict.fromkeys((*PIN_HEADERS.values(), NOTICE_HEADER), "Pin"),
}


def _template(path: str) -> str:
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", path)


def _operation_id(row: Route, known: set[str]) -> str:
    """The operation's name; where several routes share one, each later one has its path's words added."""
    name = row.operation
    if name in known:
        words = re.sub(r"\{[^}]*\}", "", row.path)
        words = words.replace("/projects/", "/").replace("/locations/", "/")
        name = "_".join((name, *re.findall(r"[A-Za-z0-9]+", words)))
    if name in known:
        name = f"{name}_{row.method}"
    known.add(name)
    return name


def _described(row: Route) -> Operation:
    return row.described or OPERATIONS[row.operation]


def _form(row: Route) -> type[BaseModel] | None:
    return _described(row).form if row.operation else None


def _name_of(row: Route, forms: Mapping[type[BaseModel], str]) -> str | None:
    form = _form(row)
    return None if form is None else forms[form]


def _operation(row: Route, name: str, form: str | None) -> Json:
    said = _described(row)
    if row.operation == "invoke" and row.method == "GET":
        said = ASKING_THE_CONTAINER
    parameters: list[Json] = [{"$ref": "#/components/parameters/RequestId"}]
    if row.action == "infer":
        parameters.append({"$ref": "#/components/parameters/Timeout"})
    operation: Json = {
        "operationId": name,
        "summary": said.summary,
        "tags": [said.tag],
        "parameters": [*_path_parameters(row), *_query_parameters(said), *parameters],
        "responses": _responses(row, said),
        "security": [{"bearer": []}, {"apiKey": []}] if row.action is not None else [],
    }
    said_more = [said.description] if said.description else []
    if row.action is not None:
        said_more.append(f"Needs a key with the action `{row.action}`.")
    if said_more:
        operation["description"] = " ".join(said_more)
    if said.body:
        operation["requestBody"] = {
            "required": True,
            "content": {
                JSON: {
                    # Not oneOf: a text chat without options is every dialect's; the endpoint decides which it is.
                    "schema": any_of(said.body),
                    "examples": {each: {"value": EXAMPLES[each]} for each in said.body},
                }
            },
        }
    if form is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": any_of((form,))}}}
    return operation


def _query_parameters(said: Operation) -> Iterable[Json]:
    for name in said.query:
        yield {"name": name, "in": "query", **QUERY_PARAMETERS[name]}


def _path_parameters(row: Route) -> Iterable[Json]:
    for name in re.findall(r"\{(\w+)(?::\w+)?\}", row.path):
        if name == "path":
            paths = INVOKED[row.method]
            schema: Json = {"type": "string", "enum": list(paths)}
            said: Json = {"description": "A path of the container; its slashes may be written as they are."}
        else:
            schema, said = {"type": "string", "pattern": "^[^/]+$"}, PATH_PARAMETERS[name]
        yield {"name": name, "in": "path", "required": True, "schema": schema, **said}


def _responses(row: Route, said: Operation) -> Json:
    names = {REQUEST_ID_HEADER: "RequestId"} | (_ANSWER_HEADERS if row.action == "infer" else {})
    content: Json = {media: {"schema": _TEXTS[media]} for media in said.texts}
    if said.reply:
        content[JSON] = {"schema": any_of(said.reply)}
    answers: Json = {"200": {"description": said.summary, "headers": _headers(names), "content": content}}
    for status in sorted(_statuses(row)):
        answers[str(status)] = {"$ref": f"#/components/responses/Error{status}"}
    if said.container:
        for refused in ("400", "500"):
            answers[refused] = {"$ref": f"#/components/responses/ContainerError{refused}"}
    if TEXT in said.texts and row.operation != "metrics":
        not_ok = {TEXT: {"schema": _TEXTS[TEXT]}, JSON: {"schema": any_of(("ErrorReply",))}}
        answers["503"] = {
            "description": "It takes no requests.",
            "headers": _headers({REQUEST_ID_HEADER: "RequestId"}),
            "content": not_ok,
        }
    return answers


_TEXTS: Mapping[str, Json] = {
    TEXT: {"type": "string"},
    OPENMETRICS: {"type": "string"},
    # One event: so is a stream's schema read, in OpenAPI 3.1 by custom, by 3.2's rules for server-sent events.
    EVENTS: {
        "description": "Server-sent events: chunks of the answer, then `[DONE]`; if it breaks off, an error.",
        "type": "object",
        "required": ["data"],
        "properties": {
            "data": {
                "anyOf": [
                    {"const": "[DONE]"},
                    {
                        "type": "string",
                        "contentMediaType": JSON,
                        "contentSchema": {
                            "anyOf": [{"$ref": pointer("ChatChunk")}, {"$ref": pointer("ErrorReply")}]
                        },
                    },
                ]
            }
        },
    },
}


def _statuses(row: Route) -> set[int]:
    if row.action is None:
        return {400}
    if row.action == "infer":
        return {each.http for each in errors.TABLE}
    few = {400, 401, 403, 404, 500, 503}
    return few if row.method == "GET" or row.described is None else {each.http for each in errors.TABLE}


def _error_responses() -> Json:
    found: Json = {}
    for status in sorted({row.http for row in errors.TABLE}):
        kinds = [row.error for row in errors.TABLE if row.http == status and row.error is not errors.MedportError]
        headers = {REQUEST_ID_HEADER: "RequestId"} | (
            {"Retry-After": "RetryAfter"} if status in (429, 503) else {}
        )
        response = {
            "description": " ".join(f"{kind.__name__}: {_first_line(kind)}" for kind in kinds),
            "headers": _headers(headers),
            "content": {JSON: {"schema": any_of(("ErrorReply",))}},
        }
        found[f"Error{status}"] = response
        if status in (400, 500):
            content = {JSON: {"schema": any_of(("ErrorReply", "PlainError"))}}
            found[f"ContainerError{status}"] = {**response, "content": content}
    return found


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]


def _headers(names: Mapping[str, str]) -> Json:
    return {header: {"$ref": f"#/components/headers/{name}"} for header, name in names.items()}
