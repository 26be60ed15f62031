"""What a saved plan comes to: the whole run as a list of steps, in the order of the plan's rows.

    steps(job)                 # all of it
    steps(job, hold=25)        # its beginning: up to the last share of the traffic that is not above 25 %
    steps(job, hurry=True)     # all of it, each gate judged once without waiting

The steps of all three have the same keys, so that one goes on with what another began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medport.errors import InputError, PreconditionFailed
from medport.lock import Lock
from medport_deploy import names, provenance
from medport_deploy.control.plane import ControlPlane
from medport_deploy.plan.diff_fleets import UNDEPLOYED
from medport_deploy.plan.making import Plan
from medport_deploy.plan.rows import Row
from medport_deploy.plan.terraform_changes import ADDRESS
from medport_deploy.run import terraform_step, vertex_changes, vertex_removal, vertex_steps
from medport_deploy.run.rollout import Rollout
from medport_deploy.run.steps import Doing, Step
from medport_deploy.spec.reading import Spec
from medport_deploy.terraform.root import Terraform

if TYPE_CHECKING:
    from medport_deploy.trial.trial import Trial

Json = dict[str, Any]
_FIELDS: Mapping[str, str] = {"display_name": "displayName", "labels": "labels"}


@dataclass(frozen=True, slots=True)
class Job:
    """A run to be done."""

    spec: Spec
    lock: Lock
    plan: Plan
    """Saved, approved and, unless the run is gone on with, still of what stands."""
    control: ControlPlane
    trial: Trial | None
    """Who judges what serves; ``None``: nobody, and no version is called good."""
    terraform: Terraform | None
    """Its root, after ``init``; ``None`` if the plan has nothing of Terraform's to do."""
    terraform_file: Path | None
    """Its saved plan."""
    record: Callable[[], None]
    """Writes down that the lock serves and passed. May be called twice by a run that died in between."""


def steps(job: Job, *, hold: int | None = None, hurry: bool = False) -> list[Step]:
    """The steps of a run.

    Args:
        hold: a share in per cent, 0 to 100: the list ends after the gate of the last share that is not above it,
            and the run is to be left open (``apply.run(leave_open=True)``).
        hurry: judge each gate once, without watching each share first.

    Raises:
        PreconditionFailed: the plan cannot be done, or Terraform's part of it is missing.
        QuotaExceeded: a limit is lower than what the plan needs.
        InputError: there is nothing to hold.
    """
    plan, spec = job.plan, job.spec
    plan.require_possible(spec.target.location)
    rows = {row.address: row for row in plan.rows}
    parts = [_part(job, name, rows) for name in spec.models]
    if hold is not None:
        _check_hold(hold, parts)
    found = [*_first(job), *_terraform(job)]
    for part in parts:
        found += _endpoint(job, part.name, rows[f"endpoint.{part.name}"])
        found.append(_version(job, part.name))
        found += part.steps(hold=hold, hurry=hurry)
    if hold is not None or not plan.changes:
        return found
    return [*found, *_good(job, parts), _recorded(job), *_last(job, parts)]


def new_fleets(job: Job) -> dict[str, tuple[str, str]]:
    """Fleets that come up beside what serves: their ids, and the keys of the steps that upload and deploy them."""
    rows = {row.address: row for row in job.plan.rows}
    parts = [_part(job, name, rows) for name in job.spec.models]
    return {
        part.id_: (_version(job, part.name).key, f"deployed_model {part.endpoint_id}/{part.id_}")
        for part in parts
        if part.in_steps and part.fleet.action == "create"
    }


def _check_hold(hold: int, parts: list[Rollout]) -> None:
    if not 0 <= hold <= 100:
        raise InputError(f"{hold} is no share in per cent", field="hold", remedy="give 0 to 100")
    if not any(part.in_steps for part in parts):
        raise InputError(
            "no new fleet of this plan takes over from another in steps, so there is nothing to hold",
            field="hold",
            remedy="leave it out; rollout.strategy canary goes in steps",
        )


def _part(job: Job, name: str, rows: Mapping[str, Row]) -> Rollout:
    return Rollout(
        job.spec,
        job.lock,
        name,
        job.control,
        job.trial,
        fleet=rows[f"deployed_model.{name}"],
        split=rows.get(f"traffic.{name}"),
    )


