"""Long-running operations as Vertex has them: begun, looked at, waited for, cancelled.

What is quick is done in the transaction that records the operation, and answered as done: a client does not poll
then. What takes long is recorded with all that it needs to go on after a restart; ``worker`` does it.

Source: google.longrunning; Vertex AI REST reference, projects.locations.operations.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from sqlite3 import Row
from typing import Any, Literal

import orjson

from medport.errors import MedportError, row_of
from medport.wire.vertex import RPC_CODES, rfc3339
from medport_local.control.asks import Api, Ask
from medport_local.control.database import Database, Transaction
from medport_local.control.records import stamp

Json = dict[str, Any]
State = Literal["PENDING", "RUNNING", "DONE"]
Apply = Callable[[Transaction, Json], Json]
"""Checks a request and does it, within one transaction; gives the operation's response without its ``@type``.

The request is JSON that says everything. It may be applied later than it was asked for, and once only."""

KEPT = 10_000
"""Operations that are done are asked for within minutes; without an end they would fill the disk."""
_FORGET_EVERY = 100
_TYPE = "type.googleapis.com/google.cloud.aiplatform"
_BETA = frozenset((
    "rolloutOptions", "enableContainerLogging", "fullFineTunedResources",
    "scaleToZeroSpec", "initialReplicaCount", "flexStart",
))  # fmt: skip
"""Fields of a DeployedModel and of its machines that v1 does not have."""
_EMPTY = "type.googleapis.com/google.protobuf.Empty"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of operation."""

    name: str
    """As in ``deployModel``; kept with the operation."""
    metadata: str
    """Message without package, such as ``DeployModelOperationMetadata``."""
    response: str | None
    """Message without package; ``None``: google.protobuf.Empty."""
    staged: bool = True
    """Whether its metadata has a ``deploymentStage``. Google's client refuses a field that the message lacks."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation as it is kept."""

    name: str
    resource: str
    kind: str
    api: Api
    caller: str
    state: State
    step: str
    request: Json
    metadata: Json
    response: Json | None
    error: Json | None
    not_before: str | None
    deadline: str | None
    cancelled: bool
    created: str
    updated: str

    def shown(self) -> Json:
        """google.longrunning.Operation in JSON."""
        times = {"createTime": self.created, "updateTime": self.updated}
        shown: Json = {
            "name": self.name,
            "metadata": {**self.metadata, "genericMetadata": times},
            "done": self.state == "DONE",
        }
        if self.error is not None:
            shown["error"] = self.error
        elif self.response is not None:
            shown["response"] = self.response
        return shown


