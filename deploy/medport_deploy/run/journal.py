"""What a run did, on the disk before it does it: one file of JSON lines a run, in ``.medport/deploy/NAME/``.

The first line says which run it is, each other one a state of a step, the last one how the run ended. A step's
``before`` is on the disk before its call is sent, so that whatever a dead run may have made has its name here. A
last line that was cut off is as if it had not been written.

No line holds a credential, a variable's value or what a resource contains.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from medport.errors import ConfigError
from medport.wire.vertex import rfc3339
from medport_deploy import state_files

Json = dict[str, Any]
State = Literal["before", "running", "done", "skipped", "failed", "undoing", "undone", "not undone"]
End = Literal["finished", "taken back", "swept", "given up"]
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Header:
    """Which run it is."""

    verb: str
    """``apply``, ``rollback``, ``sweep`` or ``destroy``."""
    deployment: str
    """The spec's name."""
    lock_id: str
    """Of the ``medport.lock`` that is applied."""
    plan_sha256: str
    """Of the plan that was approved; another plan is another run."""
    target: str
    """Such as ``projects/P/locations/L at HOST``."""
    medport: str
    """Version of medport."""
    run: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{secrets.token_hex(3)}")
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)
    at: str = field(default_factory=lambda: rfc3339(datetime.now(UTC)))
    format: int = FORMAT

    def same_run(self, other: Header) -> bool:
        """Whether ``other`` is an attempt at the same."""
        mine = (self.verb, self.deployment, self.lock_id, self.plan_sha256, self.target, self.medport)
        return mine == (
            other.verb, other.deployment, other.lock_id, other.plan_sha256, other.target, other.medport
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A state of a step."""

    step: str
    """Its key, as of ``steps.Step``."""
    kind: str
    """Such as ``deployed_model``."""
    name: str
    """Of what the step makes or changes; for a deployed model ``ENDPOINT/ID``."""
    state: State
    at: str
    operation: str | None = None
    """The name of what goes on at the server; of ``running``."""
    was: Json | None = None
    """What stood there before, for the way back; of ``before``."""
    error: str | None = None
    """Why, in words of ours; of ``failed`` and ``not undone``."""


class Damaged(ConfigError):
    """A line of a journal cannot be understood.

    Args:
        path: of the journal.
    """

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(
            f"{path.name} {fault}",
            field="journal",
            remedy="medport deploy sweep: it passes over that line and finds by labels what it does not name",
        )
        self.path = path


@dataclass(slots=True)
class Journal:
    """One run's file.

    Args of ``create`` and ``read`` that name the directory mean that of one deployment.
    """

    path: Path
    header: Header
    records: list[Record]
    ended: str | None = None
    """How the run ended; ``None``: it is under way, failed, was stopped or is dead."""
    on_line: Callable[[Json, bool], None] = lambda line, written: None
    """Is called before a line is written, and again when it is."""

    @classmethod
    def create(
        cls, directory: Path, header: Header, *, on_line: Callable[[Json, bool], None] = lambda line, written: None
    ) -> Self:
        """Begin a run. Raises ``ConfigError`` if it cannot be written."""
        path = directory / f"{header.verb}-{header.run}.jsonl"
        try:
            state_files.make_directory(directory)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except OSError as fault:
            raise _unwritable(path, fault) from fault
        journal = cls(path, header, [], on_line=on_line)
        journal._append(asdict(header))
        _sync_directory(directory)
        return journal

    @classmethod
    def read(cls, path: Path, *, on_damage: Callable[[Damaged], None] | None = None) -> Self | None:
        """A run that was; ``None`` if not even its first line is whole, as then it has done nothing.

        Args:
            on_damage: is told of each line that is damaged, which is passed over then.

        Raises:
            Damaged: its first line is; or another one, and there is no ``on_damage``.
            ConfigError: it cannot be read, or another version of medport wrote it in another form.
        """
        try:
            text = state_files.read(path).decode(errors="replace")
        except OSError as fault:
            raise _broken(path, f"cannot be read ({os.strerror(fault.errno or 0)})") from fault
        # What follows the last line's end was cut off while it was being written.
        lines = text.split("\n")[:-1]
        if not lines:
            return None
        journal = cls(path, _header(path, lines[0]), [])
        for number, line in enumerate(lines[1:], 2):
            try:
                journal._take(number, line)
            except Damaged as damage:
                if on_damage is None:
                    raise
                on_damage(damage)
        return journal

    @property
    def open(self) -> bool:
        """Whether it may have left something behind, or something to go on with."""
        return self.ended is None

    def reopen(self) -> None:
        """Go on with it: drop a line that was cut off, and say who goes on."""
        try:
            with open(self.path, "rb+") as file:
                whole = file.read().rfind(b"\n") + 1
                file.truncate(whole)
        except OSError as fault:
            raise _unwritable(self.path, fault) from fault
        self._append({"resumed": True, "pid": os.getpid(), "host": socket.gethostname(), "at": _now()})

    def write(
        self,
        state: State,
        *,
        step: str,
        kind: str,
        name: str,
        operation: str | None = None,
        was: Json | None = None,
        error: str | None = None,
    ) -> None:
        """A state of a step; on the disk when this returns. Raises ``ConfigError`` if it cannot be written."""
        record = Record(
            step=step, kind=kind, name=name, state=state, at=_now(), operation=operation, was=was, error=error
        )
        self._append({key: value for key, value in asdict(record).items() if value is not None})
        self.records.append(record)

    def end(self, how: End) -> None:
        """Close it: it left nothing behind that is not meant to be there."""
        self._append({"ended": how, "at": _now()})
        self.ended = how

    def last_of(self, step: str, *states: State) -> Record | None:
        """The latest record of a step, of those with these states."""
        for record in reversed(self.records):
            if record.step == step and (not states or record.state in states):
                return record
        return None

    def first_was(self, step: str) -> Json:
        """What stood there before the run first touched it."""
        found = (record.was for record in self.records if record.step == step and record.was is not None)
        return next(found, {})

    def touched(self) -> list[Record]:
        """The first record of each step whose call may have been sent, in order."""
        first: dict[str, Record] = {}
        for record in self.records:
            if record.state == "before":
                first.setdefault(record.step, record)
        return list(first.values())

    def _take(self, number: int, line: str) -> None:
        """What one line says. Raises ``Damaged``."""
        said = _parsed(self.path, number, line)
        if "ended" in said:
            if not isinstance(said["ended"], str):
                raise Damaged(self.path, f"is damaged in line {number}")
            self.ended = said["ended"]
        elif "step" in said:
            try:
                record = Record(**said)
            except TypeError as fault:
                raise Damaged(self.path, "holds a line that is no record") from fault
            texts = (record.step, record.kind, record.name, record.state, record.at)
            others = (each for each in (record.operation, record.error) if each is not None)
            if not all(isinstance(each, str) for each in (*texts, *others)):
                raise Damaged(self.path, f"is damaged in line {number}")
            if record.was is not None and not isinstance(record.was, dict):
                raise Damaged(self.path, f"is damaged in line {number}")
            self.records.append(record)

    def _append(self, line: Mapping[str, Any]) -> None:
        self.on_line(dict(line), False)
        data = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            end = os.fstat(handle).st_size
            try:
                # A disk that is nearly full takes the beginning of a line and says nothing.
                if os.write(handle, data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(handle, end)  # or the next line would be glued to it
                raise
            finally:
                os.close(handle)
        except OSError as fault:
            raise _unwritable(self.path, fault) from fault
        self.on_line(dict(line), True)


def all_of(directory: Path, *, on_damage: Callable[[Damaged], None] | None = None) -> list[Journal]:
    """The runs of a deployment, the oldest first. A journal without a first line that can be read is passed over
    as a line is. Args and Raises as of ``Journal.read``."""
    found: list[Journal] = []
    for path in directory.glob("*-*.jsonl"):
        try:
            if (journal := Journal.read(path, on_damage=on_damage)) is not None:
                found.append(journal)
        except Damaged as damage:
            if on_damage is None:
                raise
            on_damage(damage)
    return sorted(found, key=lambda each: each.header.run)


def set_aside(path: Path) -> None:
    """Take a damaged journal out of the way of later runs; it stays to be looked at. Raises ``ConfigError``."""
    try:
        path.rename(path.with_name(f"{path.name}.damaged"))
    except OSError as fault:
        raise _unwritable(path, fault) from fault


def _header(path: Path, line: str) -> Header:
    said = _parsed(path, 1, line)
    if said.get("format") != FORMAT:
        raise _broken(path, "has the form of another version of medport", "use that version to go on or to sweep")
    try:
        header = Header(**{each.name: said[each.name] for each in fields(Header) if each.name in said})
    except TypeError as fault:
        raise Damaged(path, "holds a line that is no record") from fault
    kinds = {each.name: int if each.type == "int" else str for each in fields(Header)}
    if not all(isinstance(getattr(header, name), kind) for name, kind in kinds.items()):
        raise Damaged(path, "is damaged in line 1")
    return header


def _parsed(path: Path, number: int, line: str) -> Json:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise Damaged(path, f"is damaged in line {number}")
    return said


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _now() -> str:
    return rfc3339(datetime.now(UTC))


def _broken(path: Path, fault: str, remedy: str = "see who may read it") -> ConfigError:
    return ConfigError(f"{path.name} {fault}", field="journal", remedy=remedy)


def _unwritable(path: Path, fault: OSError) -> ConfigError:
    return ConfigError(
        f"{path.name} cannot be written ({os.strerror(fault.errno or 0)}): nothing is done without a journal",
        field="journal",
        remedy="make room or give another place",
    )
