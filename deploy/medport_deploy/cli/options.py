"""The options that the commands of ``medport deploy`` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_PANEL = "Common options"

SpecFile = Annotated[
    Path,
    typer.Option(
        "--spec", "-f", metavar="FILE", help="What is to be deployed, and where.", rich_help_panel=_PANEL
    ),
]
LockFile = Annotated[
    Path | None,
    typer.Option(
        "--lock",
        metavar="FILE",
        help="What that means; medport.lock beside the specification.",
        rich_help_panel=_PANEL,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON object on stdout; stages are not told.", rich_help_panel=_PANEL)
]
NoColor = Annotated[bool, typer.Option("--no-color", help="No colour, as NO_COLOR=1.", rich_help_panel=_PANEL)]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=_PANEL)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]
NoTerraform = Annotated[
    bool, typer.Option("--no-terraform", help="Do not ask Terraform; its part is not looked at.")
]

SPEC = Path("medport.yaml")
"""Where the specification is unless told otherwise."""
