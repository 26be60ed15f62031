"""Whether what Terraform owns is still as its configuration says."""

from __future__ import annotations

from medport_deploy.plan import estimates, terraform_changes
from medport_deploy.plan.rows import Row
from medport_deploy.spec.reading import Spec
from medport_deploy.terraform.process import private_directory
from medport_deploy.terraform.root import Terraform
from medport_deploy.verify.result import Check, compared, drift, skipped


def checks(spec: Spec, terraform: Terraform | None) -> list[Check]:
    """One finding for each resource that a plan would change.

    Args:
        terraform: after ``init``; ``None``: it is not asked.

    Raises:
        What ``Terraform.plan`` raises.
    """
    if spec.terraform.root is None:
        return [skipped("terraform", None, "the specification has no root")]
    if terraform is None:
        return [skipped("terraform", None, "not asked for")]
    with private_directory() as scratch:
        # A plan, and not -refresh-only: what our own steps move (split, deployed models, etag) is drift to that,
        # and no change to this.
        outcome = terraform.plan(scratch / "verify.tfplan")
        shown = terraform.show(outcome) if outcome.changes else {}
    if not outcome.changes:
        return [compared("terraform", None, True, True, shown="no changes")]
    rows = terraform_changes.rows(shown, estimates.of(spec.target.kind))
    return [_row(each) for each in rows] or [drift("terraform", None, "no changes", "only outputs change")]


def _row(row: Row) -> Check:
    resource = row.address.removeprefix(terraform_changes.ADDRESS)
    keys = sorted({*row.before, *row.after})
    expected = {"resource": resource, **{key: row.after.get(key) for key in keys}}
    found = {"resource": resource, **{key: row.before.get(key) for key in keys}}
    if row.action == "create":
        found = {"resource": resource, "exists": False}
        expected = {"resource": resource, "exists": True}
    elif row.action == "destroy":
        found = {"resource": resource, "exists": True}
        expected = {"resource": resource, "exists": False}
    return drift("terraform", None, expected, found)
