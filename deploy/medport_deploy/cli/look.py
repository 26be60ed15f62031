"""``medport deploy verify``, ``check-report``, ``status`` and ``history``: they look, and change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medport.cli.output import Output
from medport_deploy.cli import options
from medport_deploy.cli.given import Given
from medport_deploy.cli.runs import opened
from medport_deploy.cli.shown import styled


def verify(
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report there too, as JSON.")
    ] = None,
    sign: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Sign the report with this private key: needs --report.")
    ] = None,
    no_smoke: Annotated[bool, typer.Option("--no-smoke", help="Send no request to the models.")] = False,
    no_terraform: options.NoTerraform = False,
    every: Annotated[bool, typer.Option("--all", help="Show what is as it was approved too.")] = False,
    spec: options.SpecFile = options.SPEC,
    lock: options.LockFile = None,
    as_json: options.AsJson = False,
    no_color: options.NoColor = False,
    debug: options.Debug = False,
) -> int:
    """Check that what serves is what was approved: bytes, settings, traffic, Terraform's part, and its answers.

    Exit code 0: it is. 2: something is not. 1: it could not be seen.
    """
    from medport_deploy.verify import show as verify_show
    from medport_deploy.work import verify as work_verify

    if sign is not None and report is None:
        raise typer.BadParameter("goes with --report FILE", param_hint="--sign")
    output = Output(json=as_json, color=not no_color)
    with opened(output, spec, lock) as deployment:
        key = work_verify.signing_key(sign, deployment.telling.note) if sign is not None else None
        found = work_verify.verified(deployment, with_smoke=not no_smoke, with_terraform=not no_terraform)
    if as_json:
        output.data(found.as_dict())
    else:
        styled(verify_show.lines(found, every=every), no_color=no_color, named=Given(spec, lock).told)
    if report is not None:
        work_verify.write(found, report, key_pem=key)  # last: a full disk does not take the verdict away
    return found.exit_code


def check_report(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A signed report.")],
    key: Annotated[Path, typer.Option(metavar="PEM", help="The public key of whom it must be.")],
    as_json: options.AsJson = False,
    no_color: options.NoColor = False,
    debug: options.Debug = False,
) -> int:
    """Check who signed a report and that nobody changed it; the code is that of the verification it tells of."""
    from medport_deploy.work import verify as work_verify

    output = Output(json=as_json, color=not no_color)
    said = work_verify.checked(file, key)
    if as_json:
        output.data(said)
    else:
        output.text(f"signed, and as it was signed: {said['deployment']} on {said['target']}")
        output.text(f"lock {said['lock_id']}, verified at {said['made_at']} by medport {said['medport']}")
        output.text(
            "all was as approved" if said["clean"] else f"{_things(len(said['findings']))} not as approved"
        )
    return int(said["exit_code"])


def _things(count: int) -> str:
    return "1 thing was" if count == 1 else f"{count} things were"


def status(
    spec: options.SpecFile = options.SPEC,
    lock: options.LockFile = None,
    as_json: options.AsJson = False,
    no_color: options.NoColor = False,
    debug: options.Debug = False,
) -> int:
    """Show who serves with which share, what is open, and what there is to go back to. Sends no requests."""
    from medport_deploy.past import status as reading

    output = Output(json=as_json, color=not no_color)
    with opened(output, spec, lock) as deployment:
        found = reading.read(
            deployment.spec,
            deployment.lock_if_any(),
            deployment.control,
            deployment.directory,
            spec_bytes=deployment.spec_bytes,
        )
    given = Given(spec, lock)
    if as_json:
        said = found.as_dict()
        output.data({**said, "runs": [{**run, "go_on": given.told(run["go_on"])} for run in said["runs"]]})
    else:
        styled(reading.lines(found), no_color=no_color, named=given.told)
    return 0


def history(
    spec: options.SpecFile = options.SPEC,
    lock: options.LockFile = None,
    as_json: options.AsJson = False,
    no_color: options.NoColor = False,
    debug: options.Debug = False,
) -> int:
    """Show what was done to the deployment, the oldest first. Asks nobody."""
    output = Output(json=as_json, color=not no_color)
    with opened(output, spec, lock, will_call=False) as deployment:
        entries = deployment.history()
    if as_json:
        output.data({"deployment": deployment.spec.name, "entries": [each.as_dict() for each in entries]})
        return 0
    if not entries:
        output.text("nothing was done yet")
        return 0
    rows = [
        [f"{each.at[:19]}Z", each.verb, each.outcome, each.lock_id[:12], each.by, each.why] for each in entries
    ]
    output.table(["when", "what", "came to", "lock", "by", "why"], rows)
    return 0
