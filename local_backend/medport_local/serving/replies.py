"""What the routes answer, as types: for the OpenAPI document, and for whoever generates a client from it.

The handlers write these as plain dictionaries, for an embedding's numbers should not pass through a validator; the
tests hold the two together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from medport.wire import Deferred
from medport.wire.chat import ChatReply
from medport.wire.embed import Code, EmbedPrediction


class ErrorInfo(Deferred):
    """Makes an error exact: `reason` is a class of `medport.errors`, `metadata` may hold a field and a remedy."""

    type: Annotated[str, Field(alias="@type")]
    reason: str
    domain: Literal["medport"]
    metadata: dict[str, str]


class ErrorStatus(Deferred):
    """`code` is the HTTP status, `status` the name that google.rpc has for it."""

    code: int
    message: str
    status: str
    details: list[ErrorInfo] = Field(default_factory=list)


class ErrorReply(Deferred):
    """Google's error envelope."""

    error: ErrorStatus


class PlainError(Deferred):
    """An error in MedSigLIP's and the "dicom" container's own words."""

    error: Annotated[str, Field(max_length=1024)]


class DicomFault(Deferred):
    """Why the "dicom" container could not use a request's data."""

    message: Annotated[str, Field(max_length=1024)]
    object: Literal["error"]
    type: Literal["BadRequestError", "TransientServerError", "PermanentServerError"]


class DicomError(Deferred):
    """The "dicom" container's error, under HTTP 200: a text if the request breaks the schema."""

    error: str | DicomFault


class ChatPredictions(Deferred):
    """One chat gives an object, several give a list."""

    predictions: ChatReply | DicomError | list[ChatReply | DicomError]


class RawPredictions(Deferred):
    """Raw prompts; the counts and sums are there where every prompt asked for its raw response."""

    predictions: list[str]
    output_token_counts: list[int] | None = None
    cumulative_logprobs: list[float] | None = None


class EmbedPredictions(Deferred):
    """MedSigLIP: a prediction for each instance, in the same order."""

    predictions: list[EmbedPrediction]


class TooMany(Deferred):
    """MedSigLIP's refusal of too many patches, under HTTP 200."""

    error: Code


class Envelope(Deferred):
    """What Vertex adds to a container's answer."""

    model_config = ConfigDict(alias_generator=to_camel)

    deployed_model_id: str
    model: str
    model_display_name: str
    model_version_id: str


class ChatPredictReply(Envelope, ChatPredictions):
    """Chats, in Vertex's envelope."""


class RawPredictReply(Envelope, RawPredictions):
    """Raw prompts, in Vertex's envelope."""

    # Written by the container, so not in Vertex's camel case.
    output_token_counts: Annotated[list[int] | None, Field(alias="output_token_counts")] = None
    cumulative_logprobs: Annotated[list[float] | None, Field(alias="cumulative_logprobs")] = None


class EmbedPredictReply(Envelope, EmbedPredictions):
    """Embeddings, in Vertex's envelope."""


class ErrorPredictReply(Envelope):
    """A container's error under HTTP 200, in Vertex's envelope."""

    error: str | DicomFault


class ModelCard(Deferred):
    """An endpoint, or one with a LoRA adapter, as OpenAI's API shows a model, and which bytes are behind it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    revision: str | None
    snapshot_sha256: str
    lock_id: str | None
    image_digest: str | None
    derived_from: str | None
    """The snapshot that this one was made from, such as one with int8 weights."""
    parent: str | None = None
    """The endpoint, of one with an adapter."""
    adapter_sha256: str | None = None


class ModelCards(Deferred):
    object: Literal["list"]
    data: list[ModelCard]


class EmbeddingItem(Deferred):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers, or base64 of little-endian float32."""


class EmbeddingsUsage(Deferred):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(Deferred):
    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingsUsage


class OpenApi(Deferred):
    """This document."""

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]


class CompletionStats(Deferred):
    """Counts of rows, as text: that is how protobuf writes 64 bits."""

    model_config = ConfigDict(alias_generator=to_camel)

    successful_count: str
    failed_count: str
    incomplete_count: str


class OutputInfo(Deferred):
    model_config = ConfigDict(alias_generator=to_camel)

    gcs_output_directory: str


class BatchJob(Deferred):
    """A BatchPredictionJob; what was asked for comes back as it was."""

    model_config = ConfigDict(alias_generator=to_camel, extra="allow")

    name: str
    display_name: str
    state: str
    create_time: str
    update_time: str
    start_time: str | None = None
    end_time: str | None = None
    model_version_id: str | None = None
    completion_stats: CompletionStats
    output_info: OutputInfo | None = None
    error: dict[str, Any] | None = None


class BatchJobs(Deferred):
    model_config = ConfigDict(alias_generator=to_camel)

    batch_prediction_jobs: list[BatchJob]
    next_page_token: str | None = None


class Empty(Deferred):
    model_config = ConfigDict(extra="forbid")


class Status(Deferred):
    """google.rpc.Status: why an operation failed."""

    code: int
    message: str


class LongRunning(Deferred):
    """google.longrunning.Operation."""

    name: str
    metadata: dict[str, Any]
    done: bool
    response: dict[str, Any] | None = None
    error: Status | None = None


class LongRunningPage(Deferred):
    """Operations, as many as a page holds."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    operations: list[LongRunning] = Field(default_factory=list)
    next_page_token: str = ""


class AnyObject(Deferred):
    """An object of Vertex AI's own."""

    model_config = ConfigDict(extra="allow")


class DoneOperation(Deferred):
    """A long-running operation that is over."""

    name: str
    metadata: dict[str, Any]
    done: Literal[True]
    response: dict[str, Any]
