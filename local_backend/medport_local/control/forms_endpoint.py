"""What callers send about endpoints.

Source: Vertex AI REST reference, projects.locations.endpoints (v1 and v1beta1): Endpoint.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from medport_local.control.forms import Answered, Double, Duration, Flag, Form, Int32, Text
from medport_local.control.forms_model import EncryptionSpec
from medport_local.control.scaling import seconds

Json = dict[str, Any]
_LONGEST_S = 3600


def _at_most_an_hour(duration: str) -> str:
    if not 0 < seconds(duration) <= _LONGEST_S:
        raise ValueError(f"is not between 0s and {_LONGEST_S}s")
    return duration


def _share(rate: float) -> float:
    if not 0 <= rate <= 1:
        raise ValueError("is not between 0 and 1")
    return rate


class ClientConnectionConfig(Form):
    inference_timeout: Annotated[Duration, AfterValidator(_at_most_an_hour)] = ""


class BigQueryDestination(Form):
    output_uri: Text = ""


class PredictRequestResponseLoggingConfig(Form):
    """Kept and answered; this server logs no requests."""

    enabled: Flag = False
    sampling_rate: Annotated[Double, AfterValidator(_share)] = 0.0
    bigquery_destination: BigQueryDestination | None = None
    request_response_logging_schema_version: Text = ""
    enable_otel_logging: Flag = False


class PSCAutomationConfig(Form):
    project_id: Text = ""
    network: Text = ""
    ip_address: Answered
    forwarding_rule: Answered
    state: Answered
    error_message: Answered


class PrivateServiceConnectConfig(Form):
    """Kept and answered; this server is in the caller's network already."""

    enable_private_service_connect: Flag = False
    project_allowlist: tuple[Text, ...] = ()
    psc_automation_configs: tuple[PSCAutomationConfig, ...] = ()
    enable_secure_private_service_connect: Flag = False
    service_attachment: Answered


class Endpoint(Form):
    """An Endpoint as callers send it: to create one, or back, changed, after a GET."""

    display_name: Annotated[Text, Field(max_length=128)] = ""
    description: Text = ""
    labels: dict[str, Text] | None = None
    traffic_split: dict[str, Int32] | None = None
    etag: Text = ""
    encryption_spec: EncryptionSpec | None = None
    network: Text = ""
    enable_private_service_connect: Flag = False
    private_service_connect_config: PrivateServiceConnectConfig | None = None
    predict_request_response_logging_config: PredictRequestResponseLoggingConfig | None = None
    dedicated_endpoint_enabled: Flag = False
    client_connection_config: ClientConnectionConfig | None = None
    gen_ai_advanced_features_config: Json | None = None
    private_model_server_enabled: Flag = False
    name: Answered
    deployed_models: Answered
    create_time: Answered
    update_time: Answered
    model_deployment_monitoring_job: Answered
    dedicated_endpoint_dns: Answered
    satisfies_pzs: Answered
    satisfies_pzi: Answered


class UpdateEndpoint(Form):
    """The body of ``:update``."""

    endpoint: Endpoint
