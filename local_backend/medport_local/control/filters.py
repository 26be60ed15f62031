"""Filters of list calls, as SQL: the part of AIP-160 that Vertex documents for its lists.

Comparisons joined by ``AND``, ``OR``, ``NOT`` (or ``-``) and parentheses. ``OR`` binds tighter than ``AND``, and
terms beside each other are joined by ``AND``, as AIP-160 has it. ``!=`` is the contrary of ``=``: it also finds
what has no such label. What is not known is refused: to ignore it would give too many.

Values are bound, never written into the SQL; field names come from the caller's table of fields.

Source: google.aip.dev/160; Vertex AI REST reference, list methods.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import orjson
from pydantic.alias_generators import to_snake

from medport.errors import InputError
from medport.wire.vertex import rfc3339
from medport_local.control import labels

Operator = Literal["=", "!=", "<", "<=", ">", ">=", ":"]
_LONGEST = 4096
_DEEPEST = 20
_MOST = 100
"""Terms; SQLite's own limit is an expression 1000 deep."""
_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"[A-Za-z0-9_-]+")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\.)*)\'')
_BARE = re.compile(r"[^\s()\"',]+")
_OPERATOR = re.compile(r"!=|<=|>=|=(?!~)|<|>|:")
_JOIN = re.compile(r"(AND|OR|NOT)(?![A-Za-z0-9_.:=<>!-])")


def _as_it_is(value: str) -> str:
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A field that holds text."""

    sql: str
    """An expression that gives it; ``NULL`` where it is not set."""
    operators: frozenset[str] = frozenset(("=", "!="))
    """With ``:``, ``*`` in the value stands for anything."""
    normal: Callable[[str], str] = _as_it_is
    """The value in the form in which it is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Time:
    """A field that holds a time as ``rfc3339`` writes it, whose order is that of the text."""

    sql: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """A map of labels: ``labels.k=v``, ``labels.k:*``, ``labels:k``."""

    sql: str = "body"
    """An expression that gives the JSON in which the map is; ``NULL`` where there is none."""
    at: str = "$.labels"
    """The path of the map in it."""


Field = Text | Time | Labels
Condition = tuple[str, list[str]]
"""SQL that is 0 or 1, never ``NULL``, and the values that are bound to its question marks."""


def where(wanted: str, fields: Mapping[str, Field]) -> Condition:
    """The condition that a filter means; true of everything if ``wanted`` is empty.

    Args:
        fields: by proto name; callers may write them in camelCase too.

    Raises:
        InputError: the filter cannot be read, or asks for something that is not known here.
    """
    if len(wanted) > _LONGEST:
        raise _refused(f"is longer than {_LONGEST} characters", "ask for less, or in several calls")
    return _Parser(wanted, fields).whole()


