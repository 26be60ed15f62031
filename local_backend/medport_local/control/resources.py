"""Models and endpoints as Vertex shows them: the read half of the control plane. No torch, no web framework."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from medport.errors import ConfigError, NotFound
from medport.wire.vertex import REGIONS, Pins, filter_terms, model_from_pins, rfc3339
from medport_local.snapshot import Family, Snapshot

FAMILY_LABEL = "medport-family"
DIALECT_LABEL = "medport-dialect"
VERSION = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An endpoint that a server has for each snapshot of a family."""

    key: str
    """The name in what ``medport serve --json`` prints."""
    endpoint_id: str
    """Vertex allows letters, digits and hyphens."""
    dialect: Literal["vllm", "dicom", "medsiglip"]
    dedicated: bool = True


PLANS: Mapping[Family, tuple[Plan, ...]] = {
    "medgemma": (
        Plan(key="medgemma", endpoint_id="medgemma", dialect="vllm"),
        Plan(key="medgemma_dicom", endpoint_id="medgemma-dicom", dialect="dicom"),
        Plan(key="medgemma_shared", endpoint_id="medgemma-shared", dialect="vllm", dedicated=False),
    ),
    "medsiglip": (Plan(key="medsiglip", endpoint_id="medsiglip", dialect="medsiglip"),),
}
"""The first of each family is the one that a client finds when it is told no name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """A snapshot that is served, and the names of its resources."""

    plan: Plan
    snapshot: Snapshot
    project: str
    location: str
    since: datetime
    adapters: Mapping[str, str] = field(default_factory=dict)
    """LoRA adapters that ``base+adapter`` may name, and the sha256 of each."""
    lock_id: str | None = None
    """Of the lock that the snapshot was held against."""
    image_digest: str | None = None
    """sha256 of the container image that this server runs in, 64 hex digits."""

    @property
    def pins(self) -> Pins:
        """Which bytes answer: the one source of all that resources, headers, logs and batch jobs say of it."""
        return Pins(
            model_id=self.snapshot.model_id,
            revision=self.snapshot.revision,
            image_digest=self.image_digest,
            snapshot_sha256=self.snapshot.snapshot_sha256,
            lock_id=self.lock_id,
            notice=self.snapshot.notice,
            parent=self.snapshot.parent,
        )

    @property
    def family(self) -> Family:
        return self.snapshot.family

    @property
    def endpoint_id(self) -> str:
        return self.plan.endpoint_id

    @property
    def endpoint_name(self) -> str:
        return f"projects/{self.project}/locations/{self.location}/endpoints/{self.endpoint_id}"

    @property
    def model_name(self) -> str:
        return f"projects/{self.project}/locations/{self.location}/models/{self.endpoint_id}"

    @property
    def deployed_model_id(self) -> str:
        """Ten digits that change when the bytes do."""
        names_and_bytes = f"{self.endpoint_id} {self.snapshot.snapshot_sha256}".encode()
        return str(10**9 + int(hashlib.sha256(names_and_bytes).hexdigest()[:15], 16) % (9 * 10**9))


class Resources:
    """The resources of one server."""

    def __init__(self, deployed: Mapping[str, Deployed], *, advertised: str | None) -> None:
        self._deployed = deployed
        """By endpoint id; fills as engines start."""
        self._advertised = advertised
        """``host:port`` under which clients reach this server; ``None`` where there is no such thing."""

    def endpoint(self, project: str, location: str, endpoint: str) -> dict[str, Any]:
        """One Endpoint.

        Raises:
            NotFound: there is none of that name.
        """
        return self._endpoint(self._find(project, location, "endpoint", endpoint))

    def endpoints(self, project: str, location: str, wanted: str = "") -> dict[str, Any]:
        """The Endpoints of a project and location; ``-`` stands for any.

        Args:
            wanted: a filter in Vertex's language: terms joined by ``AND``.

        Raises:
            InputError: the filter holds a term that is not known here. To ignore it would give too many.
        """
        terms = [_term(found) for found in filter_terms(wanted, _TERM, remedy=_TERMS)]
        shown = [self._endpoint(each) for each in self._deployed.values() if _fits(each, project, location)]
        return {"endpoints": [each for each in shown if all(term(each) for term in terms)]}

    def models(self, project: str, location: str, wanted: str = "") -> dict[str, Any]:
        """The Models of a project and location, each in its only version; as ``endpoints``."""
        terms = [_term(found) for found in filter_terms(wanted, _TERM, remedy=_TERMS)]
        fitting = [each for each in self._deployed.values() if _fits(each, project, location)]
        shown = [self.model(each.project, each.location, each.endpoint_id) for each in fitting]
        return {"models": [each for each in shown if all(term(each) for term in terms)]}

    def model(self, project: str, location: str, model: str, version: str | None = None) -> dict[str, Any]:
        """One Model version; the only one if ``version`` is not given.

        Raises:
            NotFound: there is none of that name, or no such version of it.
        """
        deployed = self._find(project, location, "model", model)
        if version not in (None, VERSION, "default"):
            raise NotFound(
                f"model {model} has no version {version:.40}", field="version", remedy=f"it has {VERSION}"
            )
        since = rfc3339(deployed.since)
        return model_from_pins(deployed.model_name, VERSION, deployed.pins) | {
            "versionAliases": ["default"],
            **_adapters("versionDescription", deployed),
            # Google's client asks for these before it sends a deployment or a batch job.
            "supportedDeploymentResourcesTypes": ["DEDICATED_RESOURCES"],
            "supportedInputStorageFormats": ["jsonl"],
            "supportedOutputStorageFormats": ["jsonl"],
            "createTime": since,
            "updateTime": since,
            "versionCreateTime": since,
            "versionUpdateTime": since,
            "deployedModels": [
                {"endpoint": deployed.endpoint_name, "deployedModelId": deployed.deployed_model_id}
            ],
        }

    def _find(self, project: str, location: str, kind: str, name: str) -> Deployed:
        deployed = self._deployed.get(name)
        if deployed is None or not _fits(deployed, project, location):
            served = ", ".join(each.endpoint_name for each in self._deployed.values())
            raise NotFound(f"there is no such {kind}", field=kind, remedy=f"this server has {served}")
        return deployed

    def _endpoint(self, deployed: Deployed) -> dict[str, Any]:
        since = rfc3339(deployed.since)
        dns = {}
        if self._advertised and deployed.plan.dedicated:
            dns["dedicatedEndpointDns"] = self._advertised
        labels: dict[str, str] = {DIALECT_LABEL: deployed.plan.dialect}
        if deployed.plan == PLANS[deployed.family][0]:
            labels[FAMILY_LABEL] = deployed.family
        return {
            "name": deployed.endpoint_name,
            "displayName": deployed.endpoint_id,
            "labels": labels,
            **_adapters("description", deployed),
            "createTime": since,
            "updateTime": since,
            "dedicatedEndpointEnabled": bool(dns),
            **dns,
            "trafficSplit": {deployed.deployed_model_id: 100},
            "deployedModels": [
                {
                    "id": deployed.deployed_model_id,
                    "model": deployed.model_name,
                    "modelVersionId": VERSION,
                    "displayName": deployed.snapshot.model_id,
                    "createTime": since,
                }
            ],
        }


def _adapters(key: str, deployed: Deployed) -> dict[str, str]:
    """What callers may write as ``model``, and the bytes behind it; nothing where there are no adapters."""
    named = [f"{deployed.endpoint_id}+{name} (sha256 {sha})" for name, sha in deployed.adapters.items()]
    return {key: f"LoRA adapters, by model: {', '.join(named)}"} if named else {}


_TERM = re.compile(
    r"""(?:(?P<key>endpoint|model|name|display_name|displayName|labels\.(?P<label>[a-z0-9_-]{1,63}))
        \s*=\s*(?P<quote>["']?)(?P<value>[^"'\s]*)(?P=quote)
        |labels[.:](?P<has>[a-z0-9_-]{1,63})(?::\*)?)""",
    re.VERBOSE,
)
_TERMS = 'use display_name="X", name="ID", labels.KEY="VALUE" or labels.KEY:*, joined by AND'


def _term(found: re.Match[str]) -> Callable[[Mapping[str, Any]], bool]:
    value = found["value"]
    if found["has"]:
        return lambda shown: found["has"] in shown["labels"]
    if found["label"]:
        return lambda shown: shown["labels"].get(found["label"]) == value
    if found["key"] in ("endpoint", "model", "name"):
        return lambda shown: value in (shown["name"], shown["name"].rpartition("/")[2])
    return lambda shown: shown["displayName"] == value


def check_location(location: str) -> None:
    """Raise ``ConfigError`` unless ``location`` is the name of a region."""
    if location not in REGIONS:
        raise ConfigError(
            f"{location!s:.40} is not the name of a region",
            field="location",
            remedy="give the region whose endpoints this server stands for, such as europe-west4",
        )


def _fits(deployed: Deployed, project: str, location: str) -> bool:
    return project in ("-", deployed.project) and location in ("-", deployed.location)
