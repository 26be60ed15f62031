"""The OpenAPI document: the route table, and the types that requests are checked with.

Source: OpenAPI Specification 3.1.1.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema
from starlette.responses import Response

from medport import errors
from medport.wire.chat import REQUEST_FORMAT, ChatChunk, ChatReply, ChatRequest
from medport.wire.dicom_chat import DicomChatRequest
from medport.wire.embed import EmbedInstance
from medport.wire.vertex import (
    DEPLOYED_MODEL_HEADER,
    MODEL_HEADER,
    MODEL_VERSION_HEADER,
    PIN_HEADERS,
    REQUEST_ID_HEADER,
    TIMEOUT_HEADER,
    EndpointList,
    EndpointResource,
    ModelResource,
)
from medport_local.serving import container, replies
from medport_local.serving.batch_jobs import JobRequest
from medport_local.serving.openai import EmbeddingsRequest
from medport_local.serving.operations import (
    ASKING_THE_CONTAINER,
    EVENTS,
    EXAMPLES,
    INVOKED,
    JSON,
    OPENMETRICS,
    OPERATIONS,
    PATH_PARAMETERS,
    TAGS,
    TEXT,
    Json,
    Operation,
)
from medport_local.serving.raw import RawRequest

if TYPE_CHECKING:
    from medport_local.serving.exchange import Exchange
    from medport_local.serving.routes import Route

VERSION = "3.1.1"
PATH = "/openapi.json"
_SCHEMAS = "#/components/schemas/"

_REQUESTS: tuple[type[BaseModel], ...] = (
    ChatRequest,
    RawRequest,
    DicomChatRequest,
    EmbedInstance,
    EmbeddingsRequest,
    JobRequest,
)
_REPLIES: tuple[type[BaseModel], ...] = (
    ChatReply,
    ChatChunk,
    EndpointList,
    EndpointResource,
    ModelResource,
    replies.ErrorReply,
    replies.PlainError,
    replies.DicomError,
    replies.ChatPredictions,
    replies.RawPredictions,
    replies.EmbedPredictions,
    replies.TooMany,
    replies.ChatPredictReply,
    replies.RawPredictReply,
    replies.EmbedPredictReply,
    replies.ErrorPredictReply,
    replies.ModelCard,
    replies.ModelCards,
    replies.EmbeddingsReply,
    replies.BatchJob,
    replies.BatchJobs,
    replies.Empty,
    replies.DoneOperation,
    replies.OpenApi,
)


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
    paths: dict[str, Json] = {}
    known: set[str] = set()
    for row in table:
        item = paths.setdefault(_template(row.path), {})
        item[row.method.lower()] = _operation(row, _operation_id(row, known))
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
            "schemas": _schemas(),
            "parameters": _PARAMETERS,
            "headers": _HEADERS,
            "responses": _error_responses(),
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
    **dict.fromkeys(PIN_HEADERS.values(), "Pin"),
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


def _operation(row: Route, name: str) -> Json:
    said = OPERATIONS[row.operation]
    if row.operation == "invoke" and row.method == "GET":
        said = ASKING_THE_CONTAINER
    parameters: list[Json] = [{"$ref": "#/components/parameters/RequestId"}]
    if row.action == "infer":
        parameters.append({"$ref": "#/components/parameters/Timeout"})
    operation: Json = {
        "operationId": name,
        "summary": said.summary,
        "tags": [said.tag],
        "parameters": [*_path_parameters(row), *parameters],
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
                    "schema": _any_of(said.body),
                    "examples": {each: {"value": EXAMPLES[each]} for each in said.body},
                }
            },
        }
    return operation


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
        content[JSON] = {"schema": _any_of(said.reply)}
    answers: Json = {"200": {"description": said.summary, "headers": _headers(names), "content": content}}
    for status in sorted(_statuses(row)):
        answers[str(status)] = {"$ref": f"#/components/responses/Error{status}"}
    if said.container:
        for refused in ("400", "500"):
            answers[refused] = {"$ref": f"#/components/responses/ContainerError{refused}"}
    if TEXT in said.texts and row.operation != "metrics":
        not_ok = {TEXT: {"schema": _TEXTS[TEXT]}, JSON: {"schema": _any_of(("ErrorReply",))}}
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
                            "anyOf": [{"$ref": f"{_SCHEMAS}ChatChunk"}, {"$ref": f"{_SCHEMAS}ErrorReply"}]
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
    return {400, 401, 403, 404, 500, 503}


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
            "content": {JSON: {"schema": _any_of(("ErrorReply",))}},
        }
        found[f"Error{status}"] = response
        if status in (400, 500):
            content = {JSON: {"schema": _any_of(("ErrorReply", "PlainError"))}}
            found[f"ContainerError{status}"] = {**response, "content": content}
    return found


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]


def _headers(names: Mapping[str, str]) -> Json:
    return {header: {"$ref": f"#/components/headers/{name}"} for header, name in names.items()}


def _any_of(names: Sequence[str]) -> Json:
    found = [{"$ref": f"{_SCHEMAS}{name}"} for name in names]
    return found[0] if len(found) == 1 else {"anyOf": found}


class _Schemas(GenerateJsonSchema):
    """Without a title for each field, which would only repeat its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _schemas() -> Json:
    asked: list[tuple[type[BaseModel], JsonSchemaMode]] = [(each, "validation") for each in _REQUESTS]
    answered: list[tuple[type[BaseModel], JsonSchemaMode]] = [(each, "serialization") for each in _REPLIES]
    _, found = models_json_schema(
        [*asked, *answered], ref_template=f"{_SCHEMAS}{{model}}", schema_generator=_Schemas
    )
    text = orjson.dumps(_tidied(found["$defs"])).decode()
    # Two dialects have parts of the same name, for which pydantic writes the module before it.
    text = text.replace("medport__wire__dicom_chat__", "Dicom").replace("medport__wire__chat__", "")
    schemas: Json = orjson.loads(text)
    _as_read(schemas)
    most = {"maxItems": container.MAX_CHATS}
    schemas |= {
        "ChatInstances": _instances("ChatRequest", "RawRequest", minItems=1, **most),
        "DicomInstances": _instances("DicomChatRequest", **most),
        "EmbedInstances": _instances("EmbedInstance"),
    }
    return dict(sorted(schemas.items()))


