"""Calls about long-running operations: get, list, wait, cancel, delete; under every resource and every prefix.

Google's client polls ``/ui/…``, others ``/v1/…`` and ``/v1beta1/…``.

Source: google.longrunning.Operations; AIP-151.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any

from medport.errors import InputError, NotFound, PreconditionFailed
from medport_local.control import operations
from medport_local.control.asks import Ask, Handler, Row
from medport_local.control.database import Database, Transaction
from medport_local.control.forms import Duration, Form, read
from medport_local.control.operations import Operation
from medport_local.control.project import Project
from medport_local.control.scaling import seconds

Json = dict[str, Any]

LONGEST_WAIT_S = 60.0
"""A caller that wants to wait longer asks again."""
_POLL_S = 0.02
_PAGE, _LARGEST_PAGE = 100, 1000
_PREFIXES = ("/ui", "/{api}")
_PARENTS = {
    "": "",
    "Endpoint": "/endpoints/{endpoint}",
    "Model": "/models/{model}",
    "BatchPredictionJob": "/batchPredictionJobs/{batch_prediction_job}",
}
_PATH_PARTS = {"endpoint": "endpoints", "model": "models", "batch_prediction_job": "batchPredictionJobs"}
_DONE = re.compile(r"done\s*[=:]\s*\"?(true|false)\"?", re.IGNORECASE)


class _Wait(Form):
    name: str = ""
    timeout: Duration = f"{LONGEST_WAIT_S:.0f}s"


class OperationCalls:
    """The calls.

    Args:
        cancel: end an operation of this name as soon as that may be; called in a thread.
    """

    def __init__(self, project: Project, database: Database, *, cancel: Callable[[str], None]) -> None:
        self._project = project
        self._database = database
        self._cancel = cancel

    def rows(self) -> tuple[Row, ...]:
        """The calls that this answers."""
        found: list[Row] = []
        for prefix in _PREFIXES:
            label = "Ui" if prefix == "/ui" else ""
            for kind, parent in _PARENTS.items():
                path = f"{prefix}/projects/{{project}}/locations/{{location}}{parent}/operations"
                one = f"{path}/{{operation}}"

                def row(method: Any, at: str, handler: Handler, verb: str, name: str) -> Row:
                    return Row(
                        method=method,
                        path=at,
                        handler=handler,
                        verb=f"aiplatform.operations.{verb}",
                        operation=name,
                    )

                found += [
                    row("POST", f"{one}:wait", self.wait, "wait", f"wait{kind}Operation{label}"),
                    row("POST", f"{one}:cancel", self.cancel, "cancel", f"cancel{kind}Operation{label}"),
                    row("GET", one, self.get, "get", f"get{kind}Operation{label}"),
                    row("DELETE", one, self.delete, "delete", f"delete{kind}Operation{label}"),
                    row("GET", path, self.list, "list", f"list{kind}Operations{label}"),
                ]
        return tuple(found)

    async def get(self, ask: Ask) -> Json:
        """One operation."""
        return self._find(ask).shown()

    async def wait(self, ask: Ask) -> Json:
        """One operation, once it is done or the time that the body gives is over."""
        form = read(_Wait, {**ask.query, **ask.body})
        wait_s = min(seconds(form.timeout), LONGEST_WAIT_S)
        until = time.monotonic() + wait_s
        while (operation := self._find(ask)).state != "DONE" and time.monotonic() < until:
            await asyncio.sleep(_POLL_S)
        return operation.shown()

    async def cancel(self, ask: Ask) -> Json:
        """Ask for an operation to end; one that is done stays as it is."""
        await asyncio.to_thread(self._cancel, self._find(ask).name)
        return {}

    async def delete(self, ask: Ask) -> Json:
        """Forget an operation that is done."""
        name = self._name(ask)

        def forget(tx: Transaction) -> None:
            operation = self._found(tx, ask, name)
            if operation.state != "DONE":
                raise PreconditionFailed("the operation is not done", field="name", remedy="cancel it, or wait")
            tx.run("DELETE FROM operation WHERE name = ?", name)

        await asyncio.to_thread(self._database.write, forget)
        return {}

    async def list(self, ask: Ask) -> Json:
        """The operations of a resource, the latest first; of the location: all."""
        return await asyncio.to_thread(self._page, ask)

    def _page(self, ask: Ask) -> Json:
        parent = self._parent(ask)
        size = _page_size(ask.query.get("pageSize", ""))
        before = _page_token(ask.query.get("pageToken", ""))
        done = _wanted(ask.query.get("filter", ""))
        # Conditions that are not wanted are left out: beside an OR, SQLite uses no index.
        wanted: dict[str, object] = {"place < ?": before}
        if parent != self._project.parent:
            wanted["resource = ?"] = parent
        if done is not None:
            wanted[f"state {'=' if done else '<>'} ?"] = "DONE"
        sql = f"SELECT * FROM operation WHERE {' AND '.join(wanted)} ORDER BY place DESC LIMIT ?"  # noqa: S608
        with self._database.reading() as tx:
            rows = tx.all(sql, *wanted.values(), size + 1)
        page: Json = {
            "operations": [each.shown() for each in map(operations.of_row, rows[:size]) if _known(ask, each)]
        }
        if len(rows) > size:
            page["nextPageToken"] = str(rows[size - 1]["place"])
        return page

    def _find(self, ask: Ask) -> Operation:
        with self._database.reading() as tx:
            return self._found(tx, ask, self._name(ask))

    def _found(self, tx: Transaction, ask: Ask, name: str) -> Operation:
        operation = operations.find(tx, name)
        # Names can be counted through: what is not the caller's is answered as what is not there.
        if operation is None or not _known(ask, operation):
            raise _unknown(name)
        return operation

    def _name(self, ask: Ask) -> str:
        return f"{self._parent(ask)}/operations/{ask.path['operation']}"

    def _parent(self, ask: Ask) -> str:
        for key, kind in _PATH_PARTS.items():
            if key in ask.path:
                return f"{self._project.parent}/{kind}/{ask.path[key]}"
        return self._project.parent


def _known(ask: Ask, operation: Operation) -> bool:
    """Whether the caller may know of it: not if another began it, about an endpoint that is not the caller's."""
    # Model Garden's stand under the location; while they last and when they are done they name the endpoint.
    made = operation.request.get("endpoint") or (operation.response or {}).get("endpoint")
    _, found, endpoint = str(made or operation.resource).partition("/endpoints/")
    return not found or ask.may(endpoint) or operation.caller == ask.caller != ""


def _unknown(name: str) -> NotFound:
    return NotFound(f"Operation {name:.300} is not found.", field="name", remedy="list what there is")


def _page_size(given: str) -> int:
    if given and not (given.isdecimal() and len(given) <= 10):
        raise InputError("is not a number", field="page_size", remedy=f"give 1 to {_LARGEST_PAGE}")
    return min(int(given or 0) or _PAGE, _LARGEST_PAGE)


def _page_token(given: str) -> int:
    if not given:
        return 2**63 - 1
    if not given.isdecimal() or len(given) > 19 or int(given) >= 2**63:
        raise InputError("is not a token that this server gave", field="page_token", remedy="begin anew")
    return int(given)


def _wanted(filter_: str) -> bool | None:
    if not filter_.strip():
        return None
    found = _DONE.fullmatch(filter_.strip())
    if found is None:
        raise InputError(
            "holds a term that is not known here", field="filter", remedy="use done=true or done=false"
        )
    return found[1].lower() == "true"
