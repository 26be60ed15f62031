"""Vertex AI's envelopes, errors and resources, as far as medport uses them; ours on the local server too.

Source: Vertex AI REST reference (projects.locations.endpoints, .models); google/rpc/status.proto.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote

import orjson
from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from medport.errors import InputError, MedportError, NotReady, class_for, row_of
from medport.wire import Deferred

DEPLOYED_MODEL_HEADER = "X-Vertex-AI-Deployed-Model-Id"
MODEL_HEADER = "X-Vertex-AI-Model"
MODEL_VERSION_HEADER = "X-Vertex-AI-Model-Version-Id"
REQUEST_ID_HEADER = "X-Request-Id"
TIMEOUT_HEADER = "X-Request-Timeout-S"
"""Seconds after which the caller gives up; our server then stops working on the request."""
ADAPTER_HEADER = "X-Medport-Adapter"
"""LoRA adapters that took part in an answer, ``name@sha256``: the bytes beside the snapshot's."""
ERROR_DOMAIN = "medport"
_ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"


PIN_HEADERS: Mapping[str, str] = {
    "model_id": "X-Medport-Model-Id",
    "revision": "X-Medport-Revision",
    "snapshot_sha256": "X-Medport-Snapshot-Sha256",
    "parent": "X-Medport-Parent",
    "lock_id": "X-Medport-Lock-Id",
    "image_digest": "X-Medport-Image-Digest",
}
"""Our own on answers, by the names of ``Pins``."""
NOTICE_HEADER = "X-Medport-Notice"
"""The warning that belongs to the model."""


COLD_START = (
    "Model is not yet ready for inference. Please wait while model completes scale-up from zero, "
    "then try your request again."
)
"""What an endpoint that is scaled to zero answers: HTTP 429, and this line as the whole body."""
_COLD, _WAIT = "the endpoint is scaled to zero or starting", "wait, or give wait_until_ready=SECONDS"


class ColdStart(NotReady):
    """For servers: the deployed model sleeps, and is being woken by this very request, which is not kept."""

    def __init__(self) -> None:
        super().__init__(_COLD, remedy=_WAIT)


RPC_CODES: Mapping[str, int] = {
    "CANCELLED": 1, "UNKNOWN": 2, "INVALID_ARGUMENT": 3, "DEADLINE_EXCEEDED": 4, "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6, "PERMISSION_DENIED": 7, "RESOURCE_EXHAUSTED": 8, "FAILED_PRECONDITION": 9, "ABORTED": 10,
    "OUT_OF_RANGE": 11, "UNIMPLEMENTED": 12, "INTERNAL": 13, "UNAVAILABLE": 14, "DATA_LOSS": 15,
    "UNAUTHENTICATED": 16,
}  # fmt: skip
"""google.rpc.Code, by the status that errors have over HTTP."""

# google-cloud-aiplatform refuses a location that is none of these (its constants.base.SUPPORTED_REGIONS).
REGIONS = frozenset((
    "africa-south1", "asia-east1", "asia-east2", "asia-northeast1", "asia-northeast2", "asia-northeast3",
    "asia-south1", "asia-south2", "asia-southeast1", "asia-southeast2", "australia-southeast1",
    "australia-southeast2", "europe-central2", "europe-north1", "europe-north2", "europe-southwest1",
    "europe-west1", "europe-west2", "europe-west3", "europe-west4", "europe-west6", "europe-west8",
    "europe-west9", "europe-west12", "me-central1", "me-central2", "me-west1", "northamerica-northeast1",
    "northamerica-northeast2", "southamerica-east1", "southamerica-west1", "us-central1", "us-east1",
    "us-east4", "us-east5", "us-east7", "us-south1", "us-west1", "us-west2", "us-west3", "us-west4",
    "us-west8",
))  # fmt: skip
"""Regions of Vertex AI. ``global`` and the multi-regions hold no endpoints."""


