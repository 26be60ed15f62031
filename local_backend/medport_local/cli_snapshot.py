"""``medport snapshot``: what the store holds, whether it is right, and what may go. Needs no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from medport.errors import EXIT_FAILED

if TYPE_CHECKING:
    from medport_local.store import Collected, Finding, Store, Stored

StoreDir = Annotated[
    Path | None,
    typer.Option(
        "--store", metavar="DIR", help="The store; MEDPORT_STORE, or medport/store in the data directory."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one object.")]
Reference = Annotated[
    str, typer.Argument(metavar="REF", help="MODEL_ID@COMMIT, MODEL_ID or sha256:…; 7 digits of a commit will do.")
]
_DIGITS = 12

app = typer.Typer(help="Frozen snapshots of models in this machine's store.", no_args_is_help=True)


@app.command("list", epilog="Example: medport snapshot list")
def list_snapshots(store: StoreDir = None, as_json: AsJson = False) -> None:
    """List the snapshots: what they are, their size, when they came, and which pins keep them."""
    found = open_store(store).list()
    if as_json:
        print_json({"snapshots": [as_dict(each) for each in found]})
    elif not found:
        typer.echo("The store is empty: medport snapshot pull or add.", err=True)
    for each in [] if as_json else found:
        pins = f"pinned by {', '.join(each.pinned_by)}" if each.pinned_by else ""
        digest = f"sha256:{each.snapshot_sha256[:_DIGITS]}"
        line = (each.reference, digest, shown_size(each.size_bytes), f"{each.added_at:%Y-%m-%d}", pins)
        typer.echo("  ".join(printable(part) for part in line if part))


@app.command(epilog="Example: medport snapshot show google/medgemma-4b-it@290dda1")
def show(reference: Reference, store: StoreDir = None, as_json: AsJson = False) -> None:
    """Show one snapshot: where it came from and on which terms, and the sha256 of each file."""
    stored = open_store(store).find(reference)
    if as_json:
        print_json(as_dict(stored, whole=True))
        return
    width = max(map(len, (name for name, _ in _facts(stored))))
    for name, value in _facts(stored):
        typer.echo(f"{name:<{width}}  {printable(value)}")
    typer.echo("")
    for name, entry in sorted(stored.manifest.files.items()):
        typer.echo(f"{entry.sha256}  {entry.size_bytes:>14,}  {printable(name)}")


@app.command(epilog="Example: medport snapshot verify google/medgemma-4b-it")
def verify(
    reference: Annotated[
        list[str] | None, typer.Argument(metavar="REF", help="Only these snapshots; the whole store if none.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Move what is damaged to the store's quarantine/; then pull it again.")
    ] = False,
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Hash every byte and compare it with what it is called.

    Exits with 0 if all is as it should be or was mended, else with 1. That a store is empty, and nothing was
    proved, is said.
    """
    where = open_store(store)
    progress = _Progress()
    chosen: list[Stored | None] = [where.find(each) for each in reference or ()]
    try:
        findings = [
            finding for each in chosen or [None] for finding in where.verify(each, told=progress, repair=repair)
        ]
    finally:
        progress.end()
    snapshots = len(chosen or where.list())
    if as_json:
        shown = [_finding(each) for each in findings]
        print_json({"sound": not findings, "snapshots": snapshots, "bytes": progress.total, "findings": shown})
    else:
        for each in findings:
            _print_finding(each)
        if not findings:
            typer.echo(_sound(progress.total, snapshots))
    if not all(each.repaired and not each.snapshots for each in findings):
        raise typer.Exit(EXIT_FAILED)


@app.command(epilog="Example: medport snapshot gc --keep-days 90 --yes")
def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without, only say what would go.")] = False,
    keep_days: Annotated[
        float,
        typer.Option(min=0, max=36_500, metavar="DAYS", help="Keep snapshots that came in so recently."),
    ] = 30,
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Remove snapshots that no pin keeps and nobody uses, and files that no snapshot needs.

    First shows what would go. What a pull that was broken off has fetched stays for a day.
    """
    collected = open_store(store).collect(dry_run=not yes, keep=timedelta(days=keep_days))
    if as_json:
        print_json(_collected(collected, removed=yes))
        return
    verb = "removed" if yes else "would go"
    for stored in collected.snapshots:
        typer.echo(f"{verb}: {printable(stored.reference)}  sha256:{stored.snapshot_sha256[:_DIGITS]}")
    for stored, why in collected.kept:
        typer.echo(f"kept, {why}: {printable(stored.reference)}  sha256:{stored.snapshot_sha256[:_DIGITS]}")
    files = f"{_count(collected.blobs, 'file')}, {_count(collected.partials, 'broken pull')}"
    typer.echo(
        f"{verb}: {_count(len(collected.snapshots), 'snapshot')}, {files}: {shown_size(collected.freed_bytes)}"
    )
    if not yes and collected.freed_bytes:
        typer.echo("Nothing was removed: medport snapshot gc --yes does it.", err=True)


@app.command(epilog="Example: medport snapshot pin ward-3 google/medgemma-4b-it@290dda1 --why 'validated 2026-05'")
def pin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the pin: who or what needs them.")],
    reference: Annotated[list[str], typer.Argument(metavar="REF", help="As for show. One or more.")],
    why: Annotated[str, typer.Option(help="The reason; it is kept with the pin.")] = "",
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Keep snapshots: gc never removes them. A pin of this name is replaced."""
    where = open_store(store)
    kept = [where.find(each) for each in reference]
    where.pin(name, kept, why)
    _print_pin(where, name, [each.reference for each in kept], as_json)


