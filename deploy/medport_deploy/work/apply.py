"""Apply a saved plan, go on with a run that was held or stopped, and let go of what is kept for a way back."""

from __future__ import annotations

import shlex
from pathlib import Path

from medport.errors import Conflict, NotFound, PreconditionFailed
from medport_deploy.control.plane import ControlPlane
from medport_deploy.past import history
from medport_deploy.past.history import Entry
from medport_deploy.plan import file as plan_file
from medport_deploy.plan import reality
from medport_deploy.run import vertex_removal
from medport_deploy.run.journal import Journal
from medport_deploy.work import kept as work_kept
from medport_deploy.work.opening import Deployment, version
from medport_deploy.work.run import Outcome, kept_run, recorded, run_plan, run_steps


def apply(deployment: Deployment, plan: Path | None = None, *, hold: int | None = None) -> Outcome | None:
    """Do what a saved plan says; go on with it if it has begun.

    Args:
        plan: its file; ``deployment.plan_file`` if none. A run of it that is open goes on as it was approved,
            whatever the files of the specification say now.
        hold: stop at this share of the traffic, per cent, and leave the run open.

    Returns:
        ``None``: the plan has nothing to do.

    Raises:
        ConfigError: there is no plan, or it is none.
        Conflict: another run has not come to its end.
        PreconditionFailed: what it was made of has changed, or it cannot be done.
        VerificationError: the new fleet failed its trial. All is as it was.
        Stopped: by the user.
        What the steps raise.
    """
    file = plan or deployment.plan_file
    if (begun := _begun(deployment, file)) is not None and work_kept.has(
        deployment.directory, begun.header.plan_sha256
    ):
        return gone_on(deployment, begun, hold=hold, terraform_file=plan_file.terraform_file(file))
    lock = deployment.locked()
    saved = plan_file.load(
        file,
        spec_bytes=deployment.spec_bytes,
        lock=lock,
        found=None if begun else reality.read(deployment.control, deployment.spec),
        medport=version(),
    )
    if not begun:
        if not saved.plan.changes:
            return None
        saved.plan.require_possible(deployment.spec.target.location)
    work_kept.keep(deployment.private_directory(), saved.sha256, file.read_bytes(), deployment.spec_bytes, lock)
    header = deployment.header("apply", lock.lock_id, saved.sha256)
    return run_plan(deployment, saved, plan_file.terraform_file(file), header, hold=hold)


def promote(deployment: Deployment) -> Outcome | None:
    """Let an open run take all traffic now, each gate judged once; without one, undeploy old fleets that are kept.

    Returns:
        ``None``: there was nothing to do.

    Raises: as ``apply``.
    """
    run = deployment.open_run()
    if run is not None and run.header.verb != "promote":
        if not work_kept.has(deployment.directory, run.header.plan_sha256):
            raise Conflict(
                f"the {run.header.verb} of {run.header.at} has not come to its end",
                field="journal",
                remedy=f"go on with it: medport deploy {run.header.verb}",
            )
        return gone_on(deployment, run, hurry=True)
    before = history.serving(deployment.history())
    kept = deployment.retained()
    if before is None or not (kept or run is not None):
        return None
    places = {
        (each.endpoint, id_)
        for each in before.models.values()
        for id_ in kept
        if id_ in _deployed(deployment.control, each.endpoint)
    }
    steps = [vertex_removal.undeployed(deployment.control, endpoint, id_) for endpoint, id_ in sorted(places)]
    done = Entry(verb="promote", outcome="verified", lock_id=before.lock_id, models=before.models)
    steps.append(recorded("write down what serves now", lambda: history.append(deployment.directory, done)))
    return run_steps(deployment, steps, deployment.header("promote", before.lock_id), "finished")


def gone_on(
    deployment: Deployment,
    run: Journal,
    *,
    hold: int | None = None,
    hurry: bool = False,
    terraform_file: Path | None = None,
) -> Outcome:
    """Go on with an open run as it was approved, whatever the files of the specification say now.

    Args:
        hold: stop at this share of the traffic, per cent.
        hurry: without the rest of the times for which a share of the traffic is watched.
        terraform_file: where Terraform's plan lies or lay.
    """
    there, saved, beside = kept_run(deployment, run)
    return run_plan(there, saved, terraform_file or beside, run.header, hold=hold, hurry=hurry)


def _begun(deployment: Deployment, file: Path) -> Journal | None:
    """The open run, if it is of the plan in a file.

    Raises:
        PreconditionFailed: the plan is of another deployment.
        Conflict: a run of another plan is open.
    """
    run, saved = deployment.open_run(), plan_file.read(file, medport=version())
    if saved.plan.deployment != deployment.spec.name:
        raise PreconditionFailed(
            f"the plan is of the deployment {saved.plan.deployment}, and the specification of"
            f" {deployment.spec.name}",
            field="plan",
            remedy="give the specification of that deployment, -f FILE; or plan again: medport deploy plan",
        )
    if run is None or run.header.plan_sha256 == saved.sha256:
        return run
    # Whoever has planned anew is not to be given the old plan unasked.
    kept = plan_file.kept_file(deployment.directory, run.header.plan_sha256)
    on = f"medport deploy apply {shlex.quote(str(kept))}, or at once: " if kept.exists() else ""
    raise Conflict(
        f"the {run.header.verb} of {run.header.at}, with another plan, has not come to its end",
        field="plan",
        remedy=f"go on with it: {on}medport deploy promote; take it back: medport deploy rollback; or put away "
        "what it left: medport deploy sweep",
    )


def _deployed(control: ControlPlane, endpoint: str) -> list[str]:
    try:
        return vertex_removal.ids(control.get_endpoint(endpoint))
    except NotFound:
        return []
