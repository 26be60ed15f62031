"""Terraform's part of a plan as one step of a run: the saved plan, or what a run that died has left of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medport.errors import Conflict, PreconditionFailed
from medport_deploy.plan import estimates, terraform_changes
from medport_deploy.plan.rows import Row
from medport_deploy.plan.terraform_changes import UNKNOWN
from medport_deploy.run.steps import Doing, Step
from medport_deploy.spec.reading import Spec
from medport_deploy.terraform.errors import Interrupted
from medport_deploy.terraform.events import Summary
from medport_deploy.terraform.root import PlanOutcome, Terraform

_AGAIN = "plan again: medport deploy plan"


def applied(terraform: Terraform, file: Path | None, approved: Iterable[Row], spec: Spec) -> Step:
    """Apply a saved plan. The way back leaves what Terraform made, and says so.

    A second attempt, after the first one failed, was stopped or died, plans anew and goes on only with what was
    approved. Ctrl-C stops terraform, which finishes the calls under way.

    Args:
        file: the saved plan.
        approved: Terraform's rows of the plan that was approved.

    Raises while it is done:
        Conflict: what is left to do is not what was approved.
        PreconditionFailed: the saved plan is gone.
        TerraformError: terraform failed, or another run holds its state.
    """
    rows = {row.address: row for row in approved}

    def do(doing: Doing) -> None:
        with doing.stopped_by(terraform.cancel.set):
            try:
                plan = _left(terraform, file, rows, spec) if doing.again else _saved(file)
                if plan is not None:
                    terraform.apply(plan)
            except Interrupted:
                # The deadline stops it too; that is a failure and not the user's wish.
                doing.check()
                raise

    return Step(
        kind="terraform",
        name=spec.name,
        title=f"terraform: {len(rows)} {'change' if len(rows) == 1 else 'changes'}",
        do=do,
        undo=lambda doing: doing.say("stays: what Terraform made is not taken back"),
        once=True,
        repeats=False,
    )


def _saved(file: Path | None) -> PlanOutcome:
    if file is None or not file.exists():
        raise PreconditionFailed("Terraform's plan is gone: it is good for one apply", field="plan", remedy=_AGAIN)
    return PlanOutcome(file, True, (), (), Summary("plan", 0, 0, 0), ())


def _left(terraform: Terraform, file: Path | None, approved: Mapping[str, Row], spec: Spec) -> PlanOutcome | None:
    if file is None:
        raise PreconditionFailed("Terraform's plan has no file", field="plan", remedy=_AGAIN)
    outcome = terraform.plan(file)
    if not outcome.changes:
        file.unlink(missing_ok=True)
        return None
    left = terraform_changes.rows(terraform.show(outcome), estimates.of(spec.target.kind))
    if strange := [row.address for row in left if not _is_approved(row, approved.get(row.address))]:
        file.unlink(missing_ok=True)
        raise Conflict(
            f"what is left for terraform is not what was approved: {', '.join(strange[:3])}",
            field="plan",
            remedy="put away what the run left, medport deploy sweep; then plan again",
        )
    return outcome


def _is_approved(row: Row, approved: Row | None) -> bool:
    if approved is None:
        return False
    # What was to be created and was cut short is damaged: nothing that stood before is replaced.
    if row.action != approved.action and (row.action, approved.action) != ("replace", "create"):
        return False
    # What was not known when it was approved may be known by now: it comes from what was made since.
    return all(_same(approved.after.get(key, UNKNOWN), value) for key, value in row.after.items())


def _same(approved: Any, value: Any) -> bool:
    return approved == value or UNKNOWN in (approved, value)
