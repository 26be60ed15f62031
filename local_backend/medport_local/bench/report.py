"""From samples to figures: medians, ratios round by round, one table, one JSON object."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from medport_local.bench.rivals import BASELINE
from medport_local.bench.turns import Field, Sample
from medport_local.engine import devices
from medport_local.snapshot import Snapshot

SCHEMA = 1
"""Of the JSON; higher when a key changes its meaning or goes."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one engine."""

    what: str
    how: str
    unit: str
    n: int
    """Values behind it: rounds, or for times between tokens all of them."""
    median: float
    low: float
    high: float
    p99: float | None
    """``None`` below 100 values."""
    ratio: float | None = None
    """Median over the rounds of this engine's figure by the baseline's in the same round."""
    baseline: str | None = None


def rows(samples: Iterable[Sample], *, baseline: str = BASELINE) -> list[Row]:
    """One row for each kind of figure and engine, in the order in which they first came."""
    by_kind: dict[tuple[str, str], dict[str, dict[int, list[float]]]] = {}
    for sample in samples:
        engines = by_kind.setdefault((sample.figure.what, sample.figure.unit), {})
        engines.setdefault(sample.how, {}).setdefault(sample.round, []).extend(sample.figure.values)
    table = []
    for (what, unit), engines in by_kind.items():
        for how, by_round in sorted(engines.items(), key=lambda item: item[0] == baseline):
            values = sorted(value for each in by_round.values() for value in each)
            ratio = None if how == baseline else ratio_of(by_round, engines.get(baseline, {}))
            table.append(
                Row(
                    what,
                    how,
                    unit,
                    len(values),
                    statistics.median(values),
                    values[0],
                    values[-1],
                    percentile(values, 99) if len(values) >= 100 else None,
                    ratio,
                    None if ratio is None else baseline,
                )
            )
    return table


def ratio_of(mine: Mapping[int, Sequence[float]], base: Mapping[int, Sequence[float]]) -> float | None:
    """Median of the ratios of rounds that both have; ``None`` if there is none."""
    both = [statistics.median(mine[i]) / statistics.median(base[i]) for i in mine.keys() & base.keys()]
    return statistics.median(both) if both else None


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of the values do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def lines(table: Sequence[Row], absent: Mapping[str, str]) -> list[str]:
    """The table as text."""
    numbers = " ".join(f"{name:>10}" for name in ("median", "low", "high", "p99"))
    shown = [f"{'what':30} {'how':16} {'n':>4} {numbers} {'unit':9} {'ratio':>6}"]
    for row in table:
        shown.append(
            f"{row.what:30} {row.how:16} {row.n:4} {row.median:10.2f} {row.low:10.2f} {row.high:10.2f} "
            f"{_shown(row.p99, 10)} {row.unit:9} {_shown(row.ratio, 6)}"
        )
    shown += [f"{name}: not measured: {why}" for name, why in absent.items()]
    if any(row.ratio is not None for row in table):
        shown.append(f"ratio: to {BASELINE}, round by round, the median")
    return shown


def as_json(
    table: Sequence[Row],
    there: Field,
    snapshot: Snapshot,
    *,
    settings: Mapping[str, Any],
    samples: Sequence[Sample],
) -> dict[str, Any]:
    """All that belongs to one snapshot's figures."""
    return {
        "snapshot": {
            "model_id": snapshot.model_id,
            "family": snapshot.family,
            "revision": snapshot.revision,
            "snapshot_sha256": snapshot.snapshot_sha256,
        },
        "settings": dict(settings),
        "engines": [
            {
                "name": name,
                "load_s": facts["load_s"],
                "threads": facts["threads"],
                "dtype": facts.get("dtype", there.facts["medport"]["dtype"]),
                "versions": dict(facts["versions"]),
            }
            for name, facts in there.facts.items()
        ],
        "absent": [{"name": name, "why": why} for name, why in there.absent.items()],
        "rows": [asdict(row) for row in table],
        "samples": [
            {
                "what": sample.figure.what,
                "unit": sample.figure.unit,
                "how": sample.how,
                "round": sample.round,
                "values": list(sample.figure.values),
            }
            for sample in samples
        ],
    }


def envelope(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The JSON object of a run: when, on what machine, and one part for each snapshot."""
    return {
        "schema": SCHEMA,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "snapshots": list(parts),
    }


def machine() -> dict[str, Any]:
    """The computer, and how busy it is."""
    cpu = devices.describe(torch.device("cpu"))
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": cpu.name,
        "cpus": os.cpu_count(),
        "memory_bytes": cpu.total_bytes,
        "cards": cards,
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "torch": str(torch.__version__),
    }


def _shown(value: float | None, width: int) -> str:
    return "-".rjust(width) if value is None else f"{value:{width}.2f}"
