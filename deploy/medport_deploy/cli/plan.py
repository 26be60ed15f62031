"""``medport deploy lock`` and ``plan``: what is wanted, down to the bytes, and what that would change."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from medport.cli.output import Output
from medport_deploy.cli import options
from medport_deploy.cli.given import Given
from medport_deploy.cli.runs import opened
from medport_deploy.cli.shown import styled


def lock(
    mirror: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Look models up in a store, directory or lock on this machine."),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no registry and no hub: images need a digest.")
    ] = False,
    accept: Annotated[
        list[str] | None,
        typer.Option(metavar="TERMS_ID", help="Terms that changed and are accepted as they are now. Repeatable."),
    ] = None,
    accepted_by: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who accepts terms; this user if nobody is named.")
    ] = None,
    spec: options.SpecFile = options.SPEC,
    lock: options.LockFile = None,
    as_json: options.AsJson = False,
    no_color: options.NoColor = False,
    debug: options.Debug = False,
) -> int:
    """Find out which commits, digests and files the specification means, and write them into medport.lock."""
    from medport_deploy.work import lock as work_lock

    output = Output(json=as_json, color=not no_color)
    with opened(output, spec, lock, will_call=False) as deployment:
        done = work_lock.lock(
            deployment, mirror=mirror, offline=offline, accept=accept or (), accepted_by=accepted_by
        )
        lock_id = done.lock.lock_id
        if as_json:
            output.data(
                {
                    "lock": str(deployment.lock_file),
                    "lock_id": lock_id,
                    "written": done.written,
                    "changes": list(done.changes),
                    "discarded": done.discarded or None,
                }
            )
            return 0
        if done.discarded:
            output.note(f"{done.discarded}. It does not count: all is looked up anew, and terms are accepted anew")
        for line in done.changes:
            output.text(line)
        if done.written:
            output.text(f"lock {lock_id} in {deployment.lock_file}")
            output.note(Given(spec, lock).told("Next: medport deploy plan"))
        else:
            output.text(f"lock {lock_id}: as it was")
    return 0


def plan(
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Where to save it; .medport/deploy/NAME/plan.json."),
    ] = None,
    no_quota: Annotated[bool, typer.Option("--no-quota", help="Do not ask for the project's quotas.")] = False,
    no_terraform: options.NoTerraform = False,
    every: Annotated[bool, typer.Option("--all", help="Show what stays as it is too.")] = False,
    spec: options.SpecFile = options.SPEC,
    lock: options.LockFile = None,
    as_json: options.AsJson = False,
    no_color: options.NoColor = False,
    debug: options.Debug = False,
) -> int:
    """Say what would change, for how long and at what cost, and save that. Changes nothing.

    Exit code 0: nothing is to be done. 2: there are changes.
    """
    from medport_deploy.plan import show as plan_show
    from medport_deploy.work import plan as work_plan

    output = Output(json=as_json, color=not no_color)
    given = Given(spec, lock)
    with opened(output, spec, lock) as deployment:
        run = deployment.open_run()
        done = work_plan.plan(deployment, out=out, ask_quotas=not no_quota, with_terraform=not no_terraform)
    if as_json:
        output.data({**done.plan.as_dict(), "plan": str(done.file), "plan_sha256": done.sha256})
        return done.plan.exit_code
    styled(plan_show.lines(done.plan, every=every), no_color=no_color, named=given.told)
    if run is not None:
        left = f"The {run.header.verb} of {run.header.at} has not come to its end: medport deploy status"
        output.note(given.told(left))
    elif done.plan.changes:
        file = f" {shlex.quote(str(out))}" if out else ""
        output.note(f"Saved in {done.file}. Next: " + given.told(f"medport deploy apply{file}"))
    return done.plan.exit_code
