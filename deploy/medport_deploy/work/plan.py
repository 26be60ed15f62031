"""Make a plan and save it: what would have to be done for the specification. Changes nothing at the target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medport_deploy.plan import file as plan_file
from medport_deploy.plan import making as plans
from medport_deploy.plan import quota
from medport_deploy.plan.making import Plan
from medport_deploy.work.opening import Deployment


@dataclass(frozen=True, slots=True)
class Planned:
    """What ``plan`` did."""

    plan: Plan
    file: Path
    sha256: str
    """Of the file."""


def plan(
    deployment: Deployment, *, out: Path | None = None, ask_quotas: bool = True, with_terraform: bool = True
) -> Planned:
    """See what stands, say what is to be done, and save that for ``apply``.

    Args:
        out: the plan's file; ``deployment.plan_file`` if none.

    Raises: as ``plan.making.make``; nothing was changed then.
    """
    wanted = deployment.locked()
    terraform = deployment.terraform_ready() if with_terraform else None
    if out is None:
        deployment.private_directory()
    file = out or deployment.plan_file
    limits = None
    if ask_quotas and deployment.spec.target.kind == "vertex":
        limits = quota.ServiceUsage(deployment.spec.target.project, deployment.credentials)
    try:
        made = plans.make(
            deployment.spec,
            wanted,
            deployment.control,
            spec_bytes=deployment.spec_bytes,
            terraform=terraform,
            terraform_file=plan_file.terraform_file(file) if terraform else None,
            limits=limits,
            retained=deployment.retained(),
        )
    finally:
        if limits is not None:
            limits.close()
    saved = plan_file.save(file, made)
    return Planned(made, file, saved.sha256)
