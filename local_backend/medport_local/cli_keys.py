"""``medport keys``: make, list and revoke the API keys of a server. Needs neither torch nor a web framework."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import orjson
import typer

_FILE = typer.Option("--keys", metavar="FILE", help="The server's file of keys: medport serve --keys FILE.")

app = typer.Typer(help="The API keys of medport serve.", no_args_is_help=True)


@app.command(epilog="Example: medport keys add pacs-gateway --keys keys.json --model medgemma --rate 60/min")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who gets it; stands in the logs.")],
    file: Annotated[Path, _FILE],
    model: Annotated[
        list[str] | None, typer.Option(metavar="ENDPOINT", help="What it is for, by endpoint id; all if none.")
    ] = None,
    action: Annotated[
        list[str] | None,
        typer.Option(help="infer, read, metrics or admin; infer and read if none. Repeatable."),
    ] = None,
    rate: Annotated[str | None, typer.Option(metavar="N/PERIOD", help="Like 60/min; also /s, /h, /d.")] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help="Requests at once.")] = None,
    expires: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The first day on which it is not taken, in UTC.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False,
) -> None:
    """Make a key and print it. It is kept nowhere and cannot be shown again.

    A running server takes it within a second.
    """
    from medport_local.serving import keys

    key = keys.add(
        file,
        name,
        models=model or (),
        actions=action or (),
        rate=rate,
        concurrent=concurrent,
        expires=expires.date() if expires else None,
    )
    # The key alone on stdout, so that a script can take it.
    typer.echo(orjson.dumps({"name": name, "key": key}).decode() if as_json else key)
    if not as_json:
        typer.echo("This is the only time it is shown.", err=True)


@app.command("list", epilog="Example: medport keys list --keys keys.json")
def list_keys(
    file: Annotated[Path, _FILE],
    as_json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False,
) -> None:
    """List the keys: their names and what they may do."""
    from medport_local.serving import keys

    now = datetime.now(UTC)
    rows: list[dict[str, object]] = []
    for entry in keys.load(file):
        shown: dict[str, object] = entry.model_dump(mode="json", exclude={"sha256"})
        rows.append({**shown, "expired": entry.expires is not None and entry.expires <= now})
    if as_json:
        typer.echo(orjson.dumps({"keys": rows}).decode())
        return
    for row in rows:
        limits = [str(row["rate"])] if row["rate"] else []
        limits += [f"{row['concurrent']} at once"] if row["concurrent"] else []
        until = f"{'expired' if row['expired'] else 'until'} {row['expires']}" if row["expires"] else ""
        models, actions = row["models"], row["actions"]
        assert isinstance(models, list)
        assert isinstance(actions, list)
        parts = [str(row["name"]), ",".join(models), ",".join(actions), *limits, until]
        typer.echo("  ".join(part for part in parts if part))


@app.command(epilog="Example: medport keys revoke pacs-gateway --keys keys.json")
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As medport keys list shows it.")],
    file: Annotated[Path, _FILE],
) -> None:
    """Take a key away. A running server refuses it within a second."""
    from medport_local.serving import keys

    keys.revoke(file, name)
    typer.echo(f"{name} is revoked.", err=True)
