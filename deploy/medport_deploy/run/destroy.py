"""Take a deployment away: traffic, deployed models, models, endpoints. Terraform's own are left to Terraform.

What cannot be deleted, and what goes on to cost money, is said and not hidden.

Source: Google Cloud's documentation of Cloud KMS, Service Usage, IAM, Cloud Storage and Cloud Logging.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from medport_deploy.control.plane import ControlPlane, last, split_of
from medport_deploy.run import inventory, sweep, vertex_removal
from medport_deploy.run.journal import Journal
from medport_deploy.run.steps import Step


@dataclass(frozen=True, slots=True)
class Remains:
    """Something that is there after everything was destroyed."""

    what: str
    why: str
    costs: bool
    """Whether it goes on to cost money."""


CLOUD = (
    Remains("KMS keys and key rings", "Google never deletes them; key versions can be destroyed", True),
    Remains("enabled APIs", "other things in the project may need them", False),
    Remains("deleted service accounts", "can be restored for 30 days; then their names are free", False),
    Remains("soft-deleted objects in buckets", "are kept for the bucket's retention time", True),
    Remains("buckets and registries that prevent_destroy protects", "hold data; delete them by hand", True),
    Remains("logs", "are kept for their log bucket's retention time", True),
)
"""On Google Cloud, where ``terraform destroy`` has run as well."""
LOCAL = (
    Remains("snapshots in the server's store", "are shared with other deployments", False),
    Remains("the server's audit log", "is kept for its retention time", False),
)
"""On the local control plane."""


def steps(control: ControlPlane, deployment: str, journals: Sequence[Journal]) -> list[Step]:
    """All of the deployment, in the order in which it can go; for ``apply.run`` with the verb ``destroy``."""
    there = inventory.read(control, deployment, journals)
    named = {name for kind, name in inventory.named(journals) if kind == "deployed_model"}
    undeploy: list[Step] = []
    endpoints: list[Step] = []
    for endpoint_id, endpoint in there.endpoints.items():
        split = split_of(endpoint)
        ours = there.ours(endpoint_id, deployment)
        gone = {
            str(each["id"])
            for each in endpoint.get("deployedModels", [])
            if f"{endpoint_id}/{each['id']}" in named
            or last(each.get("model", "")).partition("@")[0] in there.versions
        }
        others = set(vertex_removal.ids(endpoint)) - gone
        if f"endpoints/{endpoint_id}" in there.pending:
            gone |= {name.partition("/")[2] for name in named if name.startswith(f"{endpoint_id}/")}
        # Those with traffic last, so that as few splits as can be are written.
        undeploy += [
            _undeployed(control, endpoint_id, id_, others, split.get(id_, 0))
            for id_ in sorted(gone, key=lambda each: (split.get(each, 0), each))
        ]
        if ours and not others:
            endpoints.append(vertex_removal.endpoint_deleted(control, endpoint_id))
    for kind, name in inventory.named(journals):
        if kind == "endpoint" and f"endpoints/{name}" in there.pending and name not in there.endpoints:
            endpoints.append(vertex_removal.endpoint_deleted(control, name))
    return [
        *(each.step for each in sweep.operations(control, there)),
        *undeploy,
        *(vertex_removal.model_deleted(control, model) for model in _models(there, journals)),
        *endpoints,
    ]


def _undeployed(control: ControlPlane, endpoint_id: str, id_: str, others: set[str], percent: int) -> Step:
    step = vertex_removal.undeployed(control, endpoint_id, id_, prefer=others)
    return replace(step, title=f"{step.title}: {percent} % of the traffic") if percent else step


def _models(there: inventory.Inventory, journals: Sequence[Journal]) -> list[str]:
    being_made = {
        name.partition("@")[0]
        for kind, name in inventory.named(journals)
        if kind == "version" and f"models/{name.partition('@')[0]}" in there.pending
    }
    return sorted({model for model, versions in there.versions.items() if versions} | being_made)