class Resource(Deferred):
    """Read leniently: fields that we do not use are dropped, camelCase and snake_case both taken."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class DeployedModel(Resource):
    id: str
    model: str = ""
    model_version_id: str = ""
    display_name: str = ""


class EndpointResource(Resource):
    name: str
    display_name: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    dedicated_endpoint_enabled: bool = False
    dedicated_endpoint_dns: str = ""
    deployed_models: list[DeployedModel] = Field(default_factory=list)
    traffic_split: dict[str, int] = Field(default_factory=dict)


class EndpointList(Resource):
    endpoints: list[EndpointResource] = Field(default_factory=list)


class EnvVar(Resource):
    name: str
    value: str = ""


class ContainerSpec(Resource):
    image_uri: str = ""
    args: list[str] = Field(default_factory=list)
    env: list[EnvVar] = Field(default_factory=list)


class ModelResource(Resource):
    name: str
    version_id: str = ""
    display_name: str = ""
    description: str = ""
    version_description: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    container_spec: ContainerSpec | None = None


@dataclass(frozen=True, slots=True)
class Pins:
    """What a model version says about the bytes it serves. ``None``: it does not say."""

    model_id: str | None = None
    revision: str | None = None
    image_digest: str | None = None
    snapshot_sha256: str | None = None
    lock_id: str | None = None
    notice: str | None = None
    """A warning that belongs to the model itself, such as that it is a phantom."""
    parent: str | None = None
    """What the snapshot was derived from, such as one with int8 weights: model, revision and sha256 in a line."""

    def as_dict(self) -> dict[str, str | None]:
        """The pins by name, without the notice: what logs, tables of models and batch jobs carry."""
        return {key: getattr(self, key) for key in PIN_HEADERS}

    def headers(self) -> dict[str, str]:
        """The pins as headers of an answer, with the notice; only what is known.

        What a header may not hold is written as in a URL: an id comes from a snapshot's manifest.
        """
        said = {PIN_HEADERS[key]: value for key, value in self.as_dict().items()} | {NOTICE_HEADER: self.notice}
        return {name: quote(value, safe=_PLAIN) for name, value in said.items() if value}


_PLAIN = " !#$&'()*+,/:;=?@[]"
# A label value holds 63 characters and a sha256 in hex is 64: base32 without padding needs 52, losslessly.
_LABELS = {
    "snapshot_sha256": "medport-snap",
    "image_digest": "medport-image",
    "lock_id": "medport-lock",
}
_ENV = {
    "model_id": "MODEL_ID",
    "revision": "MEDPORT_REVISION",
    "snapshot_sha256": "MEDPORT_SNAPSHOT_SHA256",
    "parent": "MEDPORT_PARENT",
}


def model_from_pins(name: str, version_id: str, pins: Pins) -> dict[str, Any]:
    """The Model resource that carries ``pins``, as the local server shows it and the deploy tools upload it."""
    labels = {_LABELS[key]: to_label(value) for key in _LABELS if (value := getattr(pins, key))}
    if pins.revision:
        labels["medport-rev"] = pins.revision
    env = [{"name": _ENV[key], "value": value} for key in _ENV if (value := getattr(pins, key))]
    return {
        "name": name,
        "versionId": version_id,
        "displayName": pins.model_id or "",
        "description": pins.notice or "",
        "labels": labels,
        "containerSpec": {"env": env},
    }


def pins_from_model(model: ModelResource) -> Pins:
    """What a Model version says of its bytes: labels first, then the container's environment and image."""
    spec = model.container_spec or ContainerSpec()
    env = {variable.name: variable.value for variable in spec.env}
    found: dict[str, str | None] = {key: env.get(name) or None for key, name in _ENV.items()}
    found |= {key: from_label(model.labels[name]) for key, name in _LABELS.items() if name in model.labels}
    _, _, digest = spec.image_uri.partition("@sha256:")
    return Pins(
        model_id=found["model_id"] or model.display_name or None,
        revision=model.labels.get("medport-rev") or found["revision"],
        image_digest=found.get("image_digest") or digest or None,
        snapshot_sha256=found.get("snapshot_sha256"),
        lock_id=found.get("lock_id"),
        notice=model.description or None,
        parent=found["parent"],
    )


def pins_from_headers(headers: Mapping[str, str], resource: Pins) -> Pins:
    """Which bytes answered: what the answer itself says, and the Model resource where it says nothing.

    A resource is what somebody uploaded. A server of ours that answers has verified the bytes, and says so in its
    headers.

    Args:
        headers: of the answer, names in lower case.
    """
    names = {**PIN_HEADERS, "notice": NOTICE_HEADER}
    said = {key: unquote(value) for key, name in names.items() if (value := headers.get(name.lower()))}
    return replace(resource, **said)


def to_label(hex_digest: str) -> str:
    """A sha256 in hex as 52 characters that a label may hold."""
    return base64.b32encode(bytes.fromhex(hex_digest)).decode().rstrip("=").lower()


def from_label(label: str) -> str | None:
    """The hex digest that ``to_label`` wrote; ``None`` if it is something else."""
    try:
        return base64.b32decode(label.upper() + "=" * (-len(label) % 8)).hex() or None
    except ValueError:
        return None


