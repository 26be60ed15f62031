"""What was done to a deployment, one JSON line a run, in ``.medport/deploy/NAME/history.jsonl``.

Journals say how a run went; this says what it came to. From it ``rollback`` knows the last lock that was verified,
and ``plan`` which old fleets are kept. No line holds a credential.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from medport.errors import ConfigError
from medport.wire.vertex import rfc3339
from medport_deploy import state_files
from medport_deploy.lock.terms import this_user

FILE_NAME = "history.jsonl"
FORMAT = 1
_SHORTEST = 8
Verb = Literal["apply", "rollback", "promote", "destroy", "verify", "sweep"]
Outcome = Literal["verified", "failed", "taken back", "destroyed", "held", "swept"]


def who() -> str:
    """``USER@HOST`` of this process."""
    return f"{this_user() or 'unknown'}@{socket.gethostname()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """What serves one model after a run."""

    endpoint: str
    """Id."""
    model_id: str
    """Of the Model resource."""
    version: str
    """Its number."""
    deployed_model: str
    """Id."""
    revision: str | None = None
    image_digest: str | None = None
    """64 hex digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one run came to."""

    verb: Verb
    outcome: Outcome
    lock_id: str
    """Of the lock that serves after it, or that was tried."""
    plan_sha256: str = ""
    spec_sha256: str = ""
    """Of the bytes of the specification's file."""
    models: Mapping[str, Deployed] = field(default_factory=dict)
    """What serves, by the names of the specification; of ``verified`` and ``held``."""
    retained: Mapping[str, str] = field(default_factory=dict)
    """Deployed model id → until when it is kept without traffic, UTC, ISO 8601."""
    rejected: str | None = None
    """Of a rollback: the lock that was left."""
    why: str = ""
    """In words of ours; of ``failed`` and ``taken back``."""
    by: str = field(default_factory=who)
    medport: str = field(default_factory=lambda: metadata.version("medport"))
    at: str = field(default_factory=lambda: rfc3339(datetime.now(UTC)))
    """UTC, ISO 8601."""
    format: int = FORMAT

    def as_dict(self) -> dict[str, Any]:
        """As a line holds it, and as ``medport deploy history --json`` prints it."""
        said: dict[str, Any] = _ENTRY.dump_python(self, mode="json")
        return said


_ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)


def append(directory: Path, entry: Entry) -> None:
    """Write an entry; it is on the disk when this returns.

    Args:
        directory: of the deployment, as ``apply.directory_of`` gives it.

    Raises:
        ConfigError: it cannot be written.
    """
    path = directory / FILE_NAME
    data = json.dumps(entry.as_dict(), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    try:
        state_files.make_directory(directory)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with open(handle, "r+b") as file:
            # A line that was cut off while it was written is as if it had not been.
            end = file.read().rfind(b"\n") + 1
            file.truncate(end)
            file.seek(end)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as fault:
        raise ConfigError(
            f"{path.name} cannot be written ({os.strerror(fault.errno or 0)})",
            field="history",
            remedy="make room or give another place",
        ) from fault


def read(directory: Path) -> list[Entry]:
    """All entries, the oldest first; none if nothing was done yet.

    Raises:
        ConfigError: the file cannot be read, or a line is no entry.
    """
    path = directory / FILE_NAME
    try:
        text = state_files.read(path).decode(errors="replace")
    except FileNotFoundError:
        return []
    except OSError as fault:
        raise _broken(path, f"cannot be read ({os.strerror(fault.errno or 0)})") from fault
    return [_parsed(path, number, line) for number, line in enumerate(text.split("\n")[:-1], 1)]


def since_destroyed(entries: Sequence[Entry]) -> list[Entry]:
    """Those after the last time that all was destroyed."""
    last = max((at for at, each in enumerate(entries) if each.outcome == "destroyed"), default=-1)
    return list(entries[last + 1 :])


def serving(entries: Sequence[Entry]) -> Entry | None:
    """The entry that says what serves; ``None`` if nothing was ever verified, or all is destroyed."""
    found = (each for each in reversed(since_destroyed(entries)) if each.outcome == "verified" and each.models)
    return next(found, None)


def last_verified(entries: Sequence[Entry], *, other_than: str = "") -> Entry | None:
    """What there is to go back to: the last lock that was verified and not left by a rollback since.

    Args:
        other_than: a lock's id, that of what serves.
    """
    left: set[str] = set()
    for each in reversed(since_destroyed(entries)):
        if each.outcome != "verified":
            continue
        if each.models and each.lock_id != other_than and each.lock_id not in left:
            return each
        if each.rejected:
            left.add(each.rejected)
    return None


def verified(entries: Sequence[Entry], lock_id: str) -> Entry | None:
    """The last time that a lock was verified; its id may be cut off after 8 digits or later.

    Raises:
        ConfigError: the beginning of an id fits several locks, or is too short.
    """
    if len(lock_id) < _SHORTEST:
        raise ConfigError(f"{lock_id} is too short", field="to", remedy=f"give {_SHORTEST} digits or more")
    fits = [each for each in entries if each.outcome == "verified" and each.lock_id.startswith(lock_id)]
    if len({each.lock_id for each in fits}) > 1:
        raise ConfigError(f"{lock_id} fits several locks", field="to", remedy="medport deploy history shows them")
    return fits[-1] if fits else None


def retained(entries: Sequence[Entry], now: datetime) -> dict[str, str]:
    """Which fleets are kept without traffic at a time, and until when.

    What a later run took back into service, or a promotion let go, is not among them.
    """
    found: dict[str, str] = {}
    for each in since_destroyed(entries):
        if each.verb == "promote" and each.outcome == "verified":
            found.clear()
        found |= each.retained
        for serves in each.models.values():
            found.pop(serves.deployed_model, None)
    return {id_: until for id_, until in found.items() if datetime.fromisoformat(until) > now}


def _parsed(path: Path, number: int, line: str) -> Entry:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict) and said.get("format") != FORMAT:
        raise _broken(path, "has the form of another version of medport", "use that version")
    try:
        entry = _ENTRY.validate_python(said)
        if any(datetime.fromisoformat(each).tzinfo is None for each in entry.retained.values()):
            raise ValueError("a time without its zone")
        return entry
    except ValueError:  # pydantic's ValidationError is one
        raise _broken(path, f"is damaged in line {number}") from None


def _broken(path: Path, fault: str, remedy: str = "look at it by hand, and take the line out") -> ConfigError:
    return ConfigError(f"{path.name} {fault}", field="history", remedy=remedy)
