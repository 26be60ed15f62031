"""Operations that take long, step by step: a model is deployed, undeployed, rolled out; something is held up.

Every step is recorded before the next begins, and each may be begun again by another process. Traffic moves in the
transaction that makes a model READY; a deployment that fails leaves nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypeVar

from medport.errors import (
    Conflict,
    MedportError,
    NotReady,
    PreconditionFailed,
    QuotaExceeded,
    ServerError,
    Timeout,
    row_of,
)
from medport.wire.vertex import RPC_CODES
from medport_local.control import deployed, operations, records, traffic
from medport_local.control.database import Transaction
from medport_local.control.deployed import Deployment
from medport_local.control.engines import ATTEMPTS, Engines, change
from medport_local.control.fleet import Fleet
from medport_local.control.host import Intent
from medport_local.control.operations import Operation, Operations
from medport_local.control.worker import LeftOff, Worker

T = TypeVar("T")
Json = dict[str, Any]

_EXITED = "Model server exited unexpectedly."

logger = logging.getLogger(__name__)


class Refusals(Protocol):
    """Faults that an operator asked for."""

    def check_deploy(self, intent: Intent) -> None:
        """Raise what a deployment is to fail with."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a kind of deployment answers, and what it takes back."""

    respond: Callable[[Transaction, Operation, Json], Json]
    """The response, from the DeployedModel as it is shown."""
    undo: Callable[[Transaction, Operation], None] = lambda transaction, operation: None
    """Take back what was made for it, in the transaction that records that it failed."""


class Ended(Exception):
    """A deployment did not come up: why, and the google.rpc.Code that says so."""

    def __init__(self, error: MedportError, code: int) -> None:
        super().__init__(error, code)
        self.error = error
        self.code = code


