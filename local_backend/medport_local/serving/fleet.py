"""Which engine answers a request: what serving asks of whoever starts and stops engines.

A server that serves the same models all its life fulfils it here; on a control plane, where models come and go,
another does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from medport.errors import NotFound
from medport_local.serving.endpoints import Served


class Lease(Protocol):
    """The right to use an engine for a while; it is not stopped before this is given back."""

    @property
    def served(self) -> Served: ...
    def release(self) -> None:
        """Give it back; a second time does nothing."""
        ...


class RequestLease(Lease, Protocol):
    """That of one request at an endpoint."""

    @property
    def timeout_s(self) -> float | None:
        """Seconds that the endpoint gives a request; ``None``: what its kind gives."""
        ...


class Fleet(Protocol):
    """The engines of a server. Quick, for it is asked in the event loop."""

    def enter(self, project: str, location: str, endpoint: str, deployed_model: str | None = None) -> RequestLease:
        """An engine for one request.

        Args:
            project, location: as the caller wrote them; ``-`` where the path names none.
            endpoint: id, not the whole name.
            deployed_model: id of the one that must answer; else the endpoint's traffic split decides.

        Raises:
            NotFound, Forbidden: there is no such endpoint or deployed model in this project and location.
            PreconditionFailed: nothing has traffic there.
            ColdStart, NotReady: the model is not loaded at this moment.
        """
        ...

    def showing(self) -> Mapping[str, Served]:
        """By endpoint id, what answers there; the first of a kind is the one where none is named."""
        ...

    def engines(self) -> tuple[Served, ...]:
        """All that run, with traffic or without."""
        ...


class _Standing:
    """A lease of an engine that is never stopped before the server is."""

    __slots__ = ("served",)
    timeout_s = None

    def __init__(self, served: Served) -> None:
        self.served = served

    def release(self) -> None:
        pass


class StandingFleet:
    """The models of a server that has no control plane: one at each endpoint.

    Args:
        project, location: where the endpoints are.
        served: by endpoint id; fills as engines start.
    """

    def __init__(self, project: str, location: str, served: Mapping[str, Served]) -> None:
        self._place = (project, location)
        self._served = served

    def enter(self, project: str, location: str, endpoint: str, deployed_model: str | None = None) -> RequestLease:
        here = all(asked in ("-", own) for asked, own in zip((project, location), self._place, strict=True))
        served = self._served.get(endpoint) if here else None
        if served is None:
            parent = "projects/{}/locations/{}/endpoints".format(*self._place)
            known = ", ".join(f"{parent}/{each}" for each in self._served)
            raise NotFound("there is no such endpoint", field="endpoint", remedy=f"this server has {known}")
        if deployed_model not in (None, served.deployed_model_id):
            raise NotFound(
                "there is no such deployed model",
                field="deployedModel",
                remedy=f"this endpoint has {served.deployed_model_id}",
            )
        return _Standing(served)

    def showing(self) -> Mapping[str, Served]:
        return self._served

    def engines(self) -> tuple[Served, ...]:
        return tuple(self._served.values())
