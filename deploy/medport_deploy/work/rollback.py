"""Go back: take an open run back, or let the lock serve that was verified before."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from medport.errors import NotFound, PreconditionFailed
from medport.lock import Lock
from medport.wire.vertex import rfc3339
from medport_deploy.past import approved, history, rollback
from medport_deploy.past.history import Entry
from medport_deploy.plan import file as plan_file
from medport_deploy.plan.making import make
from medport_deploy.run import apply, todo
from medport_deploy.run.journal import Journal
from medport_deploy.run.todo import Job
from medport_deploy.work import kept as work_kept
from medport_deploy.work import run as work_run
from medport_deploy.work.apply import gone_on
from medport_deploy.work.opening import Deployment
from medport_deploy.work.run import Outcome

PLAN_NAME = "rollback.json"


def go_back(deployment: Deployment, *, to: str | None = None, keep: bool = False) -> Outcome:
    """Take an open run back; without one, go back to the lock that was verified before.

    Its fleets take the traffic again where they are still deployed, which takes seconds, else they are deployed
    from what was kept when it was verified. The files of the specification stay as they are.

    Args:
        to: a lock's id, or the beginning of one.
        keep: leave the rejected fleets deployed, without traffic.

    Raises:
        NotFound: no other lock was verified, or none with this id.
        Stopped: by the user.
        What the steps raise.
    """
    run = deployment.open_run()
    if run is not None and run.header.verb == "apply":
        return _taken_back(deployment, run, keep=keep)
    if run is not None and work_kept.has(deployment.directory, run.header.plan_sha256):
        return gone_on(deployment, run)
    entries = deployment.history()
    present = history.serving(entries)
    entry, keep = (run and _begun(entries, run)) or (_entry(entries, present, to), keep)
    spec_bytes, lock = approved.load(deployment.directory, entry.lock_id, spec_sha256=entry.spec_sha256)
    there = deployment.at_lock(spec_bytes, lock)
    steps = rollback.fast(
        there.spec,
        entry,
        there.control,
        reject=present.lock_id if present else rollback.rejected(entry, there.control),
        keep=keep,
        trial=work_run.trial_of(there),
    )
    if steps is None:
        return _redeployed(there, lock)
    kept = (
        {each.deployed_model: there.spec.rollout.retain_s for each in present.models.values()} if present else {}
    )
    header = there.header("rollback", lock.lock_id, rollback.run_sha256(entry, keep=keep))

    def record() -> None:
        work_run.record(there, header, kept if keep else {})

    steps.append(work_run.recorded("write down what serves now", record))
    return work_run.run_steps(there, steps, header, "verified")


def _begun(entries: list[Entry], run: Journal) -> tuple[Entry, bool] | None:
    """What a rollback that has not come to its end was to go back to, and whether it keeps what it leaves."""
    found = (
        (entry, keep)
        for entry in entries
        for keep in (False, True)
        if rollback.run_sha256(entry, keep=keep) == run.header.plan_sha256
    )
    return next(found, None)


def _entry(entries: list[Entry], present: Entry | None, to: str | None) -> Entry:
    if to is not None:
        found = history.verified(entries, to)
    else:
        found = history.last_verified(entries, other_than=present.lock_id if present else "")
    if found is None:
        raise NotFound(
            f"no lock {to} was verified here" if to else "no other lock was verified here before",
            field="to",
            remedy="medport deploy history shows which were",
        )
    return found


def _taken_back(deployment: Deployment, run: Journal, *, keep: bool) -> Outcome:
    began = time.monotonic()
    if any(
        (each.outcome, each.plan_sha256) == ("verified", run.header.plan_sha256) for each in deployment.history()
    ):
        # It died between its line in the history and that in its journal.
        raise PreconditionFailed(
            "the run has been verified and recorded, and only tidies up now",
            field="journal",
            remedy="finish it, medport deploy apply; then go back to the lock before, medport deploy rollback",
        )
    there, saved, terraform_file = work_run.kept_run(deployment, run)
    job = work_run.job_of(there, saved, terraform_file, run.header)
    telling = deployment.telling
    stay = _up(job, run) if keep else {}
    report = apply.back(
        [each for each in todo.steps(job) if not any(each.key in keys for keys in stay.values())],
        run.header,
        deployment.directory,
        control=deployment.control,
        interrupts=telling.interrupts,
        on_event=telling.on_event,
    )
    until = datetime.now(UTC) + timedelta(seconds=there.spec.rollout.retain_s)
    entry = Entry(
        verb="rollback",
        outcome="taken back",
        lock_id=run.header.lock_id,
        plan_sha256=run.header.plan_sha256,
        retained={id_: rfc3339(until) for id_ in stay},
        why="by the user",
    )
    history.append(deployment.directory, entry)
    work_run.forget_closed(deployment)
    present = history.serving(deployment.history())
    return Outcome("rollback", "taken back", present.lock_id if present else "", report, time.monotonic() - began)


def _up(job: Job, run: Journal) -> dict[str, tuple[str, str]]:
    """Those of the run's new fleets that are deployed, as ``todo.new_fleets``."""
    return {
        id_: keys
        for id_, keys in todo.new_fleets(job).items()
        if (last := run.last_of(keys[-1])) is not None and last.state in ("done", "skipped")
    }


def _redeployed(there: Deployment, lock: Lock) -> Outcome:
    """Plan and apply what was approved, as one run: that it was verified is the approval."""
    terraform = there.terraform_ready()
    there.private_directory()
    file = there.directory / PLAN_NAME
    terraform_file = plan_file.terraform_file(file)
    plan = make(
        there.spec,
        lock,
        there.control,
        spec_bytes=there.spec_bytes,
        terraform=terraform,
        terraform_file=terraform_file if terraform else None,
        retained=there.retained(),
    )
    plan.require_possible(there.spec.target.location)
    saved = plan_file.save(file, plan)
    header = there.header("rollback", lock.lock_id, saved.sha256)
    work_kept.keep(there.directory, saved.sha256, file.read_bytes(), there.spec_bytes, lock)
    return work_run.run_plan(there, saved, terraform_file, header)
