"""A deployment of one model as a list of steps, at a control plane that runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medport_deploy import names
from medport_deploy.control.credentials import bearer
from medport_deploy.control.plane import ControlPlane
from medport_deploy.control.polling import Polling
from medport_deploy.run import vertex_steps
from medport_deploy.run.journal import Header
from medport_deploy.run.steps import Step

Json = dict[str, Any]
PROJECT, LOCATION = "local", "europe-west4"
IMAGE = "europe-docker.pkg.dev/example/medport/serving@sha256:" + "a" * 64
FAST = Polling(first_s=0.05, longest_s=0.3)


@dataclass(frozen=True)
class Target:
    url: str | None
    ca_file: str | None = None
    project: str = PROJECT
    location: str = LOCATION


def plane(url: str, ca_file: str | None, key: str, **more: Any) -> ControlPlane:
    return ControlPlane(Target(url, ca_file), bearer(lambda: key), **{"polling": FAST, **more})


def lock_id(word: str) -> str:
    """Stands for a lock's id."""
    return hashlib.sha256(word.encode()).hexdigest()


def header(verb: str, name: str, lock: str = "one", **more: str) -> Header:
    fields = {"plan_sha256": lock_id(f"plan {lock}"), "target": "local", "medport": "1.0", **more}
    return Header(verb=verb, deployment=name, lock_id=lock_id(lock), **fields)  # type: ignore[arg-type]


def version_body(model_id: str, image: str = IMAGE) -> Json:
    spec = {"imageUri": image, "env": [{"name": "MODEL_ID", "value": model_id}]}
    return {"displayName": "reader", "containerSpec": spec}


def deployed_body(id_: str) -> Json:
    resources = {"machineSpec": {"machineType": "g2-standard-24"}, "minReplicaCount": 1, "maxReplicaCount": 1}
    return {"id": id_, "displayName": "reader", "dedicatedResources": resources}


def deployed_ids(name: str, lock: str = "one") -> list[str]:
    return [names.deployed_model_id(lock_id(lock), name, "reader", attempt=number) for number in range(2)]


def steps(
    control: ControlPlane, name: str, model_id: str, lock: str = "one", *, split: Mapping[str, int] | None = None
) -> list[Step]:
    """Of endpoint, version, two deployed models, traffic and alias.

    Args:
        split: at the end; one half for each if it is not given.
    """
    endpoint, model = names.endpoint_id(name, "reader"), names.model_id(name, "reader")
    alias = names.version_alias(lock_id(lock))
    one, two = deployed_ids(name, lock)
    return [
        vertex_steps.endpoint(
            control, name, endpoint, {"displayName": "reader", "dedicatedEndpointEnabled": True}
        ),
        vertex_steps.version(control, name, model, alias, version_body(model_id)),
        vertex_steps.deployed_model(control, endpoint, model, alias, deployed_body(one)),
        vertex_steps.deployed_model(control, endpoint, model, alias, deployed_body(two)),
        vertex_steps.traffic(control, endpoint, split or {one: 50, two: 50}),
        vertex_steps.alias(control, model, alias, names.good_alias(lock_id(lock))),
    ]


def everything(control: ControlPlane) -> tuple[set[str], set[str]]:
    """Ids of all endpoints and of all models that are there."""
    endpoints = {each["name"].rpartition("/")[2] for each in control.list_endpoints({})}
    models = {each["name"].rpartition("/")[2].partition("@")[0] for each in control.list_models({})}
    return endpoints, models


def directory(root: Path, name: str) -> Path:
    return root / ".medport" / "deploy" / name
