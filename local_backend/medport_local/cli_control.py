"""The options of ``medport serve`` for a control plane: what stands on the command line, and what it means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medport.errors import ConfigError

if TYPE_CHECKING:
    from medport_local.settings import ControlPlane

_PANEL = "Control plane"

Directory = Annotated[
    Path | None,
    typer.Option(
        "--control-plane",
        metavar="DIR",
        help="Serve what callers upload and deploy, as on Vertex; its state is kept there.",
        rich_help_panel=_PANEL,
    ),
]
ProjectNumber = Annotated[
    str | None,
    typer.Option(
        metavar="N", help="In the names of resources; made from --project if none.", rich_help_panel=_PANEL
    ),
]
ModelDirs = Annotated[
    list[Path] | None,
    typer.Option(
        "--model-dir",
        metavar="DIR",
        help="Below it a model's artifactUri may lie. Repeatable; none without it.",
        rich_help_panel=_PANEL,
    ),
]
RequireDigest = Annotated[
    bool,
    typer.Option(
        "--require-digest", help="Refuse models whose image is not named by its digest.", rich_help_panel=_PANEL
    ),
]
GardenImage = Annotated[
    str,
    typer.Option(
        metavar="URI",
        help="The image that deployments of Model Garden say; none without it.",
        rich_help_panel=_PANEL,
    ),
]
AllowFaults = Annotated[
    bool,
    typer.Option(
        "--allow-faults", help="Let operators order faults, for rehearsals only.", rich_help_panel=_PANEL
    ),
]


def control_plane(
    directory: Path | None,
    *,
    project_number: str | None,
    store: Path | None,
    model_dirs: Sequence[Path],
    require_digest: bool,
    garden_image: str,
    allow_faults: bool,
    fixed: Sequence[str],
) -> ControlPlane | None:
    """What was asked for; ``None`` without ``--control-plane``.

    Args:
        fixed: the options that were given and name models, which are deployed in place of that.

    Raises:
        ConfigError: an option goes only with ``--control-plane``, or not with it.
    """
    if directory is None:
        for name, given in (
            ("project-number", project_number is not None),
            ("model-dir", bool(model_dirs)),
            ("require-digest", require_digest),
            ("garden-image", bool(garden_image)),
            ("allow-faults", allow_faults),
        ):
            if given:
                raise ConfigError("is for a control plane", field=name, remedy="give --control-plane DIR too")
        return None
    if fixed:
        raise ConfigError(
            "does not go with --control-plane, whose models are deployed by callers",
            field=fixed[0],
            remedy="leave it out, upload a model that names the snapshot, and deploy that",
        )
    from medport_local.settings import ControlPlane

    return ControlPlane(
        directory=directory,
        project_number=project_number or "",
        store=store,
        model_dirs=tuple(model_dirs),
        require_digest=require_digest,
        garden_image=garden_image,
        allow_faults=allow_faults,
    )
