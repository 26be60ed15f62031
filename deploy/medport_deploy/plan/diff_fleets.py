"""Deployed models and traffic: which fleet is wanted, which stands, and how the one takes over from the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

from medport.lock import Lock
from medport_deploy import names, provenance
from medport_deploy.plan.estimates import Estimates, words
from medport_deploy.plan.reality import EndpointState, Fleet
from medport_deploy.plan.rows import Row
from medport_deploy.spec.reading import Rollout, Spec

UNDEPLOYED, KEPT_S = "undeployed", "kept_s"
"""What a row says of a fleet that goes: ``first``, before Terraform's changes; ``last``, at the end of the run; or
``later``, after so many seconds."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The fleet that one model shall have."""

    name: str
    deployment: str
    lock_id: str
    model_id: str
    version_id: str | None
    """``None``: it is not uploaded yet, so no fleet runs it."""
    machine: dict[str, Any]
    """What only a new fleet can have otherwise."""
    replicas: dict[str, int]
    """What can be changed in place."""
    rollout: Rollout
    verified: bool = False
    """Whether its version is called good."""

    @classmethod
    def of(cls, spec: Spec, lock: Lock, name: str, version_id: str | None, *, verified: bool = False) -> Self:
        """From the specification."""
        model = spec.models[name]
        return cls(
            name=name,
            deployment=spec.name,
            lock_id=lock.lock_id,
            model_id=spec.model_id(name),
            version_id=version_id,
            machine={
                "machine_type": model.machine.type,
                "accelerator": model.machine.accelerator,
                "count": model.machine.count,
                "service_account": model.service_account,
            },
            replicas={
                "min": model.replicas.min,
                "max": model.replicas.max,
                "required": model.replicas.required or model.replicas.min,
            },
            rollout=spec.rollout,
            verified=verified,
        )

    def stands(self, fleets: Sequence[Fleet], traffic: dict[str, int]) -> Fleet | None:
        """The fleet that is this one, whatever its number of replicas; the one with most traffic, of several."""
        same = [
            each
            for each in fleets
            if not each.elsewhere
            and (each.model_id, each.version_id) == (self.model_id, self.version_id)
            and machine_of(each) == self.machine
        ]
        return max(same, key=lambda each: traffic.get(each.id, 0), default=None)

    def untried(self, standing: Fleet, fleets: Sequence[Fleet], traffic: Mapping[str, int]) -> bool:
        """Whether a fleet that is this one takes over from others and was never verified, as far as can be seen.

        That a version is called good says so of one of its fleets, and where another one serves it may be that.
        """
        serving = [each for each in fleets if each is not standing and traffic.get(each.id)]
        same = any((each.model_id, each.version_id) == (self.model_id, self.version_id) for each in serving)
        return self.rollout.strategy == "canary" and bool(serving) and (same or not self.verified)

    def new_id(self, fleets: Sequence[Fleet]) -> str:
        """The id that a new fleet gets: of the lock and the model, and not in use."""
        taken = {each.id for each in fleets}
        attempt = 0
        while (
            found := names.deployed_model_id(self.lock_id, self.deployment, self.name, attempt=attempt)
        ) in taken:
            attempt += 1
        return found


def is_ours(fleet: Fleet) -> bool:
    """Whether medport deployed it: its display name says of which lock it is."""
    return provenance.lock_id_of_name(fleet.display_name) is not None


def machine_of(fleet: Fleet) -> dict[str, Any]:
    """Of a fleet, what only a new one can have otherwise."""
    return {
        "machine_type": fleet.machine_type,
        "accelerator": fleet.accelerator,
        "count": fleet.count,
        "service_account": fleet.service_account,
    }


