"""The form of ``medport.yaml``: its keys, their defaults, and the rules within each mapping.

Rules between mappings are in ``spec.rules``; files are read by ``spec.reading``.
"""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from medport.wire.vertex import REGIONS
from medport_deploy import names
from medport_deploy.spec import machines as spec_machines
from medport_deploy.spec.values import (
    Arguments,
    EndpointId,
    Environment,
    Image,
    KmsKeyName,
    Labels,
    Location,
    ModelId,
    Name,
    ProjectId,
    Revision,
    Route,
    ServiceAccount,
    Url,
    VariableName,
    is_googles,
)

FILE_NAME = "medport.yaml"
DEFAULT_REVISION = "main"


class Part(BaseModel):
    """A mapping of the file. Strict: a number is not a text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Auth(Part):
    """Where the credential for the target is; never the credential itself. Neither: Google's default one."""

    api_key_env: VariableName | None = None
    """The environment variable that holds an API key of the local control plane."""
    credentials_file: str | None = None
    """A Google credentials file."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.api_key_env and self.credentials_file:
            raise ValueError("holds both api_key_env and credentials_file")
        return self


class Target(Part):
    """Where to deploy to."""

    kind: Literal["vertex", "local"]
    project: ProjectId
    location: Location
    url: Url | None = None
    """Base URL of the control plane, without ``/v1``; Google's regional one if none. A local one is called
    through no proxy, whatever the environment says: by control calls, trials and Terraform alike."""
    ca_file: str | None = None
    """PEM file of who signed the control plane's certificate."""
    auth: Auth = Auth()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.kind == "local" and self.url is None:
            raise ValueError("needs a url for kind local, such as https://127.0.0.1:8443")
        if self.kind == "vertex" and self.location not in REGIONS:
            raise ValueError(
                f"has location {self.location}, which is no region of Vertex AI (as of {spec_machines.AS_OF})"
            )
        if self.kind == "vertex" and self.url is not None and not is_googles(self.url):
            raise ValueError("has a url outside googleapis.com: Google's credential would be sent there")
        if self.kind == "vertex" and self.auth.api_key_env:
            raise ValueError("takes Google's credentials for kind vertex; auth.api_key_env is for local")
        if self.kind == "local" and self.auth.credentials_file:
            raise ValueError("takes an API key for kind local; name its variable in auth.api_key_env")
        return self


class Endpoint(Part):
    """The endpoint that serves one model."""

    id: EndpointId | None = None
    """Made of the deployment's and the model's name if none; Terraform's provider takes digits alone."""
    display_name: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    dedicated: bool = True
    """A DNS name of its own: 10 MB a request and long time-outs. ``false`` for a private network."""
    inference_timeout_s: Annotated[int, Field(ge=1, le=3600)] = 600


class Machine(Part):
    """What one replica runs on."""

    type: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{1,62}$")]
    accelerator: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{1,62}$")] | None = None
    """As ``AcceleratorType`` spells it, such as ``NVIDIA_L4``."""
    count: Annotated[int, Field(ge=0, le=16)] = 0


class Replicas(Part):
    """How many machines."""

    min: Annotated[int, Field(ge=1, le=1000)] = 1
    max: Annotated[int, Field(ge=1, le=1000)] = 1
    """``min`` if it is not given."""
    required: Annotated[int, Field(ge=1, le=1000)] | None = None
    """As many must run for a deployment to succeed; ``min`` if none."""

    @model_validator(mode="before")
    @classmethod
    def _at_least_min(cls, value: Any) -> Any:
        if isinstance(value, dict) and "min" in value and "max" not in value:
            return {**value, "max": value["min"]}
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"has max {self.max}, less than min {self.min}")
        if self.required is not None and self.required > self.min:
            raise ValueError(f"has required {self.required}, more than min {self.min}")
        return self


class Container(Part):
    """How Vertex speaks to the container."""

    port: Annotated[int, Field(ge=1, le=65_535)] = 8080
    predict_route: Route = "/predict"
    health_route: Route = "/health"
    shared_memory_mb: Annotated[int, Field(ge=64, le=1_048_576)] | None = None
    deployment_timeout_s: Annotated[int, Field(ge=60, le=7200)] = 1800

    @model_validator(mode="after")
    def _two_routes(self) -> Self:
        if self.predict_route == self.health_route:
            raise ValueError("has one path for predict_route and health_route")
        return self