class Operations:
    """The operations of one server, and the quick ones' doing.

    Args:
        kept: those that are done are forgotten once so many others were begun.
    """

    def __init__(
        self, database: Database, *, slow: Callable[[str], float] = lambda kind: 0.0, kept: int = KEPT
    ) -> None:
        self._database = database
        self._kept = kept
        self._slow = slow
        """Seconds by which an operation of a kind is held up: a rehearsal's wish (see ``faults``)."""
        self._kinds: dict[str, Kind] = {}
        self._applies: dict[str, Apply] = {}
        self.woken: Callable[[], None] = lambda: None
        """Called after an operation was recorded that a worker has to do."""

    def register(self, kind: Kind, apply: Apply | None = None) -> Kind:
        """Make a kind known; with ``apply`` if it is quick."""
        self._kinds[kind.name] = kind
        if apply is not None:
            self._applies[kind.name] = apply
        return kind

    def apply_of(self, kind: str) -> Apply | None:
        """How a quick kind is done; ``None`` for one that takes long."""
        return self._applies.get(kind)

    async def perform(
        self, ask: Ask, kind: Kind, *, resource: str, request: Json, metadata: Json | None = None
    ) -> Json:
        """Do something quick, and answer its operation. Raises what ``apply`` raises; nothing was changed then.

        Args:
            resource: name under which the operation stands. An id that the server chooses is chosen before, with
                ``Transaction.next`` or at random, and is part of ``request``.
        """
        return await asyncio.to_thread(self._perform, ask, kind, resource, request, metadata or {})

    def _perform(self, ask: Ask, kind: Kind, resource: str, request: Json, metadata: Json) -> Json:
        apply, later = self._applies[kind.name], self.held_up(kind)
        with self._database.writing() as transaction:
            if later:
                with transaction.rehearsal():
                    apply(transaction, request)
                begun = self.begin(transaction, ask, kind, resource, request, metadata, not_before=later)
            else:
                response = apply(transaction, request)
                begun = self.begin(transaction, ask, kind, resource, request, metadata)
                begun = self.finish(transaction, begun.name, response)
        if later:
            self.woken()
        return begun.shown()

    def held_up(self, kind: Kind) -> str | None:
        """The ``not_before`` of an operation that is begun at this moment; counts as a hit of the fault."""
        slow_s = self._slow(kind.name)
        return rfc3339(datetime.now(UTC) + timedelta(seconds=slow_s)) if slow_s else None

    def begin(
        self,
        transaction: Transaction,
        ask: Ask,
        kind: Kind,
        resource: str,
        request: Json,
        metadata: Json | None = None,
        *,
        not_before: str | None = None,
        deadline: str | None = None,
    ) -> Operation:
        """Record an operation that is not done; in the transaction that also records what is meant to happen.

        Call ``woken`` once that transaction is on the disk.
        """
        # As long as Vertex's own, and growing.
        number = 10**18 + transaction.next("operation")
        if number % _FORGET_EVERY == 0:
            transaction.run("DELETE FROM operation WHERE state = 'DONE' AND place <= ?", number - self._kept)
        now = stamp()
        shown = {"@type": f"{_TYPE}.{ask.api}.{kind.metadata}", **_told(kind, metadata)}
        name = f"{resource}/operations/{number}"
        transaction.run(
            "INSERT INTO operation VALUES (?, ?, ?, ?, ?, 'PENDING', '', ?, ?, NULL, NULL, ?, ?, 0, ?, ?, ?)",
            name, resource, kind.name, ask.api, ask.caller, _dump(request), _dump(shown), not_before, deadline,
            now, now, number,
        )  # fmt: skip
        return get(transaction, name)

    def finish(self, transaction: Transaction, name: str, response: Json) -> Operation:
        """It is done, once and for all; in the transaction that makes it true."""
        operation = _going_on(transaction, name)
        message = self._kinds[operation.kind].response
        typed = (
            {"@type": _EMPTY}
            if message is None
            else {"@type": f"{_TYPE}.{operation.api}.{message}", **_known(response, operation.api)}
        )
        transaction.run(
            "UPDATE operation SET state = 'DONE', request = ?, response = ?, updated = ? WHERE name = ?",
            _dump(_left(operation)), _dump(typed), stamp(), name,
        )  # fmt: skip
        return get(transaction, name)

    def fail(
        self, transaction: Transaction, name: str, error: MedportError, *, code: int | None = None
    ) -> Operation:
        """It failed; in the transaction that takes back what was begun.

        Args:
            code: google.rpc.Code; the one of the error's class if it is not given.
        """
        operation = _going_on(transaction, name)
        said = {"code": code or RPC_CODES.get(row_of(error).status, 2), "message": str(error)}
        transaction.run(
            "UPDATE operation SET state = 'DONE', request = ?, error = ?, updated = ? WHERE name = ?",
            _dump(_left(operation)), _dump(said), stamp(), name,
        )  # fmt: skip
        return get(transaction, name)

    def step(
        self, transaction: Transaction, name: str, step: str, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Note how far a worker is; ``metadata`` is merged into what callers see."""
        operation = _going_on(transaction, name)
        transaction.run(
            "UPDATE operation SET state = 'RUNNING', step = ?, metadata = ?, updated = ? WHERE name = ?",
            step, _dump({**operation.metadata, **_told(self._kinds[operation.kind], metadata)}), stamp(), name,
        )  # fmt: skip


def find(transaction: Transaction, name: str) -> Operation | None:
    """One operation by its whole name; ``None`` if there is none."""
    row = transaction.one("SELECT * FROM operation WHERE name = ?", name)
    return None if row is None else of_row(row)


def get(transaction: Transaction, name: str) -> Operation:
    """One operation that is known to be there."""
    operation = find(transaction, name)
    assert operation is not None, name
    return operation


def _going_on(transaction: Transaction, name: str) -> Operation:
    operation = get(transaction, name)
    assert operation.state != "DONE", name
    return operation


def of_row(row: Row) -> Operation:
    """A row of the table ``operation``."""
    return Operation(
        name=row["name"],
        resource=row["resource"],
        kind=row["kind"],
        api=row["api"],
        caller=row["caller"],
        state=row["state"],
        step=row["step"],
        request=orjson.loads(row["request"]),
        metadata=orjson.loads(row["metadata"]),
        response=row["response"] and orjson.loads(row["response"]),
        error=row["error"] and orjson.loads(row["error"]),
        not_before=row["not_before"],
        deadline=row["deadline"],
        cancelled=bool(row["cancelled"]),
        created=row["created"],
        updated=row["updated"],
    )


def _left(operation: Operation) -> Json:
    """What stays of a request that was done: whose it is. The rest is large, and may hold what should not last."""
    return {key: operation.request[key] for key in ("endpoint",) if key in operation.request}


def _told(kind: Kind, metadata: Mapping[str, Any] | None) -> Json:
    """What an operation of a kind tells of itself."""
    told = dict(metadata or {})
    if not kind.staged:
        told.pop("deploymentStage", None)
    return told


def _known(response: Any, api: Api) -> Any:
    """A response without what only v1beta1 has: a client of v1 cannot read an operation that holds it."""
    if api == "v1beta1":
        return response
    if isinstance(response, list):
        return [_known(each, api) for each in response]
    if not isinstance(response, dict):
        return response
    return {key: _known(value, api) for key, value in response.items() if key not in _BETA}


def _dump(value: object) -> str:
    return orjson.dumps(value).decode()