class _Parser:
    """Reads a filter from left to right, and writes its SQL."""

    def __init__(self, text: str, fields: Mapping[str, Field]) -> None:
        self._text = text
        self._fields = fields
        self._at = 0
        self._deep = 0
        self._terms = 0

    def whole(self) -> Condition:
        self._skip()
        if self._at == len(self._text):
            return "1", []
        found = self._all()
        if self._at < len(self._text):
            raise self._cannot_read()
        return found

    def _all(self) -> Condition:
        parts = [self._any()]
        while self._at < len(self._text) and not self._peek(")"):
            self._taken("AND")
            parts.append(self._any())
        return _joined(" AND ", parts)

    def _any(self) -> Condition:
        parts = [self._one()]
        while self._taken("OR"):
            parts.append(self._one())
        return _joined(" OR ", parts)

    def _one(self) -> Condition:
        if self._taken("NOT") or self._token("-"):
            sql, values = self._simple()
            return f"NOT {sql}", values
        return self._simple()

    def _simple(self) -> Condition:
        if not self._token("("):
            return self._term()
        self._deep += 1
        if self._deep > _DEEPEST:
            raise _refused(f"is nested more than {_DEEPEST} deep", "write it flatter")
        found = self._all()
        if not self._token(")"):
            raise self._cannot_read("a parenthesis is not closed")
        self._deep -= 1
        return found

    def _term(self) -> Condition:
        self._terms += 1
        if self._terms > _MOST:
            raise _refused(f"has more than {_MOST} terms", "ask for less, or in several calls")
        if _JOIN.match(self._text, self._at):
            raise self._cannot_read()
        path = self._path()
        if self._peek("("):
            raise _refused(f"asks for the function {path[0]}(), which is not offered", self._offered())
        operator = _OPERATOR.match(self._text, self._at)
        if operator is None:
            raise self._cannot_read("a term is a field, an operator and a value")
        self._at = operator.end()
        self._skip()
        value, quoted = self._value()
        return self._compared(path, operator[0], value, anything=value == "*" and not quoted)

    def _compared(self, path: list[str], operator: str, value: str, *, anything: bool) -> Condition:
        name = to_snake(path[0])
        field = self._fields.get(name)
        if field is None or (len(path) > 1 and not isinstance(field, Labels)):
            raise _refused(f"names the unknown field {'.'.join(path):.80}", self._offered())
        if isinstance(field, Labels):
            return _label(field, path[1:], operator, value, anything=anything)
        if isinstance(field, Time):
            if operator == ":":
                raise _refused(f"asks {name} for {operator}", "compare it by =, !=, <, <=, > or >=")
            return _against(field.sql, operator, _moment(value, name))
        if operator not in field.operators:
            raise _refused(f"asks {name} for {operator}", f"it knows {' and '.join(sorted(field.operators))}")
        if operator == ":":
            return f"coalesce({field.sql} GLOB ?, 0)", [re.sub(r"[?[]", r"[\g<0>]", value)]
        return _against(field.sql, operator, field.normal(value))

    def _path(self) -> list[str]:
        steps: list[str] = []
        while True:
            found = _WORD.match(self._text, self._at) or (_QUOTED.match(self._text, self._at) if steps else None)
            if found is None:
                raise self._cannot_read("a term begins with the name of a field")
            steps.append(found[0] if found.re is _WORD else _unquoted(found))
            self._at = found.end()
            if not self._peek("."):
                self._skip()
                return steps
            self._at += 1

    def _value(self) -> tuple[str, bool]:
        """The value, and whether it stood in quotes."""
        found = _QUOTED.match(self._text, self._at) or _BARE.match(self._text, self._at)
        if found is None:
            raise self._cannot_read("a value is missing")
        self._at = found.end()
        self._skip()
        return (_unquoted(found), True) if found.re is _QUOTED else (found[0], False)

    def _taken(self, word: str) -> bool:
        found = _JOIN.match(self._text, self._at)
        if found is None or found[1] != word:
            return False
        self._at = found.end()
        self._skip()
        return True

    def _token(self, sign: str) -> bool:
        if not self._peek(sign):
            return False
        self._at += 1
        self._skip()
        return True

    def _peek(self, sign: str) -> bool:
        return self._text.startswith(sign, self._at)

    def _skip(self) -> None:
        found = _SPACE.match(self._text, self._at)
        assert found is not None
        self._at = found.end()

    def _cannot_read(self, why: str = "something is too much or too little") -> InputError:
        return _refused(f"cannot be read at character {self._at + 1}: {why}", 'write it like display_name="X"')

    def _offered(self) -> str:
        return f"known are {', '.join(sorted(self._fields))}"


def _joined(word: str, parts: list[Condition]) -> Condition:
    if len(parts) == 1:
        return parts[0]
    return f"({word.join(sql for sql, _ in parts)})", [value for _, values in parts for value in values]


def _against(sql: str, operator: str, value: str) -> Condition:
    if operator in ("=", "!="):
        return f"({sql} {'IS' if operator == '=' else 'IS NOT'} ?)", [value]
    return f"coalesce({sql} {operator} ?, 0)", [value]


def _label(field: Labels, steps: list[str], operator: str, value: str, *, anything: bool) -> Condition:
    if not steps and operator == ":":
        if anything:
            return f"coalesce(json_extract({field.sql}, ?) <> '{{}}', 0)", [field.at]
        steps, anything = [value], True
    if not steps or operator not in ("=", "!=", ":"):
        raise _refused(
            "asks labels for what they have not", 'write labels.KEY="VALUE", labels.KEY:* or labels:KEY'
        )
    # AIP-160 knows maps in maps; a key of ours that has a dot must be quoted, and no label has one.
    key = ".".join(steps)
    if not labels.is_key(key):
        return ("1" if operator == "!=" else "0"), []
    found = f"json_extract({field.sql}, ?)"
    path = f'{field.at}."{key}"'
    if operator == ":" and anything:
        return f"({found} IS NOT NULL)", [path]
    if operator in ("=", ":") and field.sql == "body":
        # Bodies are written by orjson, without blanks: a row that lacks the text need not be read, for this very
        # expression is in the index. Where there are no labels it is null, and NOT null is not true.
        text = orjson.dumps({key: value}).decode()[1:-1]
        return f"(ifnull(instr(json_extract(body, '$.labels'), ?), 0) AND {found} IS ?)", [text, path, value]
    return f"({found} {'IS NOT' if operator == '!=' else 'IS'} ?)", [path, value]


def _moment(value: str, name: str) -> str:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise _refused(f"compares {name} with what is no time", 'write it like "2026-01-31T12:00:00Z"') from None
    try:
        return rfc3339(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except OverflowError:
        raise _refused(f"compares {name} with a time out of range", "use a year from 1 to 9999") from None


def _unquoted(found: re.Match[str]) -> str:
    return re.sub(r"\\(.)", r"\1", found[1] if found[1] is not None else found[2], flags=re.DOTALL)


def _refused(why: str, remedy: str) -> InputError:
    return InputError(why, field="filter", remedy=remedy)
