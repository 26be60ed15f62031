"""``medport serve`` and the other commands of the local backend."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medport import _extras
from medport.errors import ConfigError, MedportError, row_of
from medport_local import cli_audit, cli_bench, cli_bundle, cli_engine, cli_keys, cli_quantize, cli_snapshot
from medport_local import cli_control as controls
from medport_local import cli_lock as cli_lock  # it and cli_pull add commands to cli_snapshot's
from medport_local import cli_options as options
from medport_local import cli_pull as cli_pull
from medport_local.cli_ready import Address, announce, announce_plane
from medport_local.stopping import Stop

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from starlette.applications import Starlette

    from medport_local.app import Settings, Tls

_PANEL_EXAMPLE = """
Serve the phantoms on this machine:  medport serve

Serve a real model from a directory:  medport serve --snapshot medgemma=/models/medgemma-4b-it

Serve from the store what a lock names:  medport serve --lock medport.lock

Serve what callers deploy, as on Vertex:  medport serve --control-plane ./state
"""


def register(app: typer.Typer) -> None:
    """Add ``serve``, ``snapshot``, ``bundle``, ``audit``, ``keys``, ``engine``, ``quantize`` and ``bench``."""
    app.command("serve", epilog=_PANEL_EXAMPLE)(serve)
    cli_quantize.register(app)
    cli_bench.register(app)
    app.add_typer(cli_snapshot.app, name="snapshot")
    app.add_typer(cli_bundle.app, name="bundle")
    app.add_typer(cli_engine.app, name="engine")
    app.add_typer(cli_audit.app, name="audit")
    app.add_typer(cli_keys.app, name="keys")


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8443,
    snapshot: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR|REF",
            help="For medgemma or medsiglip: a directory, or a snapshot of the store such as "
            "google/medgemma-4b-it@COMMIT or sha256:…; the phantoms if none. Nothing is downloaded.",
        ),
    ] = None,
    lock: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Serve what this lock names and nothing else: medport snapshot lock."),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The store of snapshots; MEDPORT_STORE, or ~/.local/share/medport/store."
        ),
    ] = None,
    control_plane: controls.Directory = None,
    project: Annotated[str, typer.Option(help="Project in the resource names.")] = "local",
    project_number: controls.ProjectNumber = None,
    location: Annotated[str, typer.Option(help="Region in the resource names.")] = "europe-west4",
    model_dir: controls.ModelDirs = None,
    require_digest: controls.RequireDigest = False,
    garden_image: controls.GardenImage = "",
    allow_faults: controls.AllowFaults = False,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    tls_self_signed: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Make a private CA and certificate there, or use them again."),
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that holds the API key.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Named keys and what each may do: medport keys add.")
    ] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Callers must show a certificate signed by it, PEM.")
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep a line about each request to a model: medport audit.")
    ] = None,
    log_format: Annotated[str, typer.Option(help="text or json.")] = "text",
    trace: Annotated[
        bool,
        typer.Option("--trace", help="Send OpenTelemetry spans; so does OTEL_EXPORTER_OTLP_ENDPOINT."),
    ] = False,
    drain_grace: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="On SIGTERM, serve on for so long while health says no."),
    ] = 0.0,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    embed_dtype: options.EmbedDtype = "auto",
    max_running: options.MaxRunning = None,
    kv_cache: options.KvCache = None,
    reuse: options.Reuse = "0",
    stall_ms: options.StallMs = None,
    max_wait: options.MaxWait = None,
    adapter: options.AdapterDirs = None,
    engine: options.EngineKind = "torch",
    engine_state: options.EngineState = None,
    allow_fetch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST|BUCKET|STORE",
            help="Where images may be fetched from: a host, gs://BUCKET, a DICOMweb store's URL. Repeatable.",
        ),
    ] = None,
    batch_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where batch jobs may read and write, beside buckets.")
    ] = None,
    allow_plain_http: Annotated[
        bool,
        typer.Option("--allow-plain-http", help="Listen beyond this machine without TLS or without an API key."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="When ready, print one line of JSON.")] = False,
) -> None:
    """Serve MedGemma and MedSigLIP in the form of Vertex AI endpoints."""
    key = _api_key(api_key_env)
    files = _tls_files(tls_cert, tls_key, tls_self_signed)
    if log_format not in ("text", "json"):
        raise ConfigError("is neither text nor json", field="log-format")
    if tls_client_ca is not None and (files is None or not tls_client_ca.is_file()):
        said = "there is no such file" if files else "needs TLS"
        raise ConfigError(said, field="tls-client-ca", remedy="give a PEM file, and --tls-cert and --tls-key")
    known = key is not None or keys is not None or tls_client_ca is not None
    if not _is_loopback(host) and not allow_plain_http and (files is None or not known):
        raise ConfigError(
            f"{host} can be reached by others, and {'TLS' if files is None else 'an API key'} is missing",
            field="host",
            remedy="give --tls-cert and --tls-key, or --tls-self-signed DIR, and --api-key-env NAME or "
            "--keys FILE; or --allow-plain-http where something in front of the server does this",
        )
    asked = options.named_values(
        snapshot or [],
        "snapshot",
        form="NAME=DIR",
        example="medgemma=DIR, or medgemma=google/medgemma-4b-it@COMMIT",
    )
    computing = options.EngineOptions(
        device=device,
        dtype=dtype,
        embed_dtype=embed_dtype,
        max_running=max_running,
        kv_cache=kv_cache,
        reuse=reuse,
        stall_ms=stall_ms,
        max_wait_s=max_wait,
        adapters=tuple(adapter or ()),
        engine=engine,
        engine_state=engine_state,
    )
    fixed = [name for name, given in (("snapshot", snapshot), ("lock", lock), ("adapter", adapter)) if given]
    plane = controls.control_plane(
        control_plane,
        project_number=project_number,
        store=store,
        model_dirs=tuple(model_dir or ()),
        require_digest=require_digest,
        garden_image=garden_image,
        allow_faults=allow_faults,
        fixed=fixed,
    )
    # Imported when all this is right: it takes a while.
    with _extras.importing():
        from medport_local.app import Settings, Tls, phantom_snapshots
        from medport_local.selection import IMAGE_DIGEST, Wanted, image_digest_of, select
        from medport_local.serving.logs import formatter
        from medport_local.tracing import provider_from_environment

    shown_host = socket.gethostname() if host in ("0.0.0.0", "::", "") else host  # noqa: S104  a comparison
    ca_file: Path | None = None
    if tls_self_signed is not None:
        from medport_local import tls as certificates

        made = certificates.self_signed(tls_self_signed, shown_host)
        ca_file, files = made.ca.absolute(), (made.tls.certificate, made.tls.key)
    listener = _bind(host, port)
    netloc = f"[{shown_host}]" if ":" in shown_host else shown_host
    netloc += f":{listener.getsockname()[1]}"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter("json" if log_format == "json" else "text"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    url = f"{'https' if files else 'http'}://{netloc}"
    address = Address(url=url, ca_file=str(ca_file) if ca_file else None, api_key_env=api_key_env)
    shown = Tls(*files, client_ca=tls_client_ca) if files else None

    def told(started: Starlette) -> None:
        if plane is not None:
            announce_plane(address, started.state.models.project, json_line=as_json)
        else:
            announce(address, list(started.state.deployed.values()), started.state.standing, json_line=as_json)

    image = image_digest_of(os.environ.get(IMAGE_DIGEST))
    wanted = Wanted(snapshots=asked, store=store, lock=lock, image_digest=image)
    with select(wanted) as selection, provider_from_environment(wanted=trace) as tracer_provider:
        settings = Settings(
            snapshots=selection.snapshots or phantom_snapshots(),
            control_plane=plane,
            lock_id=selection.lock_id,
            image_digest=image,
            project=project,
            location=location,
            api_key=key,
            keys_file=keys,
            audit_dir=audit,
            drain_grace_s=drain_grace,
            advertised=netloc,
            models=computing.models(),
            engine_limits=computing.limits(),
            allow_fetch=tuple(allow_fetch or ()),
            batch_dir=batch_dir,
        )
        code = asyncio.run(_until_signal(settings, listener, shown, told, tracer_provider))
    raise typer.Exit(code)


async def _until_signal(
    settings: Settings,
    listener: socket.socket,
    tls: Tls | None,
    told: Callable[[Starlette], None],
    tracer_provider: TracerProvider | None,
) -> int:
    from medport_local import app

    stop = Stop()

    def ready(started: Starlette) -> None:
        stop.ready = True
        told(started)

    await app.serve(settings, listener, stop=stop.asked, on_ready=ready, tls=tls, tracer_provider=tracer_provider)
    return stop.exit_code


def _api_key(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name, "")
    if not key:
        raise ConfigError(
            f"the environment variable {name} is not set", field="api-key-env", remedy=f"export {name}=…"
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError("the API key holds blanks or non-ASCII characters", field="api-key-env")
    return key


def _tls_files(cert: Path | None, key: Path | None, self_signed: Path | None) -> tuple[Path, Path] | None:
    """The two files; for a self-signed pair, where they are going to be."""
    if self_signed is not None:
        if cert or key:
            raise ConfigError("give either a certificate or --tls-self-signed", field="tls-self-signed")
        return self_signed / "server.pem", self_signed / "server-key.pem"
    if (cert is None) != (key is None):
        raise ConfigError("a certificate and its key go together", field="tls-key" if cert else "tls-cert")
    if cert is None or key is None:
        return None
    for name, path in (("tls-cert", cert), ("tls-key", key)):
        if not path.is_file():
            raise ConfigError(f"there is no file {path}", field=name, remedy="give a PEM file")
    return cert, key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bind(host: str, port: int) -> socket.socket:
    # Before the models are loaded: a port that is taken should not cost a minute.
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as fault:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({os.strerror(fault.errno) if fault.errno else 'no such address'})",
            field="port",
            remedy="choose another port; 0 picks a free one",
        ) from fault


def main() -> None:
    """Run ``serve`` alone: ``python -m medport_local.cli serve``."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.callback()(lambda: None)
    register(app)
    try:
        app()
    except MedportError as error:
        print(error, file=sys.stderr)  # noqa: T201
        raise SystemExit(row_of(error).exit_code) from None


if __name__ == "__main__":
    main()
