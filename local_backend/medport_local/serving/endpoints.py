"""What serving must know of an endpoint; ``app`` fills it in from the control plane's resources."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast

from medport.errors import NotFound
from medport.images import Limits
from medport.wire.vertex import ADAPTER_HEADER, DEPLOYED_MODEL_HEADER, MODEL_HEADER, MODEL_VERSION_HEADER, Pins
from medport_local.engine.adapter_names import parse_model
from medport_local.engine.protocol import Engine
from medport_local.serving.fetch import Fetcher
from medport_local.serving.outcome import Asking, Facts

if TYPE_CHECKING:
    from medport_local.engine.embedder import Embedder

T = TypeVar("T")

Dialect = Literal["vllm", "dicom", "medsiglip"]
"""Whose container an endpoint speaks like: MedGemma's default one (A), its "dicom" one (B), MedSigLIP's."""

IMAGE_LIMITS = Limits(max_pixels=40_000_000)
"""The largest detectors in use have some 30 million pixels; more would only serve an attacker."""
SERVER_SIDE_PX = 6144
"""An image up to this is resized only once, by the model's own processor: embeddings equal transformers' own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What Vertex lets through to an endpoint of a kind.

    Source: Vertex AI, "Choose an endpoint type". The documentation says MB and the refusals of the service count
    in MiB; what fits there must fit here.
    """

    max_body_bytes: int
    timeout_s: float
    invokes: bool
    """Whether ``/invoke`` is let through."""


DEDICATED = Bounds(max_body_bytes=10 * 1024 * 1024, timeout_s=600.0, invokes=True)
SHARED = Bounds(max_body_bytes=1536 * 1024, timeout_s=60.0, invokes=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Threads:
    """Where what would block the event loop is done."""

    decode: ThreadPoolExecutor
    """Decoding and tokenising: few, for each may hold one whole image."""
    fetch: ThreadPoolExecutor
    """Waiting for other servers, so that a slow one holds up nobody's decoding."""

    async def decoding(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.decode, partial(work, *arguments))

    async def fetching(self, work: Callable[..., T], *arguments: Any, **named: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.fetch, partial(work, *arguments, **named))


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The model behind an endpoint and the names it answers under."""

    endpoint_id: str
    dialect: Dialect
    engine: Engine | Embedder
    threads: Threads
    fetcher: Fetcher
    deployed_model_id: str
    model: str
    """Resource name."""
    model_version_id: str
    model_display_name: str
    """The model id, such as ``google/medgemma-4b-it``."""
    pins: Pins = field(default_factory=Pins)
    """Which bytes answer."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """LoRA adapters that ``base+adapter`` may name, and the sha256 of each."""
    bounds: Bounds = DEDICATED
    lists: bool = False
    """Whether one instance is answered by a list of one, as a batch job needs it."""
    since: int = 0
    """Unix time of the deployment."""
    resource_display_name: str = ""
    """Of the Model resource; the model id where it has none of its own."""

    @property
    def embedder(self) -> Embedder | None:
        """The engine if it embeds, ``None`` if it generates text."""
        # By the dialect, and not by the class: that would load torch before there is an engine.
        return cast("Embedder", self.engine) if self.dialect == "medsiglip" else None

    @property
    def generator(self) -> Engine:
        """The engine of one that generates text."""
        assert self.dialect != "medsiglip"
        return cast("Engine", self.engine)

    def headers(self) -> dict[str, str]:
        """What a data-plane answer carries: as Vertex does on raw predictions, and which bytes gave it."""
        return {
            **self.pins.headers(),
            DEPLOYED_MODEL_HEADER: self.deployed_model_id,
            MODEL_HEADER: self.model,
            MODEL_VERSION_HEADER: self.model_version_id,
        }

    def tell(self, facts: Facts) -> None:
        """Write into a request's facts whose answer it gets."""
        facts.endpoint = self.endpoint_id
        facts.deployed_model = self.deployed_model_id
        facts.model = f"{self.model}@{self.model_version_id}"
        facts.pins = self.pins

    def adapter_of(self, model: str | None) -> str | None:
        """The LoRA adapter that ``model`` names after its ``+``; ``None`` for the base alone.

        Raises:
            NotFound: there is none of that name. Lists those that there are.
            InputError: what follows the ``+`` is no name at all.
        """
        if not model or "://" in model:
            return None
        _, name = parse_model(model)
        if name is not None and name not in self.adapters:
            known = (
                ", ".join(f"{self.endpoint_id}+{each}" for each in self.adapters) or f"{self.endpoint_id} alone"
            )
            raise NotFound("there is no such adapter", field="model", remedy=f"there is: {known}")
        return name

    def name_of(self, adapter: str | None) -> str:
        """What an answer says of the model that gave it."""
        return self.model_display_name if adapter is None else f"{self.model_display_name}+{adapter}"

    def tell_adapter(self, asking: Asking, adapter: str | None) -> None:
        """Write into a request's facts, and into its answer's headers, that an adapter takes part."""
        if adapter is not None:
            told = asking.facts.adapters = {**asking.facts.adapters, adapter: self.adapters[adapter]}
            asking.answer_headers[ADAPTER_HEADER] = ", ".join(f"{name}@{sha}" for name, sha in told.items())

    def envelope(self, body: Mapping[str, object]) -> dict[str, object]:
        """Vertex's answer to ``:predict``: what the container said, and whose it is."""
        return {
            **body,
            "deployedModelId": self.deployed_model_id,
            "model": self.model,
            "modelDisplayName": self.resource_display_name or self.model_display_name,
            "modelVersionId": self.model_version_id,
        }


class Directory(Protocol):
    """Finds endpoints and shows resources: the control plane, as serving sees it."""

    def endpoint(self, project: str, location: str, endpoint: str) -> Mapping[str, Any]: ...
    def endpoints(self, project: str, location: str, wanted: str = "") -> Mapping[str, Any]: ...
    def models(self, project: str, location: str, wanted: str = "") -> Mapping[str, Any]: ...
    def model(self, project: str, location: str, model: str, version: str | None = None) -> Mapping[str, Any]: ...