def rows(
    wanted: Wanted,
    endpoint: EndpointState | None,
    *,
    gone: bool,
    estimates: Estimates,
    retained: Mapping[str, str] = MappingProxyType({}),
) -> list[Row]:
    """What is done about one model's fleets, and about its traffic.

    Args:
        gone: whether the endpoint is made anew, so that nothing on it stays.
        retained: ids of old fleets that are kept, and until when (ISO 8601, not over yet).
    """
    fleets = endpoint.fleets if endpoint else ()
    traffic = dict(endpoint.traffic) if endpoint else {}
    if gone:
        new = wanted.new_id(())
        return [
            _deployed(wanted, new, fleets, traffic, gone=True, previous=None, estimates=estimates),
            _traffic(wanted, {}, new, estimates),
            *(_with_endpoint(f"deployed_model.{wanted.name}/{each.id}", each, estimates) for each in fleets),
        ]

    def old(each: Fleet) -> Row:
        return _old(wanted, each, traffic, retained, estimates)

    standing = wanted.stands(fleets, traffic)
    if standing is not None:
        found = [_replicas(wanted, standing, estimates)]
        if traffic != {standing.id: 100}:
            untried = wanted.untried(standing, fleets, traffic)
            found.append(_traffic(wanted, traffic, standing.id, estimates, beside=untried, untried=untried))
        return [*found, *(old(each) for each in fleets if each is not standing)]
    new = wanted.new_id(fleets)
    previous = _previous(wanted, fleets, traffic)
    found = [
        _deployed(wanted, new, fleets, traffic, gone=False, previous=previous, estimates=estimates),
        _traffic(wanted, traffic, new, estimates, beside=previous is None, watched=previous is not None),
    ]
    return [*found, *(old(each) for each in fleets if each is not previous)]


def _previous(wanted: Wanted, fleets: Sequence[Fleet], traffic: Mapping[str, int]) -> Fleet | None:
    """The fleet whose place the new one takes; ``None`` if it comes up beside all that stand."""
    if wanted.rollout.strategy == "canary":
        return None
    ours = [each for each in fleets if is_ours(each)]
    return max(ours, key=lambda each: traffic.get(each.id, 0), default=None)


def _deployed(
    wanted: Wanted,
    new: str,
    fleets: Sequence[Fleet],
    traffic: Mapping[str, int],
    *,
    gone: bool,
    previous: Fleet | None,
    estimates: Estimates,
) -> Row:
    address = f"deployed_model.{wanted.name}"
    after = {"id": new, **wanted.machine, **wanted.replicas}
    serving = previous or max(fleets, key=lambda each: traffic.get(each.id, 0), default=None)
    before = {} if serving is None else _shown(serving)
    seconds = estimates.deploy
    if gone:
        down = seconds if traffic else 0.0
        return Row(address, "create", before, after, "its endpoint is made anew", down, seconds)
    why = _reason(wanted, serving)
    if previous is None:
        return Row(address, "create", before, after, why, duration_s=seconds)
    if wanted.rollout.strategy == "recreate":
        seconds += estimates.undeploy
        down = seconds if set(traffic) == {previous.id} else 0.0
        return Row(address, "replace", before, after, f"{why}; recreate: the old goes first", down, seconds)
    if machine_of(previous) != wanted.machine or previous.model_id != wanted.model_id:
        why = (
            f"{why}, and rolling takes over the machines of the old fleet: let the strategy be canary or recreate"
        )
        return Row(address, "replace", before, after, why, duration_s=seconds, blocked=True)
    return Row(address, "replace", before, after, f"{why}; rolling: machine by machine", duration_s=seconds)


def _reason(wanted: Wanted, serving: Fleet | None) -> str:
    if serving is None:
        return "nothing is deployed"
    there = machine_of(serving)
    if changed := [key for key, value in wanted.machine.items() if there[key] != value]:
        return f"{', '.join(changed)} cannot be changed in place"
    return "another version"


def _replicas(wanted: Wanted, fleet: Fleet, estimates: Estimates) -> Row:
    address = f"deployed_model.{wanted.name}"
    there = {"min": fleet.min, "max": fleet.max, "required": fleet.required or fleet.min}
    changed = [key for key, value in wanted.replicas.items() if there[key] != value]
    if not changed:
        return Row(address, "none", {"id": fleet.id})
    before = {"id": fleet.id, **{key: there[key] for key in changed}}
    after = {"id": fleet.id, **{key: wanted.replicas[key] for key in changed}}
    more = wanted.replicas["min"] > fleet.min
    return Row(
        address,
        "update",
        before,
        after,
        "replicas are changed in place",
        duration_s=estimates.replicas if more else estimates.traffic,
    )


