"""What a plan costs, by a table with a date: "prices of DATE, not a quote".

The table holds the prices of one region. Others are dearer or cheaper by factors that are not known here, so for
them the plan says whose prices it shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib import resources
from typing import Literal

from medport_deploy.plan.capacity import Capacity, Machines

_TABLE = "prices.json"


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of machines, per hour, on demand."""

    as_of: date
    currency: str
    region: str
    hours_per_month: float
    management_fee: float
    """What Vertex AI takes on top, as a share."""
    source: str
    machines: Mapping[str, float]
    bare: frozenset[str]
    """Machine types whose price holds no accelerator."""
    accelerators: Mapping[str, float]

    def hour(self, machine: Machines) -> float | None:
        """One machine for an hour, with its accelerators; ``None`` if the table does not hold it."""
        price = self.machines.get(machine.machine_type)
        if price is None:
            return None
        if machine.count and machine.machine_type in self.bare:
            each = self.accelerators.get(machine.accelerator or "")
            if each is None:
                return None
            price += each * machine.count
        return price * (1 + self.management_fee)


@dataclass(frozen=True, slots=True)
class Amount:
    """What some machines cost for an hour."""

    hour: float
    """As many as run at least."""
    most_hour: float
    """As many as run at most."""
    unpriced: tuple[str, ...] = ()
    """Machine types that the table does not hold: the amount is without them."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a deployment costs before, during and after a plan. Machines alone: no traffic, storage or logs."""

    currency: str
    as_of: date
    hours_per_month: float
    now: Amount
    during: Amount
    """While two fleets run."""
    after: Amount
    notes: tuple[str, ...] = ()

    @property
    def delta_hour(self) -> float:
        """What an hour costs more afterwards, or less."""
        return self.after.hour - self.now.hour

    @property
    def delta_month(self) -> float:
        """What a month costs more afterwards, or less."""
        return self.month(self.delta_hour)

    def month(self, hour: float) -> float:
        """A month of an amount per hour."""
        return hour * self.hours_per_month


@cache
def prices() -> Prices:
    """The table that comes with medport."""
    said = json.loads(resources.files(__package__).joinpath(_TABLE).read_bytes())
    return Prices(
        as_of=date.fromisoformat(said["as_of"]),
        currency=said["currency"],
        region=said["region"],
        hours_per_month=said["hours_per_month"],
        management_fee=said["management_fee"],
        source=said["source"],
        machines=said["machines"],
        bare=frozenset(said["machines_without_accelerators"]),
        accelerators=said["accelerators"],
    )


def of(
    capacity: Capacity, *, kind: Literal["vertex", "local"], location: str, table: Prices | None = None
) -> Cost:
    """What the machines of a plan cost.

    Args:
        kind: of the target. A local one bills nothing.
        location: of the target.
        table: the one that comes with medport, if none is given.
    """
    table = table or prices()
    if kind == "local":
        nothing = Amount(0.0, 0.0)
        said = ("a local target: nothing is billed for it here",)
        return Cost(table.currency, table.as_of, table.hours_per_month, nothing, nothing, nothing, said)
    amounts = [_amount(each, table) for each in capacity.phases]
    notes = [f"prices of {table.as_of}, not a quote; machines alone"]
    if location != table.region:
        notes.append(f"prices of {table.region}: the factor for {location} is not known here")
    if missing := sorted({name for each in amounts for name in each.unpriced}):
        notes.append(f"no price here for {', '.join(missing)}: the amounts are without them")
    now, during, after = amounts
    return Cost(table.currency, table.as_of, table.hours_per_month, now, during, after, tuple(notes))


def _amount(machines: Iterable[Machines], table: Prices) -> Amount:
    hour = most = 0.0
    unpriced = set()
    for each in machines:
        price = table.hour(each)
        if price is None:
            unpriced.add(each.machine_type or "a machine that is not named")
            continue
        hour += price * each.least
        most += price * each.most
    return Amount(round(hour, 4), round(most, 4), tuple(sorted(unpriced)))
