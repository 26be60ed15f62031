"""How fast are the engine's products, against torch's linear, and how far from what this machine can do?

Shapes of Gemma 3 1B and 270M, and rows from one decoding sequence to a chunk of a prompt. A step reads each
weight once, so a product is measured on a weight that is not in a cache: it walks through copies of 256 MiB in
all. "dense" and "int8" are ``engine.kernels``; "linear" is ``torch.nn.functional.linear`` in bfloat16. They
alternate. For few rows GB/s of the weight tell how near a product is to the memory's limit, for many GFLOP/s to
the processor's; both limits are measured in the same run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import harness
import torch
import torch.nn.functional as F
from torch import Tensor

from medport_local.engine.kernels import Dense, Int8, Linear

SHAPES = {
    "1b q": (1152, 1024),
    "1b up": (1152, 6912),
    "1b down": (6912, 1152),
    "1b head": (1152, 262_208),
    "270m up": (640, 2048),
}
"""``in`` and ``out``."""
ROWS = (1, 4, 16, 64, 512)
FEW = 32
"""Up to so many rows the figure is GB/s."""
COLD_BYTES = 256 * 2**20
MAX_HEAD_ROWS = 16
"""The head makes logits of one row for each sequence, never of a whole chunk."""
LINEAR = "linear"


class Plain:
    """torch's own product."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self.nbytes = weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight)


def main() -> None:
    given = _arguments()
    torch.manual_seed(0)
    with torch.inference_mode():
        limits = {"GB/s": read_bandwidth(), "GFLOP/s": gemm_peak(torch.bfloat16)}
        table = []
        for name, count in itertools.product(given.shapes, given.rows):
            if name.endswith("head") and count > MAX_HEAD_ROWS:
                continue
            for row in _measured(name, count, given.rounds):
                share = row.median / limits[row.unit]
                print(f"{row.what:22} {row.how:8} {row.median:9.1f} {row.unit:8} {share:5.0%}", flush=True)
                table.append(row)
            # Again and again: a moment in which the machine did something else must not stay its limit.
            limits["GB/s"] = max(limits["GB/s"], read_bandwidth())
            limits["GFLOP/s"] = max(limits["GFLOP/s"], gemm_peak(torch.bfloat16))
    top = [
        harness.Row("this machine", how, len(table), limits[unit], limits[unit], unit)
        for how, unit in (("read, best of all", "GB/s"), ("bfloat16 GEMM, best of all", "GFLOP/s"))
    ]
    shares = [f"{row.what}, {row.how}: {row.median / limits[row.unit]:.0%} of the limit" for row in table]
    notes = [
        "p95: the slowest round; ratio: rates, to linear",
        f"cold weights: copies of {COLD_BYTES >> 20} MiB in all; int8's GB/s are of int8 bytes",
    ]
    harness.report(__doc__, [*top, *table], given.json, notes=[*notes, *shares])


def _measured(name: str, count: int, rounds: int) -> list[harness.Row]:
    size_in, size_out = SHAPES[name]
    x = torch.randn(count, size_in, dtype=torch.bfloat16)
    weight = torch.randn(size_out, size_in, dtype=torch.bfloat16) * 0.02
    makes: dict[str, Callable[[], Linear]] = {
        LINEAR: lambda: Plain(weight.clone()),
        "dense": lambda: Dense(weight.clone()),
        "int8": lambda: _int8(weight),
    }
    copies = max(1, -(-COLD_BYTES // weight.nbytes))
    turns: dict[str, Iterator[Linear]] = {
        how: itertools.cycle([make() for _ in range(copies)]) for how, make in makes.items()
    }
    repeats = 1 if name.endswith("head") or count > FEW else 4
    seconds: dict[str, list[float]] = {how: [] for how in makes}
    names = list(makes)
    for i in range(1 + rounds):
        for how in names[i % 3 :] + names[: i % 3]:
            products = [next(turns[how]) for _ in range(repeats)]
            began = time.perf_counter()
            for product in products:
                product(x)
            if i:
                seconds[how].append((time.perf_counter() - began) / repeats)
    work = 2 * count * size_in * size_out / 1e9
    rates = {}
    for how, times in seconds.items():
        amount = next(turns[how]).nbytes / 1e9 if count <= FEW else work
        rates[how] = [amount / each for each in times]
    return [
        harness.Row(
            f"{name}, {count} rows",
            how,
            rounds,
            statistics.median(each),
            min(each),
            "GB/s" if count <= FEW else "GFLOP/s",
            statistics.median(b / m for m, b in zip(seconds[how], seconds[LINEAR], strict=True)),
            LINEAR,
        )
        for how, each in rates.items()
    ]


def _int8(weight: Tensor) -> Int8:
    scale = weight.float().abs().amax(dim=1).clamp_min(1e-12) / 127
    return Int8((weight.float() / scale[:, None]).round().to(torch.int8), scale)


def read_bandwidth() -> float:
    """GB/s of reading 512 MiB once: the fastest of a sum and of a product with one vector."""
    numbers = torch.ones(128 * 2**20)
    matrix, vector = numbers.view(2**15, -1), torch.ones(2**12)
    best = _best([lambda: numbers.sum(), lambda: matrix @ vector])
    return numbers.nbytes / best / 1e9


def gemm_peak(dtype: torch.dtype) -> float:
    """GFLOP/s of the best square product."""
    found = []
    for size in (1024, 2048):
        a, b = torch.randn(2, size, size, dtype=torch.float32).to(dtype)
        found.append(2 * size**3 / _best([lambda a=a, b=b: a @ b]) / 1e9)  # type: ignore[misc]
    return max(found)


def _best(cases: Sequence[Callable[[], object]]) -> float:
    times = []
    for _ in range(5):
        for case in cases:
            began = time.perf_counter()
            case()
            times.append(time.perf_counter() - began)
    return min(times)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="default 15")
    parser.add_argument(
        "--shapes", type=lambda text: text.split(","), default=list(SHAPES), help=", ".join(SHAPES)
    )
    parser.add_argument("--rows", type=lambda text: [int(each) for each in text.split(",")], default=list(ROWS))
    parser.add_argument("--json", type=Path, help="default out/benchmarks/kernels.json")
    given = parser.parse_args()
    if not set(given.shapes) <= set(SHAPES):
        parser.error(f"--shapes: of {json.dumps(list(SHAPES))}")
    return given


if __name__ == "__main__":
    main()
