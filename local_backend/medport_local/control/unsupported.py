"""What Vertex AI has and this server does not: each is answered 501, with what to use instead.

A route that is not there at all would be a 404, which a client takes for a resource that is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from medport.errors import Unsupported
from medport_local.control.asks import Ask, Handler, Json, Row

Method = Literal["GET", "POST", "PATCH", "DELETE"]

_P = "projects/{project}/locations/{location}"
_POOLS = f"{_P}/deploymentResourcePools"
_EVALUATIONS = f"{_P}/models/{{model}}/evaluations"
_SLICES = f"{_EVALUATIONS}/{{evaluation}}/slices"
_PUBLISHED = "publishers/{publisher}/models/{model}"
_HOSTED = f"{_P}/{_PUBLISHED}"
_REST = 'give aiplatform.init(api_transport="rest"), or send JSON to the path of the REST reference'
_PREDICT = "use :predict, :rawPredict or, to have it as a stream, :streamRawPredict"
_CHAT = "use :predict, or /chat/completions under the endpoint"
_DEPLOY = "deploy it to an endpoint with POST {parent}:deploy, then ask that endpoint"


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Calls that are refused for one reason."""

    calls: tuple[tuple[Method, str], ...]
    """Method, and path behind the version."""
    what: str
    """What is not offered, as the first half of a sentence."""
    remedy: str


def _posts(where: str, *verbs: str) -> tuple[tuple[Method, str], ...]:
    return tuple(("POST", f"{where}:{verb}") for verb in verbs)


_REFUSALS = (
    _Refusal(
        (
            ("GET", f"{_POOLS}/{{pool}}:queryDeployedModels"),
            ("POST", _POOLS),
            ("GET", _POOLS),
            ("GET", f"{_POOLS}/{{pool}}"),
            ("PATCH", f"{_POOLS}/{{pool}}"),
            ("DELETE", f"{_POOLS}/{{pool}}"),
        ),
        "deployment resource pools are",
        "deploy with dedicatedResources",
    ),
    _Refusal(
        _posts(f"{_P}/endpoints/{{endpoint}}", "explain"),
        "explanations are",
        "these models give none; use :predict",
    ),
    _Refusal(
        _posts(
            f"{_P}/endpoints/{{endpoint}}",
            "directPredict", "directRawPredict", "streamDirectPredict", "streamDirectRawPredict",
            "streamingPredict", "streamingRawPredict", "serverStreamingPredict",
        ),
        "predictions over tensors and over gRPC's streams are",
        _PREDICT,
    ),
    _Refusal(
        _posts(f"{_P}/endpoints/{{endpoint}}", "predictLongRunning", "fetchPredictOperation"),
        "predictions as operations are",
        "use :predict, or a batchPredictionJob",
    ),
    _Refusal(
        _posts(f"{_P}/endpoints/{{endpoint}}", "countTokens", "computeTokens"),
        "counting tokens without a prediction is",
        "the answers of /chat/completions say how many there were, under usage",
    ),
    _Refusal(
        (
            *_posts(f"{_P}/endpoints/{{endpoint}}", "generateContent", "streamGenerateContent"),
            *_posts("endpoints/{endpoint}", "generateContent", "streamGenerateContent"),
            *_posts("endpoints/{endpoint}", "countTokens", "computeTokens"),
        ),
        "Gemini's form of request is",
        _CHAT,
    ),
    _Refusal(
        _posts(_PUBLISHED, "generateContent", "streamGenerateContent", "countTokens", "computeTokens")
        + _posts(
            _HOSTED,
            "predict", "rawPredict", "streamRawPredict", "serverStreamingPredict", "predictLongRunning",
            "fetchPredictOperation", "countTokens", "computeTokens", "generateContent", "streamGenerateContent",
            "embedContent",
        ),
        "publisher models that answer without a deployment are",
        _DEPLOY,
    ),
    _Refusal(
        (
            ("GET", f"{_HOSTED}:fetchPublisherModelConfig"),
            ("POST", f"{_HOSTED}:setPublisherModelConfig"),
        ),
        "configurations of publisher models are",
        "set what you need on the endpoint",
    ),
    _Refusal(
        _posts(_HOSTED, "export"),
        "the export of a publisher model's weights is",
        "fetch them with medport snapshot pull on the server",
    ),
    _Refusal(
        _posts(_P, "deployPublisherModel"),
        "the older form of Model Garden's deployment is",
        "use POST {parent}:deploy, with publisherModelName",
    ),
    _Refusal(
        _posts(f"{_P}/models/{{model}}", "export"),
        "the export of a model is",
        "its snapshot is a directory of the server; medport bundle export packs one",
    ),
    _Refusal(
        _posts(f"{_P}/models", "copy"),
        "copies of models are",
        "upload it again with the same artifactUri or model id",
    ),
    _Refusal(
        _posts(f"{_P}/models/{{model}}", "updateExplanationDataset"),
        "explanations are",
        "these models give none",
    ),
    _Refusal(
        (("GET", f"{_P}/models/{{model}}:listCheckpoints"),),
        "checkpoints of a tuned model are",
        "upload each checkpoint as a version of its own",
    ),
    _Refusal(
        (
            ("POST", f"{_EVALUATIONS}:import"),
            ("GET", _EVALUATIONS),
            ("GET", f"{_EVALUATIONS}/{{evaluation}}"),
            ("POST", f"{_SLICES}:batchImport"),
            ("POST", f"{_SLICES}/{{slice}}:batchImport"),
            ("GET", _SLICES),
            ("GET", f"{_SLICES}/{{slice}}"),
        ),
        "model evaluations are",
        "keep their results outside, under the model's name and version",
    ),
)  # fmt: skip

_POLICIES = _Refusal(
    tuple(
        call
        for resource in (f"{_P}/models/{{model}}", f"{_P}/endpoints/{{endpoint}}", _HOSTED)
        for call in _posts(resource, "getIamPolicy", "setIamPolicy", "testIamPermissions")
    ),
    "IAM policies are",
    "who may do what stands in the server's key file",
)
"""Google's client has these below ``/ui/`` too."""
_GRPC = _Refusal(
    (("POST", "/google.cloud.aiplatform.{service}/{method}"), ("POST", "/google.longrunning.{service}/{method}")),
    "gRPC is",
    _REST,
)
"""As a proxy in front of the server passes it on; the server itself does not speak HTTP/2."""


def rows() -> tuple[Row, ...]:
    """The rows of the route table that refuse. They ask for no permission: there is nothing to protect."""
    versioned = (row for refusal in _REFUSALS for row in _rows(refusal, "/{api}/"))
    policies = (row for prefix in ("/{api}/", "/ui/") for row in _rows(_POLICIES, prefix))
    return (*versioned, *policies, *_rows(_GRPC, ""))


def _rows(refusal: _Refusal, prefix: str) -> Iterator[Row]:
    handler = _refuse(refusal)
    for method, path in refusal.calls:
        yield Row(method=method, path=prefix + path, handler=handler, verb="", operation="unsupported")


def _refuse(refusal: _Refusal) -> Handler:
    async def refuse(ask: Ask) -> Json:
        raise Unsupported(f"{refusal.what} not offered by this server", remedy=refusal.remedy)

    return refuse
