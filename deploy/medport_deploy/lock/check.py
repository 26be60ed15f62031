"""What plan and apply ask of a lock before anything else: that it pins everything, and is this specification's."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from medport.errors import VerificationError
from medport.lock import Lock, LockedModel
from medport_deploy.lock.pinned import WEIGHTS, is_allowed
from medport_deploy.lock.pins import DeployPins, deploy_pins
from medport_deploy.lock.terraform import LOCK_FILE, provider_lock
from medport_deploy.spec.reading import Model, Spec
from medport_deploy.spec.values import image_parts

_COMMIT = re.compile(r"[0-9a-f]{40}")
_AGAIN = "look at what changed, then: medport deploy lock"


def require_pinned(lock: Lock, spec: Spec, *, directory: Path | None = None) -> DeployPins:
    """Refuse a lock that leaves anything open, or that was made of another specification. Asks nobody.

    Args:
        directory: of the specification, where ``terraform.root`` begins; this one if none.

    Returns:
        The key ``deploy`` of the lock.

    Raises:
        ConfigError: the lock was not made for deploying.
        VerificationError: a model has no commit, an image no digest, a file could run code, nobody accepted the
            terms, or the specification or the provider's lock file is another than was locked.
    """
    pins = deploy_pins(lock)
    for name, wanted in spec.models.items():
        _check_model(lock.models.get(name), wanted, pins, field=f"models.{name}")
        _check_image(lock, name, wanted, field=f"models.{name}.image")
    if strange := sorted(set(lock.models) - set(spec.models)):
        raise VerificationError(
            f"locks {strange[0]}, which the specification does not name", field="lock", remedy=_AGAIN
        )
    if pins.spec_sha256 != spec.content_sha256():
        raise VerificationError("was made of another specification", field="lock", remedy=_AGAIN)
    _check_terraform(pins, spec, directory or Path())
    return pins


def _check_model(locked: LockedModel | None, wanted: Model, pins: DeployPins, *, field: str) -> None:
    if locked is None:
        raise VerificationError("is not in the lock", field=field, remedy=_AGAIN)
    if locked.revision is None:
        raise VerificationError(
            "is locked without a commit: nobody can say where its bytes come from",
            field=field,
            remedy="pull it from the hub by its commit, then: medport deploy lock",
        )
    if locked.model_id.casefold() != wanted.model.casefold():
        raise VerificationError(f"is {wanted.model}, and {locked.model_id} is locked", field=field, remedy=_AGAIN)
    if _COMMIT.fullmatch(wanted.revision) and wanted.revision != locked.revision:
        raise VerificationError(
            f"is of {wanted.revision}, and {locked.revision} is locked", field=field, remedy=_AGAIN
        )
    for name in locked.files:
        if not is_allowed(name):
            raise VerificationError(
                f"its file {name[:60]!a} is no weights, settings or tokenizer: it could run code",
                field=field,
                remedy=_AGAIN,
            )
    if not any(name.endswith(WEIGHTS) for name in locked.files):
        raise VerificationError(f"is locked without *{WEIGHTS}", field=field, remedy=_AGAIN)
    _check_terms(locked, pins, field=field)


def _check_terms(locked: LockedModel, pins: DeployPins, *, field: str) -> None:
    if locked.terms is None or not locked.terms.gated:
        return
    id_ = (locked.terms.model_extra or {}).get("id")
    if id_ not in pins.terms:
        raise VerificationError(
            f"its terms are not accepted: {locked.terms.name}",
            field=field,
            remedy=f"read them ({locked.terms.url}), write {id_ or 'their id'} under accept_terms, then: "
            "medport deploy lock",
        )


def _check_image(lock: Lock, name: str, wanted: Model, *, field: str) -> None:
    locked = lock.images.get(name)
    if locked is None:
        raise VerificationError("has no digest in the lock: a tag moves", field=field, remedy=_AGAIN)
    host, path, _, digest = image_parts(wanted.image)
    if locked.uri != f"{host}/{path}" or digest not in (None, locked.digest):
        raise VerificationError(
            f"is {wanted.image}, and {locked.uri}@{locked.digest} is locked", field=field, remedy=_AGAIN
        )


def _check_terraform(pins: DeployPins, spec: Spec, directory: Path) -> None:
    if spec.terraform.root is None:
        return
    data = provider_lock(directory / spec.terraform.root)
    found = hashlib.sha256(data).hexdigest() if data is not None else None
    locked = pins.terraform.provider_lock_sha256 if pins.terraform else None
    if found is None and spec.target.kind == "vertex":
        raise VerificationError(
            f"has no {LOCK_FILE}: any provider could come",
            field="terraform.root",
            remedy="terraform providers lock -platform=linux_amd64, commit the file, then: medport deploy lock",
        )
    if found != locked:
        raise VerificationError(f"its {LOCK_FILE} is not the locked one", field="terraform.root", remedy=_AGAIN)
