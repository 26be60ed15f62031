"""The names that a deployment's resources get: chosen by us and always the same, so that a repeat finds its own.

Source: Vertex AI REST reference, model_id, endpoint_id, DeployedModel.id, version_aliases, labels.
"""

from __future__ import annotations

import hashlib
import re

from medport.wire.vertex import to_label

DEPLOYMENT_LABEL = "medport-deployment"
"""On models and endpoints: the spec's name. What bears it may be swept."""
GOOD_PREFIX = "mp-good-"
"""Of the alias of a version that a deployment was verified with."""
_NOT_ID = re.compile(r"[^a-z0-9-]+")
_LONGEST = 63


def model_id(deployment: str, model: str) -> str:
    """Of the Model that all versions of one of the spec's models belong to."""
    return _joined(deployment, model)


def endpoint_id(deployment: str, model: str) -> str:
    """Of the endpoint, where the spec names none."""
    return _joined(deployment, model)


def version_alias(lock_id: str) -> str:
    """By which a version is found again that was uploaded for a lock.

    Args:
        lock_id: sha256 in hex.
    """
    return f"mp-lock-{to_label(lock_id)[:26]}"


def good_alias(lock_id: str) -> str:
    """Says that the version was verified while it served."""
    return f"{GOOD_PREFIX}{to_label(lock_id)[:26]}"


def deployed_model_id(lock_id: str, deployment: str, model: str, *, attempt: int = 0) -> str:
    """Ten digits that belong to a lock and a model.

    Args:
        attempt: another number gives another id, to deploy the same lock anew beside what stands.
    """
    said = "\0".join((lock_id, deployment, model, str(attempt))).encode()
    return str(10**9 + int.from_bytes(hashlib.sha256(said).digest()[:8], "big") % (9 * 10**9))


def _joined(deployment: str, model: str) -> str:
    parts = [_NOT_ID.sub("-", part.lower()).strip("-") for part in (deployment, model)]
    # Two hyphens between, or a-b + c and a + b-c were one name.
    name = f"mp-{'--'.join(parts)}"
    if parts == [deployment, model] and not any("--" in part for part in parts) and len(name) <= _LONGEST:
        return name
    # Cut or changed, two names could become one: a piece of their hash keeps them apart.
    mark = hashlib.sha256(f"{deployment}\0{model}".encode()).hexdigest()[:8]
    return f"{name[: _LONGEST - 9].rstrip('-')}-{mark}"