def _instances(*names: str, **limits: int) -> Json:
    items = {"type": "array", "items": _any_of(names), **limits}
    return {"type": "object", "required": ["instances"], "properties": {"instances": items}}


_RANGES = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def _tidied(schema: Any) -> Any:
    """Ranges under JSON Schema's names (behind a validator pydantic leaves its own), Markdown in descriptions."""
    if isinstance(schema, list):
        return [_tidied(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    ranged = schema.get("type") in ("integer", "number")
    found = {_RANGES.get(key, key) if ranged else key: _tidied(value) for key, value in schema.items()}
    if isinstance(said := found.get("description"), str):
        found["description"] = said.replace("``", "`")
    return found


def _as_read(schemas: Json) -> None:
    """Add the spellings that a request is read in before it is checked."""
    for name in ("ChatRequest", "RawRequest", "DicomChatRequest", "EmbeddingsRequest"):
        schema = schemas[name]
        fields: Json = schema["properties"]
        if "stop" in fields:
            fields["stop"] = {"anyOf": [{"type": "string"}, fields["stop"]]}
            fields["@requestFormat"] = {"const": REQUEST_FORMAT}
        if "messages" in fields:
            fields["max_completion_tokens"] = {**fields["max_tokens"], "description": "As `max_tokens`."}
        for key in fields.keys() - schema.get("required", ()):
            fields[key] = _nullable(fields[key])


def _nullable(schema: Json) -> Json:
    """A null is as good as leaving the field out."""
    if "anyOf" in schema and {"type": "null"} in schema["anyOf"]:
        return schema
    default = {"default": schema["default"]} if "default" in schema else {}
    inner = {key: value for key, value in schema.items() if key != "default"}
    return {"anyOf": [inner, {"type": "null"}], **default}
