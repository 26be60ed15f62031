"""What stands at the target now: endpoints, what is deployed to them, and the versions of their models.

Values of our own, so that a plan can be made, saved and tested without a client of Google's. ``read`` makes them
from the control plane's JSON.

Source: Vertex AI REST reference, projects.locations.endpoints, .models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from medport.errors import NotFound
from medport.wire.vertex import ModelResource, Pins, pins_from_model
from medport_deploy import names
from medport_deploy.provenance import pins_from_description
from medport_deploy.spec.reading import Spec

Json = dict[str, Any]


class Reads(Protocol):
    """The calls that only read; ``control.ControlPlane`` has them."""

    def get_endpoint(self, endpoint: str, /) -> Json: ...
    def list_endpoints(self, labels: Mapping[str, str], /) -> list[Json]: ...
    def list_versions(self, model: str, /) -> list[Json]: ...


@dataclass(frozen=True, slots=True)
class Fleet:
    """One deployed model: a version on machines."""

    id: str
    model_id: str
    """Of the Model, without project and version."""
    version_id: str
    display_name: str = ""
    machine_type: str = ""
    accelerator: str | None = None
    count: int = 0
    """Accelerators of one machine."""
    min: int = 1
    max: int = 1
    required: int | None = None
    service_account: str | None = None
    available: int | None = None
    """Replicas that are up; ``None``: the target does not say."""
    elsewhere: str = ""
    """The Model's whole name, if it is of another project or location than the endpoint."""
    unasked: Mapping[str, Any] = field(default_factory=dict)
    """What medport never sets, by the API's names: other weights, other machines, other logs."""


@dataclass(frozen=True, slots=True)
class EndpointState:
    """One endpoint."""

    id: str
    etag: str = ""
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    dedicated: bool = False
    inference_timeout_s: float | None = None
    kms_key_name: str | None = None
    private: bool = False
    allowed_projects: tuple[str, ...] = ()
    logs_requests: bool = False
    """Requests and answers are written to BigQuery, patients' data with them."""
    traffic: Mapping[str, int] = field(default_factory=dict)
    """Deployed model id → percent; without shares of zero."""
    fleets: tuple[Fleet, ...] = ()


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a Model."""

    model_id: str
    version_id: str
    etag: str = ""
    aliases: tuple[str, ...] = ()
    pins: Pins = field(default_factory=Pins)
    """Which bytes it says it serves."""


@dataclass(frozen=True, slots=True)
class ModelState:
    """What there is for one of the specification's models."""

    endpoint: EndpointState | None = None
    versions: tuple[Version, ...] = ()

    def fingerprint(self) -> str:
        """The sha256 of all of it, etags included: another one means that somebody changed something."""
        endpoint = None if self.endpoint is None else _steady(self.endpoint)
        return _sha256(asdict(replace(self, endpoint=endpoint)))


@dataclass(frozen=True, slots=True)
class Reality:
    """What there is for the whole specification."""

    models: Mapping[str, ModelState] = field(default_factory=dict)
    """By the names that the specification gives them."""
    leftovers: tuple[EndpointState, ...] = ()
    """Endpoints of this deployment that the specification no longer has."""


def read(plane: Reads, spec: Spec) -> Reality:
    """What there is now.

    Raises: what the calls raise, except ``NotFound``: what is not there is part of the answer.
    """
    models = {name: _model(plane, spec, name) for name in spec.models}
    known = {spec.endpoint_id(name) for name in spec.models}
    labelled = plane.list_endpoints({names.DEPLOYMENT_LABEL: spec.name})
    others = [endpoint_state(each) for each in labelled]
    return Reality(models, tuple(each for each in others if each.id not in known))


def fingerprint(endpoints: Sequence[EndpointState]) -> str:
    """The sha256 of all that some endpoints are, etags included."""
    return _sha256([asdict(_steady(each)) for each in endpoints])


def _steady(endpoint: EndpointState) -> EndpointState:
    """Without what autoscaling moves by itself, which would make a saved plan stale within minutes."""
    return replace(endpoint, fleets=tuple(replace(each, available=None) for each in endpoint.fleets))


