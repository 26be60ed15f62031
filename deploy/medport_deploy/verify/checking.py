"""Whether what serves is what was approved: lock and specification against what stands, now.

    report = check(spec, lock, control, spec_bytes=data, terraform=terraform, smoke=trial)
    report.exit_code    # 0 all is as approved, 2 something is not

Nothing is changed. What cannot be read is an error and not drift: nobody knows then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Protocol

from medport.errors import NotFound
from medport.lock import Lock
from medport.wire.vertex import rfc3339
from medport_deploy import names
from medport_deploy.plan import reality
from medport_deploy.plan.making import target_of
from medport_deploy.plan.reality import Fleet
from medport_deploy.spec.reading import Spec
from medport_deploy.terraform.root import Terraform
from medport_deploy.verify import fleet as verify_fleet
from medport_deploy.verify import smoke as verify_smoke
from medport_deploy.verify import terraform as verify_terraform
from medport_deploy.verify import version as verify_version
from medport_deploy.verify.result import Check, Report, compared, drift, note, skipped
from medport_deploy.verify.smoke import Smoke

Json = dict[str, Any]


class Reads(Protocol):
    """The calls that only read; ``control.ControlPlane`` has them."""

    def get_endpoint(self, endpoint: str, /) -> Json: ...
    def list_endpoints(self, labels: Mapping[str, str], /) -> list[Json]: ...
    def get_model(self, model: str, version: str, /) -> Json: ...


def check(
    spec: Spec,
    lock: Lock,
    control: Reads,
    *,
    spec_bytes: bytes,
    terraform: Terraform | None = None,
    smoke: Smoke | None = None,
    retained: Mapping[str, str] | None = None,
    now: datetime | None = None,
) -> Report:
    """Look at everything once.

    Args:
        lock: of this specification; see ``lock.check.require_pinned``.
        spec_bytes: of the specification's file.
        terraform: its root, after ``init``; ``None``: Terraform is not asked.
        smoke: ``None``: no request is sent.
        retained: deployed model id → until when an old fleet is kept, ISO 8601; see ``history.retained``.

    Raises:
        What the control plane's calls and ``Terraform.plan`` raise, except ``NotFound``, which is a finding.
    """
    found: list[Check] = []
    for name in spec.models:
        found += _model(spec, lock, control, name, smoke, retained or {})
    found += _leftovers(spec, control)
    found += verify_terraform.checks(spec, terraform)
    return Report(
        deployment=spec.name,
        target=target_of(spec),
        made_at=rfc3339(now or datetime.now(UTC)),
        medport=metadata.version("medport"),
        lock_id=lock.lock_id,
        spec_sha256=hashlib.sha256(spec_bytes).hexdigest(),
        checks=tuple(found),
    )


def _model(
    spec: Spec, lock: Lock, control: Reads, name: str, smoke: Smoke | None, retained: Mapping[str, str]
) -> list[Check]:
    id_ = spec.endpoint_id(name)
    try:
        state = reality.endpoint_state(control.get_endpoint(id_))
    except NotFound:
        return [drift("endpoint", name, id_, None), *_unseen(name, "there is no endpoint")]
    fleet = verify_fleet.serving(lock, state)
    found = verify_fleet.endpoint(spec, lock, name, state) + verify_fleet.traffic(lock, name, state, fleet)
    if fleet is None:
        return [*found, drift("fleet.lock", name, lock.lock_id, None), *_unseen(name, "nothing serves")[1:]]
    found += verify_fleet.fleet(spec, lock, name, fleet)
    found += verify_version.checks(spec, lock, name, fleet, _served(control, fleet))
    found += verify_fleet.others(name, state, fleet, retained)
    return found + verify_smoke.checks(name, fleet.id, state.traffic.get(fleet.id, 0), smoke)


def _unseen(name: str, why: str) -> list[Check]:
    return [skipped(each, name, why) for each in ("fleet", "version", "smoke")]


def _served(control: Reads, fleet: Fleet) -> Json | None:
    try:
        return control.get_model(fleet.model_id, fleet.version_id)
    except NotFound:
        return None


def _leftovers(spec: Spec, control: Reads) -> list[Check]:
    known = {spec.endpoint_id(name) for name in spec.models}
    labelled = [
        reality.endpoint_state(each) for each in control.list_endpoints({names.DEPLOYMENT_LABEL: spec.name})
    ]
    others = [each for each in labelled if each.id not in known]
    serving = sorted(each.id for each in others if each.fleets)
    empty = sorted(each.id for each in others if not each.fleets)
    found = [
        compared(
            "deployment.leftovers", None, [], serving,
            remedy="endpoints of this deployment that the specification no longer has: medport deploy sweep",
        )
    ]  # fmt: skip
    if empty:
        found.append(
            note("deployment.leftovers", None, "endpoints without models are left: medport deploy sweep", empty)
        )
    return found


__all__ = ["Check", "Reads", "Report", "Smoke", "check"]
