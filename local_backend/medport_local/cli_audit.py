"""``medport audit``: check the audit log and read it. Needs neither torch nor a web framework."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from medport.errors import EXIT_FAILED, ConfigError, NotFound

if TYPE_CHECKING:
    from medport_local.serving.chain import Report

DIRECTORY = "MEDPORT_AUDIT_DIR"
_FIRST_COLUMN = 20
# Who asked and which bytes answered; the rest follows as it stands in the line.
_FIRST = (
    "time", "event", "request_id", "key", "action", "route", "verb", "resource", "endpoint", "deployed_model",
    "model_id", "revision", "snapshot_sha256", "parent", "adapters", "lock_id", "image_digest",
)  # fmt: skip

app = typer.Typer(help="Check and read the audit log of medport serve.", no_args_is_help=True)


@app.command(epilog="Example: medport audit verify /var/lib/medport/audit --since 2025-11-01")
def verify(
    directory: Annotated[Path | None, typer.Argument(metavar="DIR", help=f"The log; {DIRECTORY} if none.")] = None,
    since: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="Check from this month on; earlier files may be gone."),
    ] = None,
    anchor: Annotated[
        str | None,
        typer.Option(metavar="SEQ:HASH", help="A line that an earlier check printed: it must still be the same."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False,
) -> None:
    """Check that no line was changed, taken out, put in or moved.

    Exits with 0 if the chain is unbroken, else with 1 and the first bad line.

    Keep what it prints about the last line elsewhere, and give it as --anchor later.

    Only so will it be noticed if somebody makes the whole log anew.
    """
    from medport_local.serving import chain

    mark = chain.Link.parse(anchor) if anchor else None
    report = chain.verify(_directory(directory), since=since.date() if since else None, anchor=mark)
    if as_json:
        _print_json(_as_dict(report))
    else:
        typer.echo("\n".join(_lines(report)))
    if not report.unbroken:
        raise typer.Exit(EXIT_FAILED)


@app.command(epilog="Example: medport audit show 5f0c1d2e --dir /var/lib/medport/audit")
def show(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="As in the answer's X-Request-Id.")],
    directory: Annotated[Path | None, typer.Option("--dir", help=f"The log; {DIRECTORY} if none.")] = None,
    request: Annotated[
        Path | None, typer.Option("--input", metavar="FILE", help="Say whether this was the request's body.")
    ] = None,
    answer: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Say whether this was the answer's body.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False,
) -> None:
    """Show what is known of a request: who asked, when, and which model answered. Never what was said.

    Exits with 1 if there is no such request, or if a FILE is not what was sent.
    """
    from medport_local.serving import chain

    where = _directory(directory)
    records = chain.find(where, request_id)
    if not records:
        raise NotFound(
            "the log has no such request",
            field="request_id",
            remedy="only requests that reached a model or changed something are in it",
        )
    proofs: dict[str, bool] = {}
    for name, file, field in (
        ("input", request, "input_hmac_sha256"),
        ("output", answer, "output_hmac_sha256"),
    ):
        if file is not None:
            digest = chain.keyed(where, _content(file, name))
            proofs[name] = any(record.get(field) == digest for record in records)
    if as_json:
        _print_json({"records": records, **({"matches": proofs} if proofs else {})})
    else:
        typer.echo("\n\n".join(_table(record) for record in records))
        for name, matches in proofs.items():
            typer.echo(f"\n{name}: {'this is what was sent' if matches else 'this is not what was sent'}")
    if not all(proofs.values()):
        raise typer.Exit(EXIT_FAILED)


def _directory(given: Path | None) -> Path:
    if given is not None:
        return given
    if name := os.environ.get(DIRECTORY):
        return Path(name)
    raise ConfigError("no audit log is named", field="dir", remedy=f"give its directory, or set {DIRECTORY}")


def _content(file: Path, name: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as fault:
        raise ConfigError(f"the file cannot be read ({os.strerror(fault.errno or 0)})", field=name) from fault


def _as_dict(report: Report) -> dict[str, object]:
    last = {"seq": report.last.seq, "hash": report.last.hash} if report.last else None
    return {
        "unbroken": report.unbroken,
        "lines": report.lines,
        "last": last,
        "fault": report.fault,
        "file": report.file,
        "line": report.line,
        "notes": report.notes,
    }


def _lines(report: Report) -> list[str]:
    lines = [f"Note at {_shown(note.get('time'))}: {_shown(note.get('note'))}" for note in report.notes]
    if report.unbroken:
        lines.append(f"The chain is unbroken: {report.lines:,} lines.")
    else:
        place = f"{report.file}, line {report.line}: " if report.file else ""
        lines.append(f"BROKEN: {place}{report.fault}.")
        lines.append(f"{report.lines:,} lines before it are good." if report.file else "")
    if report.last is not None:
        now = datetime.now(UTC)
        lines.append(f"Last good line on {now:%Y-%m-%d}, to be kept elsewhere as --anchor: {report.last}")
    return [line for line in lines if line]


def _table(record: Mapping[str, Any]) -> str:
    names = [name for name in _FIRST if name in record] + [name for name in record if name not in _FIRST]
    return "\n".join(f"{name:<{_FIRST_COLUMN}} {_shown(record[name])}" for name in names)


def _shown(value: object) -> str:
    # The file may not be as we wrote it: nothing in it may move a terminal's cursor.
    if isinstance(value, str) and value.isprintable():
        return value
    return "-" if value is None else ascii(value)


def _print_json(value: Mapping[str, object]) -> None:
    typer.echo(orjson.dumps(value).decode())
