"""Whether an endpoint is as approved, and what is deployed to it: one fleet with all traffic, that of the lock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medport.lock import Lock
from medport_deploy import provenance
from medport_deploy.plan import diff, diff_fleets
from medport_deploy.plan.reality import EndpointState, Fleet, ModelState, Reality
from medport_deploy.spec.reading import Spec
from medport_deploy.verify.result import APPLY, Check, compared, drift, note

_SHIFT = "medport deploy status says who serves; give the traffic back: medport deploy plan, then apply"


def endpoint(spec: Spec, lock: Lock, name: str, state: EndpointState) -> list[Check]:
    """What the endpoint itself says, as far as medport owns it: the very comparison that a plan makes.

    The rest of an endpoint of Terraform's is in Terraform's own check.
    """
    found = [compared("endpoint", name, state.id, state.id)]
    if state.logs_requests and spec.terraform.root:
        said = "requests and answers are written to BigQuery; the endpoint is Terraform's: see the check terraform"
        found.append(note("endpoint.logs_requests", name, said, True))
    else:
        found.append(compared("endpoint.logs_requests", name, False, state.logs_requests))
    rows = diff.rows(spec, lock, Reality({name: ModelState(state)}))
    row = next(each for each in rows if each.address == f"endpoint.{name}")
    if not row.changes:
        return [*found, compared("endpoint.fields", name, True, True, shown="as in the specification")]
    remedy = row.why if row.blocked else APPLY
    return [
        *found,
        *(
            drift(f"endpoint.{key}", name, value, row.before.get(key), remedy=remedy)
            for key, value in row.after.items()
        ),
    ]


def serving(lock: Lock, state: EndpointState) -> Fleet | None:
    """The fleet that is looked at closely: of those of the lock the one with most traffic; without one the largest
    of all that have traffic."""

    def share(fleet: Fleet) -> int:
        return state.traffic.get(fleet.id, 0)

    ours = [each for each in state.fleets if provenance.lock_id_of_name(each.display_name) == lock.lock_id]
    others = [each for each in state.fleets if share(each)]
    return max(ours or others, key=share, default=None)


def traffic(lock: Lock, name: str, state: EndpointState, fleet: Fleet | None) -> list[Check]:
    """Who gets the traffic: the lock's fleet all of it, and nobody else any."""
    split = dict(sorted(state.traffic.items()))
    total = sum(split.values())
    found = [compared("traffic.sum", name, 100, total)]
    of_lock = fleet is not None and provenance.lock_id_of_name(fleet.display_name) == lock.lock_id
    ours = fleet if of_lock else None
    wanted = {ours.id if ours else "the fleet of this lock": 100}
    found.append(compared("traffic.split", name, wanted, split, remedy=_SHIFT))
    foreign = {
        each.id: {"percent": split[each.id], **_who(each)}
        for each in state.fleets
        if each.id in split and each is not ours
    }
    found.append(compared("traffic.foreign", name, {}, foreign, remedy=_SHIFT))
    return found


def fleet(spec: Spec, lock: Lock, name: str, found: Fleet) -> list[Check]:
    """What the fleet runs on, and how much of it there is."""
    wanted = diff_fleets.Wanted.of(spec, lock, name, found.version_id)
    there = {"min": found.min, "max": found.max, "required": found.required or found.min}
    return [
        compared("fleet.lock", name, lock.lock_id, provenance.lock_id_of_name(found.display_name)),
        *_each("fleet.machine", name, wanted.machine, diff_fleets.machine_of(found)),
        *_each("fleet.replicas", name, wanted.replicas, there),
        compared("fleet.unasked", name, {}, dict(found.unasked)),
        _available(spec, name, found),
    ]


def others(name: str, state: EndpointState, main: Fleet | None, retained: Mapping[str, str]) -> list[Check]:
    """The fleets without traffic: what they are there for."""
    return [
        note("fleet.other", name, _why(each, retained), {"id": each.id, **_who(each)})
        for each in state.fleets
        if each is not main and not state.traffic.get(each.id)
    ]


def _available(spec: Spec, name: str, found: Fleet) -> Check:
    replicas = spec.models[name].replicas
    if found.available is None:
        return note("fleet.available", name, "the target does not say how many replicas are up")
    # A local server runs one engine for a deployed model, whatever the number of replicas.
    least = 1 if spec.target.kind == "local" else replicas.min
    if found.available < least:
        return drift(
            "fleet.available", name, {"at least": least}, found.available,
            remedy="replicas are missing: see the endpoint's log and quotas; medport deploy status",
        )  # fmt: skip
    return compared("fleet.available", name, found.available, found.available)


def _each(check: str, name: str, wanted: Mapping[str, Any], there: Mapping[str, Any]) -> list[Check]:
    wrong = [key for key, value in wanted.items() if there.get(key) != value]
    if not wrong:
        return [compared(check, name, True, True, shown=dict(wanted))]
    return [drift(check, name, {key: wanted[key] for key in wrong}, {key: there.get(key) for key in wrong})]


def _who(fleet: Fleet) -> dict[str, Any]:
    return {
        "version": f"{fleet.model_id}@{fleet.version_id}",
        "lock_id": provenance.lock_id_of_name(fleet.display_name),
    }


def _why(fleet: Fleet, retained: Mapping[str, str]) -> str:
    if until := retained.get(fleet.id):
        return f"kept until {until} as the quick way back"
    if diff_fleets.is_ours(fleet):
        return "of another lock, without traffic, and costs: medport deploy plan, then apply"
    return "not deployed by medport, without traffic, and costs"
