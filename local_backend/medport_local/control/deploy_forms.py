"""What callers send to deploy, undeploy and change a deployed model.

Source: Vertex AI REST reference, DeployedModel, DedicatedResources, MachineSpec, RolloutOptions (v1 and v1beta1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from medport.errors import InputError, PreconditionFailed, Unsupported
from medport_local.control.asks import Api
from medport_local.control.forms import Answered, Duration, Flag, Form, Int32, Text

Json = dict[str, Any]

ACCELERATORS: Mapping[int, str] = {
    0: "ACCELERATOR_TYPE_UNSPECIFIED", 1: "NVIDIA_TESLA_K80", 2: "NVIDIA_TESLA_P100", 3: "NVIDIA_TESLA_V100",
    4: "NVIDIA_TESLA_P4", 5: "NVIDIA_TESLA_T4", 6: "TPU_V2", 7: "TPU_V3", 8: "NVIDIA_TESLA_A100",
    9: "NVIDIA_A100_80GB", 10: "TPU_V4_POD", 11: "NVIDIA_L4", 12: "TPU_V5_LITEPOD", 13: "NVIDIA_H100_80GB",
    14: "NVIDIA_H100_MEGA_80GB", 15: "NVIDIA_H200_141GB", 16: "NVIDIA_B200", 17: "NVIDIA_GB200",
    18: "NVIDIA_RTX_PRO_6000",
}  # fmt: skip
"""google.cloud.aiplatform.v1.AcceleratorType."""
_AFFINITIES: Mapping[int, str] = {
    0: "TYPE_UNSPECIFIED",
    1: "NO_RESERVATION",
    2: "ANY_RESERVATION",
    3: "SPECIFIC_RESERVATION",
}


def _name_in(names: Mapping[int, str]) -> Callable[[object], object]:
    """Enums come as numbers from Google's client and as names from others; names are kept."""

    def name(value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            value = names.get(value, value)
        if value not in names.values():
            raise ValueError(f"is none of {', '.join(names.values())}")
        return value

    return name


def _not_negative(value: str) -> str:
    if value.startswith("-"):
        raise ValueError("is negative")
    return value


Period = Annotated[Duration, AfterValidator(_not_negative)]
Count = Annotated[Int32, Field(ge=0, le=10_000)]


class ReservationAffinity(Form):
    reservation_affinity_type: Annotated[Text, BeforeValidator(_name_in(_AFFINITIES))] | None = None
    key: Text | None = None
    values: list[Text] | None = None


class MachineSpec(Form):
    """Kept and answered; this server has the one machine that it runs on."""

    machine_type: Text | None = None
    accelerator_type: Annotated[Text, BeforeValidator(_name_in(ACCELERATORS))] | None = None
    accelerator_count: Count | None = None
    gpu_partition_size: Text | None = None
    tpu_topology: Text | None = None
    multihost_gpu_node_count: Count | None = None
    reservation_affinity: ReservationAffinity | None = None
    min_gpu_driver_version: Text | None = None


class AutoscalingMetricSpec(Form):
    metric_name: str
    target: Annotated[Int32, Field(ge=1, le=10_000)] | None = None
    monitored_resource_labels: dict[str, Text] | None = None


class ScaleToZeroSpec(Form):
    min_scaleup_period: Period | None = None
    idle_scaledown_period: Period | None = None


class FlexStart(Form):
    max_runtime_duration: Duration | None = None


class DedicatedResources(Form):
    machine_spec: MachineSpec | None = None
    min_replica_count: Count | None = None
    max_replica_count: Count | None = None
    required_replica_count: Count | None = None
    autoscaling_metric_specs: list[AutoscalingMetricSpec] | None = None
    spot: Flag | None = None


class DedicatedResourcesBeta(DedicatedResources):
    initial_replica_count: Count | None = None
    scale_to_zero_spec: ScaleToZeroSpec | None = None
    flex_start: FlexStart | None = None


class FasterDeploymentConfig(Form):
    fast_tryout_enabled: Flag | None = None


class RolloutOptions(Form):
    """How many replicas move at once matters to none: there is one. A new engine is ready before the last goes."""

    previous_deployed_model: str
    max_unavailable_replicas: Count | None = None
    max_unavailable_percentage: Count | None = None
    max_surge_replicas: Count | None = None
    max_surge_percentage: Count | None = None
    revision_number: Answered


class DeployedModel(Form):
    id: Annotated[str, Field(pattern=r"^[0-9]{1,10}$")] | None = None
    model: str = ""
    display_name: Annotated[Text, Field(max_length=128)] | None = None
    service_account: Text | None = None
    disable_container_logging: Flag | None = None
    enable_access_logging: Flag | None = None
    disable_explanations: Flag | None = None
    system_labels: dict[str, Text] | None = None
    dedicated_resources: DedicatedResources | None = None
    automatic_resources: Json | None = None
    shared_resources: Text | None = None
    explanation_spec: Json | None = None
    speculative_decoding_spec: Json | None = None
    faster_deployment_config: FasterDeploymentConfig | None = None
    checkpoint_id: Text | None = None
    model_version_id: Answered
    create_time: Answered
    status: Answered
    private_endpoints: Answered


class DeployedModelBeta(DeployedModel):
    dedicated_resources: DedicatedResourcesBeta | None = None
    enable_container_logging: Flag | None = None
    full_fine_tuned_resources: Json | None = None
    rollout_options: RolloutOptions | None = None


class Deploy(Form):
    deployed_model: DeployedModel
    traffic_split: dict[str, Int32] = Field(default_factory=dict)
    endpoint: Text | None = None


class DeployBeta(Deploy):
    deployed_model: DeployedModelBeta


class Undeploy(Form):
    deployed_model_id: Annotated[str, Field(min_length=1)]
    traffic_split: dict[str, Int32] = Field(default_factory=dict)
    endpoint: Text | None = None


class MutatedModel(DeployedModel):
    """A deployed model as it was read may come back whole, its id however long."""

    id: str


class MutatedModelBeta(DeployedModelBeta):
    id: str


class Mutate(Form):
    deployed_model: MutatedModel
    update_mask: str = ""
    endpoint: Text | None = None


class MutateBeta(Form):
    deployed_model: MutatedModelBeta
    update_mask: str = ""
    endpoint: Text | None = None


DEPLOY: Mapping[Api, type[Deploy]] = {"v1": Deploy, "v1beta1": DeployBeta}
MUTATE: Mapping[Api, type[Mutate | MutateBeta]] = {"v1": Mutate, "v1beta1": MutateBeta}


def check_offered(form: DeployedModel) -> None:
    """Refuse what this server cannot do, whatever else the request says.

    Raises:
        Unsupported, InputError: which field, and what to give in its place.
    """
    if form.shared_resources:
        raise Unsupported(
            "deployment resource pools are not offered here",
            field="deployed_model.shared_resources",
            remedy="give dedicated_resources",
        )
    if form.automatic_resources is not None or getattr(form, "full_fine_tuned_resources", None) is not None:
        raise InputError(
            "this model supports DEDICATED_RESOURCES only",
            field="deployed_model.automatic_resources",
            remedy="give dedicated_resources",
        )
    for name in ("explanation_spec", "speculative_decoding_spec"):
        if getattr(form, name):
            raise Unsupported("is not offered here", field=f"deployed_model.{name}", remedy="leave it out")


def check_replicas(resources: Json, api: Api) -> Json:
    """``dedicatedResources`` with the counts that Vertex would take for those not given.

    Raises:
        InputError: the counts contradict each other.
        PreconditionFailed: more replicas are required than this server has.
    """
    field = "deployed_model.dedicated_resources"
    to_zero = "scaleToZeroSpec" in resources or "initialReplicaCount" in resources
    least = resources.get("minReplicaCount", 0 if to_zero and api == "v1beta1" else 1)
    most = resources.get("maxReplicaCount") or max(least, 1)
    if least == 0 and api == "v1":
        raise InputError(
            "must be at least 1 in v1", field=f"{field}.min_replica_count", remedy="scale to zero by v1beta1"
        )
    if to_zero and least:
        raise InputError(
            "only goes with a min_replica_count of 0",
            field=f"{field}.scale_to_zero_spec",
            remedy="leave it and initial_replica_count out, or let min_replica_count be 0",
        )
    if not least <= most:
        raise InputError(
            f"is less than min_replica_count ({least})",
            field=f"{field}.max_replica_count",
            remedy="give at least as many",
        )
    initial = resources.get("initialReplicaCount", 1)
    if not 1 <= initial <= most:
        raise InputError("is not between 1 and max_replica_count", field=f"{field}.initial_replica_count")
    required = resources.get("requiredReplicaCount") or least
    if required > max(least, 1):
        raise InputError("is more than min_replica_count", field=f"{field}.required_replica_count")
    if required > 1:
        raise PreconditionFailed(
            f"{required} replicas are required, and this server runs one engine for a deployed model",
            field=f"{field}.required_replica_count",
            remedy="give 1: then the shortfall is told in deployedModels[].status",
        )
    counts = {"minReplicaCount": least} if least else {}
    given = {key: value for key, value in resources.items() if key != "minReplicaCount" and value not in (0, [])}
    return {**given, **counts, "maxReplicaCount": most}
