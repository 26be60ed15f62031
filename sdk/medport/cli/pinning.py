"""Which bytes a model version or a deployed model says it serves, and where it says nothing or two things.

A version may state a pin in labels, in the container's environment and arguments, and in the image's name; a
deployed model states its lock in its display name, an endpoint in its labels. Any of them can be changed alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from medport.wire.inventory import ListedDeployment, ListedEndpoint, ListedVersion, lock_in_name
from medport.wire.vertex import ContainerSpec, Pins, from_label, pins_from_model

SHORT = 12
"""Hex digits of a pin in a table."""
_COMPARED = {
    "revision": "revision",
    "image_digest": "image digest",
    "snapshot_sha256": "snapshot sha256",
    "lock_id": "lock",
}
UNREADABLE = "the model version cannot be read: the permission aiplatform.models.get is missing, or it is deleted"


@dataclass(frozen=True, slots=True)
class Identity:
    """The pins that hold, and what is to be said against them."""

    pins: Pins
    disagreements: tuple[str, ...] = ()
    """Two sources that say two things."""
    missing: tuple[str, ...] = ()
    """What no source says."""
    readable: bool = True
    """Whether the model version could be read."""

    @property
    def warnings(self) -> tuple[str, ...]:
        return (*self.disagreements, *self.missing)

    def short(self, pin: str) -> str:
        """A pin for a table: its first digits, ``-`` if nothing says it, ``?`` if that could not be found out."""
        value = getattr(self.pins, pin)
        return value[:SHORT] if value else ("-" if self.readable else "?")

    def as_dict(self) -> dict[str, Any]:
        return {"pins": self.pins.as_dict() | {"notice": self.pins.notice}, "warnings": list(self.warnings)}


def of_version(version: ListedVersion) -> Identity:
    """What a model version says of itself."""
    spec = version.container_spec or ContainerSpec()
    bare: dict[str, Any] = {"labels": {}, "container_spec": None, "display_name": "", "description": ""}

    def stated(**kept: Any) -> Pins:
        return pins_from_model(version.model_copy(update={**bare, **kept}))

    arguments = Pins(model_id=_argument(spec.args, "--model"), revision=_argument(spec.args, "--revision"))
    sources = {
        "its labels": stated(labels=version.labels),
        "the environment": stated(container_spec=ContainerSpec(env=spec.env)),
        "the arguments": arguments,
        "the image": stated(container_spec=ContainerSpec(image_uri=spec.image_uri)),
    }
    pins = pins_from_model(version)
    pins = replace(pins, revision=pins.revision or arguments.revision)
    if not sources["the environment"].model_id and arguments.model_id:
        pins = replace(pins, model_id=arguments.model_id)
    found = [
        _disagreement(key, {source: getattr(each, key) for source, each in sources.items()}) for key in _COMPARED
    ]
    return Identity(pins, tuple(filter(None, found)), _missing(pins, spec.image_uri))


def of_deployment(endpoint: ListedEndpoint, deployed: ListedDeployment, version: ListedVersion | None) -> Identity:
    """What endpoint, deployed model and model version together say.

    Args:
        version: the one that is deployed; ``None`` if it could not be read.
    """
    identity = Identity(Pins(), readable=False, missing=(UNREADABLE,)) if version is None else of_version(version)
    locks = {
        "the display name": lock_in_name(deployed.display_name),
        "the model version": identity.pins.lock_id,
        **_locks_of(endpoint, deployed),
    }
    lock_id = next(filter(None, locks.values()), None)
    pins = replace(identity.pins, lock_id=lock_id)
    disagreements = [*identity.disagreements, _disagreement("lock_id", locks)]
    if version is not None and deployed.model_version_id not in ("", version.version_id):
        disagreements.append(f"version {deployed.model_version_id} was asked for, {version.version_id} answered")
    missing = identity.missing
    if version is not None and lock_id:
        missing = tuple(each for each in missing if not each.startswith("lock"))
    return Identity(pins, tuple(filter(None, disagreements)), missing, identity.readable)


def _locks_of(endpoint: ListedEndpoint, deployed: ListedDeployment) -> dict[str, str | None]:
    """An endpoint's label is about all that is deployed to it, so it counts only where that is one model."""
    own = endpoint.labels.get(f"medport-d-{deployed.id}")
    common = endpoint.labels.get("medport-lock") if len(endpoint.deployed_models) == 1 else None
    said = {f"the endpoint's label medport-d-{deployed.id}": own, "the endpoint's label medport-lock": common}
    return {source: from_label(label) for source, label in said.items() if label}


def _missing(pins: Pins, image_uri: str) -> tuple[str, ...]:
    said = []
    if not pins.revision:
        said.append("revision: nothing says which commit of the model it is")
    if not pins.snapshot_sha256:
        said.append("snapshot sha256: nothing says which weights it serves")
    if image_uri and not pins.image_digest:
        said.append("image digest: the image has a tag, which may be moved to another")
    if not pins.lock_id:
        said.append("lock: nothing says by which lock it was approved")
    return tuple(said)


def _disagreement(pin: str, stated: Mapping[str, str | None]) -> str | None:
    values = {source: value for source, value in stated.items() if value}
    if len(set(values.values())) < 2:
        return None
    return f"{_COMPARED[pin]}: " + ", ".join(f"{value[:SHORT]}… by {source}" for source, value in values.items())


def _argument(arguments: list[str], name: str) -> str | None:
    """``--name=value`` or ``--name value``; for a model only an id such as ``google/medgemma-4b-it``."""
    found = None
    for i, each in enumerate(arguments):
        key, equals, value = each.partition("=")
        if key == name:
            found = value if equals else (arguments[i + 1] if i + 1 < len(arguments) else None)
    if name == "--model" and not re.fullmatch(r"[\w.-]+/[\w.-]+", found or ""):
        return None
    return found or None


def in_full(identity: Identity) -> dict[str, str]:
    """The pins by what they are called, for a list of all that is known."""
    pins = identity.pins
    return {
        "model id": pins.model_id or "",
        "revision": pins.revision or "",
        "image digest": pins.image_digest or "",
        "snapshot": pins.snapshot_sha256 or "",
        "lock": pins.lock_id or "",
        "derived from": pins.parent or "",
        "notice": pins.notice or "",
    }
