"""What the OpenAPI document says of a route beyond its path, method and action, by the operation's name.

A route that is added to the table needs an entry here; a test tells if it has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from medport.wire.chat import REQUEST_FORMAT
from medport_local.serving.container import HEALTH_PATHS, PREDICT_PATHS

Json = dict[str, Any]

JSON, TEXT, EVENTS = "application/json", "text/plain", "text/event-stream"
OPENMETRICS = "application/openmetrics-text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What the document says of a route beyond its path and action."""

    summary: str
    tag: str
    description: str = ""
    body: tuple[str, ...] = ()
    """Names of schemas, any of which a request may follow; examples too, by the same names."""
    reply: tuple[str, ...] = ()
    """Names of schemas of a JSON answer."""
    texts: tuple[str, ...] = ()
    """Media types of an answer that is no JSON."""
    container: bool = False
    """The container's own answer: its own form of error is possible."""
    form: type[BaseModel] | None = None
    """What a body is checked with, in place of ``body``; its schema is named ``…Form``."""
    query: tuple[str, ...] = ()
    """Parameters of the query, by the names of ``QUERY_PARAMETERS``."""


_RAW_STREAM = "A raw prompt that streams is answered with JSON values, and a NUL after each."
_CHAT = ("ChatRequest", "DicomChatRequest")
_INSTANCES = ("ChatInstances", "DicomInstances", "EmbedInstances")
_RAW = (*_CHAT, "RawRequest", *_INSTANCES)
_CHAT_REPLY = ("ChatReply", "DicomError")
_RAW_REPLY = (*_CHAT_REPLY, "ChatPredictions", "RawPredictions", "EmbedPredictions", "TooMany")

_HANDED_ON = Operation(
    summary="Hand a body to the container, which may stream its answer",
    description=_RAW_STREAM,
    tag="vertex",
    body=_RAW,
    reply=_RAW_REPLY,
    texts=(EVENTS,),
    container=True,
)

OPERATIONS: Mapping[str, Operation] = {
    "health": Operation(summary="Whether the server answers, or takes requests", tag="operation", texts=(TEXT,)),
    "metrics": Operation(summary="What Prometheus reads", tag="operation", texts=(TEXT, OPENMETRICS)),
    "openapi": Operation(summary="This document", tag="operation", reply=("OpenApi",)),
    "listModels": Operation(
        summary="The endpoints, as OpenAI's API lists models", tag="openai", reply=("ModelCards",)
    ),
    "getModel": Operation(summary="One endpoint, as a model", tag="openai", reply=("ModelCard",)),
    "chat": Operation(
        summary="Answer a chat, as a whole or as a stream",
        tag="openai",
        body=_CHAT,
        reply=_CHAT_REPLY,
        texts=(EVENTS,),
        container=True,
    ),
    "embeddings": Operation(
        summary="Embed texts or images", tag="openai", body=("EmbeddingsRequest",), reply=("EmbeddingsReply",)
    ),
    "predict": Operation(
        summary="Answer instances, in Vertex's envelope",
        tag="vertex",
        body=_INSTANCES,
        reply=("ChatPredictReply", "RawPredictReply", "EmbedPredictReply", "ErrorPredictReply"),
    ),
    "rawPredict": Operation(
        summary="Hand a body to the container", tag="vertex", body=_RAW, reply=_RAW_REPLY, container=True
    ),
    "streamRawPredict": _HANDED_ON,
    "invoke": replace(
        _HANDED_ON,
        summary="Any path of the container",
        body=(*_RAW, "EmbeddingsRequest"),
        reply=(*_RAW_REPLY, "EmbeddingsReply"),
    ),
    "containerPredict": replace(_HANDED_ON, summary="The predict route of Vertex's custom-container contract"),
    "createJob": Operation(
        summary="Begin a batch prediction job", tag="vertex", body=("JobRequest",), reply=("BatchJob",)
    ),
    "listJobs": Operation(summary="The batch prediction jobs", tag="vertex", reply=("BatchJobs",)),
    "getJob": Operation(summary="One batch prediction job", tag="vertex", reply=("BatchJob",)),
    "cancelJob": Operation(summary="Stop a batch prediction job", tag="vertex", reply=("Empty",)),
    "deleteJob": Operation(summary="Forget a job that is over", tag="vertex", reply=("DoneOperation",)),
    "listEndpoints": Operation(summary="All endpoints", tag="vertex", reply=("EndpointList",)),
    "getEndpoint": Operation(summary="One endpoint", tag="vertex", reply=("EndpointResource",)),
    "listModelResources": Operation(summary="All models", tag="vertex", reply=("ModelPage",)),
    "getModelResource": Operation(summary="A model, in its only version", tag="vertex", reply=("ModelResource",)),
    "getVersion": Operation(summary="A version of a model", tag="vertex", reply=("ModelResource",)),
}
ASKING_THE_CONTAINER = Operation(
    summary="Health and models of the container", tag="vertex", reply=("ModelCards",), texts=(TEXT,)
)

