"""Faults around handlers, on a real socket: what a caller sees, and what is not touched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse, Response
from support.doors import serving
from support.running import LoopThread

from medport_local.control.asks import Ask
from medport_local.control.faults import Faults
from medport_local.serving.exchange import JSON, Events, Exchange
from medport_local.serving.faults import with_faults
from medport_local.serving.routes import Route

ENDPOINT = "/v1/projects/{project}/locations/{location}/endpoints/{endpoint}"
URL = "/v1/projects/p/locations/europe-west4/endpoints/reading-room"


class Handlers:
    """What is behind the faults, and what of it ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.closed = 0

    async def predict(self, exchange: Exchange) -> Response:
        exchange.permit(exchange.path["endpoint"])
        body = await exchange.json()
        self.ran.append("predict")
        exchange.facts.endpoint = exchange.path["endpoint"]
        exchange.facts.deployed_model = str(body["turn"])
        return JSON({"deployedModelId": str(body["turn"])})

    async def stream(self, exchange: Exchange) -> Events:
        exchange.permit(exchange.path["endpoint"])
        await exchange.json()
        exchange.facts.deployed_model = "22"

        async def values() -> AsyncGenerator[object, None]:
            yield {"token": 1}

        def close() -> None:
            self.closed += 1

        return Events(values(), close)

    async def health(self, exchange: Exchange) -> Response:
        return PlainTextResponse("ok")

    def table(self) -> tuple[Route, ...]:
        return (
            Route("POST", f"{ENDPOINT}:predict", self.predict, "infer", "predict", "aiplatform.endpoints.predict"),
            Route("POST", f"{ENDPOINT}:streamRawPredict", self.stream, "infer", "streamRawPredict"),
            Route("GET", "/health", self.health, None, "health"),
        )


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def client(loop_thread: LoopThread, handlers: Handlers, faults: Faults) -> Iterator[httpx.Client]:
    table = with_faults(handlers.table(), faults)
    doors = {f"{row.method} {row.path}": (row.handler, row.action) for row in table}
    with (
        serving(loop_thread, doors) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=10) as opened,
    ):
        yield opened


def rule(faults: Faults, **form: Any) -> None:
    handler = next(row.handler for row in faults.rows() if row.operation == "createFault")

    async def work() -> None:
        await handler(Ask(api="v1", body=form))

    asyncio.run(work())


def predict(client: httpx.Client, turn: int = 11) -> httpx.Response:
    return client.post(f"{URL}:predict", json={"turn": turn})


def test_without_rules_the_answer_is_the_handlers(client: httpx.Client) -> None:
    answer = predict(client)

    assert (answer.status_code, answer.json()) == (200, {"deployedModelId": "11"})


def test_a_fault_takes_the_place_of_the_answer_and_the_handler_does_not_run(
    client: httpx.Client, handlers: Handlers, faults: Faults
) -> None:
    rule(faults, times=1, http={"status": 503, "message": "Overloaded.", "retryAfterSeconds": 7})

    first, second = predict(client), predict(client)

    assert first.status_code == 503
    assert first.json() == {"error": {"code": 503, "message": "Overloaded.", "status": "UNAVAILABLE"}}
    assert first.headers["Retry-After"] == "7"
    assert second.status_code == 200
    assert handlers.ran == ["predict"]


def test_a_text_comes_as_plain_text(client: httpx.Client, faults: Faults) -> None:
    rule(
        faults, match={"path": "*:predict"}, http={"status": 429, "text": "Model is not yet ready for inference."}
    )

    answer = predict(client)

    assert (answer.status_code, answer.text) == (429, "Model is not yet ready for inference.")
    assert answer.headers["content-type"].startswith("text/plain")


def test_the_connection_lives_on_after_a_fault_on_a_large_body(client: httpx.Client, faults: Faults) -> None:
    rule(faults, times=1, http={"status": 500})

    first = client.post(f"{URL}:predict", content=b'{"turn": "' + b"x" * 4_000_000 + b'"}')

    assert first.status_code == 500
    assert "close" not in first.headers.get("connection", "")
    assert predict(client).status_code == 200


def test_a_delay_holds_the_answer_up_and_changes_nothing_of_it(
    client: httpx.Client, handlers: Handlers, faults: Faults
) -> None:
    rule(faults, http={"delaySeconds": 0.3})
    begun = time.monotonic()

    answer = predict(client)

    assert time.monotonic() - begun >= 0.3
    assert answer.json() == {"deployedModelId": "11"}
    assert handlers.ran == ["predict"]


def test_a_delay_ends_with_the_callers_deadline(client: httpx.Client, faults: Faults) -> None:
    rule(faults, http={"delaySeconds": 30})

    answer = client.post(f"{URL}:predict", json={"turn": 1}, headers={"X-Request-Timeout-S": "0.2"})

    assert answer.status_code == 504


def test_of_a_split_only_the_model_that_is_named_fails(client: httpx.Client, faults: Faults) -> None:
    rule(faults, match={"deployedModelId": "22"}, http={"status": 500, "message": "The new one is broken."})

    answers = {turn: predict(client, turn).status_code for turn in (11, 22, 33)}

    assert answers == {11: 200, 22: 500, 33: 200}


def test_a_stream_that_is_replaced_is_closed(client: httpx.Client, handlers: Handlers, faults: Faults) -> None:
    rule(faults, times=1, match={"deployedModelId": "22"}, http={"status": 500})

    replaced = client.post(f"{URL}:streamRawPredict", json={})
    closed = handlers.closed
    whole = client.post(f"{URL}:streamRawPredict", json={})

    assert replaced.status_code == 500
    assert closed == 1
    assert whole.status_code == 200
    assert '"token":1' in whole.text


def test_a_late_delay_that_outlives_the_deadline_closes_the_stream(
    client: httpx.Client, handlers: Handlers, faults: Faults
) -> None:
    rule(faults, match={"deployedModelId": "22"}, http={"delaySeconds": 30})

    answer = client.post(f"{URL}:streamRawPredict", json={}, headers={"X-Request-Timeout-S": "0.2"})

    assert answer.status_code == 504
    assert handlers.closed == 1


def test_health_never_meets_a_fault(client: httpx.Client, faults: Faults) -> None:
    rule(faults, http={"status": 500})

    answer = client.get("/health")

    assert (answer.status_code, answer.text) == (200, "ok")
    assert predict(client).status_code == 500
