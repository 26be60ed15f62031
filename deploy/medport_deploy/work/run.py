"""Do the steps of a plan or a list of steps for a deployment, and write into its history what came of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

from medport.errors import AuthError, MedportError, PreconditionFailed
from medport.wire.vertex import Pins, rfc3339
from medport_deploy.control.errors import clean
from medport_deploy.control.plane import split_of
from medport_deploy.past import approved, history
from medport_deploy.past.history import Deployed, Entry
from medport_deploy.plan import file as plan_file
from medport_deploy.plan import reality
from medport_deploy.plan.diff_fleets import KEPT_S, UNDEPLOYED
from medport_deploy.plan.file import Saved
from medport_deploy.run import apply, todo
from medport_deploy.run.interrupts import Stopped
from medport_deploy.run.journal import Header, Journal
from medport_deploy.run.run_lock import Busy
from medport_deploy.run.steps import Doing, Step
from medport_deploy.run.todo import Job
from medport_deploy.trial.trial import LiveTrial
from medport_deploy.verify import fleet as verify_fleet
from medport_deploy.work import kept as work_kept
from medport_deploy.work.opening import Deployment, version


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    verb: str
    outcome: Literal["verified", "held", "taken back", "finished"]
    lock_id: str
    """Of what serves now; empty if the run was of no lock, or nothing serves."""
    report: apply.Report
    seconds: float
    """All of it."""
    share: int | None = None
    """Of ``held``: which share of the traffic the new fleets have, in per cent."""
    asked: int | None = None
    """Of ``held``: at which share it was to stop."""


def run_plan(
    deployment: Deployment,
    saved: Saved,
    terraform_file: Path,
    header: Header,
    *,
    hold: int | None = None,
    hurry: bool = False,
) -> Outcome:
    """Do what a plan says, or what is left of it; all goes back if a step fails.

    Args:
        terraform_file: where Terraform's plan lies or lay.
        hold, hurry: as ``todo.steps``.

    Raises: as ``apply.run``.
    """
    held = hold is not None
    outcome = run_steps(
        deployment,
        todo.steps(job_of(deployment, saved, terraform_file, header), hold=hold, hurry=hurry),
        header,
        "held" if held else "verified",
        back=True,
        leave_open=held,
    )
    if hold is not None:
        return replace(outcome, share=_share(deployment), asked=hold)
    # Where Terraform had nothing to do nobody has applied it, and it holds the values of variables.
    terraform_file.unlink(missing_ok=True)
    return outcome


def run_steps(
    deployment: Deployment,
    steps: Sequence[Step],
    header: Header,
    outcome: Literal["verified", "held", "finished"],
    *,
    back: bool = False,
    leave_open: bool = False,
) -> Outcome:
    """Do a list of steps.

    Args:
        outcome: what they come to if all are done.
        back: undo what was done if one fails, the split first; not if the credential is refused.
        leave_open: the run is not over with the last of them.

    Raises: as ``apply.run``.
    """
    began = time.monotonic()
    telling, directory = deployment.telling, deployment.private_directory()
    how: dict[str, Any] = {
        "control": deployment.control,
        "interrupts": telling.interrupts,
        "on_event": telling.on_event,
    }
    try:
        report = apply.run(steps, header, directory, leave_open=leave_open, **how)
    except (Stopped, Busy):
        # What another process does is not ours to take back, and no failure of it.
        raise
    except MedportError as error:
        # Whom the target no longer knows cannot take anything back; after a login the run goes on.
        if back and not isinstance(error, AuthError):
            _taken_back(steps, header, directory, telling.note, **how)
        _failed(deployment, header, error)
        if back and isinstance(error, AuthError):
            _say_open(deployment, header, error)
        raise
    if leave_open:
        history.append(deployment.directory, _entry(deployment, header, "held"))
    else:
        forget_closed(deployment)
    return Outcome(header.verb, outcome, header.lock_id, report, time.monotonic() - began)


def job_of(deployment: Deployment, saved: Saved, terraform_file: Path, header: Header) -> Job:
    """What the steps of a plan need."""
    by_terraform = saved.plan.inputs.terraform_sha256 is not None
    kept = {
        str(row.before["id"]): float(row.after[KEPT_S])
        for row in saved.plan.rows
        if row.after.get(UNDEPLOYED) == "later"
    }
    trial = trial_of(deployment)
    return Job(
        spec=deployment.spec,
        lock=deployment.locked(),
        plan=saved.plan,
        control=deployment.control,
        trial=trial,
        terraform=deployment.terraform_ready() if by_terraform else None,
        terraform_file=terraform_file if by_terraform else None,
        record=lambda: _remembered(deployment, trial, record(deployment, header, kept)),
    )


def trial_of(deployment: Deployment) -> LiveTrial:
    """Who judges what serves."""
    return LiveTrial(
        deployment.spec,
        deployment.locked(),
        deployment.private_directory(),
        deployment.control,
        say=deployment.telling.note,
    )


def kept_run(deployment: Deployment, run: Journal) -> tuple[Deployment, Saved, Path]:
    """An open run as it was approved: the deployment, the plan, and where Terraform's plan lay.

    Raises:
        PreconditionFailed: another version of medport began it, or what it was made of is gone.
    """
    plan_file.check_maker(run.header.medport, version())
    kept = work_kept.load(deployment.directory, run.header.plan_sha256)
    there = deployment.at_lock(kept.spec_bytes, kept.lock)
    saved = plan_file.load(
        kept.plan_file, spec_bytes=kept.spec_bytes, lock=kept.lock, found=None, medport=version()
    )
    if saved.sha256 != run.header.plan_sha256:
        raise PreconditionFailed(
            "what was kept of the open run was changed since", field="plan", remedy="medport deploy sweep"
        )
    return there, saved, plan_file.terraform_file(kept.plan_file)


def record(deployment: Deployment, header: Header, kept: Mapping[str, float] = MappingProxyType({})) -> Entry:
    """Write down that the deployment was verified: what serves, and what it was made of, for a way back to it.

    Args:
        kept: old fleets that stay deployed for a while: deployed model's id → seconds.
    """
    approved.keep(deployment.directory, deployment.spec_bytes, deployment.locked())
    before = history.serving(deployment.history())
    left = before is not None and header.verb == "rollback" and before.lock_id != header.lock_id
    now = datetime.now(UTC)
    entry = _entry(
        deployment,
        header,
        "verified",
        rejected=before.lock_id if before is not None and left else None,
        retained={id_: rfc3339(now + timedelta(seconds=seconds)) for id_, seconds in kept.items()},
    )
    history.append(deployment.directory, entry)
    return entry


def _remembered(deployment: Deployment, trial: LiveTrial, entry: Entry) -> None:
    """Keep the answers that were found good, so that verifying can tell later whether they are the same."""
    for name, serves in entry.models.items():
        try:
            trial.remember(name, serves.deployed_model)
        except MedportError as error:
            # What serves was approved already; the next verification keeps them.
            deployment.telling.note(f"the golden answers of {name} are not kept yet: {clean(error.message)}")


def recorded(title: str, write: Callable[[], None]) -> Step:
    """The last step of a run: what it came to goes into the history."""

    def do(doing: Doing) -> None:
        write()

    return Step(kind="record", name="history", title=title, do=do, once=True, repeats=False, commits=True)


def forget_closed(deployment: Deployment) -> None:
    """Remove what closed runs were made of."""
    work_kept.forget(
        deployment.directory, [each.header.plan_sha256 for each in deployment.journals() if each.open]
    )


def _taken_back(
    steps: Sequence[Step], header: Header, directory: Path, note: Callable[[str], None], **how: Any
) -> None:
    try:
        apply.back(steps, header, directory, **how)
    except Stopped:
        raise
    except MedportError:
        note("not all went back, and the run is still open: medport deploy status")
    else:
        note("taken back: what served before serves as it did")


def _say_open(deployment: Deployment, header: Header, error: AuthError) -> None:
    """Add to what is to be done that the run is open, if it has begun."""
    run = deployment.open_run()
    if run is None or not run.header.same_run(header) or not run.records:
        return
    ways = f"medport deploy {header.verb} goes on with it"
    if header.verb != "rollback":
        ways += ", medport deploy rollback takes it back"
    error.remedy = "; ".join(filter(None, (error.remedy, f"the run is open: {ways}")))


def _failed(deployment: Deployment, header: Header, error: MedportError) -> None:
    runs = [each for each in deployment.journals() if each.header.same_run(header)]
    if not runs or not runs[-1].records:
        return  # refused before it began
    history.append(
        deployment.directory,
        Entry(
            verb=_verb(header),
            outcome="taken back" if runs[-1].ended == "taken back" else "failed",
            lock_id=header.lock_id,
            plan_sha256=header.plan_sha256,
            why=f"{type(error).__name__}: {clean(error.message)}",
        ),
    )
    forget_closed(deployment)


def _entry(
    deployment: Deployment,
    header: Header,
    outcome: Literal["verified", "held"],
    *,
    rejected: str | None = None,
    retained: Mapping[str, str] = MappingProxyType({}),
) -> Entry:
    return Entry(
        verb=_verb(header),
        outcome=outcome,
        lock_id=header.lock_id,
        plan_sha256=header.plan_sha256,
        spec_sha256=hashlib.sha256(deployment.spec_bytes).hexdigest(),
        models=_standing(deployment),
        retained=dict(retained),
        rejected=rejected,
    )


def _standing(deployment: Deployment) -> dict[str, Deployed]:
    """What there is of the lock's fleets."""
    lock = deployment.locked()
    models: dict[str, Deployed] = {}
    for name, state in reality.read(deployment.control, deployment.spec).models.items():
        fleet = verify_fleet.serving(lock, state.endpoint) if state.endpoint else None
        if state.endpoint is None or fleet is None:
            continue
        pins = next((each.pins for each in state.versions if each.version_id == fleet.version_id), Pins())
        models[name] = Deployed(
            endpoint=state.endpoint.id,
            model_id=fleet.model_id,
            version=fleet.version_id,
            deployed_model=fleet.id,
            revision=pins.revision,
            image_digest=pins.image_digest,
        )
    return models


def _share(deployment: Deployment) -> int:
    """Of the lock's fleets that with least traffic: those that were not to go in steps have all of theirs."""
    splits = (
        (split_of(deployment.control.get_endpoint(each.endpoint)), each.deployed_model)
        for each in _standing(deployment).values()
    )
    return min((split.get(id_, 0) for split, id_ in splits), default=0)


def _verb(header: Header) -> history.Verb:
    return cast("history.Verb", header.verb)
