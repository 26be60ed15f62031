"""``medport bundle``: everything that a site without a network needs, in one signed file. Needs no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from medport.errors import ConfigError
from medport_local.cli_bundle_progress import Progress
from medport_local.cli_bundle_shown import (
    bundle_dict,
    contents_dict,
    installed_dict,
    next_commands,
    plan_dict,
    print_bundle,
    print_installed,
    print_plan,
)
from medport_local.cli_options import named_values
from medport_local.cli_snapshot import AsJson, StoreDir, open_store, print_json, printable, shown_size

if TYPE_CHECKING:
    from medport_local.bundle.signing import Signer, Verifier

_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The bundle, such as site.mpb.")]
Key = Annotated[
    Path | None,
    typer.Option(
        metavar="PEM", help="Public key of who may sign; MEDPORT_BUNDLE_KEY, /etc/medport/bundle-key.pem."
    ),
]
Authorities = Annotated[
    list[Path] | None,
    typer.Option(
        "--ca", metavar="PEM", help="Root that certifies signers; MEDPORT_BUNDLE_CA, /etc/medport/bundle-ca.pem."
    ),
]
SignerName = Annotated[
    str | None, typer.Option("--signer", metavar="SUBJECT", help="With --ca: only this one, such as CN=Release.")
]
PasswordEnv = Annotated[
    str | None, typer.Option(metavar="NAME", help="Environment variable that holds the private key's password.")
]

app = typer.Typer(help="One signed file for a site without a network.", no_args_is_help=True)


@app.command(
    epilog="Example: medport bundle export --lock medport.lock --wheels auto --sign key.pem -o site.mpb",
)
def export(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write it.")],
    sign: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Private key to sign with: medport bundle keygen makes one.")
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(metavar="PEM", help="The signer's certificate and those above it, without the root."),
    ] = None,
    password_env: PasswordEnv = None,
    lock: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The lock, and with it every snapshot that it names.")
    ] = None,
    snapshot: Annotated[
        list[str] | None, typer.Option(metavar="REF", help="A snapshot of the store. Repeatable.")
    ] = None,
    wheels: Annotated[
        str | None, typer.Option(metavar="DIR|auto", help="Wheels for the site; auto fetches what runs here.")
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIR", help="A container image in OCI layout. Repeatable.")
    ] = None,
    providers: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What terraform providers mirror has written.")
    ] = None,
    document: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="An approval, a notice. Repeatable.")
    ] = None,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Do not sign: for looking at it; it cannot be installed.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a file of that name.")] = False,
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Write a bundle: snapshots, wheels, images, providers, lock and a bill of materials, each with its sha256."""
    from medport_local.bundle.archive import Meta, write_bundle
    from medport_local.bundle.contents import Selection, gather
    from medport_local.bundle.writing import check_target

    check_target(out, replace=replace)
    signer = _signer(sign, certificate, password_env, unsigned=unsigned)
    selection = Selection(
        snapshots=tuple(snapshot or ()),
        lock=lock,
        wheels=cast("Literal['auto']", wheels) if wheels == "auto" else Path(wheels) if wheels else None,
        images={
            name: Path(folder)
            for name, folder in named_values(image or (), "image", form="NAME=DIR", example="server=DIR").items()
        },
        providers=providers,
        documents=tuple(document or ()),
    )
    now, medport = datetime.now(UTC), version("medport")
    needs_store = bool(snapshot or lock)
    with gather(
        open_store(store) if needs_store else None,
        selection,
        created_at=now,
        medport_version=medport,
        told=lambda line: typer.echo(printable(line), err=True),
        workspace=out.absolute().parent,
    ) as contents, Progress() as progress:  # fmt: skip
        meta = Meta(created_at=now, medport=medport, lock_id=contents.lock_id)
        write_bundle(out, contents.items, meta=meta, signer=signer, replace=replace, told=progress)
    from medport_local.bundle.archive import Bundle

    with Bundle.open(out, None) as bundle:
        if as_json:
            print_json({"file": str(out), **bundle_dict(bundle)})
        else:
            print_bundle(bundle)
            typer.echo(f"\nWritten to {printable(str(out))}, {shown_size(bundle.size_bytes)}.")


