"""Fleets to try at a local control plane: of both families, as their lock says or with other weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors.torch import load_file, save_file

from medport import lock as locks
from medport.lock import Lock
from medport_deploy import names, provenance
from medport_deploy.control.plane import ControlPlane
from medport_deploy.run import apply, vertex_steps
from medport_deploy.spec import reading as specs
from medport_deploy.spec.reading import Spec
from medport_local.phantom import weights_dir
from medport_local.snapshot import MANIFEST, Manifest, digest_of
from medport_local.snapshot_file import entry_of
from support import deploying

Family = Literal["medgemma", "medsiglip"]
Json = dict[str, Any]
NAME = "reader"
CHANGED = "c" * 40
"""The commit of weights that were changed."""


def manifest(family: Family) -> Json:
    found: Json = json.loads((weights_dir(family) / MANIFEST).read_bytes())
    return found


def changed(family: Family, folder: Path, *, by: float) -> Json:
    """The phantom with noise in its weights, ``by`` times each matrix's own spread; its manifest."""
    before = Manifest.model_validate(manifest(family))
    shutil.copytree(weights_dir(family), folder)
    weights = load_file(folder / "model.safetensors")
    chance = torch.Generator().manual_seed(0)
    for key, each in weights.items():
        if each.is_floating_point() and each.ndim >= 2:
            noise = torch.randn(each.shape, generator=chance) * each.float().std() * by
            weights[key] = (each.float() + noise).to(each.dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    files = {name: entry_of(folder, name) for name in before.files}
    update = {"revision": CHANGED, "files": files, "snapshot_sha256": digest_of(files)}
    after = before.model_copy(update=update).model_dump_json()
    (folder / MANIFEST).write_text(after)
    found: Json = json.loads(after)
    return found


def spec_of(url: str, ca_file: str, name: str, snapshot: Json, **more: Any) -> Spec:
    """One model on one endpoint. ``more`` is of the top level."""
    model = {
        "model": snapshot["repo_id"],
        "revision": snapshot["revision"],
        "image": deploying.IMAGE,
        "machine": {"type": "n1-standard-4"},
    }
    target = {
        "kind": "local", "project": deploying.PROJECT, "location": deploying.LOCATION, "url": url,
        "ca_file": ca_file, "auth": {"api_key_env": "KEY"},
    }  # fmt: skip
    whole = {"version": 1, "name": name, "target": target, "models": {NAME: model}, **more}
    return specs.parse(yaml.safe_dump(whole).encode())


def lock_of(snapshot: Json, *, said: str = "", **changes: Any) -> Lock:
    """Its lock; ``changes`` are of the model, ``said`` gives it another id."""
    model = {key: snapshot[key] for key in ("revision", "snapshot_sha256", "family", "files")}
    files = {
        key: {"sha256": each["sha256"], "size_bytes": each["size_bytes"]} for key, each in model["files"].items()
    }
    uri, _, digest = deploying.IMAGE.partition("@")
    return locks.checked(
        {
            "version": 1,
            "models": {NAME: {"model_id": snapshot["repo_id"], **model, "files": files, **changes}},
            "images": {NAME: {"uri": uri, "digest": digest}},
            "deploy": {"said": said},
        }
    )


def fleet(spec: Spec, lock: Lock) -> str:
    """The id of a lock's fleet."""
    return names.deployed_model_id(lock.lock_id, spec.name, NAME)


def deploy(
    control: ControlPlane, spec: Spec, lock: Lock, root: Path, split: Mapping[str, int] | None = None
) -> str:
    """Deploy a lock's fleet, and share out the traffic; the fleet's id."""
    endpoint, model = spec.endpoint_id(NAME), spec.model_id(NAME)
    alias, id_ = names.version_alias(lock.lock_id), fleet(spec, lock)
    shell = {
        "displayName": spec.display_name(NAME),
        "dedicatedEndpointEnabled": True,
        "clientConnectionConfig": {"inferenceTimeout": "600s"},
    }
    machine = {"machineType": spec.models[NAME].machine.type}
    body = {
        "id": id_,
        "displayName": provenance.deployed_name(lock, NAME),
        "dedicatedResources": {"machineSpec": machine, "minReplicaCount": 1, "maxReplicaCount": 1},
    }
    steps = [
        vertex_steps.endpoint(control, spec.name, endpoint, shell),
        vertex_steps.version(control, spec.name, model, alias, provenance.model_body(spec, lock, NAME)),
        vertex_steps.deployed_model(control, endpoint, model, alias, body),
        *([vertex_steps.traffic(control, endpoint, split)] if split else []),
    ]
    header = deploying.header("apply", spec.name, lock.lock_id)
    apply.run(steps, header, deploying.directory(root, spec.name), control=control)
    return id_
