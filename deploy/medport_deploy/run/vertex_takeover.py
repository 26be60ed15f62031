"""The steps by which a fleet takes the place of the one that stands, where two are too many: rolling, recreate.

Their way back deploys the old version again; it takes as long as any deployment. So what stood is kept in the
journal: version, machines and replicas, and the split.
"""

from __future__ import annotations

from typing import Any

from medport.errors import PreconditionFailed
from medport_deploy.control.plane import ControlPlane, split_of
from medport_deploy.plan.capacity import SURGE_REPLICAS
from medport_deploy.run import split_math
from medport_deploy.run.steps import Doing, Step
from medport_deploy.run.vertex_removal import ids, undeploy

Json = dict[str, Any]
_KEPT = (
    "id",
    "displayName",
    "serviceAccount",
    "enableAccessLogging",
    "disableContainerLogging",
    "dedicatedResources",
)
"""Of a deployed model, what deploys it again as it was; ``model`` beside it."""


def rolled(
    control: ControlPlane, endpoint_id: str, model_id: str, alias: str, body: Json, *, previous: str
) -> Step:
    """Let a version take over the machines of a fleet, one after the other; the server moves the traffic.

    Args:
        alias: of the version.
        body: a DeployedModel in proto3 JSON with its ``id``; without ``model`` and machines.
        previous: id of the deployed model that goes.

    Source: Vertex AI v1beta1, RolloutOptions (Preview): machines and replicas are those of the previous model.
    """
    id_ = str(body["id"])

    def present() -> set[str]:
        return set(ids(control.get_endpoint(endpoint_id)))

    def begin(doing: Doing, deployed: Json, over: str) -> None:
        split = split_of(control.get_endpoint(endpoint_id))
        asked = split_math.with_new(split) if split else None
        doing.wait(control.deploy_model(endpoint_id, {**deployed, **_options(over)}, asked))

    def do(doing: Doing) -> None:
        number = control.get_model(model_id, alias)["versionId"]
        model = control.model_name(f"{model_id}@{number}")
        begin(doing, {**body, "model": model}, previous)

    def undo(doing: Doing) -> None:
        if id_ not in (there := present()):
            return
        if previous in there:
            undeploy(control, endpoint_id, id_, doing, prefer=[previous])
            return
        if not (was := doing.was.get("deployed")):
            raise PreconditionFailed(
                f"nothing is known of {previous}, whose place {id_} took",
                field="journal",
                remedy="deploy the last verified lock again: medport deploy rollback",
            )
        begin(doing, {key: value for key, value in was.items() if key != "dedicatedResources"}, id_)

    return Step(
        # Of this kind, so that sweeping knows what it makes.
        kind="deployed_model",
        name=f"{endpoint_id}/{id_}",
        title=f"roll {model_id} out over the machines of {previous}",
        do=do,
        done=lambda: id_ in (there := present()) and previous not in there,
        undo=undo,
        before=lambda: _stood(control, endpoint_id, previous),
        settle=lambda doing: doing.settle(control.endpoint_name(endpoint_id)),
    )


def given_up(control: ControlPlane, endpoint_id: str, id_: str) -> Step:
    """Undeploy the fleet that serves, so that there is room for another; nothing answers then."""

    def do(doing: Doing) -> None:
        now = control.get_endpoint(endpoint_id)
        if set(split_of(now)) == {id_} and len(ids(now)) > 1:
            # What else stands there is not meant to answer in its place.
            control.set_traffic(endpoint_id, {})
        undeploy(control, endpoint_id, id_, doing)

    def undo(doing: Doing) -> None:
        now = control.get_endpoint(endpoint_id)
        was: Json = doing.was.get("deployed", {})
        split: dict[str, int] = doing.was.get("split", {})
        if id_ in ids(now):
            if split and split_of(now) != split and split_math.possible(split, ids(now)):
                control.set_traffic(endpoint_id, split)
        elif was:
            others = {each: share for each, share in split.items() if each in ids(now)}
            share = 100 - sum(others.values()) if split.get(id_) else 0
            asked = {**others, split_math.NEW: share} if share else split_math.with_new(split_of(now))
            doing.wait(control.deploy_model(endpoint_id, was, asked))

    return Step(
        kind="given_up",
        name=f"{endpoint_id}/{id_}",
        title=f"undeploy {id_}: the new one comes in its place",
        do=do,
        done=lambda: id_ not in ids(control.get_endpoint(endpoint_id)),
        undo=undo,
        before=lambda: _stood(control, endpoint_id, id_),
        settle=lambda doing: doing.settle(control.endpoint_name(endpoint_id)),
    )


def _options(previous: str) -> Json:
    options = {"previousDeployedModel": previous, "maxSurgeReplicas": SURGE_REPLICAS, "maxUnavailableReplicas": 0}
    return {"rolloutOptions": options}


def _stood(control: ControlPlane, endpoint_id: str, id_: str) -> Json:
    endpoint = control.get_endpoint(endpoint_id)
    found = next((each for each in endpoint.get("deployedModels", []) if str(each["id"]) == id_), None)
    if found is None:
        return {"split": split_of(endpoint)}
    kept = {key: found[key] for key in _KEPT if key in found}
    model = str(found["model"]).partition("@")[0]
    return {"split": split_of(endpoint), "deployed": {**kept, "model": f"{model}@{found['modelVersionId']}"}}
