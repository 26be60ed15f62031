"""The control plane, put together: its calls, its fleet, the jobs that go on in the background, start and end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, Protocol, TypeVar

from medport.errors import MedportError, NotReady, ServerError
from medport_local.control import deployed, operations, records, unsupported
from medport_local.control.asks import Row
from medport_local.control.database import Database, Transaction
from medport_local.control.deploying import Deploying, Outcome, Refusals, cancelled_error
from medport_local.control.deployments import UNDEPLOYS, Deployments
from medport_local.control.endpoints import Endpoints
from medport_local.control.engines import Engines
from medport_local.control.fleet import Fleet
from medport_local.control.garden import Garden
from medport_local.control.host import Host
from medport_local.control.models import Models
from medport_local.control.operation_calls import OperationCalls
from medport_local.control.operations import Operation, Operations
from medport_local.control.project import Project
from medport_local.control.publishers import Available
from medport_local.control.uploads import deployable
from medport_local.control.worker import LeftOff, Worker

T = TypeVar("T")

logger = logging.getLogger(__name__)

LOADING = "The server was restarted; the model is being loaded."


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneSettings:
    """How a control plane behaves."""

    require_digest: bool = False
    """Whether a model's image must be given by its digest."""
    garden_image: str = ""
    """URI of the container image that deployments of Model Garden say; ``""``: they say none."""
    drain_s: float = 60.0
    """How long a model that is undeployed waits for its requests."""
    workers: int = 16
    """Endpoints that are worked on at once. Most wait: for requests to end, or until another engine is loaded."""
    look_s: float = 1.0
    """Seconds between two looks for models to put to sleep."""


class Faults(Refusals, Protocol):
    """Faults that an operator asked for."""

    def slow(self, kind: str) -> float:
        """Seconds by which an operation of a kind is held up."""
        ...

    def rows(self) -> tuple[Row, ...]:
        """The operator's calls."""
        ...


