"""The steps that take things away. The service wants this order: traffic, deployed models, models, endpoints.

What is gone already is done. The service may hold a model for deployed a minute after it was undeployed, so a
deletion that it refuses for that is tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import tenacity

from medport.errors import NotFound, PreconditionFailed
from medport_deploy.control.plane import ControlPlane, split_of
from medport_deploy.names import GOOD_PREFIX
from medport_deploy.run import split_math
from medport_deploy.run.steps import Doing, Step

Json = dict[str, Any]
_QUICK_S = 900.0
_STILL_S = 180.0


def undeployed(control: ControlPlane, endpoint_id: str, id_: str, *, prefer: Collection[str] = ()) -> Step:
    """Undeploy a deployed model; its traffic goes to the others in their proportions.

    Args:
        prefer: ids of those that get it before others.
    """

    def done() -> bool:
        try:
            found = control.get_endpoint(endpoint_id)
        except NotFound:
            return True
        return id_ not in ids(found)

    return Step(
        kind="undeploy",
        name=f"{endpoint_id}/{id_}",
        title=f"undeploy {id_} from {endpoint_id}",
        do=lambda doing: undeploy(control, endpoint_id, id_, doing, prefer=prefer),
        done=done,
        settle=lambda doing: doing.settle(control.endpoint_name(endpoint_id)),
    )


def version_deleted(control: ControlPlane, model_id: str, number: str) -> Step:
    """Delete a version; with the last one the model goes too.

    Args:
        number: or an alias, of a version whose number is not known yet.
    """
    return Step(
        kind="delete_version",
        name=f"{model_id}@{number}",
        title=f"delete version {number} of {model_id}",
        do=lambda doing: version_gone(control, model_id, number, doing),
        done=lambda: _gone(lambda: control.get_model(model_id, number)),
        settle=lambda doing: doing.settle(control.model_name(model_id)),
    )


def model_deleted(control: ControlPlane, model_id: str) -> Step:
    """Delete a model with all its versions."""
    return Step(
        kind="delete_model",
        name=model_id,
        title=f"delete model {model_id}",
        do=lambda doing: _deleted(lambda: control.delete_model(model_id), control, doing),
        done=lambda: _gone(lambda: control.list_versions(model_id)),
        settle=lambda doing: doing.settle(control.model_name(model_id)),
    )


def endpoint_deleted(control: ControlPlane, endpoint_id: str) -> Step:
    """Delete an endpoint that has no deployed models."""
    return Step(
        kind="delete_endpoint",
        name=endpoint_id,
        title=f"delete endpoint {endpoint_id}",
        do=lambda doing: endpoint_gone(control, endpoint_id, doing),
        done=lambda: _gone(lambda: control.get_endpoint(endpoint_id)),
        settle=lambda doing: doing.settle(control.endpoint_name(endpoint_id)),
    )


def undeploy(
    control: ControlPlane, endpoint_id: str, id_: str, doing: Doing, *, prefer: Collection[str] = ()
) -> None:
    """Undeploy now; nothing if it is not there."""
    found = control.get_endpoint(endpoint_id)
    if id_ not in ids(found):
        return
    others = sorted(each for each in ids(found) if each != id_)
    split = split_of(found)
    kept = [each for each in others if each in prefer]
    rest = split_math.without(split, id_, kept or others)
    doing.wait(control.undeploy_model(endpoint_id, id_, rest), deadline_s=_QUICK_S)


def version_gone(control: ControlPlane, model_id: str, number: str, doing: Doing) -> None:
    """Delete a version now; with the last one the model."""
    try:
        number = str(control.get_model(model_id, number)["versionId"])
    except NotFound:
        return
    versions = {str(each["versionId"]): each.get("versionAliases", []) for each in control.list_versions(model_id)}
    others = [each for each in versions if each != number]
    if not others:
        _deleted(lambda: control.delete_model(model_id), control, doing)
        return
    if "default" in versions[number]:
        # A model has a default version: the latest that was verified, else the latest.
        good = [each for each in others if any(alias.startswith(GOOD_PREFIX) for alias in versions[each])]
        control.merge_aliases(model_id, max(good or others, key=int), ["default"])
    _deleted(lambda: control.delete_version(model_id, number), control, doing)


def endpoint_gone(control: ControlPlane, endpoint_id: str, doing: Doing) -> None:
    """Delete an endpoint now."""
    _deleted(lambda: control.delete_endpoint(endpoint_id), control, doing)


def ids(endpoint: Json) -> list[str]:
    """Of the deployed models of an endpoint as it was read."""
    return [str(each["id"]) for each in endpoint.get("deployedModels", [])]


def _gone(read: Callable[[], object]) -> bool:
    try:
        read()
    except NotFound:
        return True
    return False


def _deleted(delete: Callable[[], Json], control: ControlPlane, doing: Doing) -> None:
    clock = control.polling.clock
    until = clock.now() + _STILL_S

    def once() -> None:
        doing.wait(delete(), deadline_s=_QUICK_S)

    def again(fault: BaseException) -> bool:
        return (
            isinstance(fault, PreconditionFailed) and "deployed" in fault.message.lower() and clock.now() < until
        )

    try:
        tenacity.Retrying(
            retry=tenacity.retry_if_exception(again),
            wait=tenacity.wait_random_exponential(multiplier=1.0, max=20.0),
            sleep=doing.sleep,
            reraise=True,
        )(once)
    except NotFound:
        return
