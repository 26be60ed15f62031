"""A deployment of a phantom to a control plane that runs, as its specification and lock say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from medport import lock as locks
from medport.lock import Lock
from medport_deploy import names, provenance
from medport_deploy.control.plane import ControlPlane
from medport_deploy.run import apply, vertex_steps
from medport_deploy.spec import reading as specs
from medport_deploy.spec.reading import Spec
from medport_local.phantom import weights_dir
from support import deploying

GEMMA = json.loads((weights_dir("medgemma") / "manifest.json").read_bytes())


def spec_bytes(url: str, name: str, **changes: Any) -> bytes:
    """A specification's file: the phantom reader at a local control plane."""
    model = {
        "model": GEMMA["repo_id"],
        "revision": GEMMA["revision"],
        "image": deploying.IMAGE,
        "machine": {"type": "n1-standard-4"},
        **changes.pop("model", {}),
    }
    target = {
        "kind": "local", "project": deploying.PROJECT, "location": deploying.LOCATION, "url": url,
        "auth": {"api_key_env": "KEY"},
    }  # fmt: skip
    whole = {"version": 1, "name": name, "target": target, "models": {"reader": model}, **changes}
    return yaml.safe_dump(whole).encode()


def lock_of(spec: Spec, said: str = "") -> Lock:
    """Its lock; ``said`` gives it another id with the same bytes."""
    model = {key: GEMMA[key] for key in ("revision", "snapshot_sha256", "family", "files")}
    uri, _, digest = deploying.IMAGE.partition("@")
    return locks.checked(
        {
            "version": 1,
            "models": {"reader": {"model_id": GEMMA["repo_id"], **model}},
            "images": {"reader": {"uri": uri, "digest": digest}},
            "deploy": {"spec_sha256": spec.content_sha256(), "said": said},
        }
    )


def deploy(control: ControlPlane, data: bytes, root: Path) -> str:
    """Do what a first plan says; the deployed model's id."""
    spec = specs.parse(data)
    lock, endpoint, model = lock_of(spec), spec.endpoint_id("reader"), spec.model_id("reader")
    alias, id_ = names.version_alias(lock.lock_id), names.deployed_model_id(lock.lock_id, spec.name, "reader")
    shell = {
        "displayName": spec.display_name("reader"),
        "dedicatedEndpointEnabled": True,
        "clientConnectionConfig": {"inferenceTimeout": "600s"},
    }
    machine = {"machineType": spec.models["reader"].machine.type}
    resources = {"machineSpec": machine, "minReplicaCount": 1, "maxReplicaCount": 1}
    body = {
        "id": id_,
        "displayName": provenance.deployed_name(lock, "reader"),
        "dedicatedResources": resources,
    }
    steps = [
        vertex_steps.endpoint(control, spec.name, endpoint, shell),
        vertex_steps.version(control, spec.name, model, alias, provenance.model_body(spec, lock, "reader")),
        vertex_steps.deployed_model(control, endpoint, model, alias, body),
    ]
    header = deploying.header("apply", spec.name)
    apply.run(steps, header, deploying.directory(root, spec.name), control=control)
    return id_