def error_body(error: MedportError) -> dict[str, Any]:
    """Google's error envelope; ``details`` makes it exact for our own client."""
    row = row_of(error)
    metadata = {k: v for k in ("field", "message", "remedy") if (v := getattr(error, k))}
    detail = {"@type": _ERROR_INFO, "reason": row.reason, "domain": ERROR_DOMAIN, "metadata": metadata}
    # Other people's clients show the message alone, so it says everything.
    return {"error": {"code": row.http, "message": str(error), "status": row.status, "details": [detail]}}


def error_from(http: int, body: bytes, *, retry_after_s: float | None = None) -> MedportError:
    """The typed error for an answer with an error status, whatever its body is."""
    try:
        parsed: object = orjson.loads(body)
    except orjson.JSONDecodeError:
        parsed = body[:2048].decode("utf-8", "replace")
    if isinstance(parsed, list) and parsed:  # streaming REST methods wrap the envelope in an array
        parsed = parsed[0]
    found = _error_of(parsed, http) if isinstance(parsed, Mapping) else None
    if found is None:
        found = _typed(http, parsed if isinstance(parsed, str) else "", None, {})
    found.retry_after_s = retry_after_s
    return found


def error_in_body(body: object) -> None:
    """Raise the error that a body reports, even under HTTP 200."""
    if isinstance(body, Mapping) and "error" in body and (found := _error_of(body, 200)) is not None:
        raise found


def _error_of(body: Mapping[str, Any], http: int) -> MedportError | None:
    error = body.get("error")
    if error is None:
        return None
    if not isinstance(error, Mapping):
        return _typed(http, str(error), None, {})
    code = error.get("code")
    if http == 200 and isinstance(code, int) and code >= 400:
        http = code
    details = error.get("details")
    for detail in details if isinstance(details, list) else []:
        if isinstance(detail, Mapping) and detail.get("domain") == ERROR_DOMAIN:
            return _typed(http, str(error.get("message") or ""), *_reason_and_metadata(detail))
    return _typed(http, str(error.get("message") or ""), None, {})


def _reason_and_metadata(detail: Mapping[str, Any]) -> tuple[str | None, dict[str, str]]:
    reason, metadata = detail.get("reason"), detail.get("metadata")
    known = metadata.items() if isinstance(metadata, Mapping) else ()
    return reason if isinstance(reason, str) else None, {k: v for k, v in known if isinstance(v, str)}


def _typed(http: int, message: str, reason: str | None, metadata: Mapping[str, Any]) -> MedportError:
    if reason is not None:
        kind = class_for(http, reason)
        return kind(metadata.get("message", message), field=metadata.get("field"), remedy=metadata.get("remedy"))
    # A cold endpoint answers 429 with a plain string (seen from scale-to-zero): it is not a quota.
    if http in (429, 503) and "not yet ready" in message:
        return NotReady(_COLD, remedy=_WAIT)
    if http == 400 and "traffic_split" in message:
        return NotReady("the endpoint has no model with traffic", remedy="deploy a model to it")
    if http == 200:
        http = 400  # the "dicom" container reports input errors under HTTP 200
        return class_for(http)(f"the server refused the request: {scrubbed(message)}", remedy=_REMEDY[400])
    text = scrubbed(message)
    said = f": {text}" if text else ""
    return class_for(http)(f"the server answered HTTP {http}{said}", remedy=_REMEDY.get(http))


_REMEDY = {
    400: "change the request; sending it again will not help",
    401: "check the API key or the credential of this profile",
    403: "the credential is known but may not do this; ask for the role",
    404: "check the endpoint's id, project and location",
    413: "send fewer or smaller images",
    429: "wait and try again, or raise the quota",
    503: "try again; if it lasts, run: medport doctor",
}


def scrubbed(message: str) -> str:
    """A foreign server's message without what it may quote from the request: first line, no quoted text."""
    line = message.strip().split("\n", 1)[0]
    if line.lstrip().startswith("<"):  # an HTML page
        return ""
    line = re.sub(r"'[^']*'?|\"[^\"]*\"?|[A-Za-z0-9+/=_-]{48,}", "…", line)
    return line[:200]


def filter_terms(wanted: str, form: re.Pattern[str], *, remedy: str) -> list[re.Match[str]]:
    """The terms of a list call's filter, joined by ``AND``. Source: Vertex AI REST reference, list methods.

    Args:
        form: what a term looks like, for the resource that is listed.

    Raises:
        InputError: a term has another form. To ignore it would give too many.
    """
    terms = []
    for part in re.split(r"\sAND\s", wanted) if wanted.strip() else ():
        found = form.fullmatch(part.strip())
        if found is None:
            raise InputError("holds a term that is not known here", field="filter", remedy=remedy)
        terms.append(found)
    return terms


def rfc3339(moment: datetime) -> str:
    """A time as protobuf's JSON writes it, in UTC."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
