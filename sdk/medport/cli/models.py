"""``medport models list | show``: the versions of a model, which bytes each is, where it is deployed."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from medport.cli import pinning
from medport.cli.output import Output
from medport.cli.registry import Registry, id_of
from medport.cli.session import Session, with_session
from medport.wire.inventory import ListedVersion

DEFAULT = "default"
_COLUMNS = (
    "model", "name", "version", "aliases", "image", "revision", "snapshot", "lock", "deployed to",
)  # fmt: skip


@with_session
def list_(
    session: Session,
    wanted: Annotated[
        str | None,
        typer.Option("--filter", metavar="TERM", help='Such as labels.team="chest" or display_name="mg".'),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many; all if not given.")] = None,
) -> int:
    """List the models of the profile's project and location, each with all its versions."""
    with Registry(session) as registry:
        models = registry.models(wanted, limit)
        versions = registry.versions_of(models)
    if session.output.json:
        session.output.data({"models": [_as_dict(*each) for each in zip(models, versions, strict=True)]})
        return 0
    session.output.table(_COLUMNS, [row for each in versions for row in _rows(each)])
    for version in (one for each in versions for one in each):
        for said in pinning.of_version(version).disagreements:
            session.output.note(f"{_id(version)}@{version.version_id}: {said}")
    return 0


@with_session
def show(
    session: Session,
    name: Annotated[
        str, typer.Argument(metavar="NAME[@VERSION]", help="Its id or resource name; a version's id or alias.")
    ],
) -> int:
    """Show one model version in full, the default one if none is named: its pins, and where they are in doubt."""
    with Registry(session) as registry:
        version = registry.version(name)
        (versions,) = registry.versions_of([version])
    if session.output.json:
        session.output.data({"model": _as_dict(version, versions), "version": _version_as_dict(version)})
    else:
        _print(session.output, version, versions)
    return 0


def _rows(versions: list[ListedVersion]) -> list[tuple[str, ...]]:
    """One row for each version; the model's own columns stand in the first of them."""
    rows: list[tuple[str, ...]] = []
    for version in versions:
        identity = pinning.of_version(version)
        own = (_id(version), version.display_name) if not rows else ("", "")
        pins = (identity.short(pin) for pin in ("image_digest", "revision", "snapshot_sha256", "lock_id"))
        rows.append((*own, version.version_id, ", ".join(version.version_aliases) or "-", *pins, _where(version)))
    return rows


def _print(output: Output, version: ListedVersion, versions: list[ListedVersion]) -> None:
    identity = pinning.of_version(version)
    spec = version.container_spec
    output.text(f"model {_id(version)}@{version.version_id}")
    output.fields({
        "name": version.name,
        "display name": version.display_name,
        "description": version.description,
        "about version": version.version_description,
        "aliases": ", ".join(version.version_aliases),
        "labels": ", ".join(f"{key}={value}" for key, value in version.labels.items()),
        "created": version.version_create_time or version.create_time,
        "etag": version.etag,
        "container": spec.image_uri if spec else "",
        "arguments": " ".join(spec.args) if spec else "",
        "artifacts": version.artifact_uri,
        "deployed to": _where(version),
        "all versions": ", ".join(_called(each) for each in versions),
        **pinning.in_full(identity),
    })  # fmt: skip
    output.warnings(identity.warnings)


def _as_dict(model: ListedVersion, versions: list[ListedVersion]) -> dict[str, Any]:
    default = next((each.version_id for each in versions if DEFAULT in each.version_aliases), None)
    return {
        "id": _id(model),
        "name": model.name.partition("@")[0],
        "display_name": model.display_name,
        "default_version": default,
        "versions": [_version_as_dict(each) for each in versions],
    }


def _version_as_dict(version: ListedVersion) -> dict[str, Any]:
    spec = version.container_spec
    return {
        "version": version.version_id,
        "aliases": version.version_aliases,
        "description": version.version_description or version.description,
        "labels": version.labels,
        "image": (spec.image_uri if spec else "") or None,
        "artifacts": version.artifact_uri or None,
        "create_time": version.version_create_time or version.create_time or None,
        "deployed_to": [
            {"endpoint": each.endpoint, "deployed_model_id": each.deployed_model_id}
            for each in version.deployed_models
        ],
        **pinning.of_version(version).as_dict(),
    }


def _id(version: ListedVersion) -> str:
    return id_of(version.name).partition("@")[0]


def _called(version: ListedVersion) -> str:
    aliases = ", ".join(version.version_aliases)
    return f"{version.version_id} ({aliases})" if aliases else version.version_id


def _where(version: ListedVersion) -> str:
    return ", ".join(f"{id_of(each.endpoint)}/{each.deployed_model_id}" for each in version.deployed_models) or "-"
