"""Back to a lock that was verified: in seconds, while its fleets are still deployed.

Only traffic moves then, for all models first; what was left is undeployed afterwards. Where a fleet is gone, the
approved pair of that lock (``approved``) is deployed again like any other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from medport.errors import NotFound
from medport_deploy import provenance
from medport_deploy.control.plane import ControlPlane
from medport_deploy.past.history import Deployed, Entry
from medport_deploy.plan.reality import EndpointState, Fleet, endpoint_state
from medport_deploy.run import vertex_removal, vertex_steps
from medport_deploy.run.steps import Step
from medport_deploy.spec.reading import Spec

Json = dict[str, Any]


class Smokes(Protocol):
    """The part of ``trial.Trial`` that is needed here."""

    def smoke(self, name: str, deployed_model_id: str) -> None:
        """Requests of all kinds through the endpoint. Raises ``VerificationError``."""
        ...


def fast(
    spec: Spec,
    target: Entry,
    control: ControlPlane,
    *,
    reject: str | None = None,
    keep: bool = False,
    trial: Smokes | None = None,
) -> list[Step] | None:
    """The steps that give the traffic back to the fleets of a verified lock; ``None`` if that cannot be done.

    It cannot where one of them is gone, has no replica up, or a model of the specification was not part of that
    deployment: then deploy the approved pair again.

    Args:
        target: where to; of ``history.last_verified``.
        reject: the lock that is left; its fleets are undeployed, and so is all of ours that loses traffic. With it
            the steps are the same when a run is gone on with.
        keep: leave those deployed.
        trial: sends requests of all kinds to each fleet before the other is undeployed; nobody does if ``None``.
    """
    if set(spec.models) != set(target.models):
        return None
    found: dict[str, EndpointState] = {}
    for name, wanted in target.models.items():
        try:
            state = endpoint_state(control.get_endpoint(wanted.endpoint))
        except NotFound:
            return None
        if not _stands(state, wanted, target.lock_id):
            return None
        found[name] = state
    back = [
        vertex_steps.traffic(control, target.models[name].endpoint, {target.models[name].deployed_model: 100})
        for name in found
    ]
    tried = [_smoke(trial, name, target.models[name].deployed_model) for name in found] if trial else []
    left = (
        []
        if keep
        else [step for name in found for step in _left(control, target.models[name], found[name], reject)]
    )
    return [*back, *tried, *left]


def rejected(target: Entry, control: ControlPlane) -> str | None:
    """The lock whose fleets have the traffic now that ``target``'s will get; ``None`` if there is no other one."""
    for wanted in target.models.values():
        try:
            state = endpoint_state(control.get_endpoint(wanted.endpoint))
        except NotFound:
            continue
        for fleet in _losing(state, wanted):
            if (lock_id := provenance.lock_id_of_name(fleet.display_name)) not in (None, target.lock_id):
                return lock_id
    return None


def run_sha256(target: Entry, *, keep: bool) -> str:
    """What a journal calls this rollback by, in the place of a plan: the same again goes on with it."""
    said: Mapping[str, Any] = {"to": target.lock_id, "at": target.at, "keep": keep}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _stands(state: EndpointState, wanted: Deployed, lock_id: str) -> bool:
    fleet = next((each for each in state.fleets if each.id == wanted.deployed_model), None)
    return (
        fleet is not None
        and (fleet.model_id, fleet.version_id) == (wanted.model_id, wanted.version)
        and provenance.lock_id_of_name(fleet.display_name) == lock_id
        # A fleet that is known to be down would be no way back.
        and fleet.available != 0
    )


def _losing(state: EndpointState, wanted: Deployed) -> list[Fleet]:
    return [each for each in state.fleets if each.id != wanted.deployed_model and state.traffic.get(each.id)]


def _left(control: ControlPlane, wanted: Deployed, state: EndpointState, reject: str | None) -> list[Step]:
    # What medport did not deploy loses its traffic and stays; an older fleet that is kept keeps its time.
    losing = _losing(state, wanted)
    found = []
    for each in state.fleets:
        lock_id = provenance.lock_id_of_name(each.display_name)
        goes = lock_id is not None and (each in losing or lock_id == reject)
        if goes and each.id != wanted.deployed_model:
            found.append(
                vertex_removal.undeployed(control, wanted.endpoint, each.id, prefer=[wanted.deployed_model])
            )
    return found


def _smoke(trial: Smokes, name: str, deployed_model_id: str) -> Step:
    return Step(
        kind="smoke",
        name=f"{name}/{deployed_model_id}",
        title=f"try {name} with requests of all kinds",
        do=lambda doing: trial.smoke(name, deployed_model_id),
        repeats=False,
        once=True,
    )
