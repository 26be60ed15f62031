"""What ``medport serve`` says when the server is ready: a few lines for people, or one of JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from medport_local.control.project import Project
    from medport_local.control.resources import Deployed
    from medport_local.standing import Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """How the server is reached."""

    url: str
    ca_file: str | None
    api_key_env: str | None


def as_json(address: Address, deployed: Sequence[Deployed], standing: Mapping[str, Standing]) -> str:
    """One line. Keys are promised: ``url``, ``ca_file``, ``endpoints`` by key, ``models`` by family."""
    return json.dumps(
        {
            "url": address.url,
            "ca_file": address.ca_file,
            "endpoints": {each.plan.key: each.endpoint_name for each in deployed},
            "models": {family: each.as_json() for family, each in standing.items()},
        }
    )


def as_text(address: Address, deployed: Sequence[Deployed], standing: Mapping[str, Standing]) -> str:
    """Some lines: what is served and under which names, on what it runs, and how to connect."""
    lines = [f"medport serves at {address.url}"]
    lines += [f"  {each.plan.key}: {each.snapshot.model_id} as {each.endpoint_name}" for each in deployed]
    for family, each in standing.items():
        lines += [f"  {family}: {said}" for said in each.lines()]
    lines += [f"  Lock: {lock_id}" for lock_id in sorted({each.lock_id for each in deployed if each.lock_id})]
    lines += [f"  Note: {notice}" for notice in sorted({e.snapshot.notice for e in deployed if e.snapshot.notice})]
    return "\n".join((*lines, *_how(address)))


def announce(
    address: Address, deployed: Sequence[Deployed], standing: Mapping[str, Standing], *, json_line: bool
) -> None:
    """Print it to standard output."""
    typer.echo((as_json if json_line else as_text)(address, deployed, standing))
    sys.stdout.flush()


def announce_plane(address: Address, project: Project, *, json_line: bool) -> None:
    """Print where a control plane is, whose names it has: ``url``, ``ca_file`` and ``control_plane`` in JSON."""
    if json_line:
        plane = {"project": project.id, "project_number": project.number, "location": project.location}
        said = json.dumps({"url": address.url, "ca_file": address.ca_file, "control_plane": plane})
    else:
        lines = [
            f"medport serves what is deployed to it at {address.url}",
            f"  project: {project.id}, number {project.number}",
            f"  location: {project.location}",
        ]
        said = "\n".join((*lines, *_how(address)))
    typer.echo(said)
    sys.stdout.flush()


def _how(address: Address) -> tuple[str, str]:
    arguments = [f'backend="local", url="{address.url}"']
    if address.ca_file:
        arguments.append(f'ca_file="{address.ca_file}"')
    if address.api_key_env:
        arguments.append(f'api_key=os.environ["{address.api_key_env}"]')
    return f"Connect with: medport.Client({', '.join(arguments)})", "Stop with Ctrl-C."
