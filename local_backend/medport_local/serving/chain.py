"""The files of an audit log: lines chained by hashes, how to check them and how to find one.

A directory holds ``audit-2025-11-0001.jsonl`` and so on. A line is canonical JSON (keys sorted, no blanks):
``seq`` counts from 0, ``prev`` is the hash of the line before it, also across files, and ``hash`` the SHA-256 of
the line without ``hash``. So a line that is changed, taken out, put in or moved breaks the chain there.

``head`` beside them names the last line known to be on disk: without it, lines cut off at the end would not be
missed. Who may write the directory can forge a whole chain and its head: keep what ``medport audit verify`` prints
somewhere else, and give it as ``--anchor`` later.

What was asked and answered is in a line as HMAC-SHA-256, under the secret in ``secret``. A plain hash of a short
prompt, or of an answer such as "yes", could be found by trying. Who has the secret can still prove what it was.

Needs no web framework, so that the commands do not.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import orjson

from medport.errors import ConfigError

FIRST = "0" * 64
"""``prev`` of the first line."""
LOST = "lines are missing"
"""The note of a server that found fewer lines than ``head`` promised."""
_FILE = re.compile(r"audit-(\d{4}-\d{2})-(\d{4,})\.jsonl")
_HEAD = re.compile(rb"(\d{20}) ([0-9a-f]{64})\n")


@dataclass(frozen=True, slots=True)
class Link:
    """A line's place in the chain."""

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Link:
        """``SEQ:HASH``, as ``medport audit verify`` prints it.

        Raises:
            ConfigError: it has another form.
        """
        if not (found := re.fullmatch(r"(\d{1,19}):([0-9a-f]{64})", text)):
            raise ConfigError("is not SEQ:HASH", field="anchor", remedy="give what an earlier verify printed")
        return cls(int(found[1]), found[2])

    @property
    def head(self) -> bytes:
        """The content of the file ``head``; always of one length, so that it can be written over."""
        return b"%020d %s\n" % (self.seq, self.hash.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a check found."""

    lines: int
    last: Link | None
    fault: str | None = None
    """Why the chain is broken; ``None`` if it is not."""
    file: str | None = None
    line: int | None = None
    """Where it breaks, counted from 1."""
    notes: list[dict[str, Any]] = field(default_factory=list)
    """What servers noted at their start, such as a line that a crash cut off."""

    @property
    def unbroken(self) -> bool:
        return self.fault is None


def sealed(record: Mapping[str, object], after: Link | None) -> tuple[bytes, Link]:
    """``record`` as the line that follows ``after``, and its own link."""
    seq = after.seq + 1 if after else 0
    body = {**record, "seq": seq, "prev": after.hash if after else FIRST}
    digest = _hash(body)
    return _dump({**body, "hash": digest}) + b"\n", Link(seq, digest)


def files(directory: Path) -> list[Path]:
    """The log's files in the order of their lines."""
    found = [(match, path) for path in directory.iterdir() if (match := _FILE.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda each: (each[0][1], int(each[0][2])))]


def file_name(month: str, number: int) -> str:
    """``audit-2025-11-0001.jsonl``."""
    return f"audit-{month}-{number:04d}.jsonl"


def place_of(path: Path) -> tuple[str, int]:
    """Month and number of a file's name."""
    match = _FILE.fullmatch(path.name)
    assert match is not None
    return match[1], int(match[2])


def promised(directory: Path) -> Link | None:
    """The line that ``head`` names; ``None`` if there is none yet."""
    try:
        match = _HEAD.fullmatch((directory / "head").read_bytes())
    except FileNotFoundError:
        return None
    return Link(int(match[1]), match[2].decode()) if match else None


def last_link(paths: Sequence[Path]) -> Link | None:
    """Where the chain ends; ``None`` if it has not begun.

    Raises:
        ConfigError: the last line is none of a chain: nothing can be put after it.
    """
    for path in reversed(paths):
        if line := _last_line(path):
            record = _parsed(line) or {}
            seq, digest = record.get("seq"), record.get("hash")
            if not isinstance(seq, int) or not isinstance(digest, str):
                raise ConfigError(
                    f"{path.name}: the last line is no audit record", field="audit", remedy="medport audit verify"
                )
            return Link(seq, digest)
    return None


def verify(directory: Path, *, since: date | None = None, anchor: Link | None = None) -> Report:
    """Check every line, from the first or from the month of ``since`` on. May run beside a server that writes.

    With ``since`` the first line's ``prev`` is believed, and earlier files may be absent.

    Raises:
        ConfigError: there is no log in ``directory``.
    """
    # Read first: lines that come meanwhile are after it.
    head = promised(directory)
    check = _Check(trust_first=since is not None, watched={link.seq for link in (head, anchor) if link})
    for path in _from(directory, since):
        for number, line in enumerate(_lines(path), 1):
            fault = check.take(line)
            if fault is not None:
                return check.report(fault, path.name, number)
    if head is not None and (check.last is None or check.last.seq < head.seq):
        there = check.last.seq + 1 if check.last else 0
        return check.report(f"the end is missing: lines {there} to {head.seq}", None, None)
    for what, link in (("head", head), ("the anchor", anchor)):
        if link is not None and check.seen.get(link.seq, link.hash) != link.hash:
            return check.report(f"line {link.seq} is not the one that {what} names", None, None)
    if anchor is not None and anchor.seq not in check.seen:
        return check.report(f"line {anchor.seq}, which the anchor names, is missing", None, None)
    return check.report(None, None, None)


def find(directory: Path, request_id: str) -> list[dict[str, Any]]:
    """All lines about a request, oldest first; callers may use an id again. Their hashes are not checked.

    Raises:
        ConfigError: there is no log in ``directory``.
    """
    mark = orjson.dumps({"request_id": request_id})[1:-1]
    lines = (line for path in _from(directory, None) for line in _lines(path) if mark in line)
    records = (_parsed(line) for line in lines)
    return [record for record in records if record is not None and record.get("request_id") == request_id]


def keyed(directory: Path, data: bytes) -> str:
    """``data``'s digest as the log would hold it, to prove that a request or an answer was this one.

    Raises:
        ConfigError: the log's secret cannot be read.
    """
    try:
        secret = bytes.fromhex((directory / "secret").read_text())
    except (OSError, ValueError) as fault:
        raise ConfigError("the secret of the audit log cannot be read", field="dir") from fault
    return hmac.new(secret, data, hashlib.sha256).hexdigest()


class _Check:
    """Goes over the lines one by one."""

    def __init__(self, *, trust_first: bool, watched: set[int]) -> None:
        self.last: Link | None = None
        self.seen: dict[int, str] = {}
        """The hash of each line that is watched for."""
        self._trust_first = trust_first
        self._watched = watched
        self._lines = 0
        self._notes: list[dict[str, Any]] = []

    def take(self, line: bytes) -> str | None:
        """Why this line breaks the chain, or ``None``."""
        record = _parsed(line)
        if record is None:
            return "the line is no record" if line.endswith(b"\n") else "the line is cut off"
        digest, seq, prev = record.get("hash"), record.get("seq"), record.get("prev")
        if not isinstance(seq, int) or not isinstance(digest, str) or not isinstance(prev, str):
            return "the line has no place in a chain"
        body = {key: value for key, value in record.items() if key != "hash"}
        # Also byte by byte: a key given twice would be hashed as one.
        if _hash(body) != digest or _dump(record) + b"\n" != line:
            return "the line was changed"
        expected = Link(self.last.seq + 1, self.last.hash) if self.last else Link(0, FIRST)
        if (self.last is not None or not self._trust_first) and (seq, prev) != (expected.seq, expected.hash):
            if seq > expected.seq:
                return f"lines {expected.seq} to {seq - 1} are missing"
            return f"the line does not follow the one before (it is line {seq})"
        self.last = Link(seq, digest)
        self._lines += 1
        if seq in self._watched:
            self.seen[seq] = digest
        if record.get("event") == "note":
            self._notes.append(record)
            if record.get("note") == LOST:
                return f"lines {record.get('lost_from')} to {record.get('lost_to')} were lost before this start"
        return None

    def report(self, fault: str | None, file: str | None, line: int | None) -> Report:
        return Report(lines=self._lines, last=self.last, fault=fault, file=file, line=line, notes=self._notes)


def _from(directory: Path, since: date | None) -> list[Path]:
    try:
        found = files(directory)
    except OSError as fault:
        said = os.strerror(fault.errno or 0)
        raise ConfigError(f"the directory cannot be read ({said})", field="dir") from fault
    if not found and promised(directory) is None:
        raise ConfigError("there is no audit log in this directory", field="dir", remedy="give --dir DIR")
    if since is None:
        return found
    # From an earlier month if the day's own has no file: one is made with its first line.
    first = max((month for path in found if (month := place_of(path)[0]) <= f"{since:%Y-%m}"), default="")
    return [path for path in found if place_of(path)[0] >= first]


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file


def _last_line(path: Path) -> bytes:
    """Read from the end: a file may have hundreds of megabytes."""
    with path.open("rb") as file:
        end = start = file.seek(0, os.SEEK_END)
        tail = b""
        while start > 0 and tail.count(b"\n", 0, -1) == 0:
            start = max(0, start - 65536)
            file.seek(start)
            tail = file.read(end - start)
    return b"".join(tail.splitlines(keepends=True)[-1:])


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and line.endswith(b"\n") else None


def _hash(body: Mapping[str, object]) -> str:
    return hashlib.sha256(_dump(body)).hexdigest()


def _dump(record: Mapping[str, object]) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_SORT_KEYS)
