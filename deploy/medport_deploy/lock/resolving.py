"""``medport.lock`` as deploying writes it: what a specification means, down to the last byte.

    lock = resolve(spec, previous=None, now=datetime.now(UTC))
    locks.write("medport.lock", lock)

The file is the SDK's (``medport.lock``) with keys of ours: ``deploy`` on the whole, ``requested`` beside what a
branch or a tag was resolved to. So ``medport serve --lock`` reads it as well, and the id is the same to both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import httpx

from medport import lock as locks
from medport.errors import ConfigError
from medport.lock import Lock, LockedImage
from medport_deploy.lock import terms as all_terms
from medport_deploy.lock.check import require_pinned
from medport_deploy.lock.hub import Hub
from medport_deploy.lock.model_source import FoundModel
from medport_deploy.lock.pins import DeployPins, accepted_before, deploy_pins
from medport_deploy.lock.registry import Registry
from medport_deploy.lock.registry_auth import Credentials, nobody
from medport_deploy.lock.terms import Accepted, Terms
from medport_deploy.lock.terraform import terraform_pins
from medport_deploy.spec.reading import Spec
from medport_deploy.spec.values import image_parts

__all__ = [
    "DeployPins",
    "ModelSource",
    "accepted_before",
    "changes",
    "deploy_pins",
    "require_pinned",
    "resolve",
]

_SDKS = ("medport", "google-cloud-aiplatform")


class ModelSource(Protocol):
    """Where models are looked up: ``Hub`` or ``Mirror``."""

    def find(self, model_id: str, requested: str, *, field: str) -> FoundModel:
        """See ``Hub.find``."""
        ...


def resolve(
    spec: Spec,
    *,
    previous: Lock | None = None,
    transport: httpx.BaseTransport | None = None,
    now: datetime | None = None,
    models: ModelSource | None = None,
    credentials: Credentials = nobody,
    offline: bool = False,
    accepted_by: str = "",
    again: Collection[str] = (),
    directory: Path | None = None,
) -> Lock:
    """Find out what a specification means now.

    Args:
        previous: the lock that is there. Who accepted which terms is taken over, and all keys of other tools.
        transport: of httpx, for registries.
        now: when terms are accepted that were not before.
        models: where models are looked up; the hub of the environment if none.
        credentials: for registries.
        offline: ask no registry and no hub. An image needs a digest, or the same tag in ``previous``; models come
            from ``models``, else from ``previous``.
        accepted_by: who accepts the terms under ``accept_terms``.
        again: ids of terms that changed since they were accepted, and that are accepted in their new form.
        directory: of the specification, where ``terraform.root`` begins; this one if none.

    Raises:
        PolicyError: terms must be accepted.
        NotFound: an image, model, branch or tag is not there.
        VerificationError: weights are pickles, or a registry, hub or directory holds other bytes than it says.
        ConfigError: offline, something would have to be asked; or an id that is accepted is that of no terms.
        MedportError: a registry or the hub refuses, or cannot be reached.
    """
    source = _source(models, previous, offline=offline)
    images = _images(spec, previous, transport, credentials, offline=offline)
    found = {
        name: source.find(each.model, each.revision, field=f"models.{name}.model")
        for name, each in spec.models.items()
    }
    terms = {name: each.terms for name, each in found.items() if each.terms is not None}
    accepted = all_terms.accepted(
        terms,
        spec.accept_terms,
        previous=accepted_before(previous),
        again=again,
        by=accepted_by,
        now=now or datetime.now(UTC),
    )
    pins = DeployPins(
        spec_sha256=spec.content_sha256(),
        sdk={name: version for name in _SDKS if (version := _version(name))},
        terms=accepted,
        terraform=terraform_pins(spec, directory or Path()),
    )
    content = {} if previous is None else previous.model_dump(mode="json", exclude_unset=True)
    content |= {
        "version": 1,
        "models": {name: _model(each, accepted) for name, each in found.items()},
        "images": images,
        "deploy": pins.model_dump(mode="json", exclude_none=True),
    }
    return locks.checked(content)


def changes(before: Lock | None, after: Lock) -> list[str]:
    """What a new lock says otherwise, one line each; empty if nothing."""
    old, lines = before or Lock(), []
    for name in sorted({*old.models, *after.models}):
        was, now = old.models.get(name), after.models.get(name)
        if was is None or now is None or (str(was), was.snapshot_sha256) != (str(now), now.snapshot_sha256):
            lines.append(f"model {name}: {was or 'nothing'} -> {now or 'nothing'}")
    for name in sorted({*old.images, *after.images}):
        was_image, now_image = old.images.get(name), after.images.get(name)
        if _image_name(was_image) != _image_name(now_image):
            lines.append(f"image {name}: {_image_name(was_image)} -> {_image_name(now_image)}")
    was_pins, now_pins = ((each.model_extra or {}).get("deploy") or {} for each in (old, after))
    for key in ("terms", "terraform", "sdk", "spec_sha256"):
        if (was_pins.get(key) or None) != (now_pins.get(key) or None):
            lines.append(f"{key}: {_line(was_pins.get(key))} -> {_line(now_pins.get(key))}")
    return lines


class _Before:
    """The models of the lock that is there, where nobody may be asked."""

    def __init__(self, lock: Lock | None) -> None:
        self._lock = lock

    def find(self, model_id: str, requested: str, *, field: str) -> FoundModel:
        for each in self._lock.models.values() if self._lock else ():
            if each.model_id == model_id and requested in (
                each.revision,
                (each.model_extra or {}).get("requested"),
            ):
                said = each.terms.model_dump() if each.terms else None
                return FoundModel(each, requested, all_terms.of_lock(each.model_id, said))
        raise ConfigError(
            f"nobody may be asked what {model_id}@{requested} is",
            field=field,
            remedy="give --mirror with a store, a directory or a lock that holds it",
        )


def _source(models: ModelSource | None, previous: Lock | None, *, offline: bool) -> ModelSource:
    if models is not None:
        if offline and isinstance(models, Hub):
            raise ConfigError("offline, the hub is not asked", field="mirror", remedy="give --mirror")
        return models
    return _Before(previous) if offline else Hub.from_environment()


def _images(
    spec: Spec,
    previous: Lock | None,
    transport: httpx.BaseTransport | None,
    credentials: Credentials,
    *,
    offline: bool,
) -> dict[str, Any]:
    registry = Registry(transport=transport, credentials=credentials, plain=spec.policy.allow_plain_images)
    found: dict[str, dict[str, Any]] = {}
    try:
        for name, each in spec.models.items():
            field = f"models.{name}.image"
            if each.image in found:
                continue
            # A local target runs no image, so that one by digest needs to be nowhere.
            if offline or (spec.target.kind == "local" and image_parts(each.image)[3]):
                found[each.image] = _unasked_image(each.image, previous, field=field)
                continue
            resolved = registry.resolve(each.image, field=field)
            found[each.image] = {
                "uri": resolved.repository,
                "digest": resolved.digest,
                "platform_digest": resolved.platform_digest,
                "requested": each.image,
            }
    finally:
        registry.close()
    return {name: found[each.image] for name, each in spec.models.items()}


def _unasked_image(image: str, previous: Lock | None, *, field: str) -> dict[str, Any]:
    host, path, _, digest = image_parts(image)
    if digest is not None:
        return {"uri": f"{host}/{path}", "digest": digest, "requested": image}
    for each in previous.images.values() if previous else ():
        if (each.model_extra or {}).get("requested") == image:
            return each.model_dump(mode="json", exclude_unset=True)
    raise ConfigError(
        f"nobody may be asked which digest {image} has", field=field, remedy=f"write {host}/{path}@sha256:…"
    )


def _model(found: FoundModel, accepted: Mapping[str, Accepted]) -> dict[str, Any]:
    said = found.model.model_dump(mode="json", exclude_unset=True, exclude={"terms", "requested"})
    terms = found.terms
    if terms is not None:
        said["terms"] = _terms(terms, accepted.get(terms.id))
    return {**said, "requested": found.requested}


def _terms(terms: Terms, accepted: Accepted | None) -> dict[str, Any]:
    said: dict[str, Any] = {"id": terms.id, "name": terms.name, "url": terms.url, "gated": terms.gated}
    if terms.text_sha256 is not None:
        said["licence_sha256"] = terms.text_sha256
    if accepted is not None:
        said |= {"accepted_by": accepted.accepted_by, "accepted_at": accepted.accepted_at}
    return said


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _image_name(image: LockedImage | None) -> str:
    return f"{image.uri}@{image.digest}" if image else "nothing"


def _line(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_line(each)}" for key, each in sorted(value.items())) or "nothing"
    return str(value) if value is not None else "nothing"
