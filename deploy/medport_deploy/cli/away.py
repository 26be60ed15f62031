"""``medport deploy sweep`` and ``destroy``: they list first, and take nothing away that nobody agreed to."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from medport.cli.output import Output
from medport.errors import PreconditionFailed
from medport_deploy.cli import options
from medport_deploy.cli.runs import opened, run


def sweep(
    yes: options.Yes = False,
    spec: options.SpecFile = options.SPEC,
    lock: options.LockFile = None,
    as_json: options.AsJson = False,
    no_color: options.NoColor = False,
    debug: options.Debug = False,
) -> int:
    """List what a dead or failed run left, and take it away once that is agreed to.

    What serves, what was verified and what is kept for a way back is never touched.
    """
    from medport_deploy.work import away as work_away

    output = Output(json=as_json, color=not no_color)
    with opened(output, spec, lock) as deployment:
        found = work_away.leftovers(deployment)
        listed = [
            {"kind": each.kind, "name": each.name, "why": each.why, "traffic_percent": each.percent}
            for each in found
        ]
        if not found and not work_away.unfinished(deployment):
            if as_json:
                output.data({"deployment": deployment.spec.name, "outcome": "nothing to do", "found": []})
            else:
                output.text(f"nothing is left over of {deployment.spec.name}")
            return 0
        for each in found:
            share = f", has {each.percent} % of the traffic" if each.percent else ""
            _list(output, f"{each.kind} {each.name}: {each.why}{share}")
        _agree(output, yes, f"Take {len(found)} away?", listed)
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
        _agree(output, yes, f"Destroy {deployment.spec.name}?", titles)
        remains = [{"what": each.what, "why": each.why, "costs": each.costs} for each in what.remains]
        more = {"found": titles, "terraform": list(what.terraform), "remains": remains}
        code = run(output, deployment, lambda: work_away.destroyed(deployment, what), **more)
        if code == 0 and not as_json:
            for each in what.remains:
                output.text(f"stays{' and COSTS MONEY' if each.costs else ''}: {each.what}; {each.why}")
        return code


def _list(output: Output, line: str) -> None:
    if not output.json:
        output.text(f"  - {line}")


def _agree(output: Output, yes: bool, question: str, listed: Sequence[object]) -> None:
    """Go on if it is agreed to.

    Raises:
        PreconditionFailed: nobody can be asked.
        typer.Abort: the answer is no.
    """
    if yes:
        return
    if output.json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        if output.json:
            output.data({"outcome": "not agreed to", "found": listed})
        raise PreconditionFailed("nothing was done: nobody agreed to it", field="--yes", remedy="give --yes")
    if not typer.confirm(question, err=True):
        raise PreconditionFailed("nothing was done: the answer was no", field="--yes")
