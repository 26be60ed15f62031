"""``medport quantize``: int8 weights from a MedGemma snapshot, and what they change."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from medport_local.engine.quantise import Quantised

_EXAMPLE = "Example: medport quantize --from /models/medgemma-4b-it --to /models/medgemma-4b-it-int8"


def register(app: typer.Typer) -> None:
    """Add the command ``quantize``."""
    app.command("quantize", epilog=_EXAMPLE)(quantize)


def quantize(
    source: Annotated[Path, typer.Option("--from", metavar="DIR", help="A MedGemma snapshot; it stays as it is.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The new snapshot; must not exist yet.")],
    accept_drift: Annotated[
        bool, typer.Option("--accept-drift", help="Write it although the perplexity rises by more than 2 %.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Where the two are compared: cpu, cuda or cuda:1; CUDA where there is one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False,
) -> None:
    """Make a snapshot with int8 weights: half the memory, and more tokens a second on a CPU.

    Its answers differ from the original's. How much is measured on texts and drawings, printed, and kept in the
    new manifest.json. It is another model to every log and answer: serve it with --snapshot medgemma=DIR.
    """
    # Imported here: torch takes seconds.
    from medport_local.engine.quantise import quantise
    from medport_local.snapshot import open_snapshot

    # What was begun is removed as after Ctrl-C.
    signal.signal(signal.SIGTERM, _terminated)
    shown = _Progress()
    try:
        made = quantise(
            open_snapshot(source, defer_weights=True), to, accept_drift=accept_drift, device=device, progress=shown
        )
    finally:
        shown.end()
    typer.echo(json.dumps(_as_dict(made)) if as_json else "\n".join(_lines(made)))


class _Progress:
    """One line on stderr, written over where a person looks at it; elsewhere one line for each thing done."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._doing = ""

    def __call__(self, doing: str, done: int, of: int) -> None:
        if self._terminal:
            typer.echo(f"\r\x1b[K{doing}: {done} of {of}", nl=False, err=True)
        elif doing != self._doing:
            typer.echo(doing, err=True)
        self._doing = doing

    def end(self) -> None:
        """Leave the line."""
        if self._terminal and self._doing:
            typer.echo("", err=True)


def _terminated(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _as_dict(made: Quantised) -> dict[str, object]:
    snapshot = made.snapshot
    return {
        "directory": str(snapshot.directory),
        "model_id": snapshot.model_id,
        "revision": snapshot.revision,
        "snapshot_sha256": snapshot.snapshot_sha256,
        "parent": snapshot.parent,
        "weights_bytes": _weights_bytes(made),
        "drift": {**asdict(made.drift), "perplexity_ratio": made.drift.perplexity_ratio},
    }


def _lines(made: Quantised) -> list[str]:
    snapshot, drift = made.snapshot, made.drift
    rows = (
        ("perplexity, base", f"{drift.perplexity_base:.3f}"),
        ("perplexity, int8", f"{drift.perplexity_int8:.3f} ({drift.perplexity_ratio - 1:+.2%})"),
        ("same likeliest token", f"{drift.argmax_agreement:.1%}"),
        ("mean KL divergence", f"{drift.mean_kl_nats:.5f} nats a token"),
        ("largest logit difference", f"{drift.max_logit_difference:.3f}"),
    )
    return [
        f"{snapshot.model_id}, {_weights_bytes(made) / 1e9:.2f} GB of weights, in {snapshot.directory}",
        f"sha256 {snapshot.snapshot_sha256}",
        f"made from {snapshot.parent}",
        "",
        f"On {drift.tokens} tokens of {drift.texts} probes, {drift.images} of them with a drawing:",
        *(f"  {name:<26}{value}" for name, value in rows),
        "",
        "The probes are not medical. Check it on your own task before use.",
    ]


def _weights_bytes(made: Quantised) -> int:
    return sum(made.snapshot.files[name].size_bytes for name in made.snapshot.shards)
