"""``config show`` and ``doctor``: which settings are in force, and whether each step to the models works."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from medport import _extras, config
from medport.cli import offline as site
from medport.cli.checks import Outcome, failed, run
from medport.cli.link import Link
from medport.cli.output import Output
from medport.cli.session import Session, with_session
from medport.errors import EXIT_FAILED, ConfigError, MedportError

_PANEL = "With --offline"
_DEPLOY_PANEL = "With --deploy"
_OFFLINE = "offline"
_DEPLOY = "deploy"
_SPEC_FILE = "medport.yaml"
_MARKS = {"ok": ("ok     ", "green"), "failed": ("FAILED ", "bold red"), "skipped": ("skipped", "yellow")}


@with_session
def show(session: Session) -> int:
    """Print the settings in force and where each came from. Secrets are masked."""
    resolved = config.resolve(session.profile, session.settings)
    rows = config.masked(resolved)
    if session.output.json:
        settings = [{"key": key, "value": value, "origin": origin} for key, value, origin in rows]
        chain = [{"profile": name, "backend": profile.backend} for name, profile in resolved.chain]
        session.output.data({"profile": resolved.name, "chain": chain, "settings": settings})
    else:
        session.output.text(f"profile {resolved.name}: {' → '.join(name for name, _ in resolved.chain)}")
        session.output.table(("key", "value", "from"), rows)
    return 0


@with_session
def doctor(
    session: Session,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Check instead what a site with no network rests on; no socket is opened."),
    ] = False,
    deploy: Annotated[
        bool, typer.Option("--deploy", help="Check instead whether medport deploy can do what a file says.")
    ] = False,
    spec: Annotated[
        Path | None,
        typer.Option(
            "--spec", "-f", metavar="FILE", help="What to deploy; medport.yaml.", rich_help_panel=_DEPLOY_PANEL
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Of snapshots.", rich_help_panel=_PANEL)
    ] = None,
    lock: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What must be there; the bundle's if none. With --deploy: the one beside the file.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where medport bundle install put it.", rich_help_panel=_PANEL),
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Of medport serve --audit.", rich_help_panel=_PANEL)
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of medport serve.", rich_help_panel=_PANEL)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of medport serve.", rich_help_panel=_PANEL)
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of medport serve --keys.", rich_help_panel=_PANEL)
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="PEM",
            help="Public key of who may sign bundles; MEDPORT_BUNDLE_KEY, or /etc/medport/bundle-key.pem.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    ca: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PEM",
            help="Root that certifies who may; MEDPORT_BUNDLE_CA, or /etc/medport/bundle-ca.pem.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    signer: Annotated[
        str | None,
        typer.Option(
            metavar="SUBJECT", help="With --ca: only this one, such as CN=Release.", rich_help_panel=_PANEL
        ),
    ] = None,
) -> int:
    """Check each step to the models of the active profile, and of each profile it falls back to."""
    places = site.Places(
        store=store,
        lock=lock,
        bundle=bundle,
        audit=audit,
        tls_cert=tls_cert,
        tls_key=tls_key,
        keys=keys,
        key=key,
        ca=tuple(ca or ()),
        signer=signer,
    )
    if deploy and offline:
        raise ConfigError("excludes --offline", field="deploy", remedy="leave one of the two out")
    if spec is not None and not deploy:
        raise ConfigError("goes with --deploy", field="spec", remedy="add --deploy")
    if not offline and (named := [name for name in places.named() if not (deploy and name == "lock")]):
        raise ConfigError("goes with --offline", field=named[0].replace("_", "-"), remedy="add --offline")
    if deploy:
        return _deploy(session.output, spec or Path(_SPEC_FILE), lock)
    try:
        resolved = config.resolve(session.profile, session.settings)
    except MedportError as error:
        outcome = failed("configuration", error, "mend medport.toml; see: medport config show")
        return _report(session.output, [_shown(session.output, session.profile or "default", None, [outcome])])
    if offline:
        outcomes = []
        for outcome in run(site.checks(places, resolved)):
            outcomes.append(outcome)
            _line(session.output, outcome)
        return _report(session.output, [_entry(_OFFLINE, None, outcomes)])
    found = []
    for name, profile in resolved.chain:
        if not session.output.json:
            session.output.text(f"{name} ({profile.backend})")
        link = Link(name, profile, resolved)
        try:
            outcomes = []
            for outcome in run(link.checks()):
                outcomes.append(outcome)
                _line(session.output, outcome)
        finally:
            link.close()
        found.append(_entry(name, profile.backend, outcomes))
    return _report(session.output, found)


def _deploy(output: Output, spec: Path, lock: Path | None) -> int:
    found = _extras.load("medport_deploy.first_run.preflight", extra="deploy").Preflight(spec, lock)
    outcomes = []
    try:
        for outcome in run(found.checks()):
            outcomes.append(outcome)
            _line(output, outcome)
    finally:
        found.close()
    return _report(output, [_entry(_DEPLOY, None, outcomes)])


def _entry(name: str, backend: str | None, outcomes: list[Outcome]) -> dict[str, Any]:
    return {"profile": name, "backend": backend, "checks": [outcome.to_dict() for outcome in outcomes]}


def _shown(output: Output, name: str, backend: str | None, outcomes: list[Outcome]) -> dict[str, Any]:
    for outcome in outcomes:
        _line(output, outcome)
    return _entry(name, backend, outcomes)


def _line(output: Output, outcome: Outcome) -> None:
    if not output.json:
        output.row(*_MARKS[outcome.status], f" {outcome.name:<18} {outcome.detail}")


def _report(output: Output, profiles: list[dict[str, Any]]) -> int:
    """The whole in JSON, or the first failure explained: what follows from it fails as well."""
    failures = [(p["profile"], c) for p in profiles for c in p["checks"] if c["status"] == "failed"]
    if output.json:
        first = {"profile": failures[0][0], **failures[0][1]} if failures else None
        output.data({"ok": not failures, "first_failure": first, "profiles": profiles})
    elif failures:
        name, check = failures[0]
        output.text(f"\nBegin with {name}, {check['name']}: {check['detail']}\n  remedy: {check['remedy']}")
    else:
        output.text("\nAll is well.")
    return EXIT_FAILED if failures else 0
