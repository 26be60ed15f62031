"""What is there of a deployment: what its journals name, and what bears its label."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from medport.errors import NotFound
from medport_deploy.control.plane import ControlPlane, last
from medport_deploy.names import DEPLOYMENT_LABEL
from medport_deploy.run.journal import Journal

Json = dict[str, Any]
_TERRAFORM = "goog-terraform-provisioned"


@dataclass(frozen=True, slots=True)
class Inventory:
    """The resources as they were read."""

    endpoints: dict[str, Json]
    """By id; also those of others to which this deployment deployed something."""
    versions: dict[str, list[Json]]
    """All versions of each model of the deployment, by the model's id."""
    pending: dict[str, list[str]]
    """Names of operations under way, by ``endpoints/ID`` or ``models/ID``."""

    def ours(self, endpoint_id: str, deployment: str) -> bool:
        """Whether an endpoint is medport's to delete: it bears the label, and Terraform did not make it."""
        labels = self.endpoints.get(endpoint_id, {}).get("labels", {})
        return labels.get(DEPLOYMENT_LABEL) == deployment and _TERRAFORM not in labels


def read(control: ControlPlane, deployment: str, journals: Sequence[Journal]) -> Inventory:
    """Look at everything that is there of a deployment."""
    label = {DEPLOYMENT_LABEL: deployment}
    listed = {last(each["name"]) for each in control.list_endpoints(label)}
    models = {last(each["name"]).partition("@")[0] for each in control.list_models(label)}
    for kind, name in named(journals):
        if kind in ("endpoint", "deployed_model"):
            listed.add(name.partition("/")[0])
        elif kind == "version":
            models.add(name.partition("@")[0])
    # What is under way is read before what is there, or what ends in between were in neither.
    pending = _pending(control, listed, models)
    endpoints: dict[str, Json] = {}
    for id_ in sorted(listed):
        with suppress(NotFound):
            endpoints[id_] = control.get_endpoint(id_)
    versions: dict[str, list[Json]] = {}
    for model in sorted(models):
        try:
            versions[model] = [
                each
                for each in control.list_versions(model)
                if each.get("labels", {}).get(DEPLOYMENT_LABEL) == deployment
            ]
        except NotFound:
            continue
    return Inventory(endpoints, versions, pending)


def named(journals: Sequence[Journal]) -> list[tuple[str, str]]:
    """Kind and name of all whose call may have been sent, without repetitions."""
    return list(dict.fromkeys((record.kind, record.name) for each in journals for record in each.touched()))


def _pending(control: ControlPlane, endpoints: set[str], models: set[str]) -> dict[str, list[str]]:
    resources = {f"endpoints/{each}" for each in endpoints} | {f"models/{each}" for each in models}
    found = {each: control.pending(f"{control.parent}/{each}") for each in sorted(resources)}
    return {each: [str(operation["name"]) for operation in some] for each, some in found.items() if some}
