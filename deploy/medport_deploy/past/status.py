"""How a deployment stands: an open run and how to go on with it, who serves, what is kept. Only reads."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medport.cli.output import printable
from medport.errors import ConfigError, NotFound, VerificationError
from medport.lock import Lock
from medport.wire.vertex import rfc3339
from medport_deploy import names, provenance, state_files
from medport_deploy.past import history, unapplied
from medport_deploy.plan.file import PLAN_NAME, kept_file
from medport_deploy.plan.making import target_of
from medport_deploy.plan.reality import EndpointState, Fleet, endpoint_state
from medport_deploy.plan.reality import version as version_of
from medport_deploy.run import apply, journal
from medport_deploy.run.journal import Journal
from medport_deploy.spec.reading import Spec
from medport_deploy.verify import checking as verify
from medport_deploy.verify.checking import Reads

Json = dict[str, Any]
_UNAPPLIED = "lock.applied"
_MOVES = re.compile(r"traffic\.|version\.good$")
"""What a run is there to change: while it is open, that is no drift."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRun:
    """A run that has not come to its end."""

    verb: str
    lock_id: str
    since: str
    """UTC, ISO 8601."""
    step: str
    """The last one that was begun; empty if none was."""
    state: str
    """Of that step."""
    step_at: str
    error: str | None
    working: bool
    """Whether a process of this machine is at it now, as far as can be seen."""
    go_on: str
    """What to type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """One fleet."""

    id: str
    percent: int
    version: str
    lock_id: str | None
    """``None``: medport did not deploy it."""
    revision: str | None
    image_digest: str | None
    verified: bool
    """Whether its version bears the alias of its lock's verification."""
    up: int | None
    """Replicas that are up; ``None``: the target does not say."""
    wanted: int
    kept_until: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """One model of the specification."""

    endpoint: str
    exists: bool
    fleets: tuple[Serving, ...] = ()
    """Those with most traffic first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The whole deployment."""

    deployment: str
    target: str
    at: str
    lock_id: str | None
    """Of ``medport.lock`` as it is now."""
    runs: tuple[OpenRun, ...]
    models: Mapping[str, ModelStatus] = field(default_factory=dict)
    last_verified: Json | None = None
    """Of the history: what serves as it was verified."""
    back_to: str | None = None
    """The lock that ``rollback`` goes to."""
    drift: tuple[str, ...] | None = None
    """The checks that find something, without requests and without Terraform; ``None``: they were not made.

    What an open run is about to change is not among them. ``lock.applied`` alone: the lock of now is not applied,
    and what serves is as the last one was approved.
    """
    unchecked: str = ""
    """Why they were not made."""

    def as_dict(self) -> Json:
        """As ``medport deploy status --json`` prints it. Keys are added, and never renamed."""
        return asdict(self)


def read(
    spec: Spec,
    lock: Lock | None,
    control: Reads,
    directory: Path,
    *,
    spec_bytes: bytes = b"",
    now: datetime | None = None,
) -> Status:
    """How it stands now.

    Args:
        directory: of the deployment, as ``apply.directory_of`` gives it.

    Raises:
        What the control plane's calls, ``journal.all_of`` and ``history.read`` raise.
    """
    at = now or datetime.now(UTC)
    entries = history.read(directory)
    kept = history.retained(entries, at)
    serving = history.serving(entries)
    runs = [each for each in journal.all_of(directory) if each.open]
    under_way = any(each.header.verb not in apply.TIDIES for each in runs)
    drift: tuple[str, ...] | None = None
    unchecked = "there is no lock"
    if lock is not None and unapplied.standing(spec, lock, control, directory, retained=kept, now=at):
        drift, unchecked = () if under_way else (_UNAPPLIED,), ""
    elif lock is not None:
        try:
            report = verify.check(spec, lock, control, spec_bytes=spec_bytes, retained=kept, now=at)
        except VerificationError as other:
            unchecked = str(other)  # of a lock that is not of this specification
        else:
            found = [each for each in report.findings if not (under_way and _MOVES.match(each.check))]
            drift = tuple(f"{each.model} {each.check}" if each.model else each.check for each in found)
            unchecked = ""
    back = history.last_verified(entries, other_than=serving.lock_id) if serving else None
    return Status(
        deployment=spec.name,
        target=target_of(spec),
        at=rfc3339(at),
        lock_id=lock.lock_id if lock else None,
        runs=tuple(_run(directory, each) for each in runs),
        models={name: _model(spec, name, control, kept) for name in spec.models},
        last_verified=serving.as_dict() if serving else None,
        back_to=back.lock_id if back else None,
        drift=drift,
        unchecked=unchecked,
    )


def lines(status: Status) -> list[tuple[str, str]]:
    """As lines of text, each with its style of rich."""
    lock = f", lock {status.lock_id[:12]}" if status.lock_id else ", no lock yet"
    found = [(f"{status.deployment} on {status.target}{lock}", "bold")]
    for run in status.runs:
        found += [(text, "bold yellow") for text in _run_lines(run)]
    for name, model in status.models.items():
        found += [(text, "") for text in _model_lines(name, model)]
    found += [(text, "") for text in _end_lines(status)]
    return [(printable(text), style) for text, style in found]


