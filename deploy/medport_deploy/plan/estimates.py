"""How long things take: guesses, so that nobody is surprised by half an hour; marked as estimates where shown.

Of Vertex AI nothing was measured: these are what its users report for models of a few billion parameters. Most of
a deployment is machines being found and weights being loaded, and neither is known before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["vertex", "local"]


@dataclass(frozen=True, slots=True)
class Estimates:
    """Seconds."""

    endpoint: float
    version: float
    deploy: float
    undeploy: float
    replicas: float
    traffic: float
    terraform: float
    """One resource."""


_OF = {
    "vertex": Estimates(
        endpoint=60, version=120, deploy=1200, undeploy=120, replicas=600, traffic=5, terraform=20
    ),
    "local": Estimates(endpoint=1, version=1, deploy=20, undeploy=2, replicas=5, traffic=1, terraform=3),
}


def of(kind: Kind) -> Estimates:
    """Of a kind of target."""
    return _OF[kind]


def words(seconds: float) -> str:
    """A length of time in two figures at most: ``45 s``, ``25 min``, ``1.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.2g} h" if seconds < 36_000 else f"{seconds / 3600:.0f} h"
