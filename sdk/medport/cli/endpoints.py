"""``medport endpoints list | show``: what is deployed to which endpoint, and which bytes that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from medport.cli import pinning
from medport.cli.output import Output
from medport.cli.pinning import Identity
from medport.cli.registry import Registry, id_of, version_name
from medport.cli.session import Session, with_session
from medport.wire.inventory import ListedDeployment, ListedEndpoint, ListedVersion

_COLUMNS = (
    "endpoint", "name", "host", "deployed", "model", "share", "replicas", "status", "revision", "snapshot", "lock",
)  # fmt: skip
_Versions = Mapping[str, ListedVersion | None]


@with_session
def list_(
    session: Session,
    wanted: Annotated[
        str | None,
        typer.Option("--filter", metavar="TERM", help='Such as labels.team="chest" or display_name="mg".'),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many; all if not given.")] = None,
) -> int:
    """List the endpoints of the profile's project and location, with what is deployed to each."""
    with Registry(session) as registry:
        endpoints = registry.endpoints(wanted, limit)
        versions = registry.deployed(endpoints)
    if session.output.json:
        session.output.data({"endpoints": [_as_dict(each, versions) for each in endpoints]})
        return 0
    session.output.table(_COLUMNS, [row for each in endpoints for row in _rows(each, versions)])
    for endpoint in endpoints:
        for deployed in endpoint.deployed_models:
            for said in _identity(endpoint, deployed, versions).disagreements:
                session.output.note(f"{id_of(endpoint.name)}, {deployed.id}: {said}")
    return 0


@with_session
def show(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its id or resource name.")],
) -> int:
    """Show one endpoint in full: its models, their shares, their pins, and where the pins are in doubt."""
    with Registry(session) as registry:
        endpoint = registry.endpoint(name)
        versions = registry.deployed([endpoint])
    if session.output.json:
        session.output.data({"endpoint": _as_dict(endpoint, versions)})
    else:
        _print(session.output, endpoint, versions)
    return 0


def _rows(endpoint: ListedEndpoint, versions: _Versions) -> list[tuple[str, ...]]:
    """One row for each deployed model; the endpoint's own columns stand in the first of them."""
    own = (id_of(endpoint.name), endpoint.display_name, _host(endpoint))
    rows: list[tuple[str, ...]] = []
    for deployed in endpoint.deployed_models:
        identity = _identity(endpoint, deployed, versions)
        rows.append((
            *(own if not rows else ("", "", "")), deployed.id,
            id_of(version_name(deployed.model, deployed.model_version_id)),
            f"{endpoint.traffic_split.get(deployed.id, 0)} %", _replicas(deployed), _status(deployed),
            *(identity.short(pin) for pin in ("revision", "snapshot_sha256", "lock_id")),
        ))  # fmt: skip
    return rows or [(*own, *["-"] * (len(_COLUMNS) - len(own)))]


def _print(output: Output, endpoint: ListedEndpoint, versions: _Versions) -> None:
    output.text(f"endpoint {id_of(endpoint.name)}")
    output.fields({
        "name": endpoint.name,
        "display name": endpoint.display_name,
        "description": endpoint.description,
        "host": _host(endpoint),
        "labels": ", ".join(f"{key}={value}" for key, value in endpoint.labels.items()),
        "created": endpoint.create_time,
        "etag": endpoint.etag,
    })  # fmt: skip
    if not endpoint.deployed_models:
        output.text("\nno model is deployed")
    for deployed in endpoint.deployed_models:
        identity = _identity(endpoint, deployed, versions)
        output.text(
            f"\ndeployed model {deployed.id}: {endpoint.traffic_split.get(deployed.id, 0)} % of the requests"
        )
        output.fields({
            "model": version_name(deployed.model, deployed.model_version_id),
            "display name": deployed.display_name,
            "status": _status(deployed),
            "replicas": _replicas(deployed),
            "machine": _machine(deployed),
            "created": deployed.create_time,
            **pinning.in_full(identity),
        })  # fmt: skip
        output.warnings(identity.warnings)


def _as_dict(endpoint: ListedEndpoint, versions: _Versions) -> dict[str, Any]:
    return {
        "id": id_of(endpoint.name),
        "name": endpoint.name,
        "display_name": endpoint.display_name,
        "description": endpoint.description,
        "labels": endpoint.labels,
        "dedicated": endpoint.dedicated_endpoint_enabled,
        "dedicated_dns": endpoint.dedicated_endpoint_dns or None,
        "create_time": endpoint.create_time or None,
        "etag": endpoint.etag or None,
        "deployed_models": [
            {
                "id": each.id,
                "model": each.model,
                "version": each.model_version_id or None,
                "display_name": each.display_name,
                "traffic_percent": endpoint.traffic_split.get(each.id, 0),
                "available_replicas": each.status.available_replica_count if each.status else None,
                "status": (each.status.message if each.status else "") or None,
                "model_readable": (identity := _identity(endpoint, each, versions)).readable,
                **identity.as_dict(),
            }
            for each in endpoint.deployed_models
        ],
    }


def _host(endpoint: ListedEndpoint) -> str:
    return endpoint.dedicated_endpoint_dns or ("none yet" if endpoint.dedicated_endpoint_enabled else "shared")


def _identity(endpoint: ListedEndpoint, deployed: ListedDeployment, versions: _Versions) -> Identity:
    version = versions.get(version_name(deployed.model, deployed.model_version_id))
    return pinning.of_deployment(endpoint, deployed, version)


def _status(deployed: ListedDeployment) -> str:
    """Its message, or what the number of replicas says; nothing where the server says nothing."""
    status = deployed.status
    if status is None:
        return "-"
    if status.message:
        return status.message
    return {None: "-", 0: "none is available"}.get(status.available_replica_count, "available")


def _replicas(deployed: ListedDeployment) -> str:
    available = deployed.status.available_replica_count if deployed.status else None
    wanted = deployed.dedicated_resources
    parts = ["-" if available is None else str(available)]
    if wanted is not None and wanted.min_replica_count is not None:
        most = wanted.max_replica_count or wanted.min_replica_count
        least = str(wanted.min_replica_count)
        parts.append(least if most == wanted.min_replica_count else f"{least} to {most}")
    return " of ".join(parts)


def _machine(deployed: ListedDeployment) -> str:
    if deployed.dedicated_resources is None:
        return ""
    spec = deployed.dedicated_resources.machine_spec
    cards = f"{spec.accelerator_count} × {spec.accelerator_type}" if spec.accelerator_count else ""
    return ", ".join(filter(None, (spec.machine_type, cards)))
