"""Vertex AI's messages: proto3 JSON to what Google's clients take, and what they give to JSON.

Source: google.cloud.aiplatform.v1 and v1beta1; protobuf's JSON mapping.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medport import _extras
from medport.errors import InputError

Json = dict[str, Any]


def model(body: Json) -> Any:
    """A Model. Raises ``InputError`` if there is no such field."""
    return _message("v1", "Model", body)


def endpoint(body: Json) -> Any:
    """An Endpoint. As ``model``."""
    return _message("v1", "Endpoint", body)


def deployed_model(body: Json, api: str) -> Any:
    """A DeployedModel. As ``model``."""
    return _message(api, "DeployedModel", body)


def needs_beta(body: Mapping[str, Any]) -> bool:
    """Whether only v1beta1 has what a DeployedModel asks for."""
    return "rolloutOptions" in body or "scaleToZeroSpec" in body.get("dedicatedResources", {})


def mask(*fields: str) -> Any:
    """A FieldMask, of names in proto's spelling."""
    return _extras.load("google.protobuf.field_mask_pb2", extra="deploy").FieldMask(paths=list(fields))


def know_beta() -> None:
    """Let what v1beta1's operations hold be read."""
    _extras.load("google.cloud.aiplatform_v1beta1", extra="deploy")


def plain(message: Any) -> Json:
    """A message of Google's client as JSON."""
    return _json(type(message).pb(message))


def operation(message: Any) -> Json:
    """A google.longrunning.Operation as JSON; without what it holds, if that is of a kind not known here."""
    # Types in an Any are found only once their modules are loaded.
    _extras.load("google.cloud.aiplatform_v1", extra="deploy")
    try:
        return _json(message)
    except TypeError:
        error = {"error": {"code": message.error.code, "message": message.error.message}}
        return {"name": message.name, "done": message.done, **(error if message.HasField("error") else {})}


def _message(api: str, kind: str, body: Json) -> Any:
    json_format = _extras.load("google.protobuf.json_format", extra="deploy")
    cls = getattr(_extras.load(f"google.cloud.aiplatform_{api}", extra="deploy"), kind)
    try:
        return cls.wrap(json_format.ParseDict(body, cls.pb(cls())))
    except json_format.ParseError as fault:
        raise InputError(
            f"is no {kind} of Vertex AI ({' '.join(str(fault).split())[:200]})",
            field=kind,
            remedy="see Vertex AI's REST reference",
        ) from None


def _json(message: Any) -> Json:
    found: Json = _extras.load("google.protobuf.json_format", extra="deploy").MessageToDict(message)
    return found
