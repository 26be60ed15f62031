"""The steps that make things, each with its way back: endpoint, version, deployed model, split, alias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medport.errors import Conflict, NotFound, PreconditionFailed
from medport_deploy.control.plane import ControlPlane, last, shares, split_of
from medport_deploy.names import DEPLOYMENT_LABEL, GOOD_PREFIX
from medport_deploy.run import split_math
from medport_deploy.run.steps import Doing, Step
from medport_deploy.run.vertex_removal import endpoint_gone, undeploy, version_gone

Json = dict[str, Any]
_QUICK_S = 900.0


def endpoint(control: ControlPlane, deployment: str, endpoint_id: str, body: Json) -> Step:
    """Create an endpoint; for targets where Terraform does not.

    Args:
        deployment: the spec's name; becomes a label.
        body: an Endpoint in proto3 JSON.
    """
    labelled = {**body, "labels": {**body.get("labels", {}), DEPLOYMENT_LABEL: deployment}}

    def done() -> bool:
        try:
            found = control.get_endpoint(endpoint_id)
        except NotFound:
            return False
        _must_be_ours(found, deployment, f"endpoint {endpoint_id}")
        return True

    def do(doing: Doing) -> None:
        doing.wait(control.create_endpoint(labelled, endpoint_id=endpoint_id), deadline_s=_QUICK_S)

    return Step(
        kind="endpoint",
        name=endpoint_id,
        title=f"create endpoint {endpoint_id}",
        do=do,
        done=done,
        undo=lambda doing: endpoint_gone(control, endpoint_id, doing),
        settle=lambda doing: doing.settle(control.endpoint_name(endpoint_id)),
    )


def version(control: ControlPlane, deployment: str, model_id: str, alias: str, body: Json) -> Step:
    """Upload a version of a model.

    Args:
        alias: by which it is found again; of ``names.version_alias``.
        body: a Model in proto3 JSON, with the pins in its labels and its container.
    """
    uploaded = {
        **body,
        "versionAliases": [alias, *body.get("versionAliases", [])],
        "labels": {**body.get("labels", {}), DEPLOYMENT_LABEL: deployment},
    }
    image = body.get("containerSpec", {}).get("imageUri", "")

    def done() -> bool:
        try:
            found = control.get_model(model_id, alias)
        except NotFound:
            return False
        _must_be_ours(found, deployment, f"model {model_id}")
        # A server need not show the container; one that shows another has another version under our alias.
        if (there := found.get("containerSpec", {}).get("imageUri", image)) != image:
            raise Conflict(
                f"version {found.get('versionId')} of {model_id} has this lock's alias and another image, {there}",
                field="versionAliases",
                remedy="delete that version: medport deploy sweep",
            )
        return True

    def do(doing: Doing) -> None:
        try:
            control.list_versions(model_id)
            new = False
        except NotFound:
            new = True
        doing.wait(control.upload_model(uploaded, model_id=model_id, new=new), deadline_s=_QUICK_S)

    def undo(doing: Doing) -> None:
        found = control.get_model(model_id, alias)
        if not any(each.startswith(GOOD_PREFIX) for each in found.get("versionAliases", [])):
            version_gone(control, model_id, str(found["versionId"]), doing)

    return Step(
        kind="version",
        name=f"{model_id}@{alias}",
        title=f"upload {model_id}",
        do=do,
        done=done,
        undo=undo,
        settle=lambda doing: doing.settle(control.model_name(model_id)),
    )


def deployed_model(
    control: ControlPlane,
    endpoint_id: str,
    model_id: str,
    alias: str,
    body: Json,
    *,
    split: Mapping[str, int] | None = None,
) -> Step:
    """Deploy a version, without traffic if another has it; the first model of an endpoint gets all.

    Args:
        alias: of the version.
        body: a DeployedModel in proto3 JSON with its ``id``, of ``names.deployed_model_id``; without ``model``.
        split: that the deployment itself sets when it is up; the new model is ``"0"``.
    """
    id_ = str(body["id"])

    def done() -> bool:
        there = _deployed(control.get_endpoint(endpoint_id)).get(id_)
        if there is None:
            return False
        number = str(control.get_model(model_id, alias)["versionId"])
        if (last(there.get("model", "")).partition("@")[0], str(there.get("modelVersionId", number))) != (
            model_id,
            number,
        ):
            raise Conflict(
                f"deployed model {id_} of {endpoint_id} is of {there.get('model')} version"
                f" {there.get('modelVersionId')}, not of {model_id} version {number}",
                field="deployedModel.id",
                remedy="undeploy it: medport deploy sweep",
            )
        return True

    def do(doing: Doing) -> None:
        number = control.get_model(model_id, alias)["versionId"]
        present = split_of(control.get_endpoint(endpoint_id))
        wanted = dict(split) if split is not None else split_math.with_new(present)
        deployed = {**body, "model": control.model_name(f"{model_id}@{number}")}
        doing.wait(control.deploy_model(endpoint_id, deployed, wanted))

    return Step(
        kind="deployed_model",
        name=f"{endpoint_id}/{id_}",
        title=f"deploy {model_id} to {endpoint_id}",
        do=do,
        done=done,
        undo=lambda doing: undeploy(control, endpoint_id, id_, doing),
        settle=lambda doing: doing.settle(control.endpoint_name(endpoint_id)),
    )


def traffic(control: ControlPlane, endpoint_id: str, split: Mapping[str, int]) -> Step:
    """Share out the traffic. The way back of any such step is the split before the run's first one, at once.

    Raises while it is done:
        Conflict: somebody else changed the split since the run came here.
    """
    wanted = {id_: share for id_, share in split.items() if share}

    def before() -> Json:
        return {"split": split_of(control.get_endpoint(endpoint_id))}

    def do(doing: Doing) -> None:
        control.set_traffic(endpoint_id, wanted, unless_not=[doing.was.get("split", {})])

    def undo(doing: Doing) -> None:
        old = doing.first_was("traffic", f"{endpoint_id} ").get("split", {})
        now = control.get_endpoint(endpoint_id)
        if not old or split_of(now) == old:
            return
        if not split_math.possible(old, _deployed(now)):
            raise PreconditionFailed(
                f"the old split of {endpoint_id}, {shares(old)}, names models that are gone",
                field="trafficSplit",
                remedy="deploy the last verified lock again: medport deploy rollback",
            )
        control.set_traffic(endpoint_id, old)

    return Step(
        kind="traffic",
        name=f"{endpoint_id} {shares(wanted)}",
        title=f"traffic of {endpoint_id}: {shares(wanted)}",
        do=do,
        done=lambda: split_of(control.get_endpoint(endpoint_id)) == wanted,
        undo=undo,
        before=before,
        once=True,
    )


def alias(control: ControlPlane, model_id: str, version_alias: str, given: str) -> Step:
    """Let an alias mean the version that another one means."""

    def means(name: str) -> str:
        try:
            return str(control.get_model(model_id, name)["versionId"])
        except NotFound:
            return ""

    def do(doing: Doing) -> None:
        control.merge_aliases(model_id, means(version_alias), [given])

    def undo(doing: Doing) -> None:
        old = str(doing.was.get("version", ""))
        if old and old != means(given):
            control.merge_aliases(model_id, old, [given])
        elif not old and (now := means(given)):
            control.merge_aliases(model_id, now, [f"-{given}"])

    return Step(
        kind="alias",
        name=f"{model_id}@{given}",
        title=f"call it {given}",
        do=do,
        done=lambda: means(given) == means(version_alias) != "",
        undo=undo,
        before=lambda: {"version": means(given)},
    )


def _deployed(endpoint: Json) -> dict[str, Json]:
    return {str(each["id"]): each for each in endpoint.get("deployedModels", [])}


def _must_be_ours(resource: Json, deployment: str, what: str) -> None:
    owner = resource.get("labels", {}).get(DEPLOYMENT_LABEL)
    if owner != deployment:
        whose = f"of the deployment {owner}" if owner else "not of a deployment of medport"
        raise Conflict(
            f"{what} is there and {whose}", field="name", remedy="choose another name or id in the spec"
        )