@app.command(epilog="Example: medport bundle verify site.mpb --key pub.pem")
def verify(
    file: File,
    key: Key = None,
    ca: Authorities = None,
    signer: SignerName = None,
    unsigned_ok: Annotated[
        bool,
        typer.Option("--unsigned-ok", help="Without a key, only look whether it is whole. Proves nothing of who."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check who signed it, and every byte in it; say what it holds.

    Exits with 0 if all is as it should be, else with 1 and the first fault.
    """
    from medport_local.bundle.archive import Bundle
    from medport_local.bundle.inventory import read_inventory

    verifier = _verifier(key, ca, signer, required=not unsigned_ok)
    with Bundle.open(file, verifier) as bundle:
        inventory = read_inventory(bundle)
        with Progress(bundle.size_bytes) as progress:
            bundle.verify(progress)
        if as_json:
            print_json({**bundle_dict(bundle), **contents_dict(inventory), **progress.as_dict()})
            return
        print_bundle(bundle, inventory)
        proof = "Verified" if bundle.signed_by else "NOT VERIFIED who signed it. Whole"
        typer.echo(f"\n{proof}: {shown_size(progress.done)}, {progress.rate / 1e9:.2f} GB/s.")


@app.command(epilog="Example: medport bundle install site.mpb --key pub.pem")
def install(
    file: File,
    key: Key = None,
    ca: Authorities = None,
    signer: SignerName = None,
    store: StoreDir = None,
    to: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where all but snapshots go; site/ beside the store if none."),
    ] = None,
    older: Annotated[
        bool, typer.Option("--older", help="Also if it was made before the bundle that is installed.")
    ] = False,
    other_signer: Annotated[
        bool, typer.Option("--other-signer", help="Also if another signed the bundle that is installed.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: AsJson = False,
) -> None:
    """Install a bundle that was signed by whom this site trusts: whole, or not at all. Uses no network.

    Snapshots go into the store and are pinned. What was installed before is kept as DIR.previous, and so are its
    snapshots. An older bundle, and one of another signer than before, is refused unless you say so.
    """
    from medport_local.bundle import install as installing
    from medport_local.bundle.archive import Bundle

    verifier = _verifier(key, ca, signer, required=True)
    with Bundle.open(file, verifier) as bundle:
        plan = installing.plan(bundle, store_root=store, to=to, older=older, other_signer=other_signer)
        if not as_json:
            print_bundle(bundle, plan.inventory)
            print_plan(plan)
        if dry_run:
            if as_json:
                print_json(
                    {**bundle_dict(bundle), **contents_dict(plan.inventory), **plan_dict(plan), "installed": False}
                )
            return
        with Progress(bundle.size_bytes) as progress:
            done = installing.install(plan, told=progress)
        if as_json:
            print_json(
                {
                    **bundle_dict(bundle),
                    **plan_dict(plan),
                    **installed_dict(done),
                    "next": next_commands(done, store),
                }
            )
        else:
            print_installed(done, store)


@app.command(epilog="Example: medport bundle keygen key.pem pub.pem")
def keygen(
    private: Annotated[Path, typer.Argument(metavar="PRIVATE", help="For --sign; keep it secret.")] = Path(
        "key.pem"
    ),
    public: Annotated[Path, typer.Argument(metavar="PUBLIC", help="For --key, at the site.")] = Path("pub.pem"),
    password_env: PasswordEnv = None,
    as_json: AsJson = False,
) -> None:
    """Make a key pair to sign bundles with, on the curve P-256."""
    from medport_local.bundle import keys

    fingerprint = keys.make(private, public, password=_password(password_env))
    if as_json:
        print_json({"private": str(private), "public": str(public), "key_sha256": fingerprint})
    else:
        typer.echo(f"{printable(str(public))}  sha256:{fingerprint}")
        typer.echo("Take the public key, or this line, to the site on another way than bundles go.", err=True)


def _signer(
    sign: Path | None, certificate: Path | None, password_env: str | None, *, unsigned: bool
) -> Signer | None:
    from medport_local.bundle.signing import Signer

    if (sign is None) != unsigned or (certificate is not None and sign is None):
        raise ConfigError(
            "a bundle is signed, or said to be unsigned", field="sign", remedy="give --sign KEY, or --unsigned"
        )
    return Signer(sign, password=_password(password_env), certificate=certificate) if sign else None


def _verifier(
    key: Path | None, authorities: Sequence[Path] | None, signer: str | None, *, required: bool
) -> Verifier | None:
    from medport_local.bundle.trust import trusted

    verifier = trusted(key=key, authorities=tuple(authorities or ()), signer=signer)
    if verifier is None and required:
        raise ConfigError(
            "it is not known who may sign bundles",
            field="key",
            remedy="give --key PUB or --ca ROOT, which came on another way than the bundle",
        )
    return verifier


def _password(name: str | None) -> bytes | None:
    if name is None:
        return None
    # Whoever gives the password itself must not read it in a log.
    if not _VARIABLE.fullmatch(name):
        raise ConfigError(
            "is not a variable's name", field="password-env", remedy="give the name, not what the variable holds"
        )
    value = os.environ.get(name, "")
    if not value:
        raise ConfigError(
            "the environment variable of that name is not set", field="password-env", remedy="export it"
        )
    return value.encode()