class Deploying(Generic[T]):
    """The jobs. Those of one endpoint are never done side by side.

    Args:
        drain_s: seconds that a model that goes waits for its requests.
    """

    def __init__(
        self,
        operations: Operations,
        fleet: Fleet[T],
        engines: Engines[T],
        worker: Worker,
        *,
        refusals: Refusals | None,
        drain_s: float,
    ) -> None:
        self._operations = operations
        self._fleet = fleet
        self._engines = engines
        self._worker = worker
        self._refusals = refusals
        self._drain_s = drain_s

    def deploy(self, name: str, outcome: Outcome, cancelled: Callable[[], bool]) -> None:
        """Do an operation that deploys. Its request: ``endpoint``, ``id``, ``split``, ``against``, ``previous``.

        Args:
            cancelled: whether a caller wants it no more.
        """
        self._hold_up(name, cancelled)
        deployment = self._engines.keep(lambda tx: self._begin_deploy(tx, name, outcome))
        if deployment is None:
            return
        operation = self._engines.keep(lambda tx: operations.get(tx, name))
        if deployment.state == "LOADING":
            try:
                running = self._load(deployment, operation, cancelled)
            except Ended as ended:
                error, code = ended.error, ended.code
                self._engines.keep(lambda tx: self.take_back(tx, name, outcome, error, code))
                logger.warning("%s failed with code %d", name, code)
                return
            self._fleet.install(deployment.endpoint, deployment.id, running)
            if not self._engines.keep(lambda tx: self._ready(tx, name, outcome)):
                self._engines.remove(deployment.endpoint, deployment.id)
                return
            self._fleet.reread(deployment.endpoint)
        previous = operation.request.get("previous")
        if previous:
            self._retire(deployment.endpoint, previous, lambda tx: self._finish(tx, name, outcome))

    def undeploy(self, name: str, cancelled: Callable[[], bool]) -> None:
        """Do an operation that undeploys. Its request: ``endpoint``, ``id``, ``split``."""
        self._hold_up(name, cancelled)
        operation = self._engines.keep(lambda tx: self._begin_undeploy(tx, name))
        if operation is not None:
            endpoint, id_ = operation.request["endpoint"], operation.request["id"]
            self._retire(endpoint, id_, lambda tx: self._operations.finish(tx, name, {}))

    def apply(self, name: str, apply: operations.Apply, cancelled: Callable[[], bool]) -> None:
        """Do something quick that was held up."""
        self._hold_up(name, cancelled)
        try:
            self._engines.keep(lambda tx: self._apply(tx, name, apply))
        except MedportError as error:
            refusal = error
            self._engines.keep(lambda tx: self._operations.fail(tx, name, refusal))

    def take_back(
        self, tx: Transaction, name: str, outcome: Outcome, error: MedportError, code: int | None
    ) -> None:
        """A deployment fails: the row goes, and all that was made for it."""
        operation = operations.get(tx, name)
        row = deployed.find(tx, operation.request["endpoint"], operation.request["id"])
        if row is not None and row.operation == name:
            deployed.delete(tx, row)
        outcome.undo(tx, operation)
        self._operations.step(tx, name, "FAILED", {"deploymentStage": "FAILED_TO_DEPLOY"})
        self._operations.fail(tx, name, error, code=code)

    def _begin_deploy(self, tx: Transaction, name: str, outcome: Outcome) -> Deployment | None:
        operation = operations.find(tx, name)
        if operation is None or operation.state == "DONE":
            return None
        row = deployed.find(tx, operation.request["endpoint"], operation.request["id"])
        assert row is not None, "an open operation without its deployment"
        if row.state == "READY":
            return row
        refusal = self._refusal(row, operation)
        if refusal is not None:
            self.take_back(tx, name, outcome, refusal.error, refusal.code)
            return None
        self._operations.step(tx, name, "LOADING", {"deploymentStage": "STARTING_MODEL_SERVER"})
        return deployed.update(tx, replace(row, state="LOADING", attempts=row.attempts + 1))

    def _refusal(self, row: Deployment, operation: Operation) -> Ended | None:
        if operation.cancelled:
            return cancelled_error()
        if _late(operation):
            return _deadline()
        if row.attempts >= ATTEMPTS:
            return Ended(ServerError(f"the server ended {ATTEMPTS} times while it loaded this model"), 13)
        return None

    def _load(self, deployment: Deployment, operation: Operation, cancelled: Callable[[], bool]) -> T:
        def unwanted() -> bool:
            return cancelled() or _late(operation)

        running: T | None = None
        failure: Exception | None = None
        try:
            if self._refusals is not None:
                self._refusals.check_deploy(deployment.intent)
            running = self._engines.start(self._engines.resolved(deployment), unwanted)
        except MedportError as error:
            failure = Ended(*_server_exited(error))
        # A host that was told to leave off may say so with any error, or have been ready just before.
        if self._worker.closing:
            self._engines.spare(deployment.endpoint, deployment.id)
            failure = LeftOff()
        elif cancelled():
            failure = cancelled_error()
        elif _late(operation):
            failure = _deadline()
        if failure is not None:
            if running is not None:
                self._engines.end(running)
            raise failure
        assert running is not None
        return running

    def _ready(self, tx: Transaction, name: str, outcome: Outcome) -> bool:
        """Make the model READY and move the traffic; false if the traffic cannot be as it was asked for."""
        operation = operations.get(tx, name)
        request = operation.request
        endpoint, id_, previous = request["endpoint"], request["id"], request.get("previous")
        record = records.get(tx, endpoint)
        present = record.body.get("trafficSplit", {})
        others = deployed.standing(tx, endpoint)
        try:
            split = traffic.with_new(present, id_, request["split"], request["against"], alone=not others)
            needed = split.keys() | ({previous} if previous else set())
            gone = needed - others - {id_}
            if gone:
                raise Conflict(f"{min(gone)} was undeployed while this model was being deployed")
        except Conflict as error:
            self.take_back(tx, name, outcome, error, None)
            return False
        if previous:
            split = traffic.handed_over(split, previous, id_)
        _split(tx, record, split)
        change(tx, endpoint, id_, state="READY", attempts=0)
        if previous:
            change(tx, endpoint, previous, state="DRAINING")
            self._operations.step(tx, name, "DRAINING", {"deploymentStage": "FINISHING_UP"})
        else:
            self._finish(tx, name, outcome)
        return True

    def _finish(self, tx: Transaction, name: str, outcome: Outcome) -> None:
        operation = operations.get(tx, name)
        row = deployed.find(tx, operation.request["endpoint"], operation.request["id"])
        assert row is not None
        self._operations.step(tx, name, "READY", {"deploymentStage": "SUCCESSFULLY_DEPLOYED"})
        self._operations.finish(tx, name, outcome.respond(tx, operation, row.shown()))

    def _begin_undeploy(self, tx: Transaction, name: str) -> Operation | None:
        operation = operations.find(tx, name)
        if operation is None or operation.state == "DONE":
            return None
        request = operation.request
        row = deployed.find(tx, request["endpoint"], request["id"])
        if row is not None and row.state == "DRAINING" and row.operation == operation.name:
            return operation
        try:
            record = records.get(tx, request["endpoint"])
            if operation.cancelled:
                raise cancelled_error().error
            if row is None or not row.standing:
                raise Conflict(f"{request['id']} was undeployed in the meantime", field="deployed_model_id")
            others = deployed.standing(tx, row.endpoint) - {row.id}
            split = traffic.without(record.body.get("trafficSplit", {}), row.id, request["split"], others)
        except MedportError as error:
            self._operations.fail(tx, operation.name, error, code=1 if operation.cancelled else None)
            return None
        _split(tx, record, split)
        deployed.update(tx, replace(row, state="DRAINING", operation=operation.name))
        self._operations.step(tx, operation.name, "DRAINING")
        return operation

    def _retire(self, endpoint: str, id_: str, then: Callable[[Transaction], object]) -> None:
        """A model that drains goes; ``then`` is done in the transaction in which it does."""
        self._fleet.reread(endpoint)
        if not self._fleet.drain(endpoint, id_, self._drain_s, lambda: self._worker.closing):
            if self._worker.closing:
                raise LeftOff
            logger.warning("deployed model %s is stopped with requests in flight", id_)
        self._engines.remove(endpoint, id_)

        def gone(tx: Transaction) -> None:
            row = deployed.find(tx, endpoint, id_)
            if row is not None:
                deployed.delete(tx, row)
                record = records.get(tx, endpoint)
                records.update(tx, record, record.body)
            then(tx)

        self._engines.keep(gone)
        self._fleet.reread(endpoint)

    def _apply(self, tx: Transaction, name: str, apply: operations.Apply) -> None:
        operation = operations.find(tx, name)
        if operation is None or operation.state == "DONE":
            return
        self._operations.finish(tx, name, apply(tx, operation.request))

    def _hold_up(self, name: str, cancelled: Callable[[], bool]) -> None:
        """Wait as long as a fault wants it, unless a caller does not want the operation any more."""
        operation = self._engines.keep(lambda tx: operations.find(tx, name))
        while operation is not None and operation.not_before and operation.not_before > records.stamp():
            if cancelled() or _late(operation):
                return
            if self._worker.pause(0.05):
                raise LeftOff


def _split(tx: Transaction, record: records.Record, split: traffic.Split) -> None:
    body = {key: value for key, value in record.body.items() if key != "trafficSplit"}
    records.update(tx, record, {**body, **({"trafficSplit": split} if split else {})})


def _late(operation: Operation) -> bool:
    return operation.deadline is not None and datetime.fromisoformat(operation.deadline) < datetime.now(UTC)


def cancelled_error() -> Ended:
    """What an operation ends with that a caller wants no more."""
    return Ended(Conflict("the operation was cancelled"), 1)


def _deadline() -> Ended:
    error = Timeout(
        "the model was not healthy before its deployment timeout",
        field="containerSpec.deploymentTimeout",
        remedy="give it more time, or a smaller model",
    )
    return Ended(error, 4)


def _server_exited(error: MedportError) -> tuple[MedportError, int]:
    """Why an engine did not start, as Vertex says it of a container; what a quota refuses is told as that."""
    if isinstance(error, QuotaExceeded | NotReady):
        return error, RPC_CODES[row_of(error).status]
    if str(error).startswith(_EXITED):
        return error, 9
    return PreconditionFailed(f"{_EXITED} Model server logs can be found in the log of this server. {error}"), 9
