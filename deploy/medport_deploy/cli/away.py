"""``medport deploy sweep`` and ``destroy``: they list first, and take nothing away that nobody agreed to."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

from medport.cli.output import Output
from medport.errors import EXIT_FAILED, PreconditionFailed
from medport_deploy.cli import options
from medport_deploy.cli.runs import opened, run

if TYPE_CHECKING:
    from medport_deploy.work.opening import Deployment


def sweep(
    yes: options.Yes = False,
    spec: options.SpecFile = options.SPEC,
    lock: options.LockFile = None,
    as_json: options.AsJson = False,
    no_color: options.NoColor = False,
    debug: options.Debug = False,
) -> int:
    """List what a dead or failed run left, and take it away once that is agreed to; what served before it serves.

    What was verified and what is kept for a way back stays. A run that is held is not swept: promote or rollback.
    """
    from medport_deploy.work import away as work_away

    output = Output(json=as_json, color=not no_color)
    with opened(output, spec, lock) as deployment:
        found = work_away.leftovers(deployment)
        listed = [
            {"kind": each.kind, "name": each.name, "why": each.why, "traffic_percent": each.percent}
            for each in found
        ]
        runs = work_away.unfinished(deployment)
        if not found and not runs:
            if as_json:
                output.data({"deployment": deployment.spec.name, "outcome": "nothing to do", "found": []})
            else:
                output.text(f"nothing is left over of {deployment.spec.name}")
            return 0
        for each in found:
            share = f", has {each.percent} % of the traffic" if each.percent else ""
            _list(output, f"{each.kind} {each.name}: {each.why}{share}")
        for each_run in runs:
            _list(output, f"{each_run} has not come to its end, and is over then")
        where = work_away.target(deployment)
        question = f"Take {len(found)} away from {where}?" if found else "Close it?"
        if not yes and not _agreed(output, deployment, question, {"target": where, "found": listed}):
            return EXIT_FAILED
        return run(output, deployment, lambda: work_away.swept(deployment, found), found=listed)


def destroy(
    yes: options.Yes = False,
    spec: options.SpecFile = options.SPEC,
    lock: options.LockFile = None,
    as_json: options.AsJson = False,
    no_color: options.NoColor = False,
    debug: options.Debug = False,
) -> int:
    """List all of the deployment, and take it away once that is agreed to: traffic first, Terraform's own last.

    Says afterwards what cannot be deleted and what goes on to cost money.
    """
    from medport_deploy.work import away as work_away

    output = Output(json=as_json, color=not no_color)
    with opened(output, spec, lock) as deployment:
        what = work_away.going(deployment)
        if what.nothing:
            if as_json:
                output.data({"deployment": deployment.spec.name, "outcome": "nothing to do", "found": []})
            else:
                output.text(f"nothing is there of {deployment.spec.name}")
            return 0
        titles = [each.title for each in what.steps]
        for title in titles:
            _list(output, title)
        for address in what.terraform:
            _list(output, f"  {address}")
        where = work_away.target(deployment)
        remains = [{"what": each.what, "why": each.why, "costs": each.costs} for each in what.remains]
        more = {"target": where, "found": titles, "terraform": list(what.terraform), "remains": remains}
        if not yes and not _agreed(output, deployment, f"Destroy {deployment.spec.name} on {where}?", more):
            return EXIT_FAILED
        code = run(output, deployment, lambda: work_away.destroyed(deployment, what), **more)
        if code == 0 and not as_json:
            for each in what.remains:
                output.text(f"stays{' and COSTS MONEY' if each.costs else ''}: {each.what}; {each.why}")
        return code


def _list(output: Output, line: str) -> None:
    if not output.json:
        output.text(f"  - {line}")


def _agreed(output: Output, deployment: Deployment, question: str, listed: Mapping[str, object]) -> bool:
    """Ask, on a terminal. With ``--json`` nobody is asked: the list is the answer, and nothing is done.

    Args:
        listed: keys of the JSON object.

    Raises:
        PreconditionFailed: nobody can be asked, or the answer is no.
        typer.Abort: the question was left.
    """
    if output.json:
        said = {"deployment": deployment.spec.name, "outcome": "not agreed to", "remedy": "give --yes"}
        output.data({**said, **listed})
        return False
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise PreconditionFailed("nothing was done: nobody agreed to it", field="--yes", remedy="give --yes")
    if not typer.confirm(question, err=True):
        raise PreconditionFailed("nothing was done: the answer was no", field="--yes")
    return True
