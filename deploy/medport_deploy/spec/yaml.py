"""YAML as a specification needs it: plain values with the line of each, and nothing that surprises.

The scalars are those of YAML 1.2's core schema (``no`` and ``12:30`` are texts). Anchors, aliases, tags, a second
document and a key that stands twice are refused, so that a file is what it looks like and stays small when read.
Source: YAML 1.2.2, 10.3.2; PyYAML 6, ``yaml.parse``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from medport import _extras
from medport.errors import ConfigError

MAX_BYTES = 128 * 2**10
"""PyYAML reads some 100 KiB a second; a specification has a few."""
_MAX_DEPTH = 16
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
"""With a leading 0 it is a text: an id, perhaps, that would lose the 0."""
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: Mapping[str, object] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says."""

    value: Any
    lines: Mapping[Path, int]
    """The line, from 1, of each key and item, by its path; ``()`` is the document itself."""

    def line(self, path: Path) -> int:
        """The line of a path, or of the nearest thing around it."""
        while path not in self.lines and path:
            path = path[:-1]
        return self.lines.get(path, 1)


def parse(data: bytes, *, name: str) -> Document:
    """Read a file.

    Args:
        data: UTF-8.
        name: of the file, for errors.

    Raises:
        ConfigError: it is too large, no YAML, or uses a part of YAML that is refused. Names the line.
    """
    yaml = _extras.load("yaml", extra="deploy")
    if len(data) > MAX_BYTES:
        _refuse(name, 1, f"is larger than {MAX_BYTES // 2**10} KiB", "a specification has a few")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        _refuse(name, line, "is not UTF-8", "save it as UTF-8")
    try:
        return _Reading(yaml, name).document(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None) or getattr(fault, "context_mark", None)
        problem = getattr(fault, "problem", None) or "cannot be read"
        line = mark.line + 1 if mark else 1
        _refuse(name, line, f"is no YAML: {problem!s:.120}", "check blanks, quotes and colons near that line")


@dataclass(slots=True)
class _Level:
    """A mapping or list that is being read."""

    value: Any
    path: Path
    key: str | None = None


class _Reading:
    def __init__(self, yaml: Any, name: str) -> None:
        self._yaml = yaml
        self._name = name
        self._lines: dict[Path, int] = {}
        self._stack: list[_Level] = []
        self._root: Any = None
        self._documents = 0

    def document(self, events: Iterator[Any]) -> Document:
        yaml = self._yaml
        for event in events:
            line = event.start_mark.line + 1
            self._check(event, line)
            if isinstance(event, yaml.DocumentStartEvent):
                self._documents += 1
                if self._documents > 1:
                    _refuse(self._name, line, "holds a second document", "one file is one specification")
            elif isinstance(event, yaml.ScalarEvent):
                self._scalar(event, line)
            elif isinstance(event, yaml.MappingStartEvent):
                self._open({}, line)
            elif isinstance(event, yaml.SequenceStartEvent):
                self._open([], line)
            elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                self._stack.pop()
        return Document(self._root, self._lines)

    def _check(self, event: Any, line: int) -> None:
        if isinstance(event, self._yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            _refuse(self._name, line, "uses an anchor or an alias", "write the value where it is meant")
        if getattr(event, "tag", None) is not None:
            _refuse(self._name, line, "uses a tag", "write the plain value")

    def _scalar(self, event: Any, line: int) -> None:
        if self._stack and isinstance(self._stack[-1].value, dict) and self._stack[-1].key is None:
            self._key(event.value, line)
        else:
            self._put(_plain(event.value) if event.implicit[0] else event.value, line)

    def _key(self, text: str, line: int) -> None:
        level = self._stack[-1]
        if text == "<<":
            _refuse(self._name, line, "uses a merge key", "write the keys where they are meant")
        if text in level.value:
            _refuse(self._name, line, f"says {text:.60} twice", "keep one of the two")
        level.key = text
        self._lines[(*level.path, text)] = line

    def _open(self, made: dict[str, Any] | list[Any], line: int) -> None:
        if len(self._stack) >= _MAX_DEPTH:
            _refuse(self._name, line, f"is nested deeper than {_MAX_DEPTH}", "a specification has five levels")
        if self._stack and isinstance(self._stack[-1].value, dict) and self._stack[-1].key is None:
            _refuse(self._name, line, "has a key that is no text", "a key is a name")
        self._stack.append(_Level(made, self._put(made, line)))

    def _put(self, value: Any, line: int) -> Path:
        """Into what is being read; gives its path."""
        if not self._stack:
            self._root = value
            self._lines[()] = line
            return ()
        level = self._stack[-1]
        if isinstance(level.value, list):
            level.value.append(value)
            path = (*level.path, len(level.value) - 1)
            self._lines[path] = line
            return path
        assert level.key is not None
        level.value[level.key] = value
        path = (*level.path, level.key)
        level.key = None
        return path


def _plain(text: str) -> object:
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    # A commit can look like a number with an exponent: it stays the text that it is.
    if len(text) > 24 or text.isdecimal() or not _FLOAT.fullmatch(text):
        return text
    number = float(text)
    return number if math.isfinite(number) else text


def _refuse(name: str, line: int, fault: str, remedy: str) -> NoReturn:
    raise ConfigError(f"{name}:{line}: {fault}", field=name, remedy=remedy)
