"""JSON Schemas of the OpenAPI document: the types that requests are checked with, and those that answers have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

from medport.wire.chat import REQUEST_FORMAT, ChatChunk, ChatReply, ChatRequest
from medport.wire.dicom_chat import DicomChatRequest
from medport.wire.embed import EmbedInstance
from medport.wire.inventory import EndpointPage, ModelPage
from medport.wire.vertex import EndpointList, EndpointResource, ModelResource
from medport_local.serving import container, replies
from medport_local.serving.batch_jobs import JobRequest
from medport_local.serving.openai import EmbeddingsRequest
from medport_local.serving.operations import Json
from medport_local.serving.raw import RawRequest

_AT = "#/components/schemas/"
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
    EndpointPage,
    EndpointResource,
    ModelPage,
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
    replies.LongRunning,
    replies.LongRunningPage,
    replies.AnyObject,
    replies.OpenApi,
)


def pointer(name: str) -> str:
    """Where a schema of the document is."""
    return f"{_AT}{name}"


def any_of(names: Sequence[str]) -> Json:
    """A schema of the document, or any of several."""
    found = [{"$ref": pointer(name)} for name in names]
    return found[0] if len(found) == 1 else {"anyOf": found}


class _Schemas(GenerateJsonSchema):
    """Without a title for each field, which would only repeat its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def used(schemas: Json, *parts: object) -> Json:
    """The schemas that some parts of the document lead to."""
    found: set[str] = set()
    waiting = set(_pointed(parts))
    while waiting:
        found.add(name := waiting.pop())
        waiting |= _pointed(schemas[name]) - found
    return {name: schema for name, schema in schemas.items() if name in found}


def _pointed(part: object) -> set[str]:
    return set(re.findall(rf'"{_AT}([^"]+)"', orjson.dumps(part).decode()))


def of_forms(forms: Iterable[type[BaseModel]]) -> tuple[Mapping[type[BaseModel], str], Json]:
    """The names of forms' schemas, and those and their parts' schemas by name. ``Form`` stands behind each name.

    Two of the same name have the module before it, as pydantic writes it.
    """
    sent: list[tuple[type[BaseModel], JsonSchemaMode]] = [(form, "validation") for form in forms]
    places, found = models_json_schema(sent, ref_template=f"{_AT}{{model}}Form", schema_generator=_Schemas)
    names = {form: places[form, mode]["$ref"].removeprefix(_AT) for form, mode in sent}
    return names, {f"{name}Form": schema for name, schema in _tidied(found.get("$defs", {})).items()}


def every() -> Json:
    """All schemas of the server's own requests and replies, by name."""
    asked: list[tuple[type[BaseModel], JsonSchemaMode]] = [(each, "validation") for each in _REQUESTS]
    answered: list[tuple[type[BaseModel], JsonSchemaMode]] = [(each, "serialization") for each in _REPLIES]
    _, found = models_json_schema([*asked, *answered], ref_template=f"{_AT}{{model}}", schema_generator=_Schemas)
    text = orjson.dumps(_tidied(found["$defs"])).decode()
    # Two dialects have parts of the same name, for which pydantic writes the module before it.
    text = text.replace("medport__wire__dicom_chat__", "Dicom").replace("medport__wire__chat__", "")
    # What is read in another form than it is written in: names of components have no hyphen here.
    text = re.sub(rf'("{_AT}\w+|"\w+)-(Input|Output)"', r'\1\2"', text)
    schemas: Json = orjson.loads(text)
    _as_read(schemas)
    most = {"maxItems": container.MAX_CHATS}
    schemas |= {
        "ChatInstances": _instances("ChatRequest", "RawRequest", minItems=1, **most),
        "DicomInstances": _instances("DicomChatRequest", **most),
        "EmbedInstances": _instances("EmbedInstance"),
    }
    return schemas


def _instances(*names: str, **limits: int) -> Json:
    items = {"type": "array", "items": any_of(names), **limits}
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
