"""What must be done so that what stands becomes what the specification and its lock say: one list of rows.

A pure function. Terraform's part comes in as rows that are already made (``terraform_changes``); the endpoints are
medport's own only where the specification has no Terraform root. One owner a field: of an endpoint that Terraform
makes, only the inference timeout is ours, as its provider has no argument for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from medport.lock import Lock
from medport.wire.vertex import Pins
from medport_deploy import names, provenance
from medport_deploy.plan import diff_fleets, estimates
from medport_deploy.plan.estimates import Estimates
from medport_deploy.plan.reality import EndpointState, ModelState, Reality, Version
from medport_deploy.plan.rows import Row
from medport_deploy.spec.reading import Spec

DEFAULT_TIMEOUT_S = 600.0
"""What an endpoint has on which nobody has set an inference timeout."""
_SHOWN_PINS = ("revision", "image_digest", "snapshot_sha256", "lock_id")
_FIXED = ("kms_key_name", "private", "dedicated")
"""Fields of an endpoint that only a new one can have otherwise.

Whether Vertex takes a change of ``dedicated`` is not known, so the plan says the worse.
"""


def rows(
    spec: Spec,
    lock: Lock,
    reality: Reality,
    *,
    terraform: tuple[Row, ...] = (),
    replaced: frozenset[str] = frozenset(),
    retained: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Row, ...]:
    """The rows of a plan, in the order in which things are done.

    Args:
        lock: pinned, and of this specification; see ``lock.check``.
        terraform: Terraform's rows.
        replaced: ids of endpoints that Terraform will replace or destroy.
        retained: ids of old fleets that are kept as the quick way back, and until when.
    """
    how_long = estimates.of(spec.target.kind)
    found = list(terraform)
    for name in spec.models:
        state = reality.models.get(name, ModelState())
        endpoint = _endpoint(spec, name, state.endpoint, how_long)
        gone = spec.endpoint_id(name) in replaced
        found += [endpoint]
        version = _version(lock, name, state, how_long)
        found += [version.row]
        wanted = diff_fleets.Wanted.of(spec, lock, name, version.version_id, verified=version.verified)
        found += diff_fleets.rows(wanted, state.endpoint, gone=gone, estimates=how_long, retained=retained)
    found += [_leftover(each) for each in reality.leftovers]
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Versioned:
    row: Row
    version_id: str | None
    """Of the version that is there; ``None``: it will be uploaded."""
    verified: bool = False
    """Whether it is called good."""


def version_of(state: ModelState, lock: Lock) -> Version | None:
    """The version that was uploaded for a lock: by its alias, else by its pins; ``None`` if there is none."""
    alias = names.version_alias(lock.lock_id)
    newest_first = state.versions[::-1]
    by_alias = (each for each in newest_first if alias in each.aliases)
    by_pins = (each for each in newest_first if each.pins.lock_id == lock.lock_id)
    return next(by_alias, None) or next(by_pins, None)


def _version(lock: Lock, name: str, state: ModelState, how_long: Estimates) -> _Versioned:
    address, wanted = f"version.{name}", _pins(provenance.pins_of(lock, name))
    found = version_of(state, lock)
    if found is not None:
        before = _pins(found.pins)
        wrong = [key for key, value in wanted.items() if before.get(key) != value]
        if not wrong:
            good = names.good_alias(lock.lock_id) in found.aliases
            return _Versioned(Row(address, "none"), found.version_id, verified=good)
        why = f"version {found.version_id} bears this lock's name and says something else: medport deploy sweep"
        told = {key: before[key] for key in wrong if key in before}
        row = Row(address, "replace", told, {key: wanted[key] for key in wrong}, why, blocked=True)
        return _Versioned(row, found.version_id)
    serving = _serving(state)
    before = _pins(serving.pins) if serving else {}
    changed = [key for key, value in wanted.items() if before.get(key) != value]
    why = "the same bytes, under another lock" if changed == ["lock_id"] else "not uploaded yet"
    told = {key: before[key] for key in changed if key in before}
    after = {key: wanted[key] for key in changed}
    return _Versioned(Row(address, "create", told, after, why, duration_s=how_long.version), None)


def _pins(found: Pins) -> dict[str, str]:
    """As a plan shows them; only what is known."""
    return {key: value for key in _SHOWN_PINS if (value := getattr(found, key))}


def _serving(state: ModelState) -> Version | None:
    """The version with most of the traffic; the newest, where none has any."""
    if state.endpoint is None or not state.endpoint.fleets:
        return state.versions[-1] if state.versions else None
    traffic = state.endpoint.traffic
    fleet = max(state.endpoint.fleets, key=lambda each: traffic.get(each.id, 0))
    here = (
        each for each in state.versions if (each.model_id, each.version_id) == (fleet.model_id, fleet.version_id)
    )
    return next(here, None)


def _endpoint(spec: Spec, name: str, found: EndpointState | None, how_long: Estimates) -> Row:
    address, by_terraform = f"endpoint.{name}", spec.terraform.root is not None
    wanted = _wanted_endpoint(spec, name)
    if by_terraform:
        wanted = {"inference_timeout_s": wanted["inference_timeout_s"]}
    if found is None:
        if not by_terraform:
            return Row(address, "create", {}, wanted, "there is none", duration_s=how_long.endpoint)
        if wanted["inference_timeout_s"] == DEFAULT_TIMEOUT_S:
            return Row(address, "none", why="Terraform makes it")
        why = "Terraform makes it, and has no argument for this"
        return Row(address, "update", {}, wanted, why, duration_s=how_long.endpoint)
    there = _found_endpoint(found, wanted)
    changed = [key for key, value in wanted.items() if there[key] != value]
    if not changed:
        return Row(address, "none")
    before = {key: there[key] for key in changed if there[key] is not None}
    after = {key: wanted[key] for key in changed}
    if fixed := [key for key in changed if key in _FIXED]:
        why = (
            f"{', '.join(fixed)} cannot be changed in place: give the new one another endpoint.id, or destroy this"
        )
        return Row(address, "replace", before, after, why, blocked=True)
    return Row(address, "update", before, after, duration_s=how_long.endpoint)


def _wanted_endpoint(spec: Spec, name: str) -> dict[str, Any]:
    said = spec.models[name].endpoint
    return {
        "display_name": spec.display_name(name),
        "labels": {**spec.labels, names.DEPLOYMENT_LABEL: spec.name},
        "dedicated": said.dedicated,
        "inference_timeout_s": float(said.inference_timeout_s),
        "kms_key_name": spec.keys.kms_key_name,
        "private": spec.network.private,
        "allowed_projects": sorted(spec.network.allowed_projects),
    }


def _found_endpoint(found: EndpointState, wanted: Mapping[str, Any]) -> dict[str, Any]:
    labels = wanted.get("labels", {})
    return {
        "display_name": found.display_name,
        # Others, Terraform and Google among them, have labels of their own on it.
        "labels": {key: value for key, value in found.labels.items() if key in labels},
        "dedicated": found.dedicated,
        "inference_timeout_s": found.inference_timeout_s or DEFAULT_TIMEOUT_S,
        "kms_key_name": found.kms_key_name,
        "private": found.private,
        "allowed_projects": sorted(found.allowed_projects),
    }


def _leftover(endpoint: EndpointState) -> Row:
    fleets = len(endpoint.fleets)
    why = f"of this deployment and no more in the specification; {fleets} on it still cost. medport deploy sweep"
    return Row(f"endpoint/{endpoint.id}", "none", {"display_name": endpoint.display_name}, {}, why)