class Plane(Generic[T]):
    """One server's control plane.

    Args:
        database: stays open after ``close``; who opened it closes it.
        advertised: ``host:port`` under which clients reach dedicated endpoints.
        available: gives the snapshots that can be deployed at this moment.
        faults: ``None`` where they are not allowed.
    """

    def __init__(
        self,
        project: Project,
        database: Database,
        host: Host[T],
        *,
        advertised: str | None,
        available: Callable[[], Sequence[Available]] = tuple,
        settings: PlaneSettings | None = None,
        faults: Faults | None = None,
    ) -> None:
        settings = settings or PlaneSettings()
        self._database = database
        self._settings = settings
        self._worker = Worker(settings.workers)
        self._operations = Operations(database, slow=faults.slow if faults else lambda kind: 0.0)
        self._operations.woken = self._woken
        self.fleet: Fleet[T] = Fleet(project, database, wanted=self._wake)
        self._engines = Engines(database, self.fleet, host, self._worker)
        self._host = host
        self._held: frozenset[str] = frozenset()
        self._deploying = Deploying(
            self._operations,
            self.fleet,
            self._engines,
            self._worker,
            refusals=faults,
            drain_s=settings.drain_s,
        )
        self.version_of = partial(deployable, require_digest=settings.require_digest)
        """A Model version as a GET shows it, if it may run here."""
        self._taken = threading.Lock()
        self._known: set[str] = set()
        """Operations that have a job."""
        self._cancelled: set[str] = set()
        self.deployments = Deployments(
            project, database, self._operations, version_of=self.version_of, on_change=self._changed
        )
        garden = Garden(
            project,
            database,
            self._operations,
            self.deployments,
            available=available,
            image=settings.garden_image,
            require_digest=settings.require_digest,
        )
        self._rows = (
            *Models(project, database, self._operations, require_digest=settings.require_digest).rows(),
            *Endpoints(project, database, self._operations, advertised=advertised, on_change=self._changed).rows(),
            *self.deployments.rows(),
            *garden.rows(),
            *OperationCalls(project, database, cancel=self._cancel).rows(),
            *unsupported.rows(),
            *(faults.rows() if faults else ()),
        )
        self._looking = threading.Thread(target=self._look, name="control-idle", daemon=True)
        self._ended = threading.Event()

    def rows(self) -> tuple[Row, ...]:
        """All calls that it answers."""
        return self._rows

    def start(self) -> None:
        """Go on from what the disk says: load what was deployed, finish what was begun. Waits for neither."""
        with self._database.writing() as tx:
            rows = deployed.every(tx)
            shares = {row.endpoint: records.get(tx, row.endpoint).body.get("trafficSplit", {}) for row in rows}
            ready = [row for row in rows if row.state == "READY"]
            for row in ready:
                deployed.update(tx, replace(row, last_error=LOADING))
        self._hold()
        for endpoint in shares:
            self.fleet.reread(endpoint)
        for row in sorted(ready, key=lambda row: -shares[row.endpoint].get(row.id, 0)):
            self._worker.do(row.endpoint, partial(self._engines.wake, row.endpoint, row.id))
        self._pick_up()
        self._looking.start()

    def quiet(self, timeout_s: float) -> bool:
        """Wait until nothing is being done; whether that came."""
        return self._worker.quiet(timeout_s)

    def close(self) -> None:
        """Stop all engines. What is deployed stays so: the next start loads it, and finishes what was begun.

        Requests must be over; what a host loads at this moment is told to leave off, and waited for.
        """
        self._ended.set()
        self._worker.close()
        if self._looking.ident is not None:
            self._looking.join()
        for endpoint, id_ in self.fleet.running():
            self._engines.remove(endpoint, id_)
        self._host.keep(frozenset())

    def _changed(self, endpoint: str) -> None:
        """Something about an endpoint's traffic or models was changed at once: it is done, whatever comes now."""
        try:
            self._follow(endpoint)
        except NotReady:
            self._worker.do(endpoint, partial(self._follow_later, endpoint))

    def _follow_later(self, endpoint: str) -> None:
        while not self._worker.pause(0.5):
            with suppress(NotReady):
                self._follow(endpoint)
                return

    def _follow(self, endpoint: str) -> None:
        self.fleet.reread(endpoint)
        with self._database.reading() as tx:
            rows = deployed.of(tx, endpoint)
        for row in rows:
            if row.state == "ASLEEP" and row.body["dedicatedResources"].get("minReplicaCount"):
                self._wake(endpoint, row.id)

    def _wake(self, endpoint: str, id_: str) -> None:
        self._worker.do(endpoint, partial(self._engines.wake, endpoint, id_))

    def _woken(self) -> None:
        # The operation is on the disk. If that cannot be read at this moment, the next look finds it.
        try:
            self._pick_up()
        except NotReady as error:
            logger.warning("an operation begins later: %s", error)

    def _pick_up(self) -> None:
        """Give every open operation that has none a job, in the order in which they were asked for."""
        with self._taken:
            with self._database.reading() as tx:
                rows = tx.all("SELECT * FROM operation WHERE state <> 'DONE' ORDER BY place")
            for operation in map(operations.of_row, rows):
                if operation.name in self._known:
                    continue
                self._known.add(operation.name)
                if operation.cancelled:
                    self._cancelled.add(operation.name)
                lane = operation.request.get("endpoint") or operation.resource
                self._worker.do(lane, partial(self._work, operation, lane))

    def _work(self, operation: Operation, lane: str) -> None:
        outcome = self.deployments.outcomes.get(operation.kind)
        try:
            wanted_no_more = partial(self._is_cancelled, operation.name)
            apply = self._operations.apply_of(operation.kind)
            if outcome is not None:
                self._deploying.deploy(operation.name, outcome, wanted_no_more)
            elif operation.kind == UNDEPLOYS.name:
                self._deploying.undeploy(operation.name, wanted_no_more)
            elif apply is not None:
                self._deploying.apply(operation.name, apply, wanted_no_more)
                if "/endpoints/" in lane:
                    self._changed(lane)
        except LeftOff:
            raise
        except Exception:
            self._give_up(operation, outcome)
            raise
        finally:
            with self._taken:
                self._known.discard(operation.name)
                self._cancelled.discard(operation.name)

    def _give_up(self, operation: Operation, outcome: Outcome | None) -> None:
        """A job failed as none should: callers wait for its operation without end, so it ends."""
        error = ServerError("the server failed at this operation; its log says why")

        def note(tx: Transaction) -> bool:
            found = operations.find(tx, operation.name)
            # What drains has given its traffic away already: the next start finishes it.
            if found is None or found.state == "DONE" or found.step == "DRAINING":
                return False
            if outcome is None:
                self._operations.fail(tx, operation.name, error)
                return False
            self._deploying.take_back(tx, operation.name, outcome, error, None)
            return True

        with suppress(MedportError):
            if self._database.write(note):
                self._engines.remove(operation.request["endpoint"], operation.request["id"])

    def _is_cancelled(self, name: str) -> bool:
        return name in self._cancelled

    def _cancel(self, name: str) -> None:
        """End an operation: at once if nobody has begun it, else as soon as its job can leave off."""

        def note(tx: Transaction) -> None:
            operation = operations.get(tx, name)
            if operation.state == "PENDING":
                outcome = self.deployments.outcomes.get(operation.kind)
                ended = cancelled_error()
                if outcome is not None:
                    self._deploying.take_back(tx, name, outcome, ended.error, ended.code)
                else:
                    self._operations.fail(tx, name, ended.error, code=ended.code)
            elif operation.state == "RUNNING":
                tx.run("UPDATE operation SET cancelled = 1 WHERE name = ?", name)

        self._database.write(note)
        # Not before: who was told that it could not be kept has cancelled nothing.
        with self._taken:
            if name in self._known:
                self._cancelled.add(name)

    def _hold(self) -> None:
        """Keep what is deployed from being collected: one that sleeps has no engine that holds its snapshot."""
        with self._database.reading() as tx:
            wanted = deployed.snapshots(tx)
        if wanted != self._held:
            self._host.keep(wanted)
            self._held = wanted

    def _look(self) -> None:
        while not self._ended.wait(self._settings.look_s):
            with suppress(MedportError):
                self._woken()
                self._hold()
            for endpoint, id_ in self.fleet.idle():
                self._worker.do(endpoint, partial(self._engines.sleep, endpoint, id_))
