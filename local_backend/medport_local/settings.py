"""What one server serves, under which names and for whom. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medport.errors import ConfigError
from medport_local import phantom
from medport_local.control.resources import check_location
from medport_local.engine.embedding_queue import EmbedderLimits
from medport_local.engine.protocol import EngineLimits
from medport_local.model_options import ModelOptions
from medport_local.serving.endpoints import Dialect
from medport_local.serving.routes import ContainerRoutes
from medport_local.snapshot import Family, Snapshot

FAMILIES: tuple[Family, ...] = ("medgemma", "medsiglip")
_PROJECT = re.compile(r"[a-z0-9][a-z0-9.:-]{0,62}")
_NUMBER = re.compile(r"[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """A server whose models are uploaded and deployed by its callers, as on Vertex."""

    directory: Path
    """Holds its state; is made if there is none."""
    project_number: str = ""
    """Digits; made from the project's id if it is not given."""
    store: Path | None = None
    """The store of snapshots to deploy; its own default if ``None``, and then there need not be one."""
    model_dirs: Sequence[Path] = ()
    """Directories below which the ``artifactUri`` of a Model version may lie."""
    require_digest: bool = False
    """Refuse Model versions whose image is not named by its digest."""
    garden_image: str = ""
    """URI of the container image that deployments of Model Garden say; ``""``: they say none."""
    allow_faults: bool = False
    """Let operators order faults, for rehearsals."""

    def __post_init__(self) -> None:
        if self.project_number and not _NUMBER.fullmatch(self.project_number):
            raise ConfigError("is not a project number", field="project-number", remedy="give digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one server serves, and under which names."""

    snapshots: Mapping[str, Path | Snapshot] = field(default_factory=lambda: phantom_snapshots())
    """Model directory by family, ``medgemma``, ``medsiglip``, or one of them; or a snapshot that is verified."""
    lock_id: str | None = None
    """Of the lock that the snapshots were held against (``selection``): it stands in every result's provenance."""
    image_digest: str | None = None
    """sha256 of the container image that this runs in, 64 hex digits."""
    project: str = "local"
    location: str = "europe-west4"
    """A real region's name: Google's client refuses others."""
    api_key: str | None = field(default=None, repr=False)
    """It may do everything. With neither it nor ``keys_file``, everybody who can connect may ask."""
    keys_file: Path | None = None
    """Named keys and what each may do, as ``medport keys`` writes them; read again when it changes."""
    audit_dir: Path | None = None
    """Where a line about each request to a model is kept; see ``serving.chain``."""
    advertised: str | None = None
    """``host:port`` by which clients reach the server, shown as ``dedicatedEndpointDns``."""
    models: ModelOptions = field(default_factory=ModelOptions)
    """On which device, in which dtype, by which engine and with which adapters."""
    engine_limits: EngineLimits = field(default_factory=EngineLimits)
    embedder_limits: EmbedderLimits = field(default_factory=EmbedderLimits)
    allow_fetch: Sequence[str] = ()
    """Hosts, buckets and DICOM stores that images may be fetched from; see ``serving.fetch``. None by default."""
    batch_dir: Path | None = None
    """Where batch jobs may read and write beside buckets; nowhere by default."""
    control_plane: ControlPlane | None = None
    """Serve what callers deploy, in place of ``snapshots``."""
    container: ContainerRoutes | None = None
    """Be one model's custom container as well: predictions and health at these paths too."""
    dialects: tuple[Dialect, ...] = ("vllm", "dicom", "medsiglip")
    """Which endpoints there are: a container has one."""
    drain_s: float = 10.0
    """How long running requests may go on when the server stops."""
    drain_grace_s: float = 0.0
    """How long before that health says no while requests are still served: a load balancer's time to turn away."""

    def __post_init__(self) -> None:
        check_location(self.location)
        if not _PROJECT.fullmatch(self.project):
            raise ConfigError("is not a project id", field="project", remedy="use small letters, digits and -")
        if self.control_plane is not None:
            if self.container is not None or self.models.adapters:
                raise ConfigError(
                    "does not go with adapters, nor in a model's own container",
                    field="control-plane",
                    remedy="leave out --adapter, or --control-plane",
                )
            return
        if not self.snapshots:
            raise ConfigError("nothing to serve", field="snapshot", remedy="give --snapshot medgemma=DIR")
        for name in self.snapshots:
            if name not in FAMILIES:
                raise ConfigError(
                    f"{name!s:.40} is not a model family", field="snapshot", remedy=f"use {' or '.join(FAMILIES)}"
                )
        if self.models.adapters and "medgemma" not in self.snapshots:
            raise ConfigError(
                "there is no MedGemma to adapt", field="adapter", remedy="give --snapshot medgemma=DIR"
            )


def phantom_snapshots() -> dict[str, Path]:
    """The stand-ins that ship with the package."""
    return {family: phantom.weights_dir(family) for family in FAMILIES}
