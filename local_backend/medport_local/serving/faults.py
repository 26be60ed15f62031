"""Faults that an operator asked for, around the handlers of the route table."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from starlette.responses import PlainTextResponse, Response

from medport_local.serving.exchange import JSON, Events, Exchange
from medport_local.serving.routes import Route


class Fault(Protocol):
    """What a call meets in place of its answer, or before it."""

    @property
    def status(self) -> int | None:
        """HTTP status; ``None``: the call goes on after the delay."""

    @property
    def body(self) -> dict[str, Any] | str:
        """A string is the whole body, as plain text."""

    @property
    def delay_s(self) -> float: ...

    @property
    def retry_after_s(self) -> int | None: ...


class Faults(Protocol):
    """The rules in force. Asked in the event loop."""

    def at_door(self, method: str, template: str, verb: str, path: Mapping[str, str]) -> Fault | None:
        """What a call meets before its handler."""

    def at_answer(
        self,
        method: str,
        template: str,
        verb: str,
        path: Mapping[str, str],
        endpoint: str | None,
        deployed_model: str | None,
    ) -> Fault | None:
        """What a call meets after its handler, by rules about ids that the path does not tell."""


def with_faults(table: tuple[Route, ...], faults: Faults) -> tuple[Route, ...]:
    """The same routes, each of which may meet a fault once its key was checked.

    Those that need no key (health) never meet one: who watches the server would restart it.
    """
    return tuple(row if row.action is None else replace(row, handler=_Faulty(row, faults)) for row in table)


class _Faulty:
    """A handler with faults before and after it."""

    def __init__(self, row: Route, faults: Faults) -> None:
        self._row = row
        self._faults = faults

    async def __call__(self, exchange: Exchange) -> Response | Events:
        row, path = self._row, exchange.path
        fault = self._faults.at_door(row.method, row.path, row.verb, path)
        if fault is not None:
            if fault.status is not None and row.method != "GET":
                await exchange.body()  # who is answered in mid-sentence sees a broken connection
            await _wait(exchange, fault)
            if fault.status is not None:
                exchange.permit_any()  # nothing of the server's is in the answer
                return _answer(fault.status, fault)
        answer = await row.handler(exchange)
        facts = exchange.facts
        fault = self._faults.at_answer(row.method, row.path, row.verb, path, facts.endpoint, facts.deployed_model)
        if fault is None:
            return answer
        try:
            await _wait(exchange, fault)
        except BaseException:
            _drop(answer)
            raise
        if fault.status is None:
            return answer
        _drop(answer)
        return _answer(fault.status, fault)


async def _wait(exchange: Exchange, fault: Fault) -> None:
    if fault.delay_s:
        await exchange.within(asyncio.sleep(fault.delay_s))


def _drop(answer: Response | Events) -> None:
    if isinstance(answer, Events):
        answer.close()


def _answer(status: int, fault: Fault) -> Response:
    headers = {} if fault.retry_after_s is None else {"Retry-After": str(fault.retry_after_s)}
    if isinstance(fault.body, str):
        return PlainTextResponse(fault.body, status_code=status, headers=headers)
    return JSON(fault.body, status_code=status, headers=headers)
