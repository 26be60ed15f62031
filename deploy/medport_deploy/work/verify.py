"""Verify a deployment, and keep what was found as a file that may be signed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import orjson

from medport.errors import ConfigError
from medport.lock import Lock
from medport_deploy.past import history
from medport_deploy.verify import checking as verify
from medport_deploy.verify import report
from medport_deploy.verify.report import Json
from medport_deploy.verify.result import Report
from medport_deploy.work.opening import Deployment
from medport_deploy.work.run import record, trial_of


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

    What is found to be all right and is not in the history, as when the state was lost or belongs to another
    machine, is written into it: then there is a way back to it.

    Args:
        with_smoke: send requests of all kinds to what serves.
    """
    lock = deployment.locked()
    found = verify.check(
        deployment.spec,
        lock,
        deployment.control,
        spec_bytes=deployment.spec_bytes,
        terraform=deployment.terraform_ready() if with_terraform else None,
        smoke=trial_of(deployment).check if with_smoke else None,
        retained=deployment.retained(),
    )
    if with_smoke and with_terraform and not found.findings:
        _adopt(deployment, lock)
    return found


def _adopt(deployment: Deployment, lock: Lock) -> None:
    known = history.serving(deployment.history())
    if known is None or known.lock_id != lock.lock_id:
        record(deployment, deployment.header("verify", lock.lock_id))
        deployment.telling.note("was not in the history; is now, as verified: a rollback can come back to it")


def write(found: Report, file: Path, *, key: Path | None, note: Callable[[str], None]) -> None:
    """Put a report into a file, whole or not at all; signed if there is a key.

    Args:
        key: a private key's PEM file.
        note: is told if others can read it.

    Raises:
        ConfigError: the key cannot be used, or the file cannot be written.
    """
    if key is None:
        data = orjson.dumps(found.as_dict(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    else:
        pem, warning = report.read_key(key)
        if warning:
            note(warning)
        data = report.sign(found, pem)
    try:
        handle, made = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        try:
            with open(handle, "wb") as opened:
                opened.write(data)
            os.chmod(made, 0o644)  # whoever audits reads it, and there is no secret in it
            os.replace(made, file)
        except BaseException:
            os.unlink(made)
            raise
    except OSError as fault:
        raise ConfigError(
            f"{file.name} cannot be written ({os.strerror(fault.errno or 0)})",
            field="report",
            remedy="give another place",
        ) from fault
