"""Who watches: what observers and the log of requests are told, and what never."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import httpx
import pytest
from support.door_handlers import url
from support.polling import wait_until

from medport_local.serving.guard import Guard
from medport_local.serving.outcome import Outcome


def test_outcome_of_each_kind_of_end(
    wide: httpx.Client, narrow: httpx.Client, address: tuple[str, int], outcomes: list[Outcome]
) -> None:
    wide.post("/echo", json={})
    wide.post("/echo", content=b"{")
    narrow.get("/endpoints/medsiglip")
    httpx.get(f"{url(address)}/list")
    with wide.stream("POST", "/stream", json={"count": 2000}) as answer:
        next(answer.iter_lines())

    wait_until(lambda: len(outcomes) == 5)
    found = [(each.route, each.status, each.code, each.key) for each in outcomes]
    assert found == [
        ("/echo", 200, None, "wide"),
        ("/echo", 400, "INVALID_ARGUMENT", "wide"),
        ("/endpoints/{endpoint}", 403, "PERMISSION_DENIED", None),
        ("/list", 401, "UNAUTHENTICATED", None),
        ("/stream", 200, None, "wide"),
    ]


def test_observer_that_fails_harms_nobody(
    wide: httpx.Client, the_guard: Guard, caplog: pytest.LogCaptureFixture, outcomes: list[Outcome]
) -> None:
    def fails(outcome: Outcome) -> None:
        raise ValueError("CANARY")

    the_guard.observers = (fails, outcomes.append)

    assert wide.post("/echo", json={}).status_code == 200
    wait_until(lambda: len(outcomes) == 1)
    assert "ValueError" in caplog.text
    assert "CANARY" not in caplog.text


def test_line_of_the_log_in_json(wide: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    from medport_local.serving.logs import JsonFormatter

    caplog.set_level(logging.INFO)
    wide.post("/echo?CANARY", json={"a": "CANARY"}, headers={"X-Request-Id": "j1"})

    def lines() -> list[logging.LogRecord]:
        return [record for record in list(caplog.records) if record.name == "medport_local.access"]

    wait_until(lambda: len(lines()) == 1)
    line = json.loads(JsonFormatter().format(lines()[0]))
    assert {name: line[name] for name in ("route", "status", "request_id", "key", "endpoint", "bytes_in")} == {
        "route": "/echo", "status": 200, "request_id": "j1", "key": "wide", "endpoint": "medgemma", "bytes_in": 14,
    }  # fmt: skip
    assert line["ms"] >= 0
    assert "CANARY" not in json.dumps(line)


@pytest.mark.parametrize("form", ["text", "json"])
def test_log_tells_of_an_exception_only_the_type(form: str) -> None:
    from medport_local.serving.logs import formatter

    make: Callable[[str], logging.Formatter] = formatter  # type: ignore[assignment]
    try:
        raise ValueError("CANARY")
    except ValueError:
        import sys

        record = logging.LogRecord("asyncio", logging.ERROR, "f", 1, "it failed", None, sys.exc_info())

    said = make(form).format(record)

    assert "it failed" in said
    assert "ValueError" in said
    assert "CANARY" not in said