def _run(directory: Path, each: Journal) -> OpenRun:
    last = each.records[-1] if each.records else None
    verb = each.header.verb
    working = _working(directory)
    go_on = "wait for it" if working else f"medport deploy {verb}; to tidy up instead: medport deploy sweep"
    if verb == "apply" and not working:
        go_on = f"{_apply(directory, each)} or medport deploy promote; to go back: medport deploy rollback"
    return OpenRun(
        verb=verb,
        lock_id=each.header.lock_id,
        since=each.header.at,
        step=last.step if last else "",
        state=last.state if last else "",
        step_at=last.at if last else each.header.at,
        error=last.error if last else None,
        working=working,
        go_on=go_on,
    )


def _apply(directory: Path, run: Journal) -> str:
    """The command that goes on with an apply: of the last plan, or of the one that was kept when it began."""
    sha256 = run.header.plan_sha256
    kept = kept_file(directory, sha256)
    with suppress(OSError, ConfigError):
        if hashlib.sha256(state_files.read(directory / PLAN_NAME)).hexdigest() == sha256:
            return "medport deploy apply"
    return f"medport deploy apply {shlex.quote(str(kept))}" if kept.exists() else "medport deploy apply PLAN"


def _working(directory: Path) -> bool:
    """Whether the process that last held the deployment's lock is alive.

    Taking the lock to see would be in the way of a run that begins.
    """
    try:
        said = json.loads(state_files.read(directory / "run.lock"))
        if said["host"] != socket.gethostname():
            return False
        os.kill(int(said["pid"]), 0)
    except PermissionError:
        return True
    except (OSError, ConfigError, ValueError, KeyError, TypeError, OverflowError):
        return False
    return True


def _model(spec: Spec, name: str, control: Reads, kept: Mapping[str, str]) -> ModelStatus:
    id_ = spec.endpoint_id(name)
    try:
        state = endpoint_state(control.get_endpoint(id_))
    except NotFound:
        return ModelStatus(endpoint=id_, exists=False)
    fleets = sorted(state.fleets, key=lambda each: (-state.traffic.get(each.id, 0), each.id))
    return ModelStatus(
        endpoint=id_, exists=True, fleets=tuple(_serving(each, state, control, kept) for each in fleets)
    )


def _serving(fleet: Fleet, state: EndpointState, control: Reads, kept: Mapping[str, str]) -> Serving:
    try:
        version = version_of(control.get_model(fleet.model_id, fleet.version_id))
    except NotFound:
        version = None
    lock_id = provenance.lock_id_of_name(fleet.display_name)
    return Serving(
        id=fleet.id,
        percent=state.traffic.get(fleet.id, 0),
        version=f"{fleet.model_id}@{fleet.version_id}",
        lock_id=lock_id,
        revision=version.pins.revision if version else None,
        image_digest=version.pins.image_digest if version else None,
        verified=bool(version and lock_id and names.good_alias(lock_id) in version.aliases),
        up=fleet.available,
        wanted=fleet.min,
        kept_until=kept.get(fleet.id),
    )


def _run_lines(run: OpenRun) -> Iterator[str]:
    doing = "goes on" if run.working else "has not come to its end"
    yield f"  the {run.verb} of {run.since} to lock {run.lock_id[:12]} {doing}"
    if run.step:
        yield f"      at: {run.step}, {run.state} at {run.step_at}" + (f": {run.error}" if run.error else "")
    yield f"      → {run.go_on}"


def _model_lines(name: str, model: ModelStatus) -> Iterator[str]:
    if not model.exists:
        yield f"  {name}: there is no endpoint {model.endpoint}"
        return
    yield f"  {name} at {model.endpoint}" + ("" if model.fleets else ": nothing is deployed")
    for each in model.fleets:
        whose = f"lock {each.lock_id[:12]}" if each.lock_id else "not of medport"
        revision = f", revision {each.revision[:12]}" if each.revision else ""
        up = "replicas not told" if each.up is None else f"{each.up} of {each.wanted} replicas up"
        verified = "verified" if each.verified else "not verified"
        kept = f", kept until {each.kept_until}" if each.kept_until else ""
        yield f"    {each.percent:>3} %  {each.id}  {whose}{revision}, {verified}, {up}{kept}"


def _end_lines(status: Status) -> Iterator[str]:
    if (last := status.last_verified) is not None:
        yield f"verified   lock {last['lock_id'][:12]} at {last['at']} by {last['by']}"
    else:
        yield "verified   nothing yet"
    if status.back_to:
        yield f"back to    lock {status.back_to[:12]}: medport deploy rollback"
    if status.drift is None:
        yield f"drift      not looked for: {status.unchecked}"
    elif status.drift == (_UNAPPLIED,):
        yield "drift      none but that the lock of now is not applied: medport deploy plan, then apply"
    else:
        found = ", ".join(status.drift)
        yield f"drift      {found}: medport deploy verify" if found else "drift      none (no requests were sent)"
