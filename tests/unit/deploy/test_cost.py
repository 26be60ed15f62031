"""What machines cost, by a table with a date."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from importlib import resources

import pytest
from support.deploy_plans import deployed, lock, spec

from medport_deploy.plan import capacity, cost, diff
from medport_deploy.plan.capacity import Capacity, Machines
from medport_deploy.plan.cost import Prices
from medport_deploy.plan.reality import Reality
from medport_deploy.spec import machines as spec_machines

TABLE = Prices(
    as_of=date(2026, 1, 1),
    currency="USD",
    region="us-central1",
    hours_per_month=730,
    management_fee=0.1,
    source="a test",
    machines={"g2-standard-24": 2.0, "n1-standard-4": 0.5, "a2-ultragpu-1g": 5.0},
    bare=frozenset({"n1-standard-4"}),
    accelerators={"NVIDIA_TESLA_T4": 0.25},
)
L4 = Machines("g2-standard-24", "NVIDIA_L4", 2, 1, 3)
OTHER = "77" * 20


def of(now: tuple[Machines, ...], after: tuple[Machines, ...], *, location: str = "us-central1") -> cost.Cost:
    return cost.of(Capacity(now, (*now, *after), after), kind="vertex", location=location, table=TABLE)


def test_machine_costs_its_price_and_the_management_fee() -> None:
    assert TABLE.hour(L4) == pytest.approx(2.2)


def test_accelerators_count_where_the_machine_has_none_of_its_own() -> None:
    assert TABLE.hour(Machines("n1-standard-4", "NVIDIA_TESLA_T4", 2, 1, 1)) == pytest.approx(1.1)


def test_change_is_told_per_hour_and_per_month_with_the_time_of_two_fleets() -> None:
    found = of((L4,), (Machines("a2-ultragpu-1g", "NVIDIA_A100_80GB", 1, 1, 1),))

    assert found.delta_hour == pytest.approx(3.3)
    assert found.delta_month == pytest.approx(3.3 * 730)
    assert found.during.hour == pytest.approx(7.7)
    assert found.now.most_hour == pytest.approx(6.6)


def test_machine_without_a_price_is_named_and_not_counted_as_free() -> None:
    found = of((), (L4, Machines("a9-none", None, 0, 1, 1)))

    assert found.after.hour == pytest.approx(2.2)
    assert found.after.unpriced == ("a9-none",)
    assert any("no price here for a9-none" in note for note in found.notes)


def test_unknown_accelerator_on_a_bare_machine_has_no_price() -> None:
    assert TABLE.hour(Machines("n1-standard-4", "NVIDIA_X", 1, 1, 1)) is None


def test_region_without_a_factor_is_said_to_have_none() -> None:
    here, there = of((), (L4,)), of((), (L4,), location="europe-west4")

    assert not any("factor" in note for note in here.notes)
    assert any("the factor for europe-west4 is not known here" in note for note in there.notes)
    assert any("prices of 2026-01-01, not a quote" in note for note in there.notes)


def test_local_target_bills_nothing() -> None:
    found = cost.of(Capacity((), (L4,), (L4,)), kind="local", location="europe-west4", table=TABLE)

    assert (found.now.hour, found.during.hour, found.after.most_hour) == (0, 0, 0)
    assert found.notes == ("a local target: nothing is billed for it here",)


def test_canary_pays_for_two_fleets_and_recreate_for_none() -> None:
    canary, recreate = spec(), spec(rollout={"strategy": "recreate"})
    found = deployed(canary, lock(canary))

    both = capacity.of(canary, found, diff.rows(canary, lock(canary, commit=OTHER), found))
    none = capacity.of(recreate, found, diff.rows(recreate, lock(recreate, commit=OTHER), found))

    assert (len(both.now), len(both.during), len(both.after)) == (1, 2, 1)
    assert (len(none.now), len(none.during), len(none.after)) == (1, 0, 1)


def test_fleet_that_has_grown_counts_as_large_as_it_is() -> None:
    wanted = spec(model={"replicas": {"min": 1, "max": 4}})
    found = deployed(wanted, lock(wanted))
    grown = found.models["reader"].endpoint
    assert grown is not None
    fleets = (replace(grown.fleets[0], available=3),)
    now = Reality({"reader": replace(found.models["reader"], endpoint=replace(grown, fleets=fleets))})

    machines = capacity.of(wanted, now, diff.rows(wanted, lock(wanted), now))

    assert (machines.now[0].least, machines.now[0].most) == (3, 4)


def test_table_holds_what_the_machine_table_holds_or_says_that_it_does_not() -> None:
    """The newest machines have no price here: a wrong one would be worse than none."""
    without = {"a3-megagpu-8g", "a3-ultragpu-8g", "a4-highgpu-8g"}
    known = set(cost.prices().machines)

    missing = {name for name in spec_machines._FIXED if name not in known}

    assert missing == without


def test_table_says_when_and_of_where_it_is_and_that_nobody_checked_it() -> None:
    said = json.loads(resources.files("medport_deploy.plan").joinpath("prices.json").read_bytes())

    assert cost.prices().as_of == date.fromisoformat(said["as_of"])
    assert "not checked against Google" in said["source"]
    assert all(price > 0 for price in [*said["machines"].values(), *said["accelerators"].values()])
