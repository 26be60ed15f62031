"""What a batch prediction job is asked for with.

Source: Vertex AI REST reference, projects.locations.batchPredictionJobs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel, to_snake

from medport.errors import InputError, MedportError, Unsupported
from medport.wire import Deferred, Whole, input_error

MAX_LABELS = 64
_NOT_HERE = frozenset((
    "instanceConfig", "explanationSpec", "unmanagedContainerModel", "modelMonitoringConfig", "encryptionSpec",
    "generateExplanation", "inputConfig.bigquerySource", "inputConfig.vertexMultimodalDatasetSource",
    "outputConfig.bigqueryDestination", "outputConfig.vertexMultimodalDatasetDestination",
    "dedicatedResources.flexStart",
))  # fmt: skip
"""What Vertex's jobs have and these have not."""


class _Camel(Deferred):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class GcsSource(_Camel):
    uris: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=2048)]], Field(min_length=1, max_length=1000)
    ]


class InputConfig(_Camel):
    instances_format: Literal["jsonl"]
    gcs_source: GcsSource


class GcsDestination(_Camel):
    output_uri_prefix: Annotated[str, Field(min_length=1, max_length=1024)]


class OutputConfig(_Camel):
    predictions_format: Literal["jsonl"]
    gcs_destination: GcsDestination


class ReservationAffinity(_Camel):
    reservation_affinity_type: Whole | str = 0
    key: str = ""
    values: list[str] = Field(default_factory=list, max_length=100)


class MachineSpec(_Camel):
    machine_type: str = ""
    accelerator_type: Whole | str = 0
    accelerator_count: Whole = 0
    gpu_partition_size: str = ""
    tpu_topology: str = ""
    reservation_affinity: ReservationAffinity | None = None


class BatchDedicatedResources(_Camel):
    machine_spec: MachineSpec | None = None
    starting_replica_count: Whole = 0
    max_replica_count: Whole = 0
    spot: bool = False


class ManualBatchTuningParameters(_Camel):
    batch_size: Whole = 0


class ModelParameters(_Camel):
    """Ours: parameters of the model itself belong into each row."""

    result_form: Literal["row", "container"] = "row"
    """``container``: what the container answered to the row, ``{"predictions": …}``, and not the row's part of
    it. That is what readers look for that were written for the published notebooks of MedGemma."""


class JobRequest(_Camel):
    """A BatchPredictionJob as it is asked for. Resources and tuning are taken and mean nothing here."""

    display_name: Annotated[str, Field(min_length=1, max_length=128)]
    model: str = ""
    endpoint: str = ""
    input_config: InputConfig
    output_config: OutputConfig
    labels: Annotated[dict[str, str], Field(max_length=MAX_LABELS)] = Field(default_factory=dict)
    dedicated_resources: BatchDedicatedResources | None = None
    manual_batch_tuning_parameters: ManualBatchTuningParameters | None = None
    service_account: str | None = None
    disable_container_logging: bool = False
    generate_explanation: Literal[False] = False
    model_parameters: ModelParameters | None = None

    @property
    def in_container_form(self) -> bool:
        return self.model_parameters is not None and self.model_parameters.result_form == "container"


def read(body: Mapping[str, object]) -> JobRequest:
    """A request as it came, checked.

    Raises:
        InputError: names the field.
        Unsupported: it asks for something that only Vertex has.
    """
    values = {key: value for key, value in body.items() if value not in (None, "", {})}
    try:
        return JobRequest.model_validate(values)
    except ValidationError as fault:
        raise _refusal(fault, values) from None


def check_form(request: JobRequest, dialect: str | None) -> None:
    """Raise ``InputError`` if a model of that dialect has no answers in the form that is wanted."""
    if request.in_container_form and dialect == "medsiglip":
        raise InputError("is for chats", field="modelParameters.resultForm", remedy="leave it out")


def _refusal(fault: ValidationError, values: Mapping[str, object]) -> MedportError:
    faults = fault.errors(include_url=False, include_context=False, include_input=False)
    for each in faults:
        path = [f"{step:.64}" for step in each["loc"] if isinstance(step, str)]
        field = ".".join(path)
        if ".".join(map(to_camel, path)) in _NOT_HERE:
            return Unsupported(
                "batch jobs here have no such thing", field=field, remedy="leave it out, or run the job on Vertex"
            )
        if each["type"] == "extra_forbidden":
            where = ".".join(["batch_prediction_job", *map(to_snake, path[:-1])])
            said = f"Invalid JSON payload received. Unknown name \"{path[-1]}\" at '{where}': Cannot find field."
            return InputError(said, field=field)
    return input_error(fault, values)
