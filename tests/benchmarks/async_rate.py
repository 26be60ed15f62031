"""How many short chats a second at 16 in flight, against the same HTTP library with ready bytes?

One event loop, loopback TLS to a server that answers at once. A round is a number of calls shared by 16 workers;
the clients alternate round by round. "aiplatform predict_async" makes a TLS context, a session and a token at
every call, so its rounds are shorter. It takes its trust from certifi alone, which is told of the test's CA.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import statistics
import time
from collections.abc import Awaitable, Callable

import canned
import certifi
import harness
import httpx
from sdk_overhead import HEADERS, PROMPT, aiplatform_endpoint

import medport
from medport.tasks import chat as chat_task

IN_FLIGHT = 16
CALLS, SLOW_CALLS = 800, 80
HTTPX, MEDPORT, AIPLATFORM = "httpx, ready bytes", "medport", "aiplatform predict_async"
Calls = dict[str, tuple[Callable[[], Awaitable[object]], int]]


def main() -> None:
    given = harness.arguments(__doc__, rounds=25)
    with canned.serving() as server:
        os.environ["REQUESTS_CA_BUNDLE"] = server.ca_file
        certifi.where = lambda: server.ca_file
        rates = asyncio.run(_measured(server, given.rounds))
    table = [_row(how, rates) for how in rates]
    notes = [
        f"{IN_FLIGHT} in flight; n: rounds of {CALLS} calls ({SLOW_CALLS} of predict_async)",
        "p95: 19 rounds of 20 are faster than this",
    ]
    harness.report(__doc__, table, given.json, notes=notes)


def _row(how: str, rates: dict[str, list[float]]) -> harness.Row:
    mine, base = rates[how], rates[HTTPX]
    ratio = statistics.median(m / b for m, b in zip(mine, base, strict=True))
    slow = harness.percentile(sorted(mine), 5)
    return harness.Row("short chat", how, len(mine), statistics.median(mine), slow, "/s", ratio, HTTPX)


async def _measured(server: canned.Server, rounds: int) -> dict[str, list[float]]:
    context = ssl.create_default_context(cafile=server.ca_file)
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
    endpoint = aiplatform_endpoint(server, canned.CHAT)
    body = b"".join(chat_task.call(PROMPT, (), {}, stream=False).body)
    url = server.predict_url(canned.CHAT)
    instance = {
        "@requestFormat": "chatCompletions",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 1024,
        "temperature": 0.0,
    }
    async with (
        medport.AsyncClient(**server.profile()) as client,
        httpx.AsyncClient(verify=context, timeout=600, limits=limits) as bare,
    ):
        calls: Calls = {
            HTTPX: (lambda: bare.post(url, content=body, headers=HEADERS), CALLS),
            MEDPORT: (lambda: client.chat(PROMPT), CALLS),
            AIPLATFORM: (lambda: endpoint.predict_async(instances=[instance]), SLOW_CALLS),
        }
        return await _alternated(calls, rounds)


async def _alternated(calls: Calls, rounds: int) -> dict[str, list[float]]:
    """Calls a second, by round; the first round warms up and does not count."""
    names = list(calls)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for i in range(1 + rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            rate = await _rate(*calls[name])
            if i > 0:
                rates[name].append(rate)
    return rates


async def _rate(call: Callable[[], Awaitable[object]], count: int) -> float:
    left = iter(range(count))

    async def work() -> None:
        for _ in left:
            await call()

    began = time.perf_counter()
    await asyncio.gather(*[work() for _ in range(IN_FLIGHT)])
    return count / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
