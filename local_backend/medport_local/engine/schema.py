"""Strangers' JSON schemata: what is refused before a grammar library sees it. Plain Python.

The bounds were found by trying. A pattern as short as ``(a{1000}){1000}`` costs seconds a token, and twenty
patterns on one string never come to an end. Within these bounds no schema that we tried took more than 0.3 s to
compile, or more than 20 ms a token before the library's own limits ended it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from medport.errors import InputError

FIELD = "response_format.json_schema.schema"

MAX_BYTES = 65_536
MAX_DEPTH = 32
MAX_WORD = 1024
"""Characters of a property's name or a fixed value: they are tokenised again at each step inside them."""
MAX_PROPERTIES = 400
MAX_PATTERN = 512
MAX_WEIGHT = 2_000
"""Of one pattern, its counted repetitions multiplied out."""
MAX_TOTAL_WEIGHT = 20_000
MAX_MEETING = 4
"""Patterns in a schema that can put several of them on one string."""
MAX_MULTIPLE = 1_000
"""Of ``multipleOf``, and of all their digits' common multiple: so many states do they take. Ten of three digits
took all the memory of a machine."""

_BESIDE = ("$ref", "anyOf", "oneOf")
_COUNT = re.compile(r"\{(\d*),?(\d*)\}")
_FLAGS = re.compile(r"\(\?[A-Za-z-]+[:)]")


def refused(message: str, remedy: str) -> InputError:
    """The error for a schema. Quotes nothing of it but keywords."""
    return InputError(message, field=FIELD, remedy=remedy)


def check_schema(schema: Mapping[str, Any]) -> str:
    """Refuse what is hostile, or too costly to try; gives the schema as JSON.

    Raises:
        InputError: names what is too much.
    """
    survey = _Survey()
    survey.visit(schema)
    survey.judge()
    if "x-guidance" in schema:
        raise refused("x-guidance is not supported", "leave it out")
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode())
    except (TypeError, ValueError) as fault:
        raise refused("is not JSON", "send a JSON object of Unicode text") from fault
    if size > MAX_BYTES:
        raise refused(f"has {size} bytes, and {MAX_BYTES} are taken", "shorten it")
    return text


class _Survey:
    """One walk over a schema. It does not tell keywords from properties of the same name: both are bounded."""

    def __init__(self) -> None:
        self._patterns = 0
        self._multiples = 1
        self._weight = 0
        self._can_meet = False
        self._nodes = 0

    def visit(self, schema: Mapping[str, Any]) -> None:
        stack: list[tuple[object, int]] = [(schema, 0)]
        while stack:
            node, depth = stack.pop()
            self._nodes += 1
            if depth > MAX_DEPTH:
                raise refused(f"is nested more than {MAX_DEPTH} levels deep", "flatten it, or use $defs and $ref")
            if self._nodes > MAX_BYTES:  # each is a byte at least; also ends a structure that holds itself
                raise refused(f"has more than {MAX_BYTES} bytes", "shorten it")
            if isinstance(node, Mapping):
                self._object(node)
                stack.extend((value, depth + 1) for value in node.values())
            elif isinstance(node, list | tuple):
                self._words(node)
                stack.extend((value, depth + 1) for value in node)

    def judge(self) -> None:
        if self._can_meet and self._patterns > MAX_MEETING:
            raise refused(
                f"combines {self._patterns} patterns and formats, and {MAX_MEETING} may be combined",
                "put patterns on plain strings, without allOf and beside no $ref, anyOf or oneOf",
            )
        if self._weight > MAX_TOTAL_WEIGHT:
            raise refused("has patterns that are too costly together", "use fewer or shorter ones")

    def _object(self, node: Mapping[Any, Any]) -> None:
        if not all(isinstance(key, str) for key in node):
            raise refused("is not JSON", "send a JSON object of Unicode text")
        if len(node) > MAX_PROPERTIES:
            raise refused(f"has an object of more than {MAX_PROPERTIES} keys", "split it")
        self._words(node)
        self._words([node.get("const")])
        reference = node.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            raise refused("refers to another document", "bring it in under $defs")
        if isinstance(node.get("multipleOf"), int | float):
            self._multiple(node["multipleOf"])
        own = [node["pattern"]] if isinstance(node.get("pattern"), str) else []
        by_name = node.get("patternProperties")
        if isinstance(by_name, Mapping):
            if len(by_name) > MAX_MEETING:
                raise refused(f"has more than {MAX_MEETING} patternProperties in one object", "use fewer")
            own += [key for key in by_name if isinstance(key, str)]
        for pattern in own:
            self._pattern(pattern)
        formats = isinstance(node.get("format"), str)
        self._patterns += formats
        if "allOf" in node or ((own or formats) and any(key in node for key in _BESIDE)):
            self._can_meet = True

    def _multiple(self, value: float) -> None:
        digits = Decimal(str(value)).normalize().as_tuple().digits
        if 0 < value <= MAX_MULTIPLE:
            self._multiples = math.lcm(self._multiples, int("".join(map(str, digits))))
        if not (0 < value <= MAX_MULTIPLE) or self._multiples > MAX_MULTIPLE:
            raise refused(
                "has a multipleOf that is too costly, or several that are",
                f"use small ones, whose common multiple is {MAX_MULTIPLE} at most",
            )

    def _pattern(self, pattern: str) -> None:
        if _FLAGS.search(pattern):  # with x, blanks would hide what is repeated
            raise refused("has a pattern with flags", "write it without")
        weight = _weight(pattern) if len(pattern) <= MAX_PATTERN else 0
        if len(pattern) > MAX_PATTERN or weight > MAX_WEIGHT:
            raise refused(
                "has a pattern that is too costly",
                f"keep it below {MAX_PATTERN} characters, and below {MAX_WEIGHT} with its repetitions written out",
            )
        self._patterns += 1
        self._weight += weight

    def _words(self, words: Any) -> None:
        if any(isinstance(word, str) and len(word) > MAX_WORD for word in words):
            raise refused(f"has a name or value of more than {MAX_WORD} characters", "shorten it")


def _weight(pattern: str) -> int:
    """How long a regular expression is, its counted repetitions written out.

    A rough reading that errs upwards: a class counts as one, an alternation as the sum of its branches.
    """
    groups = [0]
    last = 0
    place = 0
    while place < len(pattern):
        sign = pattern[place]
        if sign == "(":
            groups.append(0)
            last = 0
        elif sign == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] += last
        elif sign == "{" and (count := _COUNT.match(pattern, place)):
            times = max(1, *(int(each or 0) for each in count.groups()))
            groups[-1] += last * (times - 1)
            last *= times
            place = count.end() - 1
        elif sign not in "*+?|^$":
            place = _atom_end(pattern, place)
            last = 1
            groups[-1] += 1
        place += 1
    return sum(groups)


def _atom_end(pattern: str, place: int) -> int:
    """Where the character, escape or class that begins at ``place`` has its last character."""
    if pattern[place] == "\\":
        if pattern[place + 1 : place + 3] in ("p{", "P{", "x{", "u{"):
            return max(place + 1, pattern.find("}", place))
        return place + 1
    if pattern[place] != "[":
        return place
    place += 2 if pattern.startswith("]", place + 1) else 1  # a bracket that comes first is a member
    while place < len(pattern) and pattern[place] != "]":
        place += 2 if pattern[place] == "\\" else 1
    return place