_PIXEL = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)
"""One grey pixel."""
_ASKED: Json = {"role": "user", "content": "Name two signs of pneumonia on a chest radiograph."}
_SHOWN: Json = {
    "role": "user",
    "content": [
        {"type": "image_url", "image_url": {"url": _PIXEL}},
        {"type": "text", "text": "Describe the image."},
    ],
}
EXAMPLES: Mapping[str, Json] = {
    "ChatRequest": {"messages": [_ASKED], "max_tokens": 64},
    "DicomChatRequest": {"messages": [_SHOWN], "max_tokens": 64},
    "RawRequest": {"prompt": "Name two signs of pneumonia.", "max_tokens": 64, "raw_response": True},
    "ChatInstances": {"instances": [{"@requestFormat": REQUEST_FORMAT, "messages": [_SHOWN], "max_tokens": 64}]},
    "DicomInstances": {"instances": [{"messages": [_ASKED], "max_tokens": 64}]},
    "EmbedInstances": {
        "instances": [{"text": "a chest X-ray"}, {"image": {"input_bytes": _PIXEL.partition(",")[2]}}]
    },
    "JobRequest": {
        "displayName": "nightly",
        "model": "projects/local/locations/europe-west4/models/medsiglip@1",
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["nightly/*.jsonl"]}},
        "outputConfig": {
            "predictionsFormat": "jsonl",
            "gcsDestination": {"outputUriPrefix": "answers"},
        },
    },
    "EmbeddingsRequest": {"input": ["a chest X-ray", "a fundus photograph"]},
}

PATH_PARAMETERS: Mapping[str, Json] = {
    "project": {"description": "The project's id; `-` in a list: any.", "example": "local"},
    "location": {"description": "A region; `-` in a list: any.", "example": "europe-west4"},
    "endpoint": {"description": "The endpoint's id; see the list of endpoints.", "example": "medgemma"},
    "model": {"description": "The model's id, which is its endpoint's.", "example": "medgemma"},
    "model_version": {"description": "The version's id or alias.", "example": "default"},
    "job": {"description": "The batch prediction job's id.", "example": "1"},
    "operation": {"description": "The number at the end of the operation's name.", "example": "1"},
    "batch_prediction_job": {"description": "The batch prediction job's id.", "example": "1"},
    "publisher": {"description": "Whose models these are.", "example": "google"},
    "fault": {"description": "The fault's id.", "example": "1"},
    "deployed_model": {"description": "The deployed model's id; see the endpoint.", "example": "1234567890"},
}
QUERY_PARAMETERS: Mapping[str, Json] = {
    "filter": {
        "description": 'Such as `labels.team="chest" AND display_name="mg"`.',
        "schema": {"type": "string"},
        "example": "labels.team:*",
    },
    "orderBy": {"description": "Such as `create_time desc`.", "schema": {"type": "string"}},
    "pageSize": {"description": "0: the server's choice.", "schema": {"type": "integer", "minimum": 0}},
    "pageToken": {"description": "`nextPageToken` of the page before.", "schema": {"type": "string"}},
    "readMask": {"description": "Fields to answer, with commas.", "schema": {"type": "string"}},
    "updateMask": {"description": "Fields to change, with commas.", "schema": {"type": "string"}},
    "endpointId": {
        "description": "Chosen by the server if not given.",
        "schema": {"type": "string", "pattern": "^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$|^[1-9][0-9]{0,8}$"},
    },
}
INVOKED: Mapping[str, tuple[str, ...]] = {
    "POST": (*sorted(PREDICT_PATHS), "v1/chat/completions", "chat/completions", "v1/embeddings"),
    "GET": (*sorted(HEALTH_PATHS), "v1/models"),
}
TAGS = {
    "openai": "What OpenAI's API has, under the same paths.",
    "vertex": "What Vertex AI has: endpoint and model resources, and a container's own contract.",
    "control": "What Vertex AI's control plane has: uploads, versions, deployments, operations.",
    "operation": "For whoever runs the server.",
}
