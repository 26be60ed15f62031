"""The commands of the local backend: which there are, and how one is run without loading any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import typer
from typer.main import get_command

from medport import _extras

COMMANDS: Mapping[str, str] = {
    "serve": "Serve both models on this machine: medport serve --help.",
    "snapshot": "Fetch, verify, lock and keep models in a store: medport snapshot --help.",
    "bundle": "Pack all that a site without a network needs into one signed file: medport bundle --help.",
    "audit": "Check or read a server's audit log: medport audit --help.",
    "keys": "Make, list or revoke a server's API keys: medport keys --help.",
    "quantize": "Make a snapshot with int8 weights: medport quantize --help.",
    "engine": "Test another engine with a snapshot: medport engine --help.",
    "bench": "Measure the engine on this machine: medport bench --help.",
}
"""By name, with what the list of all commands says of each."""


def run(command: str, arguments: Sequence[str]) -> int:
    """Run one of them; gives its exit code."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.callback()(lambda: None)  # so that one command stays a command and does not become the whole app
    with _extras.importing():
        _extras.load("medport_local.cli", extra="local").register(app)
    return invoke(app, [command, *arguments])


def invoke(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run an app; errors come out as they are, for ``main`` to give them the exit codes of the table."""
    return int(get_command(app).main(list(arguments), prog_name="medport", standalone_mode=False) or 0)
