"""``medport deploy apply``, ``promote`` and ``rollback``: what changes who serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medport.cli.output import Output
from medport_deploy.cli import options
from medport_deploy.cli.runs import opened, run


def apply(
    plan: Annotated[
        Path | None, typer.Argument(metavar="[PLAN]", help="A saved plan; .medport/deploy/NAME/plan.json.")
    ] = None,
    hold: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=100,
            metavar="PERCENT",
            help="Stop at this share of the traffic: promote or rollback goes on.",
        ),
    ] = None,
    spec: options.SpecFile = options.SPEC,
    lock: options.LockFile = None,
    as_json: options.AsJson = False,
    no_color: options.NoColor = False,
    debug: options.Debug = False,
) -> int:
    """Do what a saved plan says. The plan is the approval: nothing is asked.

    A run that was stopped goes on where it was. A run that fails a smoke test or a gate gives the traffic back
    first, then undeploys the new fleet.
    """
    from medport_deploy.work import apply as work_apply

    output = Output(json=as_json, color=not no_color)
    with opened(output, spec, lock) as deployment:
        return run(output, deployment, lambda: work_apply.apply(deployment, plan, hold=hold))


def promote(
    spec: options.SpecFile = options.SPEC,
    lock: options.LockFile = None,
    as_json: options.AsJson = False,
    no_color: options.NoColor = False,
    debug: options.Debug = False,
) -> int:
    """Give a held run all traffic now, each gate judged once. Without one: undeploy old fleets that are kept."""
    from medport_deploy.work import apply as work_apply

    output = Output(json=as_json, color=not no_color)
    with opened(output, spec, lock) as deployment:
        return run(output, deployment, lambda: work_apply.promote(deployment))


def rollback(
    to: Annotated[
        str | None, typer.Option(metavar="LOCK_ID", help="Or its beginning: a lock that was verified here before.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the rejected fleets deployed, without traffic.")
    ] = False,
    spec: options.SpecFile = options.SPEC,
    lock: options.LockFile = None,
    as_json: options.AsJson = False,
    no_color: options.NoColor = False,
    debug: options.Debug = False,
) -> int:
    """Take an open run back, or let the lock serve that was verified before: in seconds, while its fleet is there.

    medport.yaml and medport.lock stay as they are; it is said which files describe what serves then.
    """
    from medport_deploy.work import rollback as work_rollback

    output = Output(json=as_json, color=not no_color)
    with opened(output, spec, lock) as deployment:
        return run(output, deployment, lambda: work_rollback.go_back(deployment, to=to, keep=keep))
