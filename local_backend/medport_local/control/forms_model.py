"""What callers send about models.

Source: Vertex AI REST reference, projects.locations.models (v1 and v1beta1): Model, ModelContainerSpec, Probe.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from medport_local.control.forms import Answered, Duration, Flag, Form, Int32, Int64, Text
from medport_local.control.scaling import seconds

Json = dict[str, Any]
_LONGEST_S = 7200
_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _at_most_two_hours(duration: str) -> str:
    if not 0 <= seconds(duration) <= _LONGEST_S:
        raise ValueError(f"is longer than {_LONGEST_S}s")
    return duration


def _port(number: int) -> int:
    if not 1 <= number <= 65535:
        raise ValueError("is not a port; give 1 to 65535")
    return number


def _not_negative(number: int) -> int:
    if number < 0:
        raise ValueError("is negative")
    return number


PortNumber = Annotated[Int32, AfterValidator(_port)]
Count = Annotated[Int32, AfterValidator(_not_negative)]


class EnvVar(Form):
    """Kept, and answered to whoever may read models, as on Vertex: no place for a secret. None is needed here."""

    name: Text
    value: Text = ""


class Port(Form):
    container_port: PortNumber


class ExecAction(Form):
    command: tuple[Text, ...] = ()


class HttpHeader(Form):
    name: Text = ""
    value: Text = ""


class HttpGetAction(Form):
    path: Text = ""
    port: Int32 = 0
    host: Text = ""
    scheme: Text = ""
    http_headers: tuple[HttpHeader, ...] = ()


class GrpcAction(Form):
    port: Int32 = 0
    service: Text = ""


class TcpSocketAction(Form):
    port: Int32 = 0
    host: Text = ""


class Probe(Form):
    exec: ExecAction | None = None
    http_get: HttpGetAction | None = None
    grpc: GrpcAction | None = None
    tcp_socket: TcpSocketAction | None = None
    period_seconds: Count = 0
    timeout_seconds: Count = 0
    failure_threshold: Count = 0
    success_threshold: Count = 0
    initial_delay_seconds: Count = 0


class ContainerSpec(Form):
    image_uri: Text = ""
    command: tuple[Text, ...] = ()
    args: tuple[Text, ...] = ()
    env: Annotated[tuple[EnvVar, ...], Field(max_length=100)] = ()
    ports: tuple[Port, ...] = ()
    grpc_ports: tuple[Port, ...] = ()
    predict_route: Text = ""
    health_route: Text = ""
    invoke_route_prefix: Text = ""
    deployment_timeout: Annotated[Duration, AfterValidator(_at_most_two_hours)] = ""
    shared_memory_size_mb: Int64 = "0"
    startup_probe: Probe | None = None
    health_probe: Probe | None = None
    liveness_probe: Probe | None = None


class ModelGardenSource(Form):
    public_model_name: Text = ""
    version_id: Text = ""
    skip_hf_model_cache: Flag = False


class GenieSource(Form):
    base_model_uri: Text = ""


class BaseModelSource(Form):
    model_garden_source: ModelGardenSource | None = None
    genie_source: GenieSource | None = None


class EncryptionSpec(Form):
    kms_key_name: Text = ""


class PredictSchemata(Form):
    instance_schema_uri: Text = ""
    parameters_schema_uri: Text = ""
    prediction_schema_uri: Text = ""


class Model(Form):
    """A Model as callers send it: to upload one, or back, changed, after a GET."""

    display_name: Annotated[Text, Field(max_length=128)] = ""
    description: Text = ""
    version_description: Text = ""
    version_aliases: tuple[Text, ...] = ()
    labels: dict[str, Text] | None = None
    etag: Text = ""
    version_id: Text = ""
    """Output only; says which version a changed Model was read from."""
    container_spec: ContainerSpec | None = None
    artifact_uri: Text = ""
    predict_schemata: PredictSchemata | None = None
    metadata_schema_uri: Text = ""
    metadata: Any = None
    explanation_spec: Json | None = None
    encryption_spec: EncryptionSpec | None = None
    base_model_source: BaseModelSource | None = None
    default_checkpoint_id: Text = ""
    name: Answered
    version_create_time: Answered
    version_update_time: Answered
    supported_export_formats: Answered
    training_pipeline: Answered
    pipeline_job: Answered
    supported_deployment_resources_types: Answered
    supported_input_storage_formats: Answered
    supported_output_storage_formats: Answered
    create_time: Answered
    update_time: Answered
    deployed_models: Answered
    data_stats: Answered
    model_source_info: Answered
    original_model_info: Answered
    metadata_artifact: Answered
    satisfies_pzs: Answered
    satisfies_pzi: Answered
    checkpoints: Answered


class UploadModel(Form):
    model: Model
    model_id: Text = ""
    parent_model: Text = ""
    service_account: Text = ""
    parent: Answered


class MergeVersionAliases(Form):
    version_aliases: Annotated[tuple[Text, ...], Field(min_length=1)]
    name: Answered
