"""What the benchmarks share: rounds in which the rivals alternate, paired ratios, one table, one JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "medport",
    "httpx",
    "pydantic",
    "numpy",
    "orjson",
    "tenacity",
    "openai",
    "google-cloud-aiplatform",
    "torch",
    "transformers",
)


@dataclass(frozen=True)
class Sample:
    """One thing done once: by the clock on the wall, and by this process's own."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Row:
    """One line of the table. ``ratio`` is the median over the rounds of this time by the baseline's."""

    what: str
    how: str
    n: int
    median: float
    p95: float
    unit: str
    ratio: float | None = None
    baseline: str | None = None
    cpu_ms: float | None = None
    cpu_ratio: float | None = None


def alternate(cases: Mapping[str, Callable[[], object]], rounds: int, warm_up: int) -> dict[str, list[Sample]]:
    """Do every case once a round, each round from another case on; the first ``warm_up`` do not count."""
    names = list(cases)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for i in range(warm_up + rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            wall, cpu = time.perf_counter(), time.process_time()
            cases[name]()
            sample = Sample(time.perf_counter() - wall, time.process_time() - cpu)
            if i >= warm_up:
                samples[name].append(sample)
    return samples


def rows(what: str, samples: Mapping[str, Sequence[Sample]], baseline: str) -> list[Row]:
    """Milliseconds, each case against ``baseline``, round by round."""
    table = []
    base = samples[baseline]
    for how, mine in samples.items():
        wall = sorted(s.wall_s * 1e3 for s in mine)
        ratio = statistics.median(m.wall_s / b.wall_s for m, b in zip(mine, base, strict=True))
        cpu = statistics.median(s.cpu_s * 1e3 for s in mine)
        cpu_base = statistics.median(s.cpu_s * 1e3 for s in base)
        cpu_ratio = cpu / cpu_base if cpu_base else None
        table.append(
            Row(
                what,
                how,
                len(mine),
                statistics.median(wall),
                percentile(wall, 95),
                "ms",
                ratio,
                baseline,
                cpu,
                cpu_ratio,
            )
        )
    return table


def percentile(ordered: Sequence[float], percent: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def arguments(question: str | None, *, rounds: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"default {rounds}")
    parser.add_argument("--json", type=Path, help="where to write the figures; default out/benchmarks/NAME.json")
    return parser.parse_args()


def report(question: str | None, table: Sequence[Row], path: Path | None, *, notes: Sequence[str] = ()) -> None:
    """Print the table and write the JSON."""
    title = (question or "").strip().splitlines()[0]
    machine, versions = _machine(), _versions()
    print(f"\n{title}\n")
    print(
        f"{'what':34} {'how':44} {'n':>5} {'median':>9} {'p95':>9} {'unit':6} {'ratio':>6} "
        f"{'cpu ms':>8} {'ratio':>6}"
    )
    for row in table:
        print(
            f"{row.what:34} {row.how:44} {row.n:5} {row.median:9.3f} {row.p95:9.3f} {row.unit:6}"
            f" {_shown(row.ratio, 6, 2)} {_shown(row.cpu_ms, 8, 3)} {_shown(row.cpu_ratio, 6, 2)}"
        )
    for note in notes:
        print(f"  {note}")
    print(f"  {machine['processor']}, {machine['cpus']} CPUs, load {machine['load']}, {machine['system']}")
    print("  " + ", ".join(f"{name} {number}" for name, number in versions.items()))
    path = path or Path("out/benchmarks") / f"{Path(sys.argv[0]).stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {
        "question": title,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "versions": versions,
        "notes": list(notes),
        "rows": [asdict(row) for row in table],
    }
    path.write_text(json.dumps(found, indent=1) + "\n")


def _shown(value: float | None, width: int, digits: int) -> str:
    return " " * (width - 1) + "-" if value is None else f"{value:{width}.{digits}f}"


def _machine() -> dict[str, object]:
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "system": f"{platform.system()} {platform.release()}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