@app.command(epilog="Example: medport snapshot unpin ward-3")
def unpin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As medport snapshot list shows it.")],
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Remove a pin. What no other pin keeps, gc may remove."""
    where = open_store(store)
    where.unpin(name)
    _print_pin(where, name, [], as_json)


def open_store(root: Path | None, *, create: bool = False) -> Store:
    """The store that the command is about. Imported here: pydantic's models take a moment."""
    from medport_local.store import Store

    return Store(root, create=create)


def as_dict(stored: Stored, *, whole: bool = False) -> dict[str, Any]:
    """A snapshot as ``--json`` prints it; ``whole`` with each file."""
    shown: dict[str, Any] = {
        "reference": stored.reference,
        "model_id": stored.model_id,
        "revision": stored.revision,
        "snapshot_sha256": stored.snapshot_sha256,
        "family": stored.family,
        "size_bytes": stored.size_bytes,
        "pinned_by": list(stored.pinned_by),
        "directory": str(stored.directory),
        "record": stored.record.model_dump(mode="json"),
    }
    if whole:
        shown["parent"] = str(stored.manifest.parent) if stored.manifest.parent else None
        shown["files"] = {name: entry.model_dump() for name, entry in stored.manifest.files.items()}
    return shown


def shown_size(size_bytes: int) -> str:
    """Bytes as disks count them, such as ``8.64 GB``."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.2f} {unit}"
    return f"{size_bytes} bytes"


def printable(text: str) -> str:
    """Text from outside, so that it cannot move a terminal's cursor."""
    return text if text.isprintable() else ascii(text)[1:-1]


def print_json(value: Mapping[str, object]) -> None:
    """One object on stdout."""
    try:
        typer.echo(orjson.dumps(value).decode())
    except orjson.JSONEncodeError:
        # A path that is no UTF-8 has surrogates (PEP 383), which orjson refuses and this escapes.
        typer.echo(json.dumps(value, separators=(",", ":")))


class _Progress:
    """One line on stderr that is written over, where a person looks at it."""

    def __init__(self) -> None:
        self.total = 0
        self._terminal = sys.stderr.isatty()
        self._shown = -1

    def __call__(self, done: int, total: int) -> None:
        self.total = total
        share = 100 * done // max(total, 1)
        if self._terminal and share != self._shown:
            typer.echo(f"\r\x1b[K{share} % of {shown_size(total)}", nl=False, err=True)
        self._shown = share

    def end(self) -> None:
        """Leave the line."""
        if self._terminal and self._shown >= 0:
            typer.echo("", err=True)


def _facts(stored: Stored) -> Sequence[tuple[str, str]]:
    record, terms = stored.record, stored.record.terms
    rows = [
        ("model", stored.model_id),
        ("revision", stored.revision or "none"),
        ("sha256", stored.snapshot_sha256),
        ("family", stored.family),
        ("size", f"{shown_size(stored.size_bytes)} in {_count(len(stored.manifest.files), 'file')}"),
        ("from", f"{record.source} {record.requested}"),
        ("added", f"{record.added_at:%Y-%m-%d %H:%M:%S %Z} by {record.by}"),
        ("directory", str(stored.directory)),
    ]
    if stored.manifest.parent:
        rows.append(("made from", str(stored.manifest.parent)))
    if terms is not None:
        rows.append(("terms", " ".join(part for part in (terms.name, terms.url) if part)))
        if terms.accepted_by:
            rows.append(("accepted", f"by {terms.accepted_by} {terms.accepted_at or ''}".rstrip()))
        if terms.licence_sha256:
            rows.append(("licence", f"sha256 {terms.licence_sha256}"))
    rows += [("same bytes as", also) for also in record.also]
    rows += [("note", note) for note in record.notes]
    rows += [("pinned by", name) for name in stored.pinned_by]
    return rows


def _sound(size_bytes: int, snapshots: int) -> str:
    if not snapshots:
        return "Nothing to verify: the store holds no snapshot. medport snapshot pull or add brings one."
    return f"Sound: {shown_size(size_bytes)} in {_count(snapshots, 'snapshot')}."


def _finding(finding: Finding) -> dict[str, object]:
    return {
        "path": finding.path,
        "fault": finding.fault,
        "remedy": finding.remedy,
        "snapshots": list(finding.snapshots),
        "repaired": finding.repaired,
    }


def _print_finding(finding: Finding) -> None:
    typer.echo(f"{printable(finding.path)}: {printable(finding.fault)}")
    for reference in finding.snapshots:
        typer.echo(f"  needed by {printable(reference)}")
    typer.echo(f"  {'repaired' if finding.repaired else 'remedy'}: {finding.remedy}")


def _collected(collected: Collected, *, removed: bool) -> dict[str, object]:
    return {
        "removed": removed,
        "snapshots": [as_dict(each) for each in collected.snapshots],
        "blobs": collected.blobs,
        "partials": collected.partials,
        "freed_bytes": collected.freed_bytes,
        "kept": [
            {"reference": each.reference, "sha256": each.snapshot_sha256, "why": why}
            for each, why in collected.kept
        ],
    }


def _print_pin(store: Store, name: str, references: Sequence[str], as_json: bool) -> None:
    if as_json:
        print_json({"pin": name, "snapshots": list(references), "store": str(store.root)})
    elif references:
        typer.echo(f"{name} keeps {', '.join(map(printable, references))}.", err=True)
    else:
        typer.echo(f"{name} is no pin any more.", err=True)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
