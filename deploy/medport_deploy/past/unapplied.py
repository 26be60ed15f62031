"""What serves while a newer lock is not applied yet: then it is compared with the lock that was verified last.

Before an apply and after a rollback, all that serves is other than ``medport.lock`` says, for one reason. That is
to be said once, and anything else that is wrong must not drown in it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from medport import lock as locks
from medport.errors import MedportError
from medport.lock import Lock
from medport_deploy.past import approved, history
from medport_deploy.past.history import Entry
from medport_deploy.spec import reading as specs
from medport_deploy.spec.reading import Spec
from medport_deploy.verify import checking as verify
from medport_deploy.verify.checking import Reads
from medport_deploy.verify.result import Check, drift


@dataclass(frozen=True, slots=True)
class Standing:
    """The lock that serves, exactly as it was approved."""

    entry: Entry
    spec_bytes: bytes
    lock: Lock


def standing(
    spec: Spec,
    lock: Lock,
    control: Reads,
    directory: Path,
    *,
    retained: Mapping[str, str],
    now: datetime | None = None,
) -> Standing | None:
    """What serves, if that is the lock which was verified last, it is another one, and nothing of it has changed.

    Args:
        spec: as it is now; says where the target is.
        lock: as it is now.
        directory: of the deployment, as ``apply.directory_of`` gives it.
        retained: as ``verify.checking.check``.

    Raises:
        What the control plane's calls and ``history.read`` raise.
    """
    entry = history.serving(history.read(directory))
    if entry is None or entry.lock_id == lock.lock_id:
        return None
    try:
        spec_bytes, before = approved.load(directory, entry.lock_id, spec_sha256=entry.spec_sha256)
        then = specs.parse(spec_bytes)
    except MedportError:
        return None  # what was kept of it is no measure any more
    if _place(then) != _place(spec):
        return None
    then = then.model_copy(update={"target": spec.target})
    found = verify.check(then, before, control, spec_bytes=spec_bytes, retained=retained, now=now)
    return None if found.findings else Standing(entry, spec_bytes, before)


def finding(lock: Lock, serves: Standing, directory: Path, *, spec_file: Path, lock_file: Path) -> Check:
    """That a lock is not applied, and what to do: apply it, or take the files of what serves.

    Args:
        directory: of the deployment.
        spec_file, lock_file: those of the user.
    """
    entry = serves.entry
    place = directory / approved.DIRECTORY / entry.lock_id
    taken = ((place / specs.FILE_NAME, spec_file), (place / locks.FILE_NAME, lock_file))
    copies = "; ".join(shlex.join(["cp", str(there), str(ours)]) for there, ours in taken)
    return drift(
        "lock.applied",
        None,
        f"lock {lock.lock_id[:12]} serves",
        f"lock {entry.lock_id[:12]}, verified at {entry.at}, serves as it was approved",
        remedy=f"apply it: medport deploy plan, then medport deploy apply; or keep what serves: {copies}",
    )


def _place(spec: Spec) -> tuple[str, str, str]:
    return spec.name, spec.target.kind, f"{spec.target.project}/{spec.target.location}"