def endpoint_state(said: Mapping[str, Any]) -> EndpointState:
    """An endpoint from its JSON."""
    private = said.get("privateServiceConnectConfig", {})
    split = said.get("trafficSplit", {})
    return EndpointState(
        id=_last(said.get("name", "")),
        etag=said.get("etag", ""),
        display_name=said.get("displayName", ""),
        labels=dict(said.get("labels", {})),
        dedicated=bool(said.get("dedicatedEndpointEnabled", False)),
        inference_timeout_s=_seconds(said.get("clientConnectionConfig", {}).get("inferenceTimeout")),
        kms_key_name=said.get("encryptionSpec", {}).get("kmsKeyName") or None,
        private=bool(private.get("enablePrivateServiceConnect", False)),
        allowed_projects=tuple(private.get("projectAllowlist", ())),
        traffic={id_: int(share) for id_, share in split.items() if int(share)},
        fleets=tuple(_fleet(each, said.get("name", "")) for each in said.get("deployedModels", ())),
        logs_requests=bool(said.get("predictRequestResponseLoggingConfig", {}).get("enabled")),
    )


def version(said: Mapping[str, Any]) -> Version:
    """A version from its JSON: pins by labels and container first, by its description where they say nothing."""
    model_id, _, from_name = _last(said.get("name", "")).partition("@")
    pins = pins_from_model(ModelResource.model_validate(said))
    told = pins_from_description(said.get("versionDescription", ""))
    missing = {key: value for key, value in told.as_dict().items() if getattr(pins, key) is None}
    return Version(
        model_id=model_id,
        version_id=str(said.get("versionId", "")) or from_name,
        etag=said.get("etag", ""),
        aliases=tuple(said.get("versionAliases", ())),
        pins=replace(pins, **missing),
    )


def _model(plane: Reads, spec: Spec, name: str) -> ModelState:
    try:
        endpoint = endpoint_state(plane.get_endpoint(spec.endpoint_id(name)))
    except NotFound:
        endpoint = None
    try:
        versions: Sequence[Json] = plane.list_versions(spec.model_id(name))
    except NotFound:
        versions = ()
    # Newest last: numbers that are counted up.
    found = sorted((version(each) for each in versions), key=lambda each: (len(each.version_id), each.version_id))
    return ModelState(endpoint, tuple(found))


_UNASKED = (
    "checkpointId", "speculativeDecodingSpec", "explanationSpec", "enableAccessLogging", "disableContainerLogging",
    "fasterDeploymentConfig", "automaticResources", "sharedResources", "spot", "gpuPartitionSize", "tpuTopology",
    "autoscalingMetricSpecs", "reservationAffinity",
)  # fmt: skip


_NO_RESERVATION = {"reservationAffinityType": "NO_RESERVATION"}
"""What a server may say of a machine of which nothing was asked."""


def _fleet(said: Mapping[str, Any], endpoint: str) -> Fleet:
    resources = said.get("dedicatedResources", {})
    machine = resources.get("machineSpec", {})
    model_id, _, from_name = _last(said.get("model", "")).partition("@")
    place = endpoint.rpartition("/endpoints/")[0]
    at_home = said.get("model", "").rpartition("/models/")[0] == place
    # proto3 JSON leaves zero out: a fleet that may go to none.
    least = int(resources.get("minReplicaCount", 0 if resources else 1))
    accelerator = machine.get("acceleratorType")
    # proto3 JSON leaves zero out, so only a status that is missing says nothing.
    status = said.get("status")
    required = resources.get("requiredReplicaCount")
    return Fleet(
        id=str(said.get("id", "")),
        model_id=model_id,
        version_id=str(said.get("modelVersionId", "")) or from_name,
        display_name=said.get("displayName", ""),
        machine_type=machine.get("machineType", ""),
        accelerator=None if accelerator in (None, "ACCELERATOR_TYPE_UNSPECIFIED") else accelerator,
        count=int(machine.get("acceleratorCount", 0)),
        min=least,
        max=int(resources.get("maxReplicaCount", least)) or least,
        required=int(required) if required else None,
        service_account=said.get("serviceAccount") or None,
        elsewhere="" if at_home else said.get("model", ""),
        unasked={
            key: each[key]
            for each in (said, resources, machine)
            for key in _UNASKED
            if each.get(key) and each[key] != _NO_RESERVATION
        },
        available=None if status is None else int(status.get("availableReplicaCount", 0)),
    )


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _seconds(text: str | None) -> float | None:
    return float(text.removesuffix("s")) if text else None


def _sha256(said: object) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
