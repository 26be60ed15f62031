"""The steps that change in place what stands, each with its way back: an endpoint's fields, a fleet's replicas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medport_deploy.control.plane import ControlPlane
from medport_deploy.run.steps import Doing, Step

Json = dict[str, Any]
_QUICK_S = 900.0
_NO_TIMEOUT_S = 600
"""What an endpoint has on which nobody has set an inference timeout. Source: Vertex AI, ClientConnectionConfig."""
_COUNTS: Mapping[str, str] = {
    "min": "minReplicaCount",
    "max": "maxReplicaCount",
    "required": "requiredReplicaCount",
}


def endpoint_fields(control: ControlPlane, endpoint_id: str, wanted: Json) -> Step:
    """Change fields of an endpoint that is medport's.

    Args:
        wanted: of ``displayName``, ``labels`` and ``privateServiceConnectConfig`` those that change, in proto3
            JSON. Labels that it does not name stay.
    """
    fields = [_snake(key) for key in wanted]

    def present() -> Json:
        found = control.get_endpoint(endpoint_id)
        there = {key: found.get(key) for key in wanted}
        if "labels" in wanted:
            labels = found.get("labels", {})
            there["labels"] = {key: labels.get(key) for key in wanted["labels"]}
        return there

    def undo(doing: Doing) -> None:
        if doing.was:
            given = {key: value for key, value in doing.was.items() if value is not None}
            control.update_endpoint(endpoint_id, given, fields)

    return Step(
        kind="endpoint_fields",
        name=endpoint_id,
        title=f"change {', '.join(fields).replace('_', ' ')} of {endpoint_id}",
        do=lambda doing: _updated(control, endpoint_id, wanted, fields),
        done=lambda: present() == wanted,
        undo=undo,
        before=present,
        settle=lambda doing: doing.settle(control.endpoint_name(endpoint_id)),
    )


def inference_timeout(control: ControlPlane, endpoint_id: str, seconds: int) -> Step:
    """Set how long a request may take."""

    def present() -> int:
        config = control.get_endpoint(endpoint_id).get("clientConnectionConfig", {})
        return round(float(str(config.get("inferenceTimeout", _NO_TIMEOUT_S)).removesuffix("s")))

    def to(wanted: int, doing: Doing) -> None:
        doing.wait(control.set_inference_timeout(endpoint_id, wanted), deadline_s=_QUICK_S)

    def undo(doing: Doing) -> None:
        old = int(doing.was.get("seconds", seconds))
        if present() != old:
            to(old, doing)

    return Step(
        kind="inference_timeout",
        name=endpoint_id,
        title=f"let requests to {endpoint_id} take {seconds} s",
        do=lambda doing: to(seconds, doing),
        done=lambda: present() == seconds,
        undo=undo,
        before=lambda: {"seconds": present()},
        settle=lambda doing: doing.settle(control.endpoint_name(endpoint_id)),
    )


def replicas(control: ControlPlane, endpoint_id: str, id_: str, wanted: Mapping[str, int]) -> Step:
    """Change how many machines a deployed model has.

    Args:
        wanted: ``min``, ``max`` and ``required``.
    """

    def present() -> dict[str, int]:
        found = control.get_endpoint(endpoint_id).get("deployedModels", [])
        counts: Json = next((each.get("dedicatedResources", {}) for each in found if str(each["id"]) == id_), {})
        least = int(counts.get("minReplicaCount", 1))
        return {
            "min": least,
            "max": int(counts.get("maxReplicaCount", 0)) or least,
            "required": int(counts.get("requiredReplicaCount", 0)) or least,
        }

    def to(counts: Mapping[str, int], doing: Doing) -> None:
        resources = {_COUNTS[key]: count for key, count in counts.items()}
        fields = [f"dedicated_resources.{_snake(key)}" for key in resources]
        body = {"id": id_, "dedicatedResources": resources}
        doing.wait(control.mutate_deployed_model(endpoint_id, body, fields))

    def undo(doing: Doing) -> None:
        if doing.was and present() != doing.was:
            to(doing.was, doing)

    return Step(
        kind="replicas",
        name=f"{endpoint_id}/{id_}",
        title=f"let {id_} have {wanted['min']} to {wanted['max']} replicas",
        do=lambda doing: to(wanted, doing),
        done=lambda: present() == dict(wanted),
        undo=undo,
        before=present,
        settle=lambda doing: doing.settle(control.endpoint_name(endpoint_id)),
    )


def _updated(control: ControlPlane, endpoint_id: str, wanted: Json, fields: list[str]) -> None:
    control.update_endpoint(endpoint_id, wanted, fields)


def _snake(key: str) -> str:
    return "".join(f"_{each.lower()}" if each.isupper() else each for each in key)
