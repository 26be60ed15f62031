"""The example for a site with no network names commands and options that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from medport.cli import tree
from medport_local import cli as local_cli

EXAMPLE = Path(__file__).parents[3] / "examples" / "air-gap.md"
LINES = [
    line.partition(" # ")[0].removeprefix("$ ").strip()
    for block in re.findall(r"```console\n(.*?)```", EXAMPLE.read_text("utf-8"), re.S)
    for line in block.splitlines()
    if line.startswith("$ medport ")
]


@pytest.fixture(scope="module")
def commands() -> dict[str, Any]:
    """The command line's tree: the local backend's commands in place of the names that stand for them."""
    local = typer.Typer()
    local_cli.register(local)
    return {**get_command(tree.app).commands, **get_command(local).commands}  # type: ignore[attr-defined]


def test_example_shows_each_step_of_the_way() -> None:
    verbs = {" ".join(shlex.split(line)[1:3]) for line in LINES}

    assert verbs >= {
        "snapshot pull", "snapshot lock", "bundle keygen", "bundle export", "bundle verify", "bundle install",
        "serve --lock", "audit show", "audit verify", "doctor --offline",
    }  # fmt: skip


@pytest.mark.parametrize("line", sorted(set(LINES)))
def test_every_option_of_the_example_exists(commands: dict[str, Any], line: str) -> None:
    words = shlex.split(line)[1:]
    command = commands[words.pop(0)]
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]

    known = {name for each in command.params for name in each.opts}

    assert {word for word in words if word.startswith("-")} <= known
