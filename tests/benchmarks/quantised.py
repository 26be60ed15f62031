"""How much faster are int8 weights than bfloat16 ones, for each product and for whole steps?

The goals: 1.6 times as fast for one decoding sequence, and at no number of rows, prefill included, below 0.95.
The ratio is int8's time by bfloat16's of the same round: 0.63 is 1.6 times as fast. Products read weights that are
in no cache, copies of 128 MiB in all. Steps run on Gemma 3 270M, whose directory MEDPORT_GEMMA_270M names, or else
on random weights of its width and depth with a small vocabulary.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.checkpoints import write_text_gemma

from medport_local.engine.blocks import Lease
from medport_local.engine.decoder import Decoder
from medport_local.engine.kernels import Dense, Int8, Linear, Workspace
from medport_local.engine.kvcache import KvCache
from medport_local.engine.loading import load_gemma
from medport_local.engine.quantise import rows_to_int8
from medport_local.snapshot import open_snapshot

SHAPES = {
    "270m q": (640, 1024),
    "270m up": (640, 2048),
    "4b q": (2560, 2048),
    "4b up": (2560, 10_240),
    "4b down": (10_240, 2560),
}
"""``in`` and ``out``."""
ROWS = (1, 2, 4, 8, 16, 64, 512)
SEQUENCES = (1, 4, 16)
CHUNKS = (64, 512)
CONTEXT = 64
COLD_BYTES = 128 * 2**20
BASELINE = "bfloat16"


def main() -> None:
    given = _arguments()
    torch.manual_seed(0)
    table: list[harness.Row] = []
    with torch.inference_mode():
        for name, count in itertools.product(given.shapes, given.rows):
            table += _compared(f"{name}, {count} rows", _products(*SHAPES[name], count), given.rounds)
        if given.steps:
            with tempfile.TemporaryDirectory() as folder:
                full, int8 = _decoders(
                    Path(os.environ.get("MEDPORT_GEMMA_270M") or _random(Path(folder) / "gemma"))
                )
            for count in SEQUENCES:
                cases = {BASELINE: _step(full, count), "int8": _step(int8, count)}
                table += _compared(f"decode, {count} sequences", cases, given.rounds)
            for count in CHUNKS:
                cases = {BASELINE: _chunk(full, count), "int8": _chunk(int8, count)}
                table += _compared(f"prefill, {count} tokens", cases, given.rounds)
    notes = ["ratio: int8's time by bfloat16's, median of the rounds", f"{torch.get_num_threads()} threads"]
    harness.report(__doc__, table, given.json, notes=notes)


def _compared(what: str, cases: dict[str, Callable[[], object]], rounds: int) -> list[harness.Row]:
    found = harness.rows(what, harness.alternate(cases, rounds, warm_up=2), BASELINE)
    int8 = found[-1]
    print(f"{what:28} int8 {int8.median:9.3f} ms, ratio {int8.ratio:.2f}, cpu {int8.cpu_ratio:.2f}", flush=True)
    return found


def _products(columns: int, out: int, count: int) -> dict[str, Callable[[], object]]:
    copies = max(2, COLD_BYTES // (columns * out))
    weight = torch.randn(out, columns).to(torch.bfloat16)
    x = torch.randn(count, columns).to(torch.bfloat16)
    dense = itertools.cycle([Dense(weight.clone()) for _ in range(max(2, copies // 2))])
    int8_weight, scale = rows_to_int8(weight)
    int8 = itertools.cycle([Int8(int8_weight.clone(), scale) for _ in range(copies)])

    def times(products: Iterator[Linear]) -> Tensor:
        return next(products)(x[:])  # other rows to the workspace, so that it splits them each time

    return {BASELINE: lambda: times(dense), "int8": lambda: times(int8)}


def _decoders(folder: Path) -> tuple[Decoder, Decoder]:
    gemma = load_gemma(open_snapshot(folder), device="cpu", dtype="bfloat16")
    model, workspace = gemma.model, Workspace()

    def int8(name: str, module: Any) -> Int8:
        return Int8(*rows_to_int8(module.weight), workspace)

    head = int8("lm_head", model.lm_head)
    return Decoder.of(gemma), Decoder(
        model.model, model.lm_head, lambda name, module: head if name == "lm_head" else int8(name, module), head
    )


def _random(folder: Path) -> Path:
    write_text_gemma(folder, layers=18, hidden=640)
    return folder


def _cache(decoder: Decoder, sequences: int, tokens: int) -> tuple[KvCache, list[Lease]]:
    cache = KvCache(
        decoder.shape,
        slots=sequences,
        tokens=sequences * tokens,
        window=min(tokens, decoder.shape.window),
        dtype=decoder.dtype,
        device=decoder.device,
    )
    return cache, [Lease(slot, slot * tokens, tokens) for slot in range(sequences)]


def _step(decoder: Decoder, sequences: int) -> Callable[[], object]:
    cache, leases = _cache(decoder, sequences, 2 * CONTEXT)
    ids, positions = torch.arange(100, 100 + sequences), [CONTEXT] * sequences

    def step() -> Tensor:
        attend = cache.step(leases, positions)
        return decoder.logits(decoder.forward(decoder.embed(ids), torch.tensor(positions), attend))

    return step


def _chunk(decoder: Decoder, tokens: int) -> Callable[[], object]:
    cache, (lease,) = _cache(decoder, 1, tokens)
    ids = torch.arange(100, 100 + tokens)

    def chunk() -> Tensor:
        attend = cache.chunk(lease, 0, tokens, ())
        return decoder.logits(decoder.forward(decoder.embed(ids), torch.arange(tokens), attend)[-1:])

    return chunk


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="default 15")
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rows", nargs="*", type=int, default=list(ROWS))
    parser.add_argument("--no-steps", dest="steps", action="store_false", help="products only")
    parser.add_argument("--json", type=Path, help="where to write the figures; default out/benchmarks/NAME.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
