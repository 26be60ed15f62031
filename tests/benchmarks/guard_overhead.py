"""What do keys, limits, metrics, traces and the audit log cost a request: ms at the door, without HTTP?

The same handler behind an open door, and behind doors that check a key among a hundred, count a rate, measure,
trace and write a line; then requests that are refused. No socket: the ASGI application is called as it is.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import alternate, arguments, report, rows
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from medport_local.serving import keys
from medport_local.serving.audit import AuditLog
from medport_local.serving.exchange import JSON, Door, Exchange
from medport_local.serving.guard import Guard
from medport_local.serving.keyring import KeyRing
from medport_local.serving.lifecycle import Lifecycle
from medport_local.serving.observe import Metrics
from medport_local.serving.traces import Traces

BODY = b'{"messages": [{"role": "user", "content": "' + b"describe " * 100 + b'"}]}'
ANSWER = {"choices": [{"message": {"content": "no acute finding " * 50}}]}
EACH = 50
"""Requests in one sample: one is too short for the clock."""


async def handler(exchange: Exchange) -> JSON:
    exchange.permit("medgemma")
    await exchange.json()
    exchange.facts.endpoint, exchange.facts.deployed_model = "medgemma", "1"
    exchange.facts.operation, exchange.facts.completion_tokens = "chat", 200
    exchange.first_token()
    return JSON(ANSWER)


def asked(door: Door, key: str, expected: int) -> Callable[[], None]:
    headers = [(b"host", b"x"), (b"content-type", b"application/json"), (b"x-goog-api-key", key.encode())]
    scope: dict[str, Any] = {
        "type": "http", "method": "POST", "path": "/x", "raw_path": b"/x", "query_string": b"",
        "headers": headers, "path_params": {}, "server": ("127.0.0.1", 8443),
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == expected

    async def run() -> None:
        for _ in range(EACH):
            await door(dict(scope), receive, send)

    return lambda: loop.run_until_complete(run())


options = arguments(__doc__, rounds=60)
loop = asyncio.new_event_loop()
logging.getLogger("medport_local.access").setLevel(logging.INFO)
logging.getLogger("medport_local.access").addHandler(logging.NullHandler())
logging.getLogger("medport_local.access").propagate = False

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "keys.json"
    for i in range(97):
        keys.add(file, f"key{i}")
    good, reader = keys.add(file, "good", rate="999999999/s"), keys.add(file, "reader", actions=["read"])
    slow = keys.add(file, "slow", rate="1/d")
    ring = KeyRing(file=file)
    provider = TracerProvider()
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    metrics, traces = Metrics(dict, Lifecycle()), Traces(provider)
    audit = AuditLog(Path(folder) / "audit")
    guards = {
        "open door": Guard(),
        "keys and rate": Guard(keys=ring),
        "metrics": Guard(observers=(metrics,)),
        "traces": Guard(observers=(traces, lambda _: exporter.clear())),
        "audit": Guard(audit=audit),
        "keys, rate, metrics, audit": Guard(keys=ring, observers=(metrics,), audit=audit),
    }
    served = {how: asked(Door("/x", handler, "infer", guard), good, 200) for how, guard in guards.items()}
    everything = guards["keys, rate, metrics, audit"]
    refused = {
        "open door": served["open door"],
        "wrong key": asked(Door("/x", handler, "infer", everything), "wrong", 401),
        "wrong scope": asked(Door("/x", handler, "infer", everything), reader, 403),
        "rate used up": asked(Door("/x", handler, "infer", everything), slow, 429),
    }
    loop.run_until_complete(Door("/x", handler, "infer", everything)(
        {"type": "http", "method": "POST", "path": "/x", "headers": [(b"x-goog-api-key", slow.encode())],
         "path_params": {}},
        lambda: asyncio.sleep(0, {"type": "http.request", "body": BODY}),  # type: ignore[arg-type]
        lambda _: asyncio.sleep(0),
    ))  # fmt: skip
    table = rows(f"{EACH} served", alternate(served, options.rounds, 5), "open door")
    table += rows(f"{EACH} refused", alternate(refused, options.rounds, 5), "open door")
    audit.close()

base = table[0].median
notes = [f"{row.how}: {(row.median - base) / EACH * 1e3:.0f} us more than an open door" for row in table[1:6]]
notes += [f"{row.how}: {row.median / EACH * 1e3:.0f} us to refuse" for row in table[7:]]
report(__doc__, table, options.json, notes=notes)