def _first(job: Job) -> Iterator[Step]:
    """What goes before Terraform takes its endpoint away, which it cannot while something is deployed there."""
    for endpoint_id, id_ in _going(job, "first"):
        yield vertex_removal.undeployed(job.control, endpoint_id, id_)
    for row in job.plan.rows:
        if row.address.startswith("endpoint/") and row.after.get(UNDEPLOYED) == "first":
            yield vertex_removal.undeployed(job.control, row.address.split("/")[1], str(row.before["id"]))


def _last(job: Job, parts: list[Rollout]) -> Iterator[Step]:
    wanted = {part.endpoint_id: part.id_ for part in parts}
    for endpoint_id, id_ in _going(job, "last"):
        yield vertex_removal.undeployed(job.control, endpoint_id, id_, prefer={wanted[endpoint_id]})


def _going(job: Job, when: str) -> Iterator[tuple[str, str]]:
    for name in job.spec.models:
        for row in job.plan.rows:
            if row.address.startswith(f"deployed_model.{name}/") and row.after.get(UNDEPLOYED) == when:
                yield job.spec.endpoint_id(name), str(row.before["id"])


def _terraform(job: Job) -> list[Step]:
    approved = [row for row in job.plan.rows if row.address.startswith(ADDRESS) and row.changes]
    if not approved:
        return []
    if job.terraform is None:
        raise PreconditionFailed(
            "the plan has changes of Terraform's, and there is no terraform",
            field="terraform",
            remedy="install it, or plan again: medport deploy plan",
        )
    return [terraform_step.applied(job.terraform, job.terraform_file, approved, job.spec)]


def _endpoint(job: Job, name: str, row: Row) -> list[Step]:
    control, spec, id_ = job.control, job.spec, job.spec.endpoint_id(name)
    timeout = row.after.get("inference_timeout_s")
    found: list[Step] = []
    if spec.terraform.root is None:
        # Also where it stands: what the last finished run names is what sweeping leaves alone.
        found.append(vertex_steps.endpoint(control, spec.name, id_, _shell(spec, name)))
        if row.action == "create":
            return found
        if fields := _changed(row):
            found.append(vertex_changes.endpoint_fields(control, id_, fields))
    if timeout is not None:
        found.append(vertex_changes.inference_timeout(control, id_, round(timeout)))
    return found


def _shell(spec: Spec, name: str) -> Json:
    said = spec.models[name].endpoint
    shell: Json = {
        "displayName": spec.display_name(name),
        "labels": dict(spec.labels),
        "dedicatedEndpointEnabled": said.dedicated,
        "clientConnectionConfig": {"inferenceTimeout": f"{said.inference_timeout_s}s"},
    }
    if spec.keys.kms_key_name:
        shell["encryptionSpec"] = {"kmsKeyName": spec.keys.kms_key_name}
    if spec.network.private:
        shell["privateServiceConnectConfig"] = _private(sorted(spec.network.allowed_projects))
    return shell


def _changed(row: Row) -> Json:
    fields: Json = {_FIELDS[key]: value for key, value in row.after.items() if key in _FIELDS}
    if "allowed_projects" in row.after:
        fields["privateServiceConnectConfig"] = _private(list(row.after["allowed_projects"]))
    return fields


def _private(allowed: list[str]) -> Json:
    return {"enablePrivateServiceConnect": True, **({"projectAllowlist": allowed} if allowed else {})}


def _version(job: Job, name: str) -> Step:
    alias = names.version_alias(job.lock.lock_id)
    body = provenance.model_body(job.spec, job.lock, name)
    return vertex_steps.version(job.control, job.spec.name, job.spec.model_id(name), alias, body)


def _good(job: Job, parts: list[Rollout]) -> Iterator[Step]:
    lock_id = job.lock.lock_id
    for part in parts:
        if part.judged:
            model = job.spec.model_id(part.name)
            yield vertex_steps.alias(job.control, model, names.version_alias(lock_id), names.good_alias(lock_id))


def _recorded(job: Job) -> Step:
    def do(doing: Doing) -> None:
        job.record()

    return Step(
        kind="record",
        name=job.spec.name,
        title="write down what serves now",
        do=do,
        once=True,
        repeats=False,
        commits=True,
    )