class Model(Part):
    """One model on one endpoint."""

    model: ModelId
    """Such as ``google/medgemma-4b-it``."""
    revision: Revision = DEFAULT_REVISION
    """A commit, or a branch or tag that the lock turns into one."""
    image: Image
    """The serving container; a tag is turned into a digest by the lock. A local target runs none."""
    endpoint: Endpoint = Endpoint()
    machine: Machine
    replicas: Replicas = Replicas()
    container: Container = Container()
    args: Arguments = []
    env: Environment = {}
    service_account: ServiceAccount | None = None


class Network(Part):
    """Who reaches the endpoints."""

    private: bool = False
    """By Private Service Connect alone."""
    allowed_projects: list[ProjectId] = []
    """From which projects, if private."""

    @model_validator(mode="after")
    def _only_private(self) -> Self:
        if self.allowed_projects and not self.private:
            raise ValueError("has allowed_projects, which mean nothing unless private is true")
        return self


class Keys(Part):
    """Which key the resources are encrypted with at rest; Google's own if none."""

    kms_key_name: KmsKeyName | None = None


class Gates(Part):
    """What a canary step must not exceed."""

    error_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01
    p95_ms: Annotated[float, Field(gt=0, le=3_600_000)] | None = None
    golden_drift: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the golden answers that may differ."""


class Rollout(Part):
    """How a new version takes over."""

    strategy: Literal["canary", "rolling", "recreate"] = "canary"
    steps: Annotated[list[Annotated[int, Field(ge=1, le=100)]], Field(min_length=1, max_length=20)] = [5, 25, 100]
    """Per cent of the traffic."""
    bake_s: Annotated[float, Field(ge=0, le=86_400)] = 300
    """How long each step is watched before the next."""
    gates: Gates = Gates()
    retain_s: Annotated[float, Field(ge=0, le=604_800)] = 3600
    """How long the old fleet is kept for a quick way back."""

    @field_validator("steps")
    @classmethod
    def _rising(cls, steps: list[int]) -> list[int]:
        if any(later <= earlier for earlier, later in pairwise(steps)):
            raise ValueError(f"{steps} does not rise")
        if steps[-1] != 100:
            raise ValueError(f"{steps} does not end at 100")
        return steps

    @model_validator(mode="after")
    def _steps_are_for_a_canary(self) -> Self:
        if self.strategy != "canary" and "steps" in self.model_fields_set:
            raise ValueError(f"has steps, which mean nothing for strategy {self.strategy}")
        return self


class Policy(Part):
    """What the site allows, whatever the rest says."""

    allowed_locations: list[Location] | None = None
    allowed_registries: list[str] | None = None
    """``HOST`` or ``HOST/PATH`` that images must be under."""
    allow_plain_images: bool = False
    """Ask registries on other machines over plain http, as a mirror inside a site may be."""
    allow_unlisted_machines: bool = False
    """Take machine types that the table here does not hold."""


class TerraformRoot(Part):
    """The terraform configuration that makes what stands below the models."""

    root: str | None = None
    """Its directory, from this file's; ``None``: medport makes the endpoints itself."""


class Spec(Part):
    """The whole file."""

    version: Annotated[int, Field(ge=1, le=1)]
    name: Name
    target: Target
    models: Annotated[dict[Name, Model], Field(min_length=1, max_length=20)]
    network: Network = Network()
    keys: Keys = Keys()
    rollout: Rollout = Rollout()
    policy: Policy = Policy()
    accept_terms: list[Annotated[str, Field(min_length=1, max_length=200)]] = []
    """Ids of terms, such as ``hai-def``. Whoever writes one here has read them."""
    labels: Labels = {}
    terraform: TerraformRoot = TerraformRoot()

    def endpoint_id(self, name: str) -> str:
        """The id of a model's endpoint: the given one, else one that is made of both names."""
        return self.models[name].endpoint.id or names.endpoint_id(self.name, name)

    def model_id(self, name: str) -> str:
        """The id of the Model resource that all versions of a model belong to."""
        return names.model_id(self.name, name)

    def display_name(self, name: str) -> str:
        """What the endpoint is called for people."""
        return self.models[name].endpoint.display_name or f"{self.name} {name}"

    def content_sha256(self) -> str:
        """The sha256 of all that decides which bytes are served and how they are started.

        Machines, replicas, traffic, network and labels do not count: to change them needs no new lock. Nor do
        comments and the order of keys.
        """
        models = {
            name: each.model_dump(mode="json", include={"model", "revision", "image", "args", "env", "container"})
            for name, each in self.models.items()
        }
        said = {
            "version": self.version,
            "name": self.name,
            "models": models,
            "accept_terms": sorted(set(self.accept_terms)),
            "terraform": self.terraform.model_dump(mode="json"),
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
