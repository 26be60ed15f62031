"""``medport snapshot pull`` and ``add``: models into the store. Needs no torch."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medport.errors import ConfigError
from medport_local.cli_secrets import secret_of
from medport_local.cli_snapshot import (
    AsJson,
    StoreDir,
    app,
    as_dict,
    open_store,
    print_json,
    printable,
    shown_size,
)

if TYPE_CHECKING:
    from medport_local.sources import Progress, Source

_REDRAW_S = 0.2
_TRUE = {"1", "ON", "YES", "TRUE"}
"""What huggingface_hub takes for true."""


@app.command(epilog="Example: medport snapshot pull google/medgemma-4b-it@290dda1… --token-env HF_TOKEN")
def pull(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="OWNER/NAME@COMMIT of the hub, or a branch or tag; gs://BUCKET/FOLDER; a directory; "
            "bundle:FILE#REF.",
        ),
    ],
    store: StoreDir = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="The hub; HF_ENDPOINT, or https://huggingface.co.")
    ] = None,
    token_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Environment variable that holds a token of the hub, for gated models. It is kept nowhere.",
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="PEM",
            help="For bundle: public key of who may sign; MEDPORT_BUNDLE_KEY, or /etc/medport/bundle-key.pem.",
        ),
    ] = None,
    ca: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PEM",
            help="For bundle: root that certifies signers; MEDPORT_BUNDLE_CA, or /etc/medport/bundle-ca.pem.",
        ),
    ] = None,
    signer: Annotated[
        str | None, typer.Option(metavar="SUBJECT", help="With --ca: only this one, such as CN=Release.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring a model into the store: every byte hashed as it arrives, weights only as safetensors.

    A pull that was broken off goes on when the same is pulled again.

    A branch or tag becomes the commit that it is; a commit that the store has is not asked for.
    """
    from medport_local.sources import source_for
    from medport_local.sources.choose import BUNDLE
    from medport_local.sources.hub import ENDPOINT

    given = {"key": key, "ca": ca, "signer": signer}
    if (named := [name for name, value in given.items() if value]) and not source.startswith(BUNDLE):
        raise ConfigError("goes with a bundle alone", field=named[0], remedy="write bundle:FILE#SNAPSHOT")

    offline = any(os.environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    chosen = source_for(
        source,
        endpoint=endpoint or os.environ.get("HF_ENDPOINT") or ENDPOINT,
        token=_token(token_env),
        token_from=token_env or "--token-env NAME",
        offline=offline,
        bundle=lambda file, reference: _open_bundle(file, reference, key, tuple(ca or ()), signer),
    )
    _bring(chosen, store, as_json, again=f"medport snapshot pull {source}")


@app.command(epilog="Example: medport snapshot add /models/medgemma-4b-it")
def add(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="In Hugging Face layout; a manifest.json there must hold.")
    ],
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Copy a model of this machine into the store. Uses no network."""
    from medport_local.sources import DirectorySource

    _bring(DirectorySource(directory, field="DIR"), store, as_json, again=f"medport snapshot add {directory}")


def _bring(source: Source, root: Path | None, as_json: bool, *, again: str) -> None:
    from medport_local import sources

    store = open_store(root, create=True)
    progress = _Progress()
    try:
        stored = sources.pull(store, source, told=progress.say, watch=progress)
    except KeyboardInterrupt:
        progress.say(f"Broken off; what has arrived is kept. To go on: {again}")
        raise
    finally:
        progress.end()
        source.close()
    if as_json:
        print_json({**as_dict(stored, whole=True), **progress.as_dict()})
    else:
        typer.echo(f"{printable(stored.reference)}  sha256:{stored.snapshot_sha256}")


def _open_bundle(
    file: Path, reference: str | None, key: Path | None, authorities: Sequence[Path], signer: str | None
) -> Source:
    from medport_local.bundle.source import BundleSource
    from medport_local.bundle.trust import trusted

    verifier = trusted(key=key, authorities=authorities, signer=signer)
    if verifier is None:
        raise ConfigError(
            "it is not known who may sign bundles",
            field="key",
            remedy="give --key PUB or --ca ROOT, which came on another way than the bundle",
        )
    return BundleSource(file, reference, verifier)


def _token(name: str | None) -> Any:
    from pydantic import SecretStr

    value = secret_of(name, "token-env")
    # A file's content, as exported, ends with a line end.
    return None if value is None else SecretStr(value.strip())


class _Progress:
    """What happens, on stderr: lines, and on a terminal one that is written over."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._drawn = 0.0
        self._last: Progress | None = None
        self._file = ""

    def __call__(self, progress: Progress) -> None:
        self._last = progress
        if not self._terminal:
            if progress.name != self._file:
                typer.echo(f"{progress.name}  {self._line(progress)}", err=True)
        elif time.monotonic() - self._drawn >= _REDRAW_S:
            self._drawn = time.monotonic()
            typer.echo(f"\r\x1b[K{progress.name}  {self._line(progress)}", nl=False, err=True)
        self._file = progress.name

    def say(self, line: str) -> None:
        """One line for people."""
        self.end()
        typer.echo(printable(line), err=True)

    def end(self) -> None:
        """Leave the line that is written over."""
        if self._terminal and self._drawn:
            typer.echo("", err=True)
            self._drawn = 0.0

    def as_dict(self) -> dict[str, object]:
        """What ``--json`` adds."""
        last = self._last
        return {
            "fetched_bytes": last.fetched_bytes if last else 0,
            "there_bytes": last.there_bytes if last else 0,
            "seconds": round(time.monotonic() - self._began, 3),
        }

    def _line(self, progress: Progress) -> str:
        rate = progress.fetched_bytes / max(time.monotonic() - self._began, 1e-3)
        done = progress.there_bytes + progress.fetched_bytes
        there = f", {shown_size(progress.there_bytes)} were there" if progress.there_bytes else ""
        return f"{shown_size(done)} of {shown_size(progress.total_bytes)}{there}, {shown_size(int(rate))}/s"
