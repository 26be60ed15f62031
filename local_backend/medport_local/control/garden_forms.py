"""What callers send to Model Garden.

Source: Vertex AI REST reference, DeployRequest (v1 and v1beta1), RecommendSpecRequest (v1beta1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, model_validator

from medport.errors import InputError
from medport_local.control.asks import Api, Json
from medport_local.control.deploy_forms import DedicatedResources, DedicatedResourcesBeta
from medport_local.control.forms import Answered, Flag, Form, Text, read
from medport_local.control.forms_endpoint import PrivateServiceConnectConfig
from medport_local.control.forms_model import ContainerSpec

DisplayName = Annotated[Text, Field(max_length=128)]


class CustomModel(Form):
    gcs_uri: Annotated[Text, Field(min_length=1)]


class ModelConfig(Form):
    accept_eula: Flag = False
    hugging_face_access_token: Answered
    """Taken and dropped at once: this server asks no hub, and a token that is not kept cannot leak."""
    hugging_face_cache_enabled: Flag = False
    """Takes no part: the snapshots that are deployed are in the server's store."""
    model_display_name: DisplayName = ""
    container_spec: ContainerSpec | None = None
    model_user_id: Text = ""


class EndpointConfig(Form):
    endpoint_display_name: DisplayName = ""
    dedicated_endpoint_enabled: Flag = False
    dedicated_endpoint_disabled: Flag = False
    private_service_connect_config: PrivateServiceConnectConfig | None = None
    endpoint_user_id: Text = ""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.dedicated_endpoint_enabled and self.dedicated_endpoint_disabled:
            raise ValueError("the dedicated endpoint is both enabled and disabled")
        return self


class DeployConfig(Form):
    dedicated_resources: DedicatedResources | None = None
    fast_tryout_enabled: Flag = False
    system_labels: dict[str, Text] = Field(default_factory=dict)


class DeployConfigBeta(DeployConfig):
    dedicated_resources: DedicatedResourcesBeta | None = None


class GardenDeploy(Form):
    """The body of ``{parent}:deploy`` but for its ``modelConfig``, a name that pydantic keeps for itself."""

    publisher_model_name: Text = ""
    hugging_face_model_id: Text = ""
    custom_model: CustomModel | None = None
    destination: Answered
    endpoint_config: EndpointConfig = EndpointConfig()
    deploy_config: DeployConfig = DeployConfig()

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if sum(map(bool, (self.publisher_model_name, self.hugging_face_model_id, self.custom_model))) != 1:
            raise ValueError("give exactly one of publisherModelName, huggingFaceModelId, customModel")
        return self


class GardenDeployBeta(GardenDeploy):
    deploy_config: DeployConfigBeta = DeployConfigBeta()


_DEPLOY: Mapping[Api, type[GardenDeploy]] = {"v1": GardenDeploy, "v1beta1": GardenDeployBeta}


def read_deploy(api: Api, body: Json) -> tuple[GardenDeploy, ModelConfig]:
    """The body of ``{parent}:deploy``. Raises ``InputError`` as ``forms.read``."""
    names = ("modelConfig", "model_config")
    form = read(_DEPLOY[api], {key: value for key, value in body.items() if key not in names})
    configs = [body[name] for name in names if body.get(name) is not None]
    if len(configs) > 1:
        raise InputError("is given twice", field="model_config", remedy="give it once")
    return form, read(ModelConfig, configs[0] if configs else {}, at="model_config")


class RecommendSpec(Form):
    """The body of ``{parent}:recommendSpec``."""

    gcs_uri: Annotated[Text, Field(min_length=1)]
    check_machine_availability: Flag = False
    check_user_quota: Flag = False
    parent: Answered
