"""``google_vertex_ai_endpoint_with_model_garden_deployment`` over REST.

One call makes an endpoint, a model and a deployment. Reading does nothing, so drift is never seen; there is no
import; what a failed creation made is forgotten; and the model stays when the resource goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .api import Api, ApiError
from .resources import Refused, filled, known
from .schema import Block, Type
from .transcoding import to_api
from .values import UNKNOWN, camel

Json = dict[str, Any]
_ID = "projects/{project}/locations/{location}/endpoints/{endpoint}"
_SCALING = ("min_replica_count", "max_replica_count", "required_replica_count")
_METRICS = "autoscaling_metric_specs"
_NOT_SENT = (
    "location",
    "project",
    "endpoint",
    "deletion_policy",
    "deployed_model_id",
    "deployed_model_display_name",
)


@dataclass(frozen=True, slots=True)
class ModelGardenDeployment:
    of: Type

    def create(self, api: Api, planned: Json) -> Json:
        base = self._base(api)
        url = filled("projects/{project}/locations/{location}:deploy", planned)
        body = to_api(self.of.block, planned, without=_NOT_SENT)
        name = str(api.finished(base, api.call("POST", base + url, body))["endpoint"])
        if name.count("/") != 5:
            raise Refused(f"unexpected endpoint name {name!r}")
        deployed = api.call("GET", base + name)["deployedModels"][0]
        made = {
            "id": name,
            "endpoint": name.rpartition("/")[2],
            "deployed_model_id": deployed["id"],
            "deployed_model_display_name": deployed.get("displayName", ""),
        }
        return known(self.of.block, {**planned, **made})

    def read(self, api: Api, state: Json) -> Json | None:
        return state

    def update(self, api: Api, prior: Json, planned: Json) -> Json:
        new, old = _resources(planned), _resources(prior)
        changed = [name for name in (*_SCALING, _METRICS) if new.get(name) != old.get(name)]
        if changed:
            resources = {camel(name): self._sent(name, new.get(name)) for name in changed}
            body = {
                "deployedModel": {"id": prior["deployed_model_id"], "dedicatedResources": resources},
                "updateMask": ",".join(f"dedicatedResources.{camel(name)}" for name in changed),
            }
            base = self._base(api)
            api.finished(base, api.call("POST", f"{base}{filled(_ID, prior)}:mutateDeployedModel", body))
        return known(self.of.block, planned)

    def delete(self, api: Api, state: Json) -> None:
        base = self._base(api)
        url = base + filled(_ID, state)
        try:
            undeploy = {"deployedModelId": state["deployed_model_id"]}
            api.finished(base, api.call("POST", f"{url}:undeployModel", undeploy))
            api.finished(base, api.call("DELETE", url))
        except ApiError as fault:
            if fault.status != 404:
                raise

    def imported(self, of: Type, id_: str, provider: Json) -> Json:
        raise Refused(f"resource {of.name} doesn't support import")

    def _base(self, api: Api) -> str:
        return api.base(str(api.provider.get("region") or ""))

    def _sent(self, name: str, value: Any) -> Any:
        if name != _METRICS:
            return 0 if value is None or value is UNKNOWN else value
        block: Block = self.of.block.blocks["deploy_config"].block.blocks["dedicated_resources"].block
        return [to_api(block.blocks[_METRICS].block, item) for item in value or []]


def _resources(value: Json) -> Json:
    found: Json = value["deploy_config"][0]["dedicated_resources"][0]
    return found
