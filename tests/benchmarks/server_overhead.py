"""What does the server cost beside the engine: ms a request, requests a second, and for a request it refuses?

The server is a process of its own on loopback, without TLS, with a key. "bare engine" renders, tokenises and
generates in this process; "server" does the same behind HTTP: the difference of the medians is the overhead. The
no-op engine answers at once, so that requests a second are the server's own limit on one core.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import harness
import httpx

from medport.wire.chat import Message
from medport_local.app import Settings
from medport_local.engine.engine import TorchEngine
from medport_local.engine.sequence import GenerationRequest, Sampling
from medport_local.fixed_models import open_one

HERE = Path(__file__).parent
KEY = {"Authorization": "Bearer a-key-of-some-length"}
PATH = "/v1/projects/local/locations/europe-west4/endpoints/medgemma:predict"
PROMPT = "Describe this X-ray."
CHAT = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 1}
IN_FLIGHT, CALLS = 16, 800
REFUSED = {
    "wrong key": ({"instances": [CHAT]}, {"Authorization": "Bearer wrong"}),
    "n of a million": ({"instances": [{**CHAT, "n": 10**6}]}, KEY),
    "no messages": ({"instances": [{}]}, KEY),
    "remote image": (
        {"instances": [{"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]}]}]}, KEY,
    ),
    "hostile schema": (
        {"instances": [{**CHAT, "response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"$ref": "#"}}}}]}, KEY,
    ),
}  # fmt: skip


def main() -> None:
    given = harness.arguments(__doc__, rounds=400)
    with tempfile.TemporaryDirectory() as folder, serving("real") as real, serving("noop") as noop:
        overhead = _overhead(real, noop, given.rounds)
        refusals = _refusals(noop, given.rounds)
        plain = asyncio.run(_rates(noop))
        with serving("noop", "--audit", folder) as audited:
            with_audit = asyncio.run(_rates(audited))
    table = harness.rows("short chat", overhead, "bare engine")
    extra = statistics.median(s.wall_s * 1e3 for s in overhead["server"]) - statistics.median(
        s.wall_s * 1e3 for s in overhead["bare engine"]
    )
    table += [
        harness.Row(
            "refusal", how, len(times), statistics.median(times), harness.percentile(sorted(times), 95), "ms"
        )
        for how, times in refusals.items()
    ]
    table += [
        harness.Row("no-op engine", how, len(rates), statistics.median(rates), min(rates), "/s")
        for how, rates in (("16 in flight", plain), ("16 in flight, audit log", with_audit))
    ]
    notes = [f"overhead of the server: {extra:.2f} ms a request", "p95 of rates: the slowest round"]
    harness.report(__doc__, table, given.json, notes=notes)


@contextmanager
def serving(engine: str, *options: str) -> Iterator[str]:
    command = [sys.executable, str(HERE / "noop_server.py"), "--engine", engine, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
    finally:
        process.terminate()
        process.wait(30)


def _overhead(base: str, noop: str, rounds: int) -> dict[str, list[harness.Sample]]:
    settings = Settings()
    engine = open_one("medgemma", settings.snapshots["medgemma"], settings).engine
    assert isinstance(engine, TorchEngine)
    messages = [Message(role="user", content=PROMPT)]
    loop = asyncio.new_event_loop()

    async def bare() -> None:
        request = GenerationRequest(tokens=engine.prompts.build(messages), sampling=Sampling(max_tokens=1))
        async for _ in engine.submit(request):
            pass

    body = json.dumps({"instances": [CHAT]}).encode()
    with httpx.Client(base_url=base, headers=KEY) as client, httpx.Client(base_url=noop, headers=KEY) as idle:
        cases = {
            "bare engine": lambda: loop.run_until_complete(bare()),
            "server": lambda: client.post(PATH, content=body).raise_for_status(),
            "server, no-op engine": lambda: idle.post(PATH, content=body).raise_for_status(),
        }
        samples = harness.alternate(cases, rounds, 20)
    engine.close()
    loop.close()
    return samples


def _refusals(base: str, rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in REFUSED}
    with httpx.Client(base_url=base) as client:
        for i in range(20 + rounds):
            for name, (body, headers) in REFUSED.items():
                began = time.perf_counter()
                answer = client.post(PATH, json=body, headers=headers)
                if i >= 20:
                    times[name].append((time.perf_counter() - began) * 1e3)
                assert answer.status_code in (400, 401), answer.text
    return times


async def _rates(base: str) -> list[float]:
    body = json.dumps({"instances": [CHAT]}).encode()
    limits = httpx.Limits(max_connections=IN_FLIGHT)
    rates = []
    async with httpx.AsyncClient(base_url=base, headers=KEY, limits=limits) as client:
        for i in range(11):
            left = iter(range(CALLS))

            async def work(left: Iterator[int] = left) -> None:
                for _ in left:
                    (await client.post(PATH, content=body)).raise_for_status()

            began = time.perf_counter()
            await asyncio.gather(*[work() for _ in range(IN_FLIGHT)])
            if i:
                rates.append(CALLS / (time.perf_counter() - began))
    return rates


if __name__ == "__main__":
    main()
