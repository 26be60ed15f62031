"""How many replicas a deployed model asks for, read from its ``dedicatedResources``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Scaling:
    """When a deployed model may be put to sleep."""

    to_zero: bool
    idle_s: float = 3600.0
    """Seconds without a request."""
    up_s: float = 0.0
    """Seconds that it stays up at least."""


def scaling_of(deployed_model: Mapping[str, Any]) -> Scaling:
    """What a DeployedModel in proto3 JSON says; an hour without requests where it names no period."""
    resources = deployed_model.get("dedicatedResources")
    if resources is None or resources.get("minReplicaCount", 0):
        return Scaling(to_zero=False)
    spec = resources.get("scaleToZeroSpec", {})
    return Scaling(
        to_zero=True,
        idle_s=seconds(spec.get("idleScaledownPeriod", "3600s")),
        up_s=seconds(spec.get("minScaleupPeriod", "0s")),
    )


def seconds(duration: str) -> float:
    """A duration as a form keeps it, such as ``"600s"``, as a number."""
    return float(duration.removesuffix("s"))
