"""Endpoints and models as the control plane lists them: more of each than a call to a model needs.

Source: Vertex AI REST reference (projects.locations.endpoints, .models); for what is not in a field, medport's own
conventions: a lock's digest stands in the display name of a deployed model, because it has no labels.
"""

from __future__ import annotations

import re

from pydantic import Field

from medport.wire.vertex import DeployedModel, EndpointResource, ModelResource, Resource, from_label

_LOCK_TOKEN = re.compile(r"(?:^|\s)mp1\.([a-z2-7]{52})(?=\s|$)")


class MachineSpec(Resource):
    machine_type: str = ""
    accelerator_type: str | int = ""
    accelerator_count: int = 0


class DedicatedResources(Resource):
    machine_spec: MachineSpec = Field(default_factory=MachineSpec)
    min_replica_count: int | None = None
    max_replica_count: int | None = None


class DeployedStatus(Resource):
    message: str = ""
    available_replica_count: int | None = None


class ListedDeployment(DeployedModel):
    """A deployed model with its machines, and how it is."""

    create_time: str = ""
    status: DeployedStatus | None = None
    dedicated_resources: DedicatedResources | None = None


class ListedEndpoint(EndpointResource):
    """An endpoint with all that is shown of it."""

    description: str = ""
    etag: str = ""
    create_time: str = ""
    deployed_models: list[ListedDeployment] = Field(default_factory=list)  # type: ignore[assignment]


class EndpointPage(Resource):
    endpoints: list[ListedEndpoint] = Field(default_factory=list)
    next_page_token: str = ""


class DeployedTo(Resource):
    """Where a model version is deployed."""

    endpoint: str = ""
    deployed_model_id: str = ""


class ListedVersion(ModelResource):
    """A model version with all that is shown of it."""

    version_aliases: list[str] = Field(default_factory=list)
    artifact_uri: str = ""
    etag: str = ""
    create_time: str = ""
    version_create_time: str = ""
    deployed_models: list[DeployedTo] = Field(default_factory=list)


class ModelPage(Resource):
    models: list[ListedVersion] = Field(default_factory=list)
    next_page_token: str = ""


def lock_in_name(display_name: str) -> str | None:
    """The lock id, in hex, in the display name of a deployed model: ``NAME mp1.BASE32``."""
    found = _LOCK_TOKEN.search(display_name)
    return from_label(found[1]) if found else None
