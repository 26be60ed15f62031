"""Terraform's plan as rows of ours.

Source: Terraform documentation, "JSON Output Format", plan representation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medport_deploy.plan.estimates import Estimates
from medport_deploy.plan.rows import Action, Row

ADDRESS = "terraform:"
"""Begins the address of what Terraform owns."""
ENDPOINT = "google_vertex_ai_endpoint"
SECRET = "(sensitive)"  # noqa: S105  what stands for one
UNKNOWN = "(known after apply)"
_ACTIONS: Mapping[tuple[str, ...], Action] = {
    ("create",): "create",
    ("update",): "update",
    ("delete",): "destroy",
    ("delete", "create"): "replace",
    ("create", "delete"): "replace",
    ("forget",): "update",
}
_REASONS = {
    "replace_because_cannot_update": "cannot be changed in place",
    "replace_because_tainted": "is marked as damaged",
    "replace_by_request": "was asked for",
    "replace_by_triggers": "another resource asks for it",
    "delete_because_no_resource_config": "is in the configuration no more",
}


def rows(shown: Mapping[str, Any], estimates: Estimates) -> tuple[Row, ...]:
    """What a plan will do, one row a resource; none for what stays.

    Args:
        shown: what ``terraform show -json PLAN`` gives. It holds secrets in clear; the rows do not.
    """
    found = (_row(each, estimates) for each in shown.get("resource_changes", ()))
    return tuple(row for row in found if row is not None)


def endpoint_of(change: Mapping[str, Any]) -> str | None:
    """The id of the endpoint that a resource change is about; ``None`` if it is about something else."""
    if change.get("type") != ENDPOINT:
        return None
    said = change["change"].get("before") or change["change"].get("after") or {}
    return str(said["name"]) if said.get("name") else None


def replaced_endpoints(shown: Mapping[str, Any]) -> frozenset[str]:
    """The ids of the endpoints that a plan replaces or destroys: what is deployed there goes with them."""
    gone = (each for each in shown.get("resource_changes", ()) if "delete" in each["change"]["actions"])
    return frozenset(id_ for each in gone if (id_ := endpoint_of(each)))


def _row(change: Mapping[str, Any], estimates: Estimates) -> Row | None:
    said = change["change"]
    action = _ACTIONS.get(tuple(said["actions"]))
    if action is None:  # no-op, read
        return None
    before, after = _differing(said)
    reason = change.get("action_reason")
    why = _REASONS.get(reason, str(reason).replace("_", " ")) if reason else ""
    if said["actions"] == ["forget"]:
        why = "Terraform forgets it, and leaves it standing"
    paths = sorted({str(path[0]) for path in said.get("replace_paths", ()) if path})
    if paths:
        why = f"{', '.join(paths)} {why}".strip()
    factor = 2 if action == "replace" else 1
    address = ADDRESS + str(change["address"])
    return Row(address, action, before, after, why, duration_s=estimates.terraform * factor)


def _differing(said: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The top-level attributes that will be others, without secrets."""
    before, after = said.get("before") or {}, said.get("after") or {}
    unknown = said.get("after_unknown") or {}
    hidden_before, hidden_after = said.get("before_sensitive"), said.get("after_sensitive")
    shown_before: dict[str, Any] = {}
    shown_after: dict[str, Any] = {}
    for key in sorted({*before, *after, *unknown}):
        is_unknown = bool(unknown.get(key)) and key not in after
        if before.get(key) == after.get(key) and not is_unknown:
            continue
        if before.get(key) is not None:
            shown_before[key] = _visible(before[key], _of(hidden_before, key))
        if is_unknown:
            shown_after[key] = UNKNOWN
        elif after.get(key) is not None:
            shown_after[key] = _visible(after[key], _of(hidden_after, key))
    return shown_before, shown_after


def _of(hidden: Any, key: str) -> Any:
    return hidden.get(key, False) if isinstance(hidden, Mapping) else hidden


def _visible(value: Any, hidden: Any) -> Any:
    """A value without its sensitive parts. ``hidden`` has its form, with ``true`` where a part is sensitive."""
    if hidden is True:
        return SECRET
    if isinstance(value, Mapping) and isinstance(hidden, Mapping):
        return {key: _visible(each, hidden.get(key, False)) for key, each in value.items()}
    if isinstance(value, list) and isinstance(hidden, list):
        marks = [*hidden, *([False] * (len(value) - len(hidden)))]
        return [_visible(each, mark) for each, mark in zip(value, marks, strict=False)]
    return value
