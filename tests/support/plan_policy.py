"""What no plan of ours may contain, checked on ``terraform show -json PLAN``.

A rule looks at what a resource will be; what is known only after apply passes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
ATTRIBUTION = "goog-terraform-provisioned"
BEARS_DATA = frozenset(
    {
        "google_artifact_registry_repository",
        "google_bigquery_dataset",
        "google_kms_crypto_key",
        "google_secret_manager_secret",
        "google_storage_bucket",
        "google_vertex_ai_endpoint",
    }
)
STORED_SECRETS = ("secret_data", "hugging_face_access_token", "private_key")
EVERYBODY = frozenset({"allUsers", "allAuthenticatedUsers"})


@dataclass(frozen=True, slots=True)
class Breach:
    """One resource that one rule forbids."""

    rule: str
    address: str


@dataclass(frozen=True, slots=True)
class Policy:
    allowed_locations: frozenset[str]
    may_replace: bool = False
    """Whether resources may be destroyed or replaced."""

    def breaches(self, plan: Json) -> list[Breach]:
        """Of a plan, in the order of its resources."""
        found = []
        for change in plan.get("resource_changes", []):
            if change.get("mode") != "managed":
                continue
            if "delete" in change["change"]["actions"] and not self.may_replace:
                found.append(Breach("nothing is destroyed or replaced unasked", change["address"]))
            after = change["change"].get("after")
            if isinstance(after, dict):
                broken = [name for name, holds in _RULES.items() if not holds(change["type"], after)]
                found += [Breach(name, change["address"]) for name in broken]
                if not self._allows(after):
                    found.append(Breach("every location is allowed", change["address"]))
        return found

    def _allows(self, after: Json) -> bool:
        places = {after.get(name) for name in ("location", "region")} - {None, ""}
        return {str(place).lower() for place in places} <= self.allowed_locations


def _values(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All names at any depth, with what they hold."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _values(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _values(inner, name)
    else:
        yield name, value


def _images_have_digests(kind: str, after: Json) -> bool:
    images = [value for name, value in _values(after) if name in ("image_uri", "image") and value]
    return all(DIGEST.search(str(image)) for image in images)


def _stores_no_secret(kind: str, after: Json) -> bool:
    if kind == "google_service_account_key":
        return False
    return not any(value for name, value in _values(after) if name in STORED_SECRETS)


def _adds_its_grants(kind: str, after: Json) -> bool:
    return not kind.endswith(("_iam_policy", "_iam_binding"))


def _keeps_its_data(kind: str, after: Json) -> bool:
    return kind not in BEARS_DATA or after.get("deletion_policy") == "PREVENT"


def _is_private(kind: str, after: Json) -> bool:
    if kind == "google_storage_bucket":
        enforced = after.get("public_access_prevention") == "enforced"
        return enforced and after.get("uniform_bucket_level_access") is True
    return not any(value in EVERYBODY for name, value in _values(after) if name in ("member", "members"))


def _is_labelled(kind: str, after: Json) -> bool:
    if "terraform_labels" not in after or after.get("effective_labels") is None:
        return True
    return bool(set(after["effective_labels"]) - {ATTRIBUTION})


_RULES: dict[str, Callable[[str, Json], bool]] = {
    "every image has a digest": _images_have_digests,
    "no secret is stored": _stores_no_secret,
    "grants are added, never set": _adds_its_grants,
    "what bears data cannot be destroyed": _keeps_its_data,
    "nothing is public": _is_private,
    "what can have labels has labels": _is_labelled,
}
