"""Take away what a dead run left, or all of a deployment. What will go is known before anything goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from medport.errors import Conflict, MedportError, NotFound, PreconditionFailed
from medport_deploy.control.plane import shares, split_of
from medport_deploy.past import history
from medport_deploy.past.history import Entry
from medport_deploy.plan import file as plan_file
from medport_deploy.plan.making import target_of
from medport_deploy.run import apply, destroy, split_math, sweep, vertex_removal, vertex_steps
from medport_deploy.run.destroy import Remains
from medport_deploy.run.steps import Doing, Step
from medport_deploy.run.sweep import Keep, Leftover
from medport_deploy.terraform.root import PlanOutcome, Terraform
from medport_deploy.work.opening import Deployment
from medport_deploy.work.run import Outcome, forget_closed, kept_run, recorded

_TERRAFORM_FILE = "destroy.tfplan"


@dataclass(frozen=True, slots=True)
class Going:
    """All that ``destroyed`` will take away."""

    steps: tuple[Step, ...]
    terraform: tuple[str, ...]
    """Addresses of what Terraform will destroy."""
    remains: tuple[Remains, ...]
    """What stays all the same."""
    unfinished: bool
    """A run is open that is over with this."""

    @property
    def nothing(self) -> bool:
        """Whether nothing is there."""
        return not self.steps and not self.unfinished


def target(deployment: Deployment) -> str:
    """Where it is: project, location and host."""
    return target_of(deployment.spec)


def unfinished(deployment: Deployment) -> list[str]:
    """Runs that are open, and journals that are damaged, in words."""
    runs = [each for each in deployment.journals() if each.open]
    damaged = sorted(set(deployment.damage.values()) - {each.path for each in runs})
    return [
        *(f"the {each.header.verb} of {each.header.at}" for each in runs),
        *(f"the run of {path.name}, which is damaged," for path in damaged),
    ]


def leftovers(deployment: Deployment) -> list[Leftover]:
    """What a dead or failed run left; not what was verified, nor old fleets that are kept. Changes nothing.

    Raises:
        PreconditionFailed: a run is held, which is neither.
    """
    deployment.pass_over_damage()
    _refuse_held(deployment)
    kept = deployment.retained()
    endpoints = {deployment.spec.endpoint_id(name) for name in deployment.spec.models}
    endpoints |= {model.endpoint for entry in deployment.history() for model in entry.models.values()}
    keep = Keep(deployed=frozenset(f"{endpoint}/{id_}" for endpoint in endpoints for id_ in kept))
    found = sweep.find(
        deployment.control,
        deployment.spec.name,
        deployment.journals(),
        keep,
        unproven=_unproven(deployment),
        retired=_retired(deployment),
    )
    return [*_splits(deployment, found), *found]


def _refuse_held(deployment: Deployment) -> None:
    """Raise if the open run waits for somebody to go on with it or to take it back, and both can be done."""
    run, entries = deployment.open_run(), deployment.history()
    if run is None:
        return
    of_it = [each.outcome for each in entries if each.plan_sha256 == run.header.plan_sha256]
    went_back = any(each.state in ("undoing", "undone", "not undone") for each in run.records)
    if of_it[-1:] != ["held"] or went_back:
        return
    try:
        kept_run(deployment, run)
    except MedportError:
        return  # then neither can be done
    raise PreconditionFailed(
        f"the {run.header.verb} of {run.header.at} is held, and left nothing behind",
        field="sweep",
        remedy="go on with it: medport deploy promote; or take it back: medport deploy rollback",
    )


def _splits(deployment: Deployment, found: Sequence[Leftover]) -> list[Leftover]:
    """Splits that runs which were not verified left half way, where nobody goes who has or had traffic."""
    verified = {each.plan_sha256 for each in deployment.history() if each.outcome == "verified"}
    gone = {each.name for each in found}
    old: dict[str, tuple[dict[str, int], str]] = {}
    for run in deployment.journals():
        if run.open and run.header.verb == "apply" and run.header.plan_sha256 not in verified:
            for record in run.touched():
                if record.kind == "traffic" and record.was is not None:
                    old.setdefault(record.name.partition(" ")[0], (record.was.get("split", {}), run.header.at))
    splits = []
    for endpoint_id, (split, at) in old.items():
        try:
            endpoint = deployment.control.get_endpoint(endpoint_id)
        except NotFound:
            continue
        now = split_of(endpoint)
        # What one that goes has is given to those that stay, as it is undeployed.
        stay = not any(f"{endpoint_id}/{id_}" in gone for id_ in {*split, *now})
        if split and now != split and stay and split_math.possible(split, vertex_removal.ids(endpoint)):
            step = replace(vertex_steps.traffic(deployment.control, endpoint_id, split), once=False)
            why = f"the apply of {at} left it at {shares(now)}: back to what it was"
            splits.append(Leftover("traffic", step.name, why, step=step))
    return splits


def _unproven(deployment: Deployment) -> set[str]:
    """Aliases that open runs gave before they were verified: a lock is good for all of its models or for none."""
    verified = {each.plan_sha256 for each in deployment.history() if each.outcome == "verified"}
    return {
        record.name
        for each in deployment.journals()
        if each.open and each.header.plan_sha256 not in verified
        for record in each.touched()
        if record.kind == "alias"
    }


def _retired(deployment: Deployment) -> set[str]:
    """Endpoints that runs of this directory used, and that neither the specification nor what serves has now."""
    present = history.serving(deployment.history())
    if present is None:
        return set()
    used = {model.endpoint for entry in deployment.history() for model in entry.models.values()}
    wanted = {deployment.spec.endpoint_id(name) for name in deployment.spec.models}
    return used - wanted - {model.endpoint for model in present.models.values()}


def swept(deployment: Deployment, found: Sequence[Leftover]) -> Outcome:
    """Take it away; runs that were open are over then.

    Raises:
        Conflict: something of it is no leftover any more.
        As ``apply.run``.
    """

    def still_so() -> None:
        # A run that was under way when it was listed may have come to its end since, or is held.
        _refuse_held(deployment)
        splits = {each.name for each in found if each.kind == "traffic"}
        moved = splits - {each.name for each in _splits(deployment, found)}
        keep = sweep.active(deployment.journals()).without(_retired(deployment))
        if moved or (keep.endpoints | keep.versions | keep.deployed) & {each.name for each in found}:
            raise Conflict(
                "what is left over is not what was listed: another run has worked on it",
                field="sweep",
                remedy="look again: medport deploy sweep",
            )

    closed = [each for each in deployment.journals() if each.open and each.header.verb not in apply.TIDIES]
    outcome = _run(deployment, "sweep", sweep.steps(found), still_so)
    present = history.serving(deployment.history())
    why = "; ".join(f"the {each.header.verb} of {each.header.at} is over" for each in closed)
    done = Entry(verb="sweep", outcome="swept", lock_id=present.lock_id if present else "", why=why)
    history.append(deployment.directory, done)
    forget_closed(deployment)
    return outcome


def going(deployment: Deployment) -> Going:
    """What there is of the deployment. Changes nothing.

    Raises: what the control plane's calls and ``Terraform.plan`` raise.
    """
    deployment.pass_over_damage()
    steps = destroy.steps(deployment.control, deployment.spec.name, deployment.journals())
    terraform = deployment.terraform_ready()
    addresses: tuple[str, ...] = ()
    if terraform is not None:
        file = deployment.private_directory() / _TERRAFORM_FILE
        outcome = terraform.plan(file, destroy=True)
        addresses = tuple(each.address for each in outcome.planned)
        if outcome.changes:
            steps.append(_by_terraform(terraform, outcome))
        else:
            file.unlink(missing_ok=True)
    local = deployment.spec.target.kind == "local"
    remains = destroy.LOCAL if local else destroy.CLOUD
    return Going(tuple(steps), addresses, remains, bool(unfinished(deployment)))


def destroyed(deployment: Deployment, what: Going) -> Outcome:
    """Take it all away: traffic, deployed models, models, endpoints, and Terraform's own last. As ``swept``."""
    present = history.serving(deployment.history())
    entry = Entry(verb="destroy", outcome="destroyed", lock_id=present.lock_id if present else "")
    last = recorded("write down that it is gone", lambda: history.append(deployment.directory, entry))
    outcome = _run(deployment, "destroy", [*what.steps, last])
    forget_closed(deployment)
    plan_file.terraform_file(deployment.plan_file).unlink(missing_ok=True)
    return outcome


def _by_terraform(terraform: Terraform, outcome: PlanOutcome) -> Step:
    def do(doing: Doing) -> None:
        with doing.stopped_by(terraform.cancel.set):
            terraform.apply(outcome)

    return Step(kind="terraform", name="destroy", title="terraform destroy", do=do, repeats=False)


def _run(
    deployment: Deployment, verb: str, steps: Sequence[Step], still_so: Callable[[], None] = lambda: None
) -> Outcome:
    began = time.monotonic()
    telling = deployment.telling
    report = apply.run(
        steps,
        deployment.header(verb),
        deployment.private_directory(),
        control=deployment.control,
        interrupts=telling.interrupts,
        on_event=telling.on_event,
        still_so=still_so,
    )
    return Outcome(verb, "finished", "", report, time.monotonic() - began)
