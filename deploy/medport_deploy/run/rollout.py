"""How the fleet of one model takes over, as steps: beside the old one in shares of the traffic, or in its place.

A step that judges, be it a smoke test or a gate, makes the run fail; then the way back of the others restores what
stood, the split first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from medport.lock import Lock
from medport_deploy import names, provenance
from medport_deploy.control.plane import ControlPlane
from medport_deploy.plan.rows import Row
from medport_deploy.run import split_math, vertex_changes, vertex_steps, vertex_takeover
from medport_deploy.run.steps import Doing, Step
from medport_deploy.spec.reading import Model, Spec

if TYPE_CHECKING:
    from medport_deploy.trial.trial import Trial

Json = dict[str, Any]
_REPLICAS = ("min", "max", "required")


@dataclass(frozen=True, slots=True)
class Rollout:
    """One model's part of a plan."""

    spec: Spec
    lock: Lock
    name: str
    """The model's, in the specification."""
    control: ControlPlane
    trial: Trial | None
    """Who judges; ``None``: nobody."""
    fleet: Row
    """``deployed_model.NAME`` of the plan."""
    split: Row | None
    """``traffic.NAME`` of the plan; ``None``: it is as it should be."""

    @property
    def endpoint_id(self) -> str:
        """The endpoint's."""
        return self.spec.endpoint_id(self.name)

    @property
    def id_(self) -> str:
        """The id of the fleet that is wanted."""
        return str((self.fleet.after or self.fleet.before)["id"])

    @property
    def in_steps(self) -> bool:
        """Whether a fleet takes over from others in shares of the traffic; only that can be held.

        That is a new one, or one that stands and was never verified.
        """
        if self.split is None or not self._others:
            return False
        return self.fleet.action == "create" or self.split.untried

    @property
    def judged(self) -> bool:
        """Whether the fleet is tried in this run."""
        return self.trial is not None and (self.split is not None or self.fleet.changes)

    def steps(self, *, hold: int | None = None, hurry: bool = False) -> list[Step]:
        """All of it; old fleets are still deployed afterwards, except where the new one takes their machines.

        Args:
            hold: end with the last share that is not greater than this, in per cent; if it goes ``in_steps``.
            hurry: judge each share once, without watching it.
        """
        watch_s = 0.0 if hurry else self.spec.rollout.bake_s
        if self.in_steps:
            return self._canary(hold, watch_s)
        if self.fleet.action == "create":
            return [self._deploy(), *self._all_to_it(), *self._tried(0.0)]
        if self.fleet.action == "replace":
            baseline = self._baseline()
            tried = self._tried(watch_s, beside=bool(baseline))
            return [*baseline, *self._replace(), *self._all_to_it(), *tried]
        found = [self._deploy()]
        if self.fleet.action == "update":
            found.append(self._replicas())
        return [*found, *self._all_to_it(), *(self._tried(0.0) if self.judged else [])]

    def _canary(self, hold: int | None, watch_s: float) -> list[Step]:
        found = [*self._withdrawn(), self._deploy()]
        if self.fleet.action == "update":
            found.append(self._replicas())
        found += self._straight()
        shares = [share for share in self.spec.rollout.steps if hold is None or share <= hold]
        if shares:
            found += self._baseline()
        for share in shares:
            found.append(vertex_steps.traffic(self.control, self.endpoint_id, self._at(share)))
            if share == self.spec.rollout.steps[0]:
                found += self._smoke()
            elif share == 100:
                # Gates send neither streams nor files, and what was well at the first share need not be now.
                found += self._smoke(f" at {share} %")
            found += self._gate(share, watch_s, beside=True)
        return found

    def _at(self, share: int) -> dict[str, int]:
        """The split at a share: the others keep their proportions."""
        return {**split_math.scaled(self._others, 100 - share), self.id_: share}

    @property
    def _others(self) -> dict[str, int]:
        """The shares of those that have traffic besides the fleet that is wanted."""
        before = self.split.before if self.split is not None else {}
        return {id_: share for id_, share in before.items() if id_ != self.id_}

    def _withdrawn(self) -> list[Step]:
        """What nobody has tried gives back the traffic that it has; the rest of the run goes back to this."""
        if self.split is None or not self.split.before.get(self.id_):
            return []
        step = vertex_steps.traffic(self.control, self.endpoint_id, split_math.scaled(self._others, 100))
        title = f"take its traffic from {self.id_}, which was never verified"
        return [replace(step, kind="withdrawal", title=title, undo=None)]

    def _deploy(self) -> Step:
        return vertex_steps.deployed_model(
            self.control, self.endpoint_id, self._model_id, self._alias, self._body()
        )

    def _replace(self) -> list[Step]:
        previous = str(self.fleet.before["id"])
        if self.spec.rollout.strategy == "recreate":
            return [vertex_takeover.given_up(self.control, self.endpoint_id, previous), self._deploy()]
        body = self._body()
        # Machines and replicas are those of the fleet that goes; others are asked for once it has gone.
        del body["dedicatedResources"]
        rolled = vertex_takeover.rolled(
            self.control, self.endpoint_id, self._model_id, self._alias, body, previous=previous
        )
        same = all(self.fleet.before[key] == self.fleet.after[key] for key in _REPLICAS)
        return [rolled] if same else [rolled, self._replicas()]

    def _replicas(self) -> Step:
        said = self.spec.models[self.name].replicas
        wanted = {"min": said.min, "max": said.max, "required": said.required or said.min}
        return vertex_changes.replicas(self.control, self.endpoint_id, self.id_, wanted)

    def _all_to_it(self) -> list[Step]:
        if self.split is None:
            return []
        return [vertex_steps.traffic(self.control, self.endpoint_id, {self.id_: 100})]

    def _tried(self, watch_s: float, *, beside: bool = False) -> list[Step]:
        return [*self._smoke(), *self._gate(100, watch_s, beside=beside)]

    def _straight(self) -> list[Step]:
        if (trial := self.trial) is None:
            return []

        def do(doing: Doing) -> None:
            if said := trial.straight(self.name, self.id_, sleep=doing.sleep):
                doing.say(said)

        title = f"smoke test of {self.id_}, before it has traffic"
        return [_judges("smoke", f"{self.endpoint_id}/{self.id_} straight", title, do)]

    def _baseline(self) -> list[Step]:
        if (trial := self.trial) is None or self.split is None or not self.split.before:
            return []
        title = f"what serves {self.name} now, to compare with"
        return [
            _judges(
                "baseline", self.endpoint_id, title, lambda doing: trial.baseline(self.name, sleep=doing.sleep)
            )
        ]

    def _smoke(self, when: str = "") -> list[Step]:
        if (trial := self.trial) is None:
            return []
        title = f"smoke test of {self.id_}{when}"
        return [
            _judges(
                "smoke",
                f"{self.endpoint_id}/{self.id_}{when}",
                title,
                lambda doing: trial.smoke(self.name, self.id_, sleep=doing.sleep),
            )
        ]

    def _gate(self, share: int, watch_s: float, *, beside: bool) -> list[Step]:
        if self.trial is None:
            return []
        name = f"{self.endpoint_id}/{self.id_} at {share} %"
        gate = partial(_gated, self.trial, self.name, self.id_, share, beside, watch_s)
        return [_judges("gate", name, f"gates of {self.name} at {share} %", gate)]

    def _body(self) -> Json:
        """The DeployedModel in proto3 JSON, without ``model``."""
        model = self.spec.models[self.name]
        account = {"serviceAccount": model.service_account} if model.service_account else {}
        return {
            "id": self.id_,
            "displayName": provenance.deployed_name(self.lock, self.name),
            "dedicatedResources": _resources(model),
            **account,
        }

    @property
    def _model_id(self) -> str:
        return self.spec.model_id(self.name)

    @property
    def _alias(self) -> str:
        return names.version_alias(self.lock.lock_id)


def _resources(model: Model) -> Json:
    machine: Json = {"machineType": model.machine.type}
    if model.machine.accelerator:
        machine |= {"acceleratorType": model.machine.accelerator, "acceleratorCount": model.machine.count}
    counts = {"minReplicaCount": model.replicas.min, "maxReplicaCount": model.replicas.max}
    if model.replicas.required:
        counts["requiredReplicaCount"] = model.replicas.required
    return {"machineSpec": machine, **counts}


def _gated(trial: Trial, name: str, id_: str, share: int, beside: bool, watch_s: float, doing: Doing) -> None:
    trial.gate(name, id_, share, beside=beside, watch_s=watch_s, sleep=doing.sleep)


def _judges(kind: str, name: str, title: str, do: Callable[[Doing], None]) -> Step:
    # Whoever passed is not asked again, and a finding is no error that may pass.
    return Step(kind=kind, name=name, title=title, do=do, once=True, repeats=False)
