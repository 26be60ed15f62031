"""Does the engine keep its declared memory, and its speed, under three times the load that it can take?

First the peak: more callers than places, each asking again when it is answered. Then Poisson arrivals at three
times that rate, of tenants with unequal shares; some callers leave early. Whoever is refused (QuotaExceeded,
HTTP's 429) is counted and does not come back. Goodput is tokens a second of answers that were delivered whole.

Memory is this process's, load generator included, over a baseline taken after a small engine of the same model
has run and closed: so the libraries' own memory is in the baseline. It may grow by what the engine declares
(keys, values and what is kept for reuse) and by --allowance-mib for the steps' activations.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import random
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import harness
from overload_plot import plot

from medport.errors import MedportError, QuotaExceeded
from medport_local.bench.report import percentile
from medport_local.bench.rivals import plain_ids
from medport_local.bench.template import with_template
from medport_local.bench.worker import memory
from medport_local.engine.engine import EngineLimits, TorchEngine
from medport_local.engine.loading import Gemma, load_gemma
from medport_local.engine.sequence import GenerationRequest, Sampling
from medport_local.phantom import weights_dir
from medport_local.snapshot import Snapshot, open_snapshot

SHARES = {"ward": 0.55, "archive": 0.3, "research": 0.1, "night": 0.05}
LEAVES = 0.05
"""Share of the callers who are gone after a few tokens."""
SAMPLE_S = 0.5
LONGEST = (256, 64)
"""Tokens of the longest prompt and answer."""


@dataclass
class Load:
    """The requests, and what became of them."""

    engine: TorchEngine
    ids: tuple[int, int]
    source: random.Random
    outcomes: Counter[str] = field(default_factory=Counter)
    by_tenant: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in SHARES})
    good_tokens: int = 0
    first_s: list[float] = field(default_factory=list)
    retry_after_s: list[float] = field(default_factory=list)

    def drawn(self) -> GenerationRequest:
        """A request as they come: mostly short ones."""
        source = self.source
        prompt = round(32 * (LONGEST[0] / 32) ** source.random())
        return GenerationRequest(
            tokens=tuple(source.randrange(*self.ids) for _ in range(prompt)),
            sampling=Sampling(max_tokens=source.randint(8, LONGEST[1]), ignore_eos=True),
            tenant=source.choices(list(SHARES), list(SHARES.values()))[0],
        )

    async def one(self, request: GenerationRequest, *, leave: bool = False) -> None:
        """Ask once."""
        outcome, began, count = "whole", time.monotonic(), 0
        try:
            async with contextlib.aclosing(aiter(self.engine.submit(request))) as events:  # type: ignore[type-var]
                async for event in events:
                    if not count:
                        self.first_s.append(time.monotonic() - began)
                    count = event.completion_tokens
                    if leave and count >= 3:
                        outcome = "left"
                        break
        except QuotaExceeded as refusal:
            outcome = "refused"
            self.retry_after_s.append(refusal.retry_after_s or 0.0)
        except MedportError as error:
            outcome = type(error).__name__
        self.outcomes[outcome] += 1
        self.by_tenant[request.tenant][outcome] += 1
        if outcome == "whole":
            self.good_tokens += count
            self.by_tenant[request.tenant]["tokens"] += count


@dataclass(frozen=True)
class Moment:
    """One look at the engine."""

    at_s: float
    rss_bytes: int
    kv_bytes_used: int
    reuse_bytes_used: int
    running: int
    queued: int
    good_tokens: int
    refused: int


def main() -> None:
    given = _arguments()
    with with_template(given.snapshot or weights_dir("medgemma")) as folder:
        snapshot = open_snapshot(folder)
        gemma = load_gemma(snapshot, device="cpu")
    ids = plain_ids(snapshot)
    asyncio.run(_warm_up(gemma, snapshot, ids))
    gc.collect()
    baseline = _rss()
    limits = EngineLimits(
        max_running=given.running,
        max_queue=64,
        kv_bytes=given.kv_mib * 2**20 if given.kv_mib else None,
        reuse_bytes=given.reuse_mib * 2**20,
    )
    engine = TorchEngine(gemma, snapshot, limits=limits)
    try:
        found = asyncio.run(_measured(engine, ids, baseline, given))
    finally:
        engine.close()
    path = given.json or Path("out/benchmarks/engine_overload.json")
    harness.report(__doc__, _table(found), path, notes=_verdicts(found))
    written = json.loads(path.read_text())
    path.write_text(json.dumps(written | {"overload": found}, indent=1) + "\n")
    path.with_suffix(".svg").write_text(plot(found))
    print(f"  {path}, {path.with_suffix('.svg')}")
    if any(line.startswith("MISSED") for line in _verdicts(found)):
        sys.exit(1)


async def _warm_up(gemma: Gemma, snapshot: Snapshot, ids: tuple[int, int]) -> None:
    small = TorchEngine(gemma, snapshot, limits=EngineLimits(max_running=2))
    load = Load(small, ids, random.Random(0))
    long = GenerationRequest(
        tokens=tuple(range(ids[0], ids[0] + LONGEST[0])), sampling=Sampling(max_tokens=4, ignore_eos=True)
    )
    load.by_tenant[""] = Counter()
    await asyncio.gather(*(load.one(long) for _ in range(4)))
    small.close()


async def _measured(
    engine: TorchEngine, ids: tuple[int, int], baseline: int, given: argparse.Namespace
) -> dict[str, Any]:
    callers, warm_s = 2 * given.running, min(5.0, given.calibrate_s / 4)
    print(f"peak: {given.calibrate_s:.0f} s with {callers} callers", flush=True)
    closed = Load(engine, ids, random.Random(given.seed))
    asking = asyncio.create_task(_closed_loop(closed, callers, warm_s + given.calibrate_s))
    await asyncio.sleep(warm_s)
    before = closed.good_tokens, closed.outcomes["whole"]
    await asyncio.sleep(given.calibrate_s)
    peak = (closed.good_tokens - before[0]) / given.calibrate_s
    whole = (closed.outcomes["whole"] - before[1]) / given.calibrate_s
    await asking
    rate = given.overload * whole
    print(f"peak {peak:.0f} tokens/s; now {rate:.1f} arrivals/s for {given.minutes:g} minutes", flush=True)
    load = Load(engine, ids, random.Random(given.seed + 1))
    moments: list[Moment] = []
    watching = asyncio.create_task(_watch(load, moments))
    began = time.monotonic()
    await _open_loop(load, rate, 60 * given.minutes)
    took = time.monotonic() - began
    watching.cancel()
    footprint = engine.footprint
    first, retry = sorted(load.first_s), load.retry_after_s
    return {
        "settings": {key: str(value) for key, value in vars(given).items()},
        "peak_tokens_per_s": peak,
        "arrivals_per_s": rate,
        "seconds": took,
        "goodput_tokens_per_s": _goodput(moments),
        "outcomes": dict(load.outcomes),
        "by_tenant": {name: dict(counts) for name, counts in load.by_tenant.items()},
        "first_token_s": {"median": percentile(first, 50), "p99": percentile(first, 99)},
        "retry_after_s": {"least": min(retry, default=None), "most": max(retry, default=None)},
        "baseline_rss_bytes": baseline,
        "declared_kv_bytes": footprint.kv_bytes,
        "declared_bytes": footprint.total_bytes,
        "reuse_bytes": engine.limits.reuse_bytes,
        "allowance_bytes": given.allowance_mib * 2**20,
        "stats": asdict(engine.stats()),
        "moments": [asdict(moment) for moment in moments],
    }


async def _closed_loop(load: Load, callers: int, seconds: float) -> None:
    """So many callers who ask again at once; ends when the last of them is answered."""
    began = time.monotonic()

    async def ask() -> None:
        while time.monotonic() - began < seconds:
            await load.one(load.drawn())

    await asyncio.gather(*(ask() for _ in range(callers)))


async def _open_loop(load: Load, rate: float, seconds: float) -> None:
    """Poisson arrivals; those that are still waiting at the end are dropped."""
    began = due = time.monotonic()
    tasks: set[asyncio.Task[None]] = set()
    said = began
    while (now := time.monotonic()) - began < seconds:
        due += load.source.expovariate(rate)
        await asyncio.sleep(max(0.0, due - now))
        task = asyncio.create_task(load.one(load.drawn(), leave=load.source.random() < LEAVES))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        if now - said > 30:
            said = now
            shown = ", ".join(f"{name} {count}" for name, count in load.outcomes.items())
            print(f"  {now - began:5.0f} s: {load.good_tokens / (now - began):.0f} tokens/s; {shown}", flush=True)
    for task in list(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(load: Load, moments: list[Moment]) -> None:
    began = time.monotonic()
    while True:
        stats = load.engine.stats()
        moments.append(
            Moment(
                time.monotonic() - began,
                _rss(),
                stats.kv_bytes_used,
                stats.reuse_bytes_used,
                stats.running,
                stats.queued,
                load.good_tokens,
                load.outcomes["refused"],
            )
        )
        await asyncio.sleep(SAMPLE_S)


def _goodput(moments: list[Moment]) -> float:
    """Tokens a second from when the queue had filled, a tenth of the run."""
    start, end = moments[len(moments) // 10], moments[-1]
    return (end.good_tokens - start.good_tokens) / (end.at_s - start.at_s)


def _verdicts(found: dict[str, Any]) -> list[str]:
    moments, mib = found["moments"], 2**20
    grown = max(each["rss_bytes"] for each in moments) - found["baseline_rss_bytes"]
    allowed = found["declared_bytes"] + found["allowance_bytes"]
    used = max(each["kv_bytes_used"] for each in moments)
    kept = max(each["reuse_bytes_used"] for each in moments)
    half = moments[len(moments) // 2 :]
    leak = half[-1]["rss_bytes"] - half[0]["rss_bytes"]
    share = found["goodput_tokens_per_s"] / found["peak_tokens_per_s"]
    odd = {name: n for name, n in found["outcomes"].items() if name not in ("whole", "left", "refused")}
    tests = [
        (grown <= allowed, f"memory grew by {grown / mib:.0f} MiB; declared and allowed {allowed / mib:.0f}"),
        (used <= found["declared_kv_bytes"], f"keys and values: {used} of {found['declared_kv_bytes']} bytes"),
        (kept <= found["reuse_bytes"], f"kept for reuse: {kept} of {found['reuse_bytes']} bytes"),
        (leak <= found["allowance_bytes"] // 4, f"memory over the second half: {leak / mib:+.1f} MiB"),
        (share >= 0.9, f"goodput is {share:.0%} of the peak"),
        (found["outcomes"].get("refused", 0) > 0, f"{found['outcomes'].get('refused', 0)} refused"),
        (not odd, f"other outcomes: {odd or 'none'}"),
    ]
    return [f"{'passed' if passed else 'MISSED'}  {what}" for passed, what in tests]


def _table(found: dict[str, Any]) -> list[harness.Row]:
    count = sum(found["outcomes"].values())
    rates = {"peak": found["peak_tokens_per_s"], "goodput under overload": found["goodput_tokens_per_s"]}
    table = [
        harness.Row("whole answers", how, count, rate, rate, "tok/s", rate / rates["peak"], "peak")
        for how, rate in rates.items()
    ]
    first = found["first_token_s"]
    table.append(harness.Row("first token", "under overload (p99)", count, first["median"], first["p99"], "s"))
    for name, counts in found["by_tenant"].items():
        rate, how = counts.get("tokens", 0) / found["seconds"], f"{name}, {SHARES[name]:.0%} of arrivals"
        table.append(harness.Row("goodput of tenant", how, _requests(counts), rate, rate, "tok/s"))
    return table


def _requests(counts: dict[str, int]) -> int:
    return sum(count for name, count in counts.items() if name != "tokens")


def _rss() -> int:
    size = memory()["resident_bytes"]
    assert size is not None, "this system does not tell a process's memory"
    return size


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="default 10")
    parser.add_argument("--calibrate-s", type=float, default=30.0, help="seconds that the peak is measured")
    parser.add_argument("--overload", type=float, default=3.0, help="arrivals by what can be taken (default 3)")
    parser.add_argument("--snapshot", type=Path, help="default the phantom")
    parser.add_argument("--running", type=int, default=16, help="answers written side by side")
    parser.add_argument("--kv-mib", type=int, help="default as the engine chooses")
    parser.add_argument("--reuse-mib", type=int, default=8, help="for prefixes; default 8")
    parser.add_argument("--allowance-mib", type=int, default=64, help="for activations; default 64")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="default out/benchmarks/engine_overload.json, .svg beside it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
