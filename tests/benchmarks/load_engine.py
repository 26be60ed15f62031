"""How long from a snapshot on disk to the first token, and how much memory at the peak, against from_pretrained?

Each load is a process of its own, and the two take turns. Files are in the page cache after the first round,
which does not count. "load" begins when the libraries are imported and ends when the engine takes requests;
medport hashes every byte meanwhile. The first token is that of a prompt of 16 tokens. The peak is that of the
whole process, the libraries' own memory included ("imported" is that alone).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import harness

MEDPORT, TRANSFORMERS = "medport", "transformers from_pretrained"
PROMPT = 16
UNITS = {"import": "s", "load": "s", "first token": "s", "imported": "MiB", "peak": "MiB"}


def main() -> None:
    given = _arguments()
    if given.child:
        found = _medport(given.snapshot, given.dtype) if given.child == MEDPORT else _transformers(given)
        print(json.dumps(found))
        return
    from medport_local.phantom import weights_dir

    directories = {"phantom": weights_dir("medgemma")}
    if real := os.environ.get("MEDPORT_GEMMA_270M"):
        directories["270m"] = Path(real)
    if given.snapshot:
        directories = {given.snapshot.name: given.snapshot}
    table: list[harness.Row] = []
    notes = []
    for name, directory in directories.items():
        weights = sum(file.stat().st_size for file in directory.glob("*.safetensors")) / 2**20
        rounds: dict[str, list[dict[str, float]]] = {MEDPORT: [], TRANSFORMERS: []}
        for i in range(1 + given.rounds):
            for how in sorted(rounds, reverse=bool(i % 2)):
                found = _child(how, directory, given.dtype)
                print(f"{name:12} {how:30} " + ", ".join(f"{k} {v:.2f}" for k, v in found.items()), flush=True)
                if i:
                    rounds[how].append(found)
        table += _rows(name, rounds)
        notes.append(f"{name}: {weights:.0f} MiB of weights")
    harness.report(__doc__, table, given.json, notes=notes)


def _rows(name: str, rounds: dict[str, list[dict[str, float]]]) -> list[harness.Row]:
    table = []
    for key, unit in UNITS.items():
        for how, found in rounds.items():
            values = sorted(each[key] for each in found)
            ratio = statistics.median(
                mine[key] / base[key] for mine, base in zip(found, rounds[TRANSFORMERS], strict=True)
            )
            table.append(
                harness.Row(
                    f"{name} {key}",
                    how,
                    len(values),
                    statistics.median(values),
                    harness.percentile(values, 95),
                    unit,
                    ratio,
                    TRANSFORMERS,
                )
            )
    return table


def _child(how: str, directory: Path, dtype: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", how, "--snapshot", str(directory), "--dtype", dtype]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _medport(directory: Path, dtype: Any) -> dict[str, float]:
    began = time.perf_counter()
    from medport_local.bench.template import with_template
    from medport_local.bench.worker import memory
    from medport_local.engine.engine import TorchEngine
    from medport_local.engine.loading import load_gemma
    from medport_local.engine.sequence import GenerationRequest, Sampling
    from medport_local.snapshot import open_snapshot

    found = {"import": time.perf_counter() - began, "imported": _mib(memory()["peak_bytes"])}
    with with_template(directory) as folder:
        began = time.perf_counter()
        snapshot = open_snapshot(folder, defer_weights=True)
        engine = TorchEngine(load_gemma(snapshot, dtype=dtype, device="cpu"), snapshot)
    found["load"] = time.perf_counter() - began

    async def first() -> None:
        request = GenerationRequest(tokens=tuple(range(3, 3 + PROMPT)), sampling=Sampling(max_tokens=1))
        async for _ in engine.submit(request):
            pass

    began = time.perf_counter()
    asyncio.run(first())
    found |= {"first token": time.perf_counter() - began, "peak": _mib(memory()["peak_bytes"])}
    engine.close()
    return found


def _transformers(given: argparse.Namespace) -> dict[str, float]:
    began = time.perf_counter()
    import torch
    import transformers

    from medport_local.bench.worker import memory

    config = json.loads((given.snapshot / "config.json").read_text())
    model_class = getattr(transformers, config["architectures"][0])
    dtype = given.dtype
    if dtype == "auto":
        small = (given.snapshot / "model.safetensors").stat().st_size < 400 * 2**20
        dtype = "float32" if small else "bfloat16"
    found = {"import": time.perf_counter() - began, "imported": _mib(memory()["peak_bytes"])}
    began = time.perf_counter()
    model = model_class.from_pretrained(given.snapshot, dtype=getattr(torch, dtype), local_files_only=True).eval()
    transformers.AutoTokenizer.from_pretrained(given.snapshot, local_files_only=True)
    found["load"] = time.perf_counter() - began
    began = time.perf_counter()
    model.generate(torch.arange(3, 3 + PROMPT)[None], max_new_tokens=1, do_sample=False, pad_token_id=0)
    return found | {"first token": time.perf_counter() - began, "peak": _mib(memory()["peak_bytes"])}


def _mib(size: int | None) -> float:
    return (size or 0) / 2**20


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="that count; one more warms up (default 5)")
    parser.add_argument("--snapshot", type=Path, help="default the phantom, and MEDPORT_GEMMA_270M")
    parser.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--json", type=Path, help="default out/benchmarks/load_engine.json")
    parser.add_argument("--child", choices=(MEDPORT, TRANSFORMERS), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
