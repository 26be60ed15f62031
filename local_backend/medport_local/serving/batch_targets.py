"""Whom a batch job asks: a model version or an endpoint, and how its rows come by an engine.

The protocols are serving's wish. A server that serves the same models all its life fulfils it here; on a control
plane, where models come and go, another does.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from medport.errors import NotFound
from medport.wire.vertex import Pins
from medport_local.serving.endpoints import Dialect, Served
from medport_local.serving.fleet import Lease
from medport_local.serving.outcome import Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Whom a job asks, by names that stay."""

    id: str
    """After which the folder of the results is named."""
    model: str = ""
    """Resource name without a version; ``""`` where the endpoint's split decides."""
    version: str = ""
    endpoint: str = ""
    """Resource name; ``""`` for a job that asks a model."""
    deployed_model: str = ""
    dialect: Dialect | None = None
    """Whose container it speaks like, where that is known before an engine runs."""
    pins: Pins = field(default_factory=Pins)
    """Which bytes answer, where that is known before."""

    def tell(self, facts: Facts) -> None:
        """Write into the facts of the request that makes a job whose answers it will give."""
        facts.endpoint = self.id
        facts.deployed_model = self.deployed_model
        facts.model = f"{self.model}@{self.version}" if self.model else self.endpoint
        facts.pins = self.pins


class Source(Protocol):
    """Where the rows of one job come by an engine."""

    @property
    def key(self) -> Hashable:
        """What jobs have in common that share the places for rows."""
        ...

    async def enter(self) -> Lease:
        """For one row.

        Raises:
            NotFound, NotReady, MedportError: no row of the job will get one; says why.
        """
        ...

    async def close(self) -> None:
        """Give back what was started for the job. No lease is out any more."""
        ...


class Targets(Protocol):
    """Finds whom jobs ask."""

    def parent(self, project: str, location: str) -> str:
        """``projects/…/locations/…`` as names are kept, of what a caller wrote.

        Raises:
            Forbidden, NotFound: it is not this server's.
        """
        ...

    def scope(self, model: str, endpoint: str) -> str:
        """What a key must be for, to make, see or stop a job: the id of an endpoint, or a word that is no such id.
        Looks nothing up.

        Args:
            model, endpoint: names as a request or a ``Target`` has them.
        """
        ...

    def find(self, parent: str, model: str, endpoint: str) -> Target:
        """Whom a job is about. Quick.

        Args:
            model, endpoint: as the request has it; one of the two is ``""``.

        Raises:
            NotFound, InputError: there is no such thing in this project and location.
        """
        ...

    def source(self, job: str, target: Target) -> Source:
        """Of a job's rows, by its name. Nothing is started yet."""
        ...


@dataclass(frozen=True, slots=True)
class _Standing:
    """One model that is there as long as the server: source and lease in one."""

    served: Served

    @property
    def key(self) -> Hashable:
        return id(self.served.engine)  # several endpoints may have one

    async def enter(self) -> Lease:
        return self

    async def close(self) -> None:
        pass

    def release(self) -> None:
        pass


class StandingTargets:
    """The endpoints of a server that has no control plane.

    Args:
        served: by endpoint id; fills as engines start.
    """

    def __init__(self, served: Mapping[str, Served]) -> None:
        self._served = served

    def parent(self, project: str, location: str) -> str:
        return f"projects/{project}/locations/{location}"

    def scope(self, model: str, endpoint: str) -> str:
        # A model and its endpoint are one here, with one id.
        return (model or endpoint).rpartition("/")[2].partition("@")[0]

    def find(self, parent: str, model: str, endpoint: str) -> Target:
        wanted, _, version = (model or endpoint).partition("@")
        for served in self._served.values():
            own = served.model.replace("/models/", "/endpoints/")
            name = served.model if model else own
            versions = ("", "default", served.model_version_id) if model else ("",)
            if wanted == name and name.startswith(f"{parent}/") and version in versions:
                return Target(
                    id=served.endpoint_id,
                    model=served.model,
                    version=served.model_version_id,
                    endpoint="" if model else own,
                    deployed_model=served.deployed_model_id,
                    dialect=served.dialect,
                    pins=served.pins,
                )
        raise NotFound(
            "this is not served here, in this project and location",
            field="model" if model else "endpoint",
            remedy="give the resource name of what is served",
        )

    def source(self, job: str, target: Target) -> Source:
        return _Standing(self._served[target.id])
