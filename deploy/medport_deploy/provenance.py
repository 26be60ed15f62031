"""What a deployment writes beside a model, so that every answer can say which bytes gave it.

Pure functions of specification and lock. Three copies, from the fullest to the most certain: labels, arguments and
environment of the model version; its description; the display name of the deployed model, which an endpoint shows
by itself. ``medport.wire.vertex.pins_from_model`` reads the first, ``pins_from_description`` and
``lock_id_of_name`` the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from medport.errors import VerificationError
from medport.lock import Lock
from medport.wire.vertex import Pins, from_label, model_from_pins, to_label
from medport_deploy.spec.reading import Spec

TOKEN = "mp1"  # noqa: S105  no secret: it marks a display name
_TOKEN = re.compile(rf"(?:^| ){TOKEN}\.([a-z2-7]{{52}})$")
_LONGEST_NAME = 128
_DESCRIBED: Mapping[str, str] = {
    "snapshot_sha256": "snapshot sha256:",
    "image_digest": "image sha256:",
    "lock_id": "lock sha256:",
}
_MODEL = re.compile(r"^medport ([^\s@]+)(?:@([0-9a-f]{40}))?(?:,|$)")


def pins_of(lock: Lock, name: str) -> Pins:
    """What is to be known of a model's answers.

    Args:
        name: of the model in the specification.

    Raises:
        VerificationError: the lock does not hold it.
    """
    model = lock.models.get(name)
    if model is None:
        raise VerificationError("is not in the lock", field=f"models.{name}", remedy="medport deploy lock")
    image = lock.images.get(name)
    return Pins(
        model_id=model.model_id,
        revision=model.revision,
        image_digest=image.digest.removeprefix("sha256:") if image else None,
        snapshot_sha256=model.snapshot_sha256,
        lock_id=lock.lock_id,
    )


def image_uri(lock: Lock, name: str) -> str:
    """``HOST/PATH@sha256:…`` of a model's container.

    Raises:
        VerificationError: the lock does not hold it.
    """
    image = lock.images.get(name)
    if image is None:
        raise VerificationError(
            "has no digest in the lock", field=f"models.{name}.image", remedy="medport deploy lock"
        )
    return f"{image.uri}@{image.digest}"


def arguments(spec: Spec, lock: Lock, name: str) -> list[str]:
    """Of the container: those of the specification, and the commit."""
    revision = pins_of(lock, name).revision
    return [*spec.models[name].args, *([f"--revision={revision}"] if revision else [])]


def environment(spec: Spec, lock: Lock, name: str) -> dict[str, str]:
    """Of the container: that of the specification, and the pins."""
    made = model_from_pins("", "", pins_of(lock, name))["containerSpec"]["env"]
    return {**spec.models[name].env, **{each["name"]: each["value"] for each in made}}


def labels(spec: Spec, lock: Lock, name: str) -> dict[str, str]:
    """Of the model version: those of the specification, and the pins (digests in base32)."""
    made: dict[str, str] = model_from_pins("", "", pins_of(lock, name))["labels"]
    return {**spec.labels, **made}


def description(lock: Lock, name: str) -> str:
    """One line for people, with the full digests."""
    pins = pins_of(lock, name)
    first = f"medport {pins.model_id}" + (f"@{pins.revision}" if pins.revision else "")
    said = [f"{label}{value}" for key, label in _DESCRIBED.items() if (value := getattr(pins, key))]
    return ", ".join([first, *said])


def pins_from_description(text: str) -> Pins:
    """What ``description`` wrote; empty pins for any other text."""
    first = _MODEL.match(text)
    if first is None:
        return Pins()
    found = {key: re.search(rf", {label}([0-9a-f]{{64}})(?:,|$)", text) for key, label in _DESCRIBED.items()}
    return Pins(
        model_id=first[1], revision=first[2], **{key: each[1] for key, each in found.items() if each is not None}
    )


def deployed_name(lock: Lock, name: str) -> str:
    """The display name of a deployed model: the model's name, and the lock's id in a token."""
    token = f"{TOKEN}.{to_label(lock.lock_id)}"
    return f"{name[: _LONGEST_NAME - len(token) - 1]} {token}"


def lock_id_of_name(display_name: str) -> str | None:
    """The lock's id, 64 hex digits, by a deployed model's display name; ``None`` if it holds none."""
    found = _TOKEN.search(display_name)
    return from_label(found[1]) if found else None


def model_body(spec: Spec, lock: Lock, name: str) -> dict[str, Any]:
    """The Model that is uploaded, as JSON of the Vertex AI REST API: a version of the model ``spec.model_id``.

    Raises:
        VerificationError: the lock does not hold the model.
    """
    wanted = spec.models[name].container
    container: dict[str, Any] = {
        "imageUri": image_uri(lock, name),
        "args": arguments(spec, lock, name),
        "env": [{"name": key, "value": value} for key, value in sorted(environment(spec, lock, name).items())],
        "ports": [{"containerPort": wanted.port}],
        "predictRoute": wanted.predict_route,
        "healthRoute": wanted.health_route,
        "deploymentTimeout": f"{wanted.deployment_timeout_s}s",
    }
    if wanted.shared_memory_mb is not None:
        container["sharedMemorySizeMb"] = str(wanted.shared_memory_mb)
    return {
        "displayName": lock.models[name].model_id,
        "versionDescription": description(lock, name),
        "labels": labels(spec, lock, name),
        "containerSpec": container,
    }
