"""What a plan says is to be done, by what stands and what is wanted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.deploy_plans import (
    COMMIT,
    MODEL,
    deployed,
    endpoint,
    fleet,
    lock,
    spec,
    version,
)  # fmt: skip

from medport.errors import PreconditionFailed, QuotaExceeded
from medport.wire.vertex import Pins
from medport_deploy import names
from medport_deploy.plan import capacity, cost, diff, estimates, quota, terraform_changes
from medport_deploy.plan import show as plan_show
from medport_deploy.plan.making import Inputs, Plan
from medport_deploy.plan.quota import Headroom
from medport_deploy.plan.reality import EndpointState, Fleet, ModelState, Reality
from medport_deploy.plan.rows import Row
from medport_deploy.spec.reading import Spec

NOTHING = Reality()
OTHER = "77" * 20


def by_address(rows: tuple[Row, ...]) -> dict[str, Row]:
    return {row.address: row for row in rows}


def actions(rows: tuple[Row, ...]) -> dict[str, str]:
    return {row.address: row.action for row in rows}


def planned(wanted: Spec, rows: tuple[Row, ...], found: Reality = NOTHING, **more: Any) -> Plan:
    machines = capacity.of(wanted, found, rows)
    return Plan(
        deployment=wanted.name,
        target="projects/radiology",
        made_at="2026-11-26T00:00:00Z",
        medport="1",
        inputs=Inputs("0" * 64, "1" * 64, {}),
        rows=rows,
        cost=cost.of(machines, kind="vertex", location="us-central1"),
        quotas=quota.needs(machines),
        **more,
    )


def test_first_deployment_creates_everything_in_order() -> None:
    wanted = spec()

    rows = diff.rows(wanted, lock(wanted), NOTHING)

    assert [(row.address, row.action) for row in rows] == [
        ("endpoint.reader", "create"),
        ("version.reader", "create"),
        ("deployed_model.reader", "create"),
        ("traffic.reader", "traffic"),
    ]
    assert rows[1].after["revision"] == COMMIT
    assert rows[2].after["id"] == names.deployed_model_id(lock(wanted).lock_id, "chest", "reader")
    assert not any(row.downtime_s for row in rows)


def test_what_stands_as_locked_leaves_nothing_to_do() -> None:
    wanted = spec()
    found = deployed(wanted, lock(wanted))

    plan = planned(wanted, diff.rows(wanted, lock(wanted), found), found)

    assert {row.action for row in plan.rows} == {"none"}
    assert (plan.changes, plan.exit_code) == (False, 0)
    assert plan_show.summary(plan).startswith("nothing to do")


def test_another_revision_comes_up_beside_the_old_one_and_takes_over_in_steps() -> None:
    wanted = spec(rollout={"steps": [10, 100], "bake_s": 60, "retain_s": 1800})
    old, new = lock(wanted), lock(wanted, commit=OTHER)

    rows = diff.rows(wanted, new, deployed(wanted, old))

    said = by_address(rows)
    old_id = fleet(wanted, old).id
    new_id = said["deployed_model.reader"].after["id"]
    assert said["version.reader"].before["revision"] == COMMIT
    assert said["version.reader"].after["revision"] == OTHER
    assert said["deployed_model.reader"].action == "create"
    assert said["traffic.reader"].before == {old_id: 100}
    assert said["traffic.reader"].after == {new_id: 100}
    assert "10 % → 100 %" in said["traffic.reader"].why
    assert said["traffic.reader"].duration_s >= 120
    assert said[f"deployed_model.reader/{old_id}"].action == "destroy"
    assert "30 min" in said[f"deployed_model.reader/{old_id}"].why
    assert old_id != new_id


def test_same_bytes_under_another_lock_are_said_to_be_the_same() -> None:
    wanted = spec()
    old, new = lock(wanted), lock(wanted, said="terms accepted again")

    said = by_address(diff.rows(wanted, new, deployed(wanted, old)))

    assert said["version.reader"].why == "the same bytes, under another lock"
    assert set(said["version.reader"].after) == {"lock_id"}


@pytest.mark.parametrize(("strategy", "down"), [("recreate", True), ("rolling", False)])
def test_only_recreate_has_downtime(strategy: str, down: bool) -> None:
    wanted = spec(rollout={"strategy": strategy})
    found = deployed(wanted, lock(wanted))

    rows = diff.rows(wanted, lock(wanted, commit=OTHER), found)

    said = by_address(rows)
    assert said["deployed_model.reader"].action == "replace"
    assert (planned(wanted, rows, found).downtime_s > 0) is down
    assert not any(row.action == "destroy" for row in rows)


def test_recreating_what_has_no_traffic_has_no_downtime() -> None:
    wanted = spec(rollout={"strategy": "recreate"})
    found = deployed(wanted, lock(wanted), traffic={})

    said = by_address(diff.rows(wanted, lock(wanted, commit=OTHER), found))

    assert said["deployed_model.reader"].downtime_s == 0


def test_replicas_are_changed_in_place() -> None:
    wanted = spec()
    more = spec(model={"replicas": {"min": 2, "max": 4}})
    found = deployed(wanted, lock(wanted))

    rows = diff.rows(more, lock(wanted), found)

    assert [row.address for row in rows if row.changes] == ["deployed_model.reader"]
    changed = by_address(rows)["deployed_model.reader"]
    assert changed.action == "update"
    assert (changed.before["min"], changed.after["min"], changed.after["max"]) == (1, 2, 4)


def test_another_machine_needs_a_new_fleet_of_the_version_that_is_there() -> None:
    wanted = spec()
    bigger = spec(model={"machine": {"type": "a2-ultragpu-1g", "accelerator": "NVIDIA_A100_80GB", "count": 1}})
    pinned = lock(wanted)

    said = by_address(diff.rows(bigger, pinned, deployed(wanted, pinned)))

    assert said["version.reader"].action == "none"
    assert said["deployed_model.reader"].action == "create"
    assert "machine_type, accelerator, count cannot be changed in place" in said["deployed_model.reader"].why
    assert said["deployed_model.reader"].after["id"] != fleet(wanted, pinned).id


def test_split_that_somebody_changed_is_put_back() -> None:
    wanted = spec()
    mine = fleet(wanted, lock(wanted))
    old = fleet(wanted, lock(wanted, commit=OTHER), "2", id="7")
    state = ModelState(
        endpoint(wanted, mine, old, traffic={mine.id: 40, "7": 60}), (version(wanted, lock(wanted)),)
    )

    said = by_address(diff.rows(wanted, lock(wanted), Reality({MODEL: state})))

    assert said["traffic.reader"].before == {mine.id: 40, "7": 60}
    assert said["traffic.reader"].after == {mine.id: 100}
    assert said["deployed_model.reader/7"].action == "destroy"


@pytest.mark.parametrize(
    ("good", "share", "said"),
    [
        (True, 40, "all to the wanted one"),
        (False, 40, "it has 40 % and was never verified: 0 % → 10 % → 100 %, 60 s each"),
        (False, 0, "it was never verified: 10 % → 100 %, 60 s each"),
    ],
)
def test_fleet_that_stands_and_was_never_verified_takes_over_in_steps(good: bool, share: int, said: str) -> None:
    wanted = spec(rollout={"steps": [10, 100], "bake_s": 60})
    pinned = lock(wanted)
    mine, old = fleet(wanted, pinned), fleet(wanted, lock(wanted, commit=OTHER), "2", id="7")
    traffic = {mine.id: share, "7": 100 - share} if share else {"7": 100}
    aliases = (names.version_alias(pinned.lock_id), *([names.good_alias(pinned.lock_id)] if good else []))
    state = ModelState(endpoint(wanted, mine, old, traffic=traffic), (version(wanted, pinned, aliases=aliases),))

    row = by_address(diff.rows(wanted, pinned, Reality({MODEL: state})))["traffic.reader"]

    assert (row.why, row.untried) == (said, not good)


def test_verified_version_on_machines_that_never_served_takes_over_in_steps() -> None:
    wanted = spec()
    pinned = lock(wanted)
    mine, old = fleet(wanted, pinned), fleet(wanted, pinned, id="7", machine_type="a2-ultragpu-1g")
    aliases = (names.version_alias(pinned.lock_id), names.good_alias(pinned.lock_id))
    found = version(wanted, pinned, aliases=aliases)
    state = ModelState(endpoint(wanted, mine, old, traffic={"7": 100}), (found,))

    row = by_address(diff.rows(wanted, pinned, Reality({MODEL: state})))["traffic.reader"]

    assert row.untried


def test_what_others_deployed_is_left_standing() -> None:
    wanted = spec()
    mine, theirs = fleet(wanted, lock(wanted)), Fleet("8", "their-model", "3", "by hand")
    state = ModelState(endpoint(wanted, mine, theirs), (version(wanted, lock(wanted)),))

    rows = diff.rows(wanted, lock(wanted), Reality({MODEL: state}))

    assert by_address(rows)["deployed_model.reader/8"].action == "none"
    assert "not deployed by medport" in by_address(rows)["deployed_model.reader/8"].why
    assert not any(row.changes for row in rows)


def test_version_that_bears_the_locks_name_and_other_bytes_is_not_taken() -> None:
    wanted = spec()
    pinned = lock(wanted)
    wrong = version(wanted, pinned, pins=Pins(revision=OTHER, lock_id=pinned.lock_id))
    found = Reality({MODEL: ModelState(endpoint(wanted, fleet(wanted, pinned)), (wrong,))})

    rows = diff.rows(wanted, pinned, found)

    assert by_address(rows)["version.reader"].blocked
    with pytest.raises(PreconditionFailed, match=r"version\.reader"):
        planned(wanted, rows, found).require_possible("europe-west4")


def test_labels_of_others_on_the_endpoint_are_no_change() -> None:
    wanted = spec(labels={"team": "chest"})
    labels = {"team": "chest", names.DEPLOYMENT_LABEL: "chest", "goog-terraform-provisioned": "true"}
    found = deployed(wanted, lock(wanted), labels=labels)

    rows = diff.rows(wanted, lock(wanted), found)

    assert not any(row.changes for row in rows)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"labels": {"team": "chest"}}, "labels"),
        ({"model": {"endpoint": {"inference_timeout_s": 900}}}, "inference_timeout_s"),
        ({"model": {"endpoint": {"display_name": "Chest reader"}}}, "display_name"),
    ],
)
def test_endpoint_is_updated_in_place(changes: dict[str, Any], field: str) -> None:
    wanted = spec()
    found = deployed(wanted, lock(wanted))

    rows = diff.rows(spec(**changes), lock(wanted), found)

    assert [(row.address, row.action) for row in rows if row.changes] == [("endpoint.reader", "update")]
    assert field in by_address(rows)["endpoint.reader"].after


def test_endpoint_with_another_key_is_refused_and_not_replaced() -> None:
    key = "projects/p/locations/europe-west4/keyRings/r/cryptoKeys/k"
    wanted = spec()
    found = deployed(wanted, lock(wanted))

    row = by_address(diff.rows(spec(keys={"kms_key_name": key}), lock(wanted), found))["endpoint.reader"]

    assert (row.action, row.blocked) == ("replace", True)
    assert "kms_key_name cannot be changed in place" in row.why


def test_endpoint_that_terraform_makes_is_only_given_its_timeout() -> None:
    model = {"endpoint": {"id": "1234", "inference_timeout_s": 900, "display_name": "other"}}
    wanted = spec(model=model, terraform={"root": "infra"})

    first = diff.rows(wanted, lock(wanted), NOTHING)
    there = deployed(wanted, lock(wanted), display_name="Terraform's", inference_timeout_s=None)
    later = diff.rows(wanted, lock(wanted), there)

    assert by_address(first)["endpoint.reader"].action == "update"
    assert by_address(first)["endpoint.reader"].after == {"inference_timeout_s": 900.0}
    assert by_address(later)["endpoint.reader"].before == {"inference_timeout_s": 600.0}


def test_endpoint_that_terraform_replaces_takes_its_fleet_with_it() -> None:
    wanted = spec(model={"endpoint": {"id": "1234"}}, terraform={"root": "infra"})
    found = deployed(wanted, lock(wanted))

    rows = diff.rows(wanted, lock(wanted), found, replaced=frozenset({"1234"}))

    said = by_address(rows)
    assert said["deployed_model.reader"].action == "create"
    assert said["deployed_model.reader"].downtime_s > 0
    assert said["traffic.reader"].before == {}


def test_endpoint_that_the_specification_no_longer_has_is_named_with_its_cost() -> None:
    wanted = spec()
    left = EndpointState("mp-chest--old", fleets=(fleet(wanted, lock(wanted)),))
    found = replace(deployed(wanted, lock(wanted)), leftovers=(left,))

    rows = diff.rows(wanted, lock(wanted), found)

    plan = planned(wanted, rows, found)
    row = by_address(rows)["endpoint/mp-chest--old"]
    assert (row.action, "sweep" in row.why) == ("none", True)
    assert plan.cost.after.hour == pytest.approx(
        2 * planned(wanted, rows, deployed(wanted, lock(wanted))).cost.after.hour
    )


SHOWN: dict[str, Any] = {
    "resource_changes": [
        {
            "address": "module.e.google_vertex_ai_endpoint.this",
            "type": "google_vertex_ai_endpoint",
            "action_reason": "replace_because_cannot_update",
            "change": {
                "actions": ["delete", "create"],
                "before": {"name": "1234", "network": "old", "id": "x"},
                "after": {"name": "1234", "network": "new"},
                "after_unknown": {"id": True},
                "before_sensitive": {},
                "after_sensitive": {},
                "replace_paths": [["network"]],
            },
        },
        {
            "address": "google_secret.s",
            "type": "google_secret",
            "change": {
                "actions": ["update"],
                "before": {"value": "hunter2", "parts": [{"key": "k1", "note": "a"}], "same": 1},
                "after": {"value": "hunter3", "parts": [{"key": "k2", "note": "b"}], "same": 1},
                "after_unknown": {},
                "before_sensitive": {"value": True, "parts": [{"key": True}]},
                "after_sensitive": {"value": True, "parts": [{"key": True}]},
            },
        },
        {"address": "x.kept", "type": "x", "change": {"actions": ["no-op"], "before": {}, "after": {}}},
        {"address": "data.x", "type": "x", "change": {"actions": ["read"], "before": None, "after": {}}},
    ]
}


def test_terraforms_changes_are_rows_with_the_reason_and_without_secrets() -> None:
    rows = terraform_changes.rows(SHOWN, estimates.of("vertex"))

    first, second = rows
    assert (first.address, first.action) == ("terraform:module.e.google_vertex_ai_endpoint.this", "replace")
    assert first.why == "network cannot be changed in place"
    assert first.after == {"network": "new", "id": "(known after apply)"}
    assert second.before == {"value": "(sensitive)", "parts": [{"key": "(sensitive)", "note": "a"}]}
    assert "hunter" not in str(rows)
    assert "k1" not in str(rows)


def test_endpoints_that_terraform_replaces_are_known_by_their_ids() -> None:
    assert terraform_changes.replaced_endpoints(SHOWN) == {"1234"}


def test_short_quota_refuses_the_plan() -> None:
    wanted = spec()
    rows = diff.rows(wanted, lock(wanted), NOTHING)
    short = (Headroom("aiplatform.googleapis.com/custom_model_serving_nvidia_l4_gpus", 0, 2, 2, limit=0),)

    plan = replace(planned(wanted, rows), quotas=short)

    with pytest.raises(QuotaExceeded, match="is 0 in europe-west4, and 2 are needed"):
        plan.require_possible("europe-west4")


def test_screen_says_by_marks_what_is_done_and_what_it_costs() -> None:
    wanted = spec(rollout={"strategy": "recreate"})
    found = deployed(wanted, lock(wanted))
    rows = diff.rows(wanted, lock(wanted, commit=OTHER), found)

    text = "\n".join(line for line, _ in plan_show.lines(planned(wanted, rows, found)))

    assert "-/+ deployed_model.reader" in text
    assert "DOWN" in text
    assert f"revision {COMMIT[:12]} → {OTHER[:12]}" in text
    assert "prices of 2026-08-20, not a quote" in text
    assert len(text.splitlines()) <= 24


def test_json_of_a_plan_has_the_keys_that_scripts_rely_on() -> None:
    wanted = spec()

    said = planned(wanted, diff.rows(wanted, lock(wanted), NOTHING)).as_dict()

    assert set(said) == {
        "deployment", "target", "made_at", "medport", "lock_id", "changes", "exit_code", "rows", "downtime_s",
        "duration_s", "cost", "quotas", "notes",
    }  # fmt: skip
    assert set(said["rows"][0]) == {
        "address", "action", "before", "after", "why", "downtime_s", "duration_s", "blocked",
    }  # fmt: skip
    assert said["exit_code"] == 2
    assert said["cost"]["is_quote"] is False


def test_control_characters_from_the_target_do_not_reach_the_terminal() -> None:
    wanted = spec()
    found = deployed(wanted, lock(wanted), display_name="\x1b[2Jowned")

    text = "\n".join(
        line for line, _ in plan_show.lines(planned(wanted, diff.rows(wanted, lock(wanted), found), found))
    )

    assert "owned" in text
    assert "\x1b" not in text


def test_screen_shows_both_splits_and_the_price_of_two_fleets() -> None:
    wanted = spec()
    old, new = lock(wanted), lock(wanted, commit=OTHER)
    found = deployed(wanted, old)

    lines = [line for line, _ in plan_show.lines(planned(wanted, diff.rows(wanted, new, found), found))]

    ids = [names.deployed_model_id(each.lock_id, "chest", MODEL) for each in (old, new)]
    assert f"        {ids[0]}: 100 % → {ids[1]}: 100 %" in lines
    assert any("4.60/h while both fleets run" in line for line in lines)
    assert any(line.startswith("time") and "none expected" in line for line in lines)


def test_screen_of_no_change_is_short() -> None:
    wanted = spec()
    found = deployed(wanted, lock(wanted))

    lines = [line for line, _ in plan_show.lines(planned(wanted, diff.rows(wanted, lock(wanted), found), found))]

    assert len(lines) <= 8
    assert any("as before" in line for line in lines)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (60, "60 s"), (1320, "22 min"), (5400, "1.5 h"), (86_400, "24 h")]
)
def test_lengths_of_time_are_told_in_two_figures(seconds: float, said: str) -> None:
    assert estimates.words(seconds) == said


def test_old_fleet_that_is_kept_stays_and_costs_until_its_time_is_over() -> None:
    wanted = spec()
    pinned = lock(wanted)
    old = fleet(wanted, lock(wanted, commit=OTHER), "2")
    found = deployed(wanted, pinned, fleets=(fleet(wanted, pinned), old), traffic={fleet(wanted, pinned).id: 100})

    kept = planned(wanted, diff.rows(wanted, pinned, found, retained={old.id: "2027-01-01T00:00:00Z"}), found)
    over = planned(wanted, diff.rows(wanted, pinned, found), found)

    row = by_address(kept.rows)[f"deployed_model.reader/{old.id}"]
    assert (row.action, kept.exit_code) == ("none", 0)
    assert "kept until 2027-01-01T00:00:00Z" in row.why
    assert kept.cost.after.hour == kept.cost.now.hour
    assert by_address(over.rows)[f"deployed_model.reader/{old.id}"].after == {"undeployed": "last"}
    assert over.cost.after.hour < over.cost.now.hour


def test_fleet_that_serves_is_kept_from_now_on_whatever_was_kept_before() -> None:
    wanted = spec(rollout={"retain_s": 1800})
    old, new = lock(wanted), lock(wanted, commit=OTHER)
    id_ = fleet(wanted, old).id

    rows = diff.rows(wanted, new, deployed(wanted, old), retained={id_: "2027-01-01T00:00:00Z"})

    assert by_address(rows)[f"deployed_model.reader/{id_}"].after == {"undeployed": "later", "kept_s": 1800}


def test_rolling_keeps_an_older_fleet_that_is_retained_out_of_it() -> None:
    wanted = spec(rollout={"strategy": "rolling"})
    pinned = lock(wanted)
    older = fleet(wanted, lock(wanted, said="older"), "2")
    serving = fleet(wanted, pinned)
    found = deployed(wanted, pinned, fleets=(older, serving), traffic={serving.id: 100})

    rows = diff.rows(wanted, lock(wanted, commit=OTHER), found, retained={older.id: "2027-01-01T00:00:00Z"})

    said = by_address(rows)
    assert said["deployed_model.reader"].before["id"] == serving.id
    assert said[f"deployed_model.reader/{older.id}"].action == "none"
    assert f"deployed_model.reader/{serving.id}" not in said


def test_rolling_over_another_machine_is_refused_in_the_plan() -> None:
    wanted = spec(rollout={"strategy": "rolling"})
    bigger = spec(
        rollout={"strategy": "rolling"},
        model={"machine": {"type": "a2-ultragpu-1g", "accelerator": "NVIDIA_A100_80GB", "count": 1}},
    )
    pinned = lock(wanted)
    found = deployed(wanted, pinned)

    plan = planned(bigger, diff.rows(bigger, lock(wanted, commit=OTHER), found), found)

    with pytest.raises(PreconditionFailed, match="rolling takes over the machines"):
        plan.require_possible("europe-west4")


def test_rolling_needs_as_many_machines_more_as_its_steps_ask_for() -> None:
    wanted = spec(rollout={"strategy": "rolling"})
    found = deployed(wanted, lock(wanted))

    machines = capacity.of(wanted, found, diff.rows(wanted, lock(wanted, commit=OTHER), found))

    more = sum(each.least for each in machines.during) - sum(each.least for each in machines.now)
    assert more == capacity.SURGE_REPLICAS


def test_recreate_keeps_room_for_what_stays_while_nothing_answers() -> None:
    wanted = spec(rollout={"strategy": "recreate"})
    serving = fleet(wanted, lock(wanted))
    older = fleet(wanted, lock(wanted, said="older"), "2")
    found = deployed(wanted, lock(wanted), fleets=(serving, older), traffic={serving.id: 100})

    rows = diff.rows(wanted, lock(wanted, commit=OTHER), found, retained={older.id: "2027-01-01T00:00:00Z"})

    assert len(capacity.of(wanted, found, rows).during) == 1
    assert len(capacity.of(wanted, found, rows).after) == 2


def test_fleets_go_before_terraform_replaces_their_endpoint_and_others_block_it() -> None:
    wanted = spec(model={"endpoint": {"id": "1234"}}, terraform={"root": "infra"})
    mine, theirs = fleet(wanted, lock(wanted)), Fleet("8", "their-model", "3", "by hand")
    found = deployed(wanted, lock(wanted), fleets=(mine, theirs))

    said = by_address(diff.rows(wanted, lock(wanted), found, replaced=frozenset({"1234"})))

    assert said[f"deployed_model.reader/{mine.id}"].after == {"undeployed": "first"}
    assert said["deployed_model.reader/8"].blocked
    assert "by hand" in said["deployed_model.reader/8"].why


def test_row_of_a_fleet_that_stays_as_it_is_names_it() -> None:
    wanted = spec()
    found = deployed(wanted, lock(wanted))

    row = by_address(diff.rows(wanted, lock(wanted), found))["deployed_model.reader"]

    assert (row.action, row.before) == ("none", {"id": fleet(wanted, lock(wanted)).id})
