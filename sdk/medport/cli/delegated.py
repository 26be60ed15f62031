"""Commands that the other packages bring: which there are, and how one is run without loading any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import typer
from typer.main import get_command

from medport import _extras


@dataclass(frozen=True, slots=True)
class Package:
    """Where commands are. Its module has ``register(app)``, which adds them."""

    module: str
    extra: str
    """Of the distribution that brings what it needs."""


_LOCAL = Package("medport_local.cli", "local")
_DEPLOY = Package("medport_deploy.cli.app", "deploy")

COMMANDS: Mapping[str, tuple[Package, str]] = {
    "serve": (_LOCAL, "Serve both models on this machine: medport serve --help."),
    "snapshot": (_LOCAL, "Fetch, verify, lock and keep models in a store: medport snapshot --help."),
    "bundle": (
        _LOCAL,
        "Pack what a site without a network needs into one signed file: medport bundle --help.",
    ),
    "audit": (_LOCAL, "Check or read a server's audit log: medport audit --help."),
    "keys": (_LOCAL, "Make, list or revoke a server's API keys: medport keys --help."),
    "quantize": (_LOCAL, "Make a snapshot with int8 weights: medport quantize --help."),
    "engine": (_LOCAL, "Test another engine with a snapshot: medport engine --help."),
    "bench": (_LOCAL, "Measure the engine on this machine: medport bench --help."),
    "deploy": (_DEPLOY, "Plan, apply, verify and roll back pinned endpoints: medport deploy --help."),
}
"""By name: the package, and what the list of all commands says of each."""


def run(command: str, arguments: Sequence[str]) -> int:
    """Run one of them; gives its exit code."""
    package, _ = COMMANDS[command]
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.callback()(lambda: None)  # so that one command stays a command and does not become the whole app
    with _extras.importing():
        _extras.load(package.module, extra=package.extra).register(app)
    return invoke(app, [command, *arguments])


def invoke(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run an app; errors come out as they are, for ``main`` to give them the exit codes of the table."""
    return int(get_command(app).main(list(arguments), prog_name="medport", standalone_mode=False) or 0)
