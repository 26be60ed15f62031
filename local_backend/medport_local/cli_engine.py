"""``medport engine``: whether another engine may serve a snapshot on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from medport.errors import EXIT_FAILED, ConfigError
from medport_local import cli_options as options
from medport_local.byte_sizes import parse_size

if TYPE_CHECKING:
    from medport_local.engine.vllm_gate import GateReport

_EXAMPLE = "Example: medport engine verify --snapshot /models/medgemma-4b-it"
app = typer.Typer(help="Test another engine with a snapshot.", no_args_is_help=True)


@app.callback()
def _engine() -> None:
    """Test another engine with a snapshot."""


@app.command("verify", epilog=_EXAMPLE)
def verify(
    snapshot: Annotated[Path, typer.Option(metavar="DIR", help="A MedGemma snapshot.")],
    engine_state: options.EngineState = None,
    dtype: Annotated[str, typer.Option(metavar="bfloat16|float32", help="As it will serve.")] = "bfloat16",
    kv_cache: options.KvCache = None,
    reuse: Annotated[
        str, typer.Option(metavar="SIZE", help="As it will serve; above 0 vLLM's prefix cache is on.")
    ] = "0",
    as_json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False,
) -> None:
    """Compare vLLM with transformers on this snapshot, this machine and these settings, and keep the record.

    serve --engine vllm takes a snapshot only with a record that was passed. Both models are in memory meanwhile.
    """
    if dtype not in ("bfloat16", "float32"):
        raise ConfigError("is not known", field="dtype", remedy="give bfloat16 or float32")
    chosen = cast('Literal["bfloat16", "float32"]', dtype)
    kv_bytes = None if kv_cache is None else parse_size(kv_cache, field="kv-cache")
    reuse_bytes = parse_size(reuse, field="reuse")
    state = engine_state or options.default_state()
    # Imported when all this is right: torch takes seconds.
    from medport_local.engine.engine import EngineLimits
    from medport_local.engine.loading import load_gemma
    from medport_local.engine.vllm_opening import place_of, verify_vllm
    from medport_local.snapshot import open_snapshot

    limits = EngineLimits(kv_bytes=kv_bytes, reuse_bytes=reuse_bytes)
    opened = open_snapshot(snapshot, defer_weights=True)
    if opened.family != "medgemma":
        raise ConfigError(f"is a {opened.family}", field="snapshot", remedy="give a MedGemma snapshot")
    place_of(limits, chosen)  # before the weights are loaded: is there a vLLM at all?
    report = verify_vllm(load_gemma(opened, dtype=chosen), opened, state=state, limits=limits, dtype=chosen)
    typer.echo(json.dumps(report.model_dump()) if as_json else "\n".join(_lines(report)))
    raise typer.Exit(0 if report.passed else EXIT_FAILED)


def _lines(report: GateReport) -> list[str]:
    place = report.place
    return [
        f"{report.model_id}, {report.snapshot_sha256[:12]}, vLLM {place.version}, {place.dtype}, {place.device}",
        *(f"  {each.name}: {each.equal} of {each.tokens} tokens equal, {each.ties} ties" for each in report.cases),
        f"{'passed' if report.passed else 'failed'}: {report.reason}",
    ]
