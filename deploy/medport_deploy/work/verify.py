"""Verify a deployment, and keep what was found as a file that may be signed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import orjson

from medport.errors import ConfigError
from medport.lock import Lock
from medport_deploy import whole_file
from medport_deploy.past import history, unapplied
from medport_deploy.trial.trial import LiveTrial
from medport_deploy.verify import checking as verify
from medport_deploy.verify import report
from medport_deploy.verify.report import Json
from medport_deploy.verify.result import Report
from medport_deploy.work.opening import Deployment
from medport_deploy.work.run import record


def checked(file: Path, key: Path) -> Json:
    """The report in a signed file, if that key signed it as it is. Raises as ``verify.report.check``."""
    try:
        with file.open("rb") as opened:
            data = opened.read(report.MAX_BYTES + 1)
    except OSError as fault:
        raise ConfigError(
            f"{file.name} cannot be read ({os.strerror(fault.errno or 0)})", field="report"
        ) from fault
    public, _ = report.read_key(key)
    return report.check(data, public)


def verified(deployment: Deployment, *, with_smoke: bool = True, with_terraform: bool = True) -> Report:
    """Look at everything once. Raises as ``verify.checking.check``.

    While the lock is not applied and what serves is the one verified before, exactly, that is one finding, and all
    else is compared with that one.

    What is found to be all right and is not in the history, as when the state was lost or belongs to another
    machine, is written into it: then there is a way back to it. Where nothing can be written it is only said.

    Args:
        with_smoke: send requests of all kinds to what serves.
    """
    lock, kept = deployment.locked(), deployment.retained()
    serves = unapplied.standing(deployment.spec, lock, deployment.control, deployment.directory, retained=kept)
    there, measure = deployment, lock
    if serves is not None:
        there, measure = deployment.at_lock(serves.spec_bytes, serves.lock), serves.lock
    kept_here = _can_keep(deployment)
    trial = LiveTrial(there.spec, measure, there.directory, there.control, say=deployment.telling.note)
    found = verify.check(
        there.spec,
        measure,
        there.control,
        spec_bytes=there.spec_bytes,
        terraform=there.terraform_ready() if with_terraform else None,
        smoke=partial(trial.check, record=kept_here) if with_smoke else None,
        retained=kept,
    )
    if serves is not None:
        return _of_what_serves(deployment, lock, serves, found)
    if with_smoke and with_terraform and not found.findings and kept_here:
        _adopt(deployment, lock)
    return found


def _of_what_serves(deployment: Deployment, lock: Lock, serves: unapplied.Standing, found: Report) -> Report:
    """A report about the lock that is there, though what serves was compared with another."""
    first = unapplied.finding(
        lock, serves, deployment.directory, spec_file=deployment.spec_file, lock_file=deployment.lock_file
    )
    return replace(
        found,
        lock_id=lock.lock_id,
        spec_sha256=hashlib.sha256(deployment.spec_bytes).hexdigest(),
        compared_with=found.lock_id,
        checks=(first, *found.checks),
    )


def _can_keep(deployment: Deployment) -> bool:
    """Whether there is a place for what is found; a verdict does not hang on it."""
    try:
        directory = deployment.private_directory()
    except ConfigError as fault:
        deployment.telling.note(f"{fault.message}: what is found is not kept here")
        return False
    if not os.access(directory, os.W_OK):
        deployment.telling.note(f"{directory} cannot be written: what is found is not kept here")
        return False
    return True


def _adopt(deployment: Deployment, lock: Lock) -> None:
    known = history.serving(deployment.history())
    if known is None or known.lock_id != lock.lock_id:
        record(deployment, deployment.header("verify", lock.lock_id))
        deployment.telling.note("was not in the history; is now, as verified: a rollback can come back to it")


def signing_key(file: Path, note: Callable[[str], None]) -> bytes:
    """The key to sign a report with.

    Args:
        file: a private key's PEM file.
        note: is told if others can read it.

    Raises:
        ConfigError: it cannot be read, or is no key of a kind that signs.
    """
    pem, warning = report.read_key(file)
    report.require_signing(pem)
    if warning:
        note(warning)
    return pem


def write(found: Report, file: Path, *, key_pem: bytes | None) -> None:
    """Put a report into a file, whole or not at all; signed if there is a key.

    Raises:
        ConfigError: the file cannot be written.
    """
    if key_pem is None:
        data = orjson.dumps(found.as_dict(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    else:
        data = report.sign(found, key_pem)
    try:
        whole_file.write(file, data, mode=0o644)  # whoever audits reads it, and there is no secret in it
    except OSError as fault:
        raise ConfigError(
            f"{file.name} cannot be written ({os.strerror(fault.errno or 0)})",
            field="report",
            remedy="give another place",
        ) from fault
