"""``medport keys``: make, list and revoke who may ask a server. Needs neither torch nor a web framework."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from medport.errors import ConfigError

if TYPE_CHECKING:
    from medport_local.serving.keys import Entry, Grants

File = Annotated[
    Path, typer.Option("--keys", metavar="FILE", help="The server's file of keys: medport serve --keys FILE.")
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="ENDPOINT", help="What it is for, by endpoint id; all if none. Repeatable."),
]
Actions = Annotated[
    list[str] | None,
    typer.Option(
        "--action",
        help="infer, read, metrics, deploy or admin; infer and read if neither this nor a verb. Repeatable.",
    ),
]
Verbs = Annotated[
    list[str] | None,
    typer.Option(
        "--verb",
        metavar="PERMISSION",
        help="A single permission by Google's name, like aiplatform.endpoints.deploy or aiplatform.endpoints.*. "
        "Repeatable.",
    ),
]
PerPeriod = Annotated[str | None, typer.Option("--rate", metavar="N/PERIOD", help="Like 60/min; also /s, /h, /d.")]
AtOnce = Annotated[int | None, typer.Option("--concurrent", min=1, help="Requests at once.")]
Expires = Annotated[
    datetime | None,
    typer.Option("--expires", formats=["%Y-%m-%d"], help="The first day on which it is not taken, in UTC."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one object.")]

app = typer.Typer(help="The API keys and service accounts of medport serve.", no_args_is_help=True)


@app.command(epilog="Example: medport keys add pacs-gateway --keys keys.json --model medgemma --rate 60/min")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who gets it; stands in the logs.")],
    file: File,
    model: Models = None,
    action: Actions = None,
    verb: Verbs = None,
    rate: PerPeriod = None,
    concurrent: AtOnce = None,
    expires: Expires = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it. It is kept nowhere and cannot be shown again.

    A running server takes it within a second.
    """
    from medport_local.serving import keys

    key = keys.add(file, name, **_grants(model, action, verb, rate, concurrent, expires))
    # The key alone on stdout, so that a script can take it.
    typer.echo(orjson.dumps({"name": name, "key": key}).decode() if as_json else key)
    if not as_json:
        typer.echo("This is the only time it is shown.", err=True)


@app.command(
    epilog="Example: medport keys add-service-account ci --keys keys.json --action deploy "
    "--token-uri https://node1:8443/token --out ci.json"
)
def add_service_account(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who gets it; stands in the logs.")],
    file: File,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the credential is written, as GOOGLE_APPLICATION_CREDENTIALS."),
    ] = None,
    token_uri: Annotated[str, typer.Option(metavar="URL", help="The server's own: https://HOST:PORT/token.")] = "",
    public_key: Annotated[
        Path | None,
        typer.Option(metavar="PEM", help="Register this public key or certificate; no credential is made."),
    ] = None,
    key_id: Annotated[
        str, typer.Option(help="Of --public-key, as its tokens name it: the credential's private_key_id.")
    ] = "",
    email: Annotated[
        str,
        typer.Option(help="Of the account; NAME@PROJECT.iam.gserviceaccount.com if none."),
    ] = "",
    project: Annotated[str, typer.Option(help="The server's --project.")] = "local",
    model: Models = None,
    action: Actions = None,
    verb: Verbs = None,
    rate: PerPeriod = None,
    concurrent: AtOnce = None,
    expires: Expires = None,
    as_json: AsJson = False,
) -> None:
    """Register a service account, with which Google's own clients come in.

    Its key is made here: the public half goes to the server's file, the private half to --out, and only there.

    With --public-key an account that exists already is registered. A running server takes it within a second.
    """
    from medport_local.serving import accounts, keys

    grants = _grants(model, action, verb, rate, concurrent, expires)
    email = email or f"{name}@{project}.iam.gserviceaccount.com"
    if public_key is not None:
        if out is not None or token_uri or not key_id:
            raise ConfigError(
                "a public key goes with --key-id, and with neither --out nor --token-uri", field="public-key"
            )
        pem = accounts.read_pem(public_key)
        keys.add_account(file, name, email=email, key_id=key_id, pem=pem, **grants)
    else:
        if out is None or key_id:
            raise ConfigError("say where the credential goes", field="out", remedy="or give --public-key PEM")
        _check_token_uri(token_uri)
        pair = accounts.key_pair()
        key_id = pair.id
        accounts.write_credentials(out, project=project, email=email, token_uri=token_uri, pair=pair)
        try:
            keys.add_account(file, name, email=email, key_id=key_id, pem=pair.public_pem, **grants)
        except ConfigError:
            out.unlink()  # a key that nobody knows
            raise
    if as_json:
        said = {"name": name, "email": email, "key_id": key_id, "file": str(out) if out else None}
        typer.echo(orjson.dumps(said).decode())
    else:
        typer.echo(f"{email} is registered.", err=True)


@app.command("list", epilog="Example: medport keys list --keys keys.json")
def list_keys(file: File, as_json: AsJson = False) -> None:
    """List the keys and service accounts: their names and what they may do."""
    from medport_local.serving import keys

    now = datetime.now(UTC)
    found = keys.load(file)
    if as_json:
        shown = {
            "keys": [_shown(each, now) for each in found.keys],
            "service_accounts": [_shown(each, now) for each in found.service_accounts],
        }
        typer.echo(orjson.dumps(shown).decode())
        return
    for key in found.keys:
        typer.echo(_line(key, now))
    for account in found.service_accounts:
        typer.echo(f"{_line(account, now)}  {account.email}  {','.join(key.id for key in account.public_keys)}")


@app.command(epilog="Example: medport keys revoke pacs-gateway --keys keys.json")
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As medport keys list shows it.")],
    file: File,
) -> None:
    """Take a key or service account away, its tokens included. A running server refuses it within a second."""
    from medport_local.serving import keys

    keys.revoke(file, name)
    typer.echo(f"{name} is revoked.", err=True)


def _grants(
    models: Sequence[str] | None,
    actions: Sequence[str] | None,
    verbs: Sequence[str] | None,
    rate: str | None,
    concurrent: int | None,
    expires: datetime | None,
) -> Grants:
    return {
        "models": models or (),
        "actions": actions or (),
        "verbs": verbs or (),
        "rate": rate,
        "concurrent": concurrent,
        "expires": expires.date() if expires else None,
    }


def _check_token_uri(uri: str) -> None:
    from urllib.parse import urlsplit

    parts = urlsplit(uri)
    # Plain http carries the assertion, which is worth an hour's access to whoever reads it.
    loopback = parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1")
    if not (parts.scheme == "https" or loopback) or not parts.netloc or parts.path != "/token":
        raise ConfigError(
            "is not the address of a server's tokens", field="token-uri", remedy="give https://HOST:PORT/token"
        )


def _shown(entry: Entry, now: datetime) -> dict[str, object]:
    shown = entry.model_dump(mode="json", exclude={"sha256"})
    return {**shown, "expired": entry.expires_s <= now.timestamp()}


def _line(entry: Entry, now: datetime) -> str:
    allowed = ",".join((*entry.actions, *entry.verbs))
    limits = [entry.rate] if entry.rate else []
    limits += [f"{entry.concurrent} at once"] if entry.concurrent else []
    if entry.expires is not None:
        limits.append(f"{'expired' if entry.expires <= now else 'until'} {entry.expires:%Y-%m-%dT%H:%M:%SZ}")
    return "  ".join((entry.name, ",".join(entry.models), allowed, *limits))
