"""What is deployed and runs, for whoever answers requests: which engine takes the next one.

The fleet follows the state on the disk (``reread``); it decides nothing but whose turn it is. Turns are dealt out
by smooth weighted round robin: with 90/10, each ten requests in a row give nine and one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from medport.errors import NotFound, NotReady, PreconditionFailed
from medport.wire.vertex import ColdStart
from medport_local.control import deployed, records
from medport_local.control.database import Database
from medport_local.control.deployed import Deployment
from medport_local.control.project import Project
from medport_local.control.scaling import scaling_of, seconds

T = TypeVar("T")
Key = tuple[str, str]
"""An endpoint's resource name and a deployed model's id."""


class _Engine(Generic[T]):
    """One engine that runs, and how busy it is."""

    __slots__ = ("in_flight", "served", "since", "used")

    def __init__(self, served: T, now: float) -> None:
        self.served = served
        self.in_flight = 0
        self.since = now
        self.used = now


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    again: float | None
    """When a request may have it tried again; ``None``: not in this process."""


class Lease(Generic[T]):
    """The right to use an engine for one request; the engine is not stopped before it is given back."""

    __slots__ = ("_back", "deployed_model_id", "served", "timeout_s")

    def __init__(
        self, served: T, deployed_model_id: str, back: Callable[[], None], *, timeout_s: float | None = None
    ) -> None:
        self.served = served
        self.deployed_model_id = deployed_model_id
        self.timeout_s = timeout_s
        """Seconds that the endpoint gives a request; ``None`` where it says nothing."""
        self._back: Callable[[], None] | None = back

    def release(self) -> None:
        """Give it back; a second time does nothing."""
        back, self._back = self._back, None
        if back is not None:
            back()


@dataclass(slots=True)
class _Route:
    """One endpoint: its models, and whose turn it is."""

    name: str
    split: Mapping[str, int]
    models: Mapping[str, Deployment]
    """Those that may be entered, by id."""
    credit: dict[str, int] = field(default_factory=dict)
    timeout_s: float | None = None
    """Of a request."""

    def turn(self) -> str:
        """The id of the model that takes the next request."""
        for id_, share in self.split.items():
            self.credit[id_] = self.credit.get(id_, 0) + share
        chosen = max(self.split, key=lambda id_: self.credit[id_])
        self.credit[chosen] -= 100
        return chosen


class Fleet(Generic[T]):
    """All engines of a server, for any thread."""

    def __init__(
        self,
        project: Project,
        database: Database,
        *,
        wanted: Callable[[str, str], None] = lambda endpoint, id_: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._project = project
        self._database = database
        self.wanted = wanted
        """Called when a request came for a model whose engine may be started; once until that was tried."""
        self._clock = clock
        self._changed = threading.Condition()
        self._engines: dict[Key, _Engine[T]] = {}
        self._failed: dict[Key, _Failure] = {}
        self._waking: set[Key] = set()
        self._dozing: set[Key] = set()
        """Those whose engine was taken away for sleep, from before the disk says so until they are awake again."""
        self._routes: dict[str, _Route] = {}
        """By endpoint id; those at which something is deployed."""
        self._showing: Mapping[str, T] = {}

    def enter(self, project: str, location: str, endpoint: str, deployed_model: str | None = None) -> Lease[T]:
        """An engine for one request.

        Args:
            endpoint: id, not the whole name.
            deployed_model: id of the one that must answer; by the traffic split if it is not given.

        Raises:
            NotFound, Forbidden: no such endpoint, deployed model, location or project.
            PreconditionFailed: the endpoint has no traffic split.
            ColdStart: the model sleeps; it is being woken by this.
            NotReady: the model is being loaded after a restart, or could not be, or could not be woken: its share
                of the traffic is not given to another, which nobody approved for it.
        """
        self._project.check(project, location)
        with self._changed:
            route = self._routes.get(endpoint)
            if route is not None and (deployed_model or route.split):
                id_ = deployed_model or route.turn()
                if id_ not in route.models:
                    raise NotFound(f"there is no deployed model {id_:.40} at {endpoint}", field="deployedModel")
                key = (route.name, id_)
                engine = self._engines.get(key)
                if engine is not None:
                    engine.in_flight += 1
                    back = partial(self._leave, engine)
                    return Lease(engine.served, id_, back, timeout_s=route.timeout_s)
                asleep = key in self._dozing or route.models[id_].state == "ASLEEP"
                failure = self._failed.get(key)
                again = None if failure is None else failure.again
                due = again is not None and again <= self._clock()
                knocked = ((asleep and failure is None) or due) and key not in self._waking
                if knocked:
                    self._waking.add(key)
                coming = asleep and key in self._waking
        if route is None or not (deployed_model or route.split):
            self._refuse(endpoint, deployed_model)
        if knocked:
            self.wanted(*key)
        if coming:
            raise ColdStart()
        if failure is not None:
            raise NotReady(f"deployed model {id_} could not be started: {failure.reason}", retry_after_s=60)
        raise NotReady(f"deployed model {id_} is being loaded", remedy="try again", retry_after_s=5)

    def showing(self) -> Mapping[str, T]:
        """By endpoint id, what answers most of its requests; endpoints of which no engine runs are left out."""
        return self._showing

    def engines(self) -> tuple[T, ...]:
        """All that run, with traffic or without."""
        with self._changed:
            return tuple(engine.served for engine in self._engines.values())

    def running(self) -> tuple[Key, ...]:
        """Which deployed models have an engine."""
        with self._changed:
            return tuple(self._engines)

    def reread(self, endpoint: str) -> None:
        """Follow the disk: what is deployed at an endpoint, by its resource name, and its split."""
        # Read inside the lock: of two calls the one that reads later also writes later.
        with self._changed:
            with self._database.reading() as transaction:
                record = records.find(transaction, endpoint)
                rows = deployed.of(transaction, endpoint)
            models = {row.id: row for row in rows if row.standing}
            id_ = endpoint.rpartition("/")[2]
            before = self._routes.pop(id_, None)
            if record is not None and models:
                split = record.body.get("trafficSplit", {})
                same = before is not None and before.split == split
                credit = before.credit if before is not None and same else {}
                self._routes[id_] = _Route(endpoint, split, models, credit, _timeout_s(record.body))
            self._show()

    def install(self, endpoint: str, id_: str, served: T) -> None:
        """An engine runs. It gets requests as soon as the disk says that its model is deployed."""
        with self._changed:
            assert (endpoint, id_) not in self._engines, "two engines for one deployed model"
            self._engines[endpoint, id_] = _Engine(served, self._clock())
            self._failed.pop((endpoint, id_), None)
            self._waking.discard((endpoint, id_))
            self._dozing.discard((endpoint, id_))
            self._show()

    def has(self, endpoint: str, id_: str) -> bool:
        """Whether its engine runs."""
        with self._changed:
            return (endpoint, id_) in self._engines

    def failed(self, endpoint: str, id_: str, reason: str, *, again_s: float | None) -> None:
        """Its engine could not be started; requests are told why.

        Args:
            again_s: seconds from which on a request has it tried again; ``None``: not in this process.
        """
        with self._changed:
            again = None if again_s is None else self._clock() + again_s
            self._failed[endpoint, id_] = _Failure(reason, again)
            self._waking.discard((endpoint, id_))

    def remove(self, endpoint: str, id_: str) -> T | None:
        """Forget a deployed model, and give back its engine if one runs."""
        with self._changed:
            self._failed.pop((endpoint, id_), None)
            self._waking.discard((endpoint, id_))
            self._dozing.discard((endpoint, id_))
            engine = self._engines.pop((endpoint, id_), None)
            self._show()
            return None if engine is None else engine.served

    def drain(self, endpoint: str, id_: str, timeout_s: float, hurry: Callable[[], bool]) -> bool:
        """Wait for the requests in flight; whether all ended.

        Args:
            hurry: asked now and then; true: do not wait any longer.
        """
        until = self._clock() + timeout_s
        with self._changed:
            engine = self._engines.get((endpoint, id_))
            while engine is not None and engine.in_flight:
                left = until - self._clock()
                if left <= 0 or hurry():
                    return False
                self._changed.wait(min(left, 0.25))
            return True

    def idle(self) -> list[Key]:
        """The models that may be put to sleep at this moment."""
        with self._changed:
            return [
                (route.name, id_)
                for route in self._routes.values()
                for id_ in route.models
                if self._sleepy(route, id_)
            ]

    def doze(self, endpoint: str, id_: str) -> T | None:
        """Take a model's engine away if it is idle; from then on its requests meet a cold start."""
        with self._changed:
            route = self._routes.get(endpoint.rpartition("/")[2])
            if route is None or not self._sleepy(route, id_):
                return None
            engine = self._engines.pop((endpoint, id_))
            self._dozing.add((endpoint, id_))
            self._show()
            return engine.served

    def _sleepy(self, route: _Route, id_: str) -> bool:
        engine, row = self._engines.get((route.name, id_)), route.models.get(id_)
        if engine is None or row is None or engine.in_flight:
            return False
        scaling, now = scaling_of(row.body), self._clock()
        return scaling.to_zero and now - engine.used >= scaling.idle_s and now - engine.since >= scaling.up_s

    def _leave(self, engine: _Engine[T]) -> None:
        with self._changed:
            engine.in_flight -= 1
            engine.used = self._clock()
            if not engine.in_flight:
                self._changed.notify_all()

    def _show(self) -> None:
        showing = {}
        for id_, route in self._routes.items():
            for model in sorted(route.split, key=lambda model: -route.split[model]):
                engine = self._engines.get((route.name, model))
                if engine is not None:
                    showing[id_] = engine.served
                    break
        self._showing = showing

    def _refuse(self, endpoint: str, deployed_model: str | None) -> None:
        name = f"{self._project.parent}/endpoints/{endpoint}"
        with self._database.reading() as transaction:
            known = records.find(transaction, name) is not None
        if not known:
            raise NotFound(f"Endpoint `{name:.200}` is not found.", field="endpoint")
        if deployed_model:
            raise NotFound(f"there is no deployed model {deployed_model:.40} at {endpoint}", field="deployedModel")
        raise PreconditionFailed(
            f"Endpoint `{name}` doesn't have traffic_split.",
            remedy="deploy a model to it, or give it a traffic split",
        )


def _timeout_s(endpoint: Mapping[str, Any]) -> float | None:
    said = endpoint.get("clientConnectionConfig", {}).get("inferenceTimeout")
    return seconds(said) if said else None
