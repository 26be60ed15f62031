"""A plan: what stands, what is wanted, and all that lies between, before anything is done.

    plan = make(spec, lock, plane, spec_bytes=data, quotas=ServiceUsage(project, credentials))
    plan.exit_code    # 0 nothing to do, 2 changes

One list of rows for Terraform's resources, endpoints, versions, deployed models and traffic, with downtime,
duration, cost and quotas. Nothing is changed by making one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from medport.errors import EXIT_CHANGES, NotFound, PreconditionFailed
from medport.lock import Lock
from medport.wire.vertex import rfc3339
from medport_deploy.plan import capacity, cost, diff, diff_fleets, estimates, quota, reality, terraform_changes
from medport_deploy.plan.cost import Cost, Prices
from medport_deploy.plan.estimates import Estimates
from medport_deploy.plan.quota import Headroom, Limits
from medport_deploy.plan.reality import Reads, Reality
from medport_deploy.plan.rows import Row
from medport_deploy.spec.reading import Spec
from medport_deploy.terraform.root import PlanOutcome, Terraform

LEFTOVERS = "*"
"""Under this name, which no model has, the fingerprint of endpoints that the specification no longer has."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a plan was made from. It is good as long as none of it moves."""

    spec_sha256: str
    """Of the bytes of the file."""
    lock_id: str
    reality: Mapping[str, str]
    """Fingerprints, etags included, by the names of models."""
    terraform_sha256: str | None = None
    """Of Terraform's own plan file."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done."""

    deployment: str
    target: str
    """Such as ``projects/P/locations/L at HOST``."""
    made_at: str
    """UTC, ISO 8601."""
    medport: str
    """Version that made it."""
    inputs: Inputs
    rows: tuple[Row, ...]
    cost: Cost
    quotas: tuple[Headroom, ...]
    notes: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return any(row.changes for row in self.rows)

    @property
    def exit_code(self) -> int:
        """Of ``medport deploy plan``: 0 nothing to do, 2 changes."""
        return EXIT_CHANGES if self.changes else 0

    @property
    def downtime_s(self) -> float:
        """The longest that any one endpoint is expected not to answer; 0 if each goes on answering."""
        return max((row.downtime_s for row in self.rows), default=0.0)

    @property
    def duration_s(self) -> float:
        """How long all of it is expected to take; without the time for which old fleets are kept."""
        return sum(row.duration_s for row in self.rows)

    def require_possible(self, location: str) -> None:
        """Refuse what cannot be done.

        Raises:
            PreconditionFailed: a row is blocked. Names it and what to do.
            QuotaExceeded: a limit is lower than the peak.
        """
        for row in self.rows:
            if row.blocked:
                raise PreconditionFailed(f"{row.address}: {row.why}", field="plan")
        quota.require(self.quotas, location)

    def as_dict(self) -> dict[str, Any]:
        """As ``medport deploy plan --json`` prints it. Keys are added, and never renamed."""
        money = self.cost
        return {
            "deployment": self.deployment,
            "target": self.target,
            "made_at": self.made_at,
            "medport": self.medport,
            "lock_id": self.inputs.lock_id,
            "changes": self.changes,
            "exit_code": self.exit_code,
            "rows": [
                {
                    "address": row.address,
                    "action": row.action,
                    "before": dict(row.before),
                    "after": dict(row.after),
                    "why": row.why,
                    "downtime_s": row.downtime_s,
                    "duration_s": row.duration_s,
                    "blocked": row.blocked,
                }
                for row in self.rows
            ],
            "downtime_s": self.downtime_s,
            "duration_s": self.duration_s,
            "cost": {
                "currency": money.currency,
                "prices_of": money.as_of.isoformat(),
                "is_quote": False,
                **{
                    phase: {
                        "hour": amount.hour,
                        "month": round(money.month(amount.hour), 2),
                        "hour_at_most": amount.most_hour,
                        "unpriced": list(amount.unpriced),
                    }
                    for phase, amount in (("now", money.now), ("during", money.during), ("after", money.after))
                },
                "delta": {"hour": round(money.delta_hour, 4), "month": round(money.delta_month, 2)},
                "notes": list(money.notes),
            },
            "quotas": [
                {
                    "metric": each.metric,
                    "now": each.now,
                    "peak": each.peak,
                    "most": each.most,
                    "limit": each.limit,
                    "short": each.short,
                    "unread": each.unread,
                }
                for each in self.quotas
            ],
            "notes": list(self.notes),
        }


