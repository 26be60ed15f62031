"""Which machines run before, during and after a plan: what costs and quotas are counted from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from medport_deploy.plan.diff_fleets import UNDEPLOYED
from medport_deploy.plan.reality import Fleet, Reality
from medport_deploy.plan.rows import Row
from medport_deploy.spec.reading import Spec

SURGE_REPLICAS = 1
"""How many machines more than there were a rolling rollout uses, so that none is missing."""


@dataclass(frozen=True, slots=True)
class Machines:
    """Machines of one kind that serve one model."""

    machine_type: str
    accelerator: str | None
    count: int
    """Accelerators of one machine."""
    least: int
    """How many run at least."""
    most: int
    """How many run at most, with load."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The machines of a whole deployment over time."""

    now: tuple[Machines, ...]
    during: tuple[Machines, ...]
    """While a new fleet comes up beside the old one; the old one is then kept for a while."""
    after: tuple[Machines, ...]

    @property
    def phases(self) -> tuple[tuple[Machines, ...], ...]:
        """Each must fit into the quotas."""
        return (self.now, self.during, self.after)


def of(spec: Spec, reality: Reality, rows: Iterable[Row]) -> Capacity:
    """Count the machines of a plan.

    Args:
        rows: of the plan; ``deployed_model.NAME`` says what is done about the fleet of ``NAME``.
    """
    said = {row.address: row for row in rows}
    left = [fleet for endpoint in reality.leftovers for fleet in endpoint.fleets]
    now = [_standing(each) for each in left]
    during, after = list(now), list(now)
    for name in spec.models:
        state = reality.models.get(name)
        fleets = state.endpoint.fleets if state and state.endpoint else ()
        row = said[f"deployed_model.{name}"]
        wanted = _wanted(spec, name)
        now += [_standing(each) for each in fleets]
        # What goes before Terraform replaces its endpoint never runs beside what comes.
        standing = [_standing(each) for each in fleets if not _goes_first(said, name, each)]
        stays = [each for each in fleets if _action(said, name, each) == "none"]
        after += [wanted, *(_standing(each) for each in stays)]
        during += list(_during(spec, row, wanted, fleets, standing))
    return Capacity(tuple(now), tuple(during), tuple(after))


def _during(
    spec: Spec, row: Row, wanted: Machines, fleets: Iterable[Fleet], standing: list[Machines]
) -> Iterator[Machines]:
    if row.action == "replace" and spec.rollout.strategy == "recreate":
        yield from (_standing(each) for each in fleets if each.id != row.before.get("id"))
        return
    yield from standing
    if row.action == "replace":
        yield Machines(wanted.machine_type, wanted.accelerator, wanted.count, SURGE_REPLICAS, SURGE_REPLICAS)
    elif row.action == "create":
        yield wanted


def _action(said: dict[str, Row], name: str, fleet: Fleet) -> str | None:
    """What is done about a fleet beside the wanted one; ``None`` for the wanted one, and what goes with it."""
    row = said.get(f"deployed_model.{name}/{fleet.id}")
    return row.action if row else None


def _goes_first(said: dict[str, Row], name: str, fleet: Fleet) -> bool:
    row = said.get(f"deployed_model.{name}/{fleet.id}")
    return row is not None and row.after.get(UNDEPLOYED) == "first"


def _wanted(spec: Spec, name: str) -> Machines:
    model = spec.models[name]
    machine = model.machine
    return Machines(machine.type, machine.accelerator, machine.count, model.replicas.min, model.replicas.max)


def _standing(fleet: Fleet) -> Machines:
    # It may have grown with the load.
    least = max(fleet.min, fleet.available or 0)
    return Machines(fleet.machine_type, fleet.accelerator, fleet.count, least, max(fleet.max, least))
