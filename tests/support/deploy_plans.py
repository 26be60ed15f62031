"""What plans are made of: a specification, a lock, and what stands as a deployment of them would leave it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import yaml

from medport import lock as locks
from medport.lock import Lock
from medport_deploy import names, provenance
from medport_deploy.plan.reality import EndpointState, Fleet, ModelState, Reality, Version
from medport_deploy.spec import reading as specs
from medport_deploy.spec.reading import Spec

Json = dict[str, Any]
NAME, MODEL = "chest", "reader"
DIGEST = "sha256:" + "ab" * 32
IMAGE = "europe-docker.pkg.dev/example/medport/serving"
COMMIT = "29" * 20
L4 = {"type": "g2-standard-24", "accelerator": "NVIDIA_L4", "count": 2}


def spec_bytes(**changes: Any) -> bytes:
    """A specification's file: one model on Vertex AI. ``model`` changes the model, all else the top level."""
    model = {
        "model": "google/medgemma-4b-it",
        "revision": COMMIT,
        "image": f"{IMAGE}@{DIGEST}",
        "machine": L4,
        **changes.pop("model", {}),
    }
    whole = {
        "version": 1,
        "name": NAME,
        "target": {"kind": "vertex", "project": "radiology", "location": "europe-west4"},
        "models": {MODEL: model},
        **changes,
    }
    return yaml.safe_dump(whole).encode()


def spec(**changes: Any) -> Spec:
    return specs.parse(spec_bytes(**changes))


def lock(spec: Spec, *, commit: str = COMMIT, digest: str = DIGEST, said: str = "") -> Lock:
    """A lock of a specification; ``said`` gives it another id with the same bytes."""
    files = {"model.safetensors": {"sha256": "cd" * 32, "size_bytes": 8}}
    content = json.dumps(files, sort_keys=True, separators=(",", ":")).encode()
    model = {
        "revision": commit,
        "snapshot_sha256": hashlib.sha256(content).hexdigest(),
        "family": "medgemma",
        "files": files,
    }
    return locks.checked(
        {
            "version": 1,
            "models": {name: {"model_id": each.model, **model} for name, each in spec.models.items()},
            "images": {name: {"uri": IMAGE, "digest": digest} for name in spec.models},
            "deploy": {"spec_sha256": spec.content_sha256(), "said": said},
        }
    )


def fleet(spec: Spec, lock: Lock, version_id: str = "1", name: str = MODEL, **changes: Any) -> Fleet:
    """The fleet that a deployment of the lock makes."""
    model = spec.models[name]
    made = Fleet(
        id=names.deployed_model_id(lock.lock_id, spec.name, name),
        model_id=spec.model_id(name),
        version_id=version_id,
        display_name=provenance.deployed_name(lock, name),
        machine_type=model.machine.type,
        accelerator=model.machine.accelerator,
        count=model.machine.count,
        min=model.replicas.min,
        max=model.replicas.max,
        service_account=model.service_account,
    )
    return replace(made, **changes)


def version(spec: Spec, lock: Lock, version_id: str = "1", name: str = MODEL, **changes: Any) -> Version:
    """The version that a deployment of the lock uploads."""
    made = Version(
        model_id=spec.model_id(name),
        version_id=version_id,
        etag=f"v{version_id}",
        aliases=("default", names.version_alias(lock.lock_id)),
        pins=provenance.pins_of(lock, name),
    )
    return replace(made, **changes)


def endpoint(spec: Spec, *fleets: Fleet, name: str = MODEL, **changes: Any) -> EndpointState:
    """The endpoint that a deployment makes, with all traffic on the first fleet."""
    made = EndpointState(
        id=spec.endpoint_id(name),
        etag="e1",
        display_name=spec.display_name(name),
        labels={**spec.labels, names.DEPLOYMENT_LABEL: spec.name},
        dedicated=spec.models[name].endpoint.dedicated,
        inference_timeout_s=float(spec.models[name].endpoint.inference_timeout_s),
        kms_key_name=spec.keys.kms_key_name,
        private=spec.network.private,
        traffic={fleets[0].id: 100} if fleets else {},
        fleets=fleets,
    )
    return replace(made, **changes)


def deployed(spec: Spec, lock: Lock, **changes: Any) -> Reality:
    """What stands after a deployment; ``changes`` are of the endpoint."""
    state = ModelState(endpoint(spec, fleet(spec, lock), **changes), (version(spec, lock),))
    return Reality({MODEL: state})