def make(
    spec: Spec,
    lock: Lock,
    plane: Reads,
    *,
    spec_bytes: bytes,
    terraform: Terraform | None = None,
    terraform_file: Path | None = None,
    limits: Limits | None = None,
    prices: Prices | None = None,
    retained: Mapping[str, str] = MappingProxyType({}),
    now: datetime | None = None,
) -> Plan:
    """See what stands and say what is to be done.

    Args:
        lock: pinned, and of this specification: see ``lock.check.require_pinned``.
        plane: the target's control plane.
        spec_bytes: of the specification's file.
        terraform: its root, after ``init``; ``None`` if the specification has none.
        terraform_file: where to save Terraform's plan; needed with ``terraform``.
        limits: where quotas are read; ``None``: they are not asked for.
        retained: ids of old fleets that are kept as the quick way back, and until when (ISO 8601). Those whose
            time is over are to go.

    Raises:
        What the control plane's calls and ``Terraform.plan`` raise. Nothing was changed then.
    """
    now = now or datetime.now(UTC)
    found, outcome, shown = _looked(spec, plane, terraform, terraform_file)
    how_long = estimates.of(spec.target.kind)
    by_terraform = terraform_changes.rows(shown, how_long)
    replaced = terraform_changes.replaced_endpoints(shown)
    rows = diff.rows(
        spec,
        lock,
        found,
        terraform=by_terraform,
        replaced=replaced,
        retained={id_: until for id_, until in retained.items() if datetime.fromisoformat(until) > now},
    )
    rows = (*rows, *_going(spec, plane, replaced, how_long))
    machines = capacity.of(spec, found, rows)
    notes = [f"terraform: {each}" for each in outcome.warnings] if outcome else []
    if outcome and outcome.changes and not by_terraform:
        rows = (Row(f"{terraform_changes.ADDRESS}outputs", "update", why="only outputs change"), *rows)
    if spec.target.kind == "local":
        quotas: tuple[Headroom, ...] = ()
    else:
        quotas = quota.headroom(quota.needs(machines), limits, spec.target.location)
    return Plan(
        deployment=spec.name,
        target=target_of(spec),
        made_at=rfc3339(now),
        medport=metadata.version("medport"),
        inputs=inputs_of(spec_bytes, lock, found, terraform_file if outcome else None),
        rows=rows,
        cost=cost.of(machines, kind=spec.target.kind, location=spec.target.location, table=prices),
        quotas=quotas,
        notes=tuple(notes),
    )


def inputs_of(spec_bytes: bytes, lock: Lock, found: Reality, terraform_file: Path | None) -> Inputs:
    """What a plan of these would be made from."""
    fingerprints = {name: state.fingerprint() for name, state in found.models.items()}
    fingerprints[LEFTOVERS] = reality.fingerprint(found.leftovers)
    return Inputs(
        spec_sha256=hashlib.sha256(spec_bytes).hexdigest(),
        lock_id=lock.lock_id,
        reality=fingerprints,
        terraform_sha256=hashlib.sha256(terraform_file.read_bytes()).hexdigest() if terraform_file else None,
    )


def target_of(spec: Spec) -> str:
    """A target in words: project, location and host."""
    target = spec.target
    address = target.url or f"https://{target.location}-aiplatform.googleapis.com"
    return f"projects/{target.project}/locations/{target.location} at {address.partition('://')[2]}"


def _looked(
    spec: Spec, plane: Reads, terraform: Terraform | None, file: Path | None
) -> tuple[Reality, PlanOutcome | None, dict[str, Any]]:
    """Both looks at what stands, at once: each waits for servers."""
    if terraform is None:
        return reality.read(plane, spec), None, {}
    assert file is not None
    with ThreadPoolExecutor(1, thread_name_prefix="medport-plan") as pool:
        planning: Future[tuple[PlanOutcome, dict[str, Any]]] = pool.submit(_planned, terraform, file)
        try:
            found = reality.read(plane, spec)
            outcome, shown = planning.result()
        except BaseException:
            # Ctrl-C comes here and not to the thread: terraform must be told, or we wait for its end.
            terraform.cancel.set()
            raise
    return found, outcome, shown


def _going(spec: Spec, plane: Reads, replaced: frozenset[str], how_long: Estimates) -> Iterator[Row]:
    """What stands on endpoints that Terraform takes away and that the specification no longer has."""
    for id_ in sorted(replaced - {spec.endpoint_id(name) for name in spec.models}):
        try:
            endpoint = reality.endpoint_state(plane.get_endpoint(id_))
        except NotFound:
            continue
        yield from diff_fleets.going(endpoint, how_long)


def _planned(terraform: Terraform, file: Path) -> tuple[PlanOutcome, dict[str, Any]]:
    outcome = terraform.plan(file)
    return outcome, terraform.show(outcome)
