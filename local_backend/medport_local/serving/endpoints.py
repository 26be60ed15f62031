"""What serving must know of an endpoint; ``app`` fills it in from the control plane's resources."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from medport.images import Limits
from medport.wire.vertex import DEPLOYED_MODEL_HEADER, MODEL_HEADER, MODEL_VERSION_HEADER
from medport_local.engine.embedder import Embedder
from medport_local.engine.engine import Engine

IMAGE_LIMITS = Limits(max_pixels=40_000_000)
"""The largest detectors in use have some 30 million pixels; more would only serve an attacker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The model behind an endpoint and the names it answers under."""

    engine: Engine | Embedder
    deployed_model_id: str
    model: str
    """Resource name."""
    model_version_id: str
    model_display_name: str
    workers: ThreadPoolExecutor
    """Threads for decoding and tokenising: few, for each may hold one whole image."""

    def headers(self) -> dict[str, str]:
        """What a data-plane answer carries, as Vertex does on raw predictions."""
        return {
            DEPLOYED_MODEL_HEADER: self.deployed_model_id,
            MODEL_HEADER: self.model,
            MODEL_VERSION_HEADER: self.model_version_id,
        }

    def envelope(self, predictions: object) -> dict[str, object]:
        """Vertex's answer to ``:predict``."""
        return {
            "predictions": predictions,
            "deployedModelId": self.deployed_model_id,
            "model": self.model,
            "modelDisplayName": self.model_display_name,
            "modelVersionId": self.model_version_id,
        }


class Directory(Protocol):
    """Finds endpoints and shows resources: the control plane, as serving sees it."""

    def endpoint(self, project: str, location: str, endpoint: str) -> Mapping[str, Any]: ...
    def endpoints(self, project: str, location: str) -> Mapping[str, Any]: ...
    def model(self, project: str, location: str, model: str, version: str | None = None) -> Mapping[str, Any]: ...