def _traffic(
    wanted: Wanted,
    before: dict[str, int],
    to: str,
    estimates: Estimates,
    *,
    beside: bool = False,
    watched: bool = False,
    untried: bool = False,
) -> Row:
    """The row of a split.

    Args:
        beside: the fleet is new and takes over from others in steps, if they have traffic.
        untried: it stands already; it gives back what traffic it has, and begins as a new one does.
        watched: it gets all at once, and is watched then for as long as a step is.
    """
    address, rollout = f"traffic.{wanted.name}", wanted.rollout
    after = {to: 100}
    if not before or not beside:
        why = "all to the wanted one" if before else "the first gets all"
        seconds = estimates.traffic
        if watched and rollout.bake_s:
            why, seconds = f"{why}, then watched for {words(rollout.bake_s)}", seconds + rollout.bake_s
        return Row(address, "traffic", before, after, why, duration_s=seconds)
    steps = " → ".join(f"{share} %" for share in rollout.steps)
    why = f"{steps}, {words(rollout.bake_s)} each"
    seconds = len(rollout.steps) * (rollout.bake_s + estimates.traffic)
    if untried:
        first = f"has {before[to]} % and was never verified: 0 %" if before.get(to) else "was never verified"
        why = f"it {first}{' → ' if before.get(to) else ': '}{why}"
    return Row(address, "traffic", before, after, why, duration_s=seconds, untried=untried)


def _old(
    wanted: Wanted,
    fleet: Fleet,
    traffic: Mapping[str, int],
    retained: Mapping[str, str],
    estimates: Estimates,
) -> Row:
    address = f"deployed_model.{wanted.name}/{fleet.id}"
    if not is_ours(fleet):
        # Whoever deployed it by hand will not thank us for taking it away.
        why = "not deployed by medport: stays, without traffic, and costs"
        return Row(address, "none", _shown(fleet), {}, why)
    serves = traffic.get(fleet.id, 0)
    if not serves and (until := retained.get(fleet.id)):
        why = f"kept until {until} as the quick way back; medport deploy promote takes it away now"
        return Row(address, "none", _shown(fleet), {}, why)
    kept = wanted.rollout.retain_s
    if serves and kept:
        why = f"kept for {words(kept)} without traffic, as the quick way back"
        after = {UNDEPLOYED: "later", KEPT_S: kept}
        return Row(address, "destroy", _shown(fleet), after, why, duration_s=estimates.undeploy)
    return Row(
        address,
        "destroy",
        _shown(fleet),
        {UNDEPLOYED: "last"},
        "no more wanted",
        duration_s=estimates.undeploy,
    )


def going(endpoint: EndpointState, estimates: Estimates) -> list[Row]:
    """What is done about the fleets of an endpoint that Terraform takes away for good."""
    return [_with_endpoint(f"endpoint/{endpoint.id}/{each.id}", each, estimates) for each in endpoint.fleets]


def _with_endpoint(address: str, fleet: Fleet, estimates: Estimates) -> Row:
    if not is_ours(fleet):
        why = "not deployed by medport, and Terraform takes its endpoint away: undeploy it by hand"
        return Row(address, "destroy", _shown(fleet), {}, why, blocked=True)
    why = "an endpoint can only go without deployed models"
    return Row(address, "destroy", _shown(fleet), {UNDEPLOYED: "first"}, why, duration_s=estimates.undeploy)


def _shown(fleet: Fleet) -> dict[str, Any]:
    return {
        "id": fleet.id,
        "version": fleet.version_id,
        **machine_of(fleet),
        "min": fleet.min,
        "max": fleet.max,
        "required": fleet.required or fleet.min,
    }
