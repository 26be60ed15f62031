"""Filters: read as AIP-160 says, and the same answer from SQL as from looking at each resource."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medport.errors import InputError
from medport_local.control import filters

Resource = dict[str, Any]
Check = Callable[[Resource], bool]

FIELDS: dict[str, filters.Field] = {
    "id": filters.Text(sql="name", normal=str.lower),
    "display_name": filters.Text(sql="json_extract(body, '$.displayName')", operators=frozenset(("=", "!=", ":"))),
    "labels": filters.Labels(),
    "create_time": filters.Time(sql="created"),
}
DAYS = [f"2026-01-0{day}T00:00:00.000000Z" for day in range(1, 6)]


def found(resources: list[Resource], wanted: str) -> list[int]:
    """The places of those that the filter finds in a real SQLite."""
    condition, bound = filters.where(wanted, FIELDS)
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE resource (place INTEGER, name TEXT, body TEXT, created TEXT)")
        connection.executemany(
            "INSERT INTO resource VALUES (?, ?, ?, ?)",
            [
                (
                    place,
                    each["id"],
                    orjson.dumps({k: each[k] for k in ("displayName", "labels") if k in each}).decode(),
                    each["at"],
                )
                for place, each in enumerate(resources)
            ],
        )
        rows = connection.execute(f"SELECT place FROM resource WHERE {condition} ORDER BY place", bound).fetchall()
    connection.close()
    return [place for (place,) in rows]


def one(id_: str = "a", name: str = "Chest", at: str = DAYS[0], **labels: str) -> Resource:
    return {"id": id_, "displayName": name, "labels": labels, "at": at}


@pytest.mark.parametrize(
    ("wanted", "places"),
    [
        ("", [0, 1, 2]),
        ("  ", [0, 1, 2]),
        ("id=A", [0]),
        ("display_name=Chest", [0]),
        ("displayName = 'Chest X-ray'", [1]),
        ('display_name:"Chest*"', [0, 1]),
        ("display_name:*ray", [1]),
        ("display_name:[C]hest", []),
        ("NOT display_name=Chest", [1, 2]),
        ("-display_name=Chest", [1, 2]),
        ("display_name!=Chest", [1, 2]),
        ("labels.site=a", [0]),
        ('labels.site="a"', [0]),
        ('labels."site"=a', [0]),
        ("labels.site:a", [0]),
        ("labels.site:*", [0, 1]),
        ("labels:site", [0, 1]),
        ("labels:*", [0, 1]),
        ("labels.site!=a", [1, 2]),
        ('labels.site:"*"', []),
        ("labels.a.b=x", []),
        ('labels."a b"=x', []),
        ('labels."a\\"]b"!=x', [0, 1, 2]),
        # OR binds tighter than AND, as AIP-160 has it.
        ("labels.site=a AND id=a OR id=b", [0]),
        ("id=b OR id=c AND labels:site", [1]),
        ("(id=b) OR (id=c AND labels:site)", [1]),
        ("labels:site id=b", [1]),
        ("NOT (id=a OR id=b)", [2]),
        ("-(id=a AND NOT id=b)", [1, 2]),
        ("create_time>=2026-01-02T00:00:00Z", [1, 2]),
        ('create_time > "2026-01-02T01:00:00+01:00"', [2]),
        ("create_time<2026-01-02", [0]),
        ('createTime!="2026-01-02T00:00:00Z"', [0, 2]),
        ("(((id=a)))", [0]),
        ("display_name=AND", []),
    ],
)
def test_a_filter_means_what_aip_160_says(wanted: str, places: list[int]) -> None:
    resources = [
        one("a", "Chest", DAYS[0], site="a"),
        one("b", "Chest X-ray", DAYS[1], site="b"),
        one("c", "Skin", DAYS[2]),
    ]

    assert found(resources, wanted) == places


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("colour=red", "colour"),
        ("display_name", "field, an operator and a value"),
        ("display_name=", "value is missing"),
        ("=a", "name of a field"),
        ("id=a AND", "name of a field"),
        ("AND id=a", "cannot be read"),
        ("id=a OR OR id=b", "cannot be read"),
        ("(id=a", "parenthesis"),
        ("id=a)", "cannot be read"),
        ('display_name="open', "cannot be read"),
        ("id<a", "id"),
        ("id:a", "id"),
        ("id.x=a", "id.x"),
        ("create_time:2026-01-01", "create_time"),
        ("create_time>yesterday", "no time"),
        ("create_time>0001-01-01T00:00:00+09:00", "out of range"),
        ("labels=a", "labels"),
        ("labels.a<b", "labels"),
        ('regex(display_name, "x")', r"function regex\(\)"),
        ('display_name=~"x"', "operator"),
        ("display_name=a,b", "cannot be read"),
        ("id=a;DROP TABLE resource", "operator"),
        ("(" * 21 + "id=a" + ")" * 21, "nested"),
        (" ".join(["id=a"] * 101), "terms"),
        ("id=" + "a" * 4100, "longer"),
    ],
)
def test_what_is_not_known_is_refused_and_not_ignored(wanted: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        filters.where(wanted, FIELDS)

    assert refused.value.field == "filter"


def test_values_are_bound_and_never_part_of_the_sql() -> None:
    hostile = "x') OR 1=1 --"

    condition, bound = filters.where(f'display_name="{hostile}" AND labels."{hostile}":*', FIELDS)

    assert hostile not in condition
    assert bound == [hostile]


KEYS = st.sampled_from(["site", "team", "a-b", "a_b"])
VALUES = st.text(alphabet="ab*\"'\\ ().=", max_size=4)
RESOURCES = st.lists(
    st.builds(
        lambda id_, name, at, labels: {"id": id_, "displayName": name, "at": at, "labels": labels},
        st.sampled_from("abc"),
        VALUES,
        st.sampled_from(DAYS),
        st.dictionaries(KEYS, VALUES, max_size=3),
    ),
    max_size=5,
)


def quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _name(value: str, differs: bool) -> tuple[str, Check]:
    sign = "!=" if differs else "="
    return f"display_name{sign}{quoted(value)}", lambda each: (each["displayName"] == value) != differs


def _label(key: str, value: str, differs: bool) -> tuple[str, Check]:
    sign = "!=" if differs else "="
    return f"labels.{key}{sign}{quoted(value)}", lambda each: (each["labels"].get(key) == value) != differs


def _has(key: str, spelled: bool) -> tuple[str, Check]:
    return (f"labels.{key}:*" if spelled else f"labels:{key}"), lambda each: key in each["labels"]


def _time(sign: str, at: str) -> tuple[str, Check]:
    ways: dict[str, Callable[[str], bool]] = {
        "<": lambda it: it < at,
        "<=": lambda it: it <= at,
        ">": lambda it: it > at,
        ">=": lambda it: it >= at,
        "=": lambda it: it == at,
        "!=": lambda it: it != at,
    }
    return f"create_time {sign} {at}", lambda each: ways[sign](each["at"])


TERMS = st.one_of(
    st.builds(_name, VALUES, st.booleans()),
    st.builds(_label, KEYS, VALUES, st.booleans()),
    st.builds(_has, KEYS, st.booleans()),
    st.builds(_time, st.sampled_from(["<", "<=", ">", ">=", "=", "!="]), st.sampled_from(DAYS)),
)


def _joined(word: str, parts: list[tuple[str, Check]]) -> tuple[str, Check]:
    every = all if word == "AND" else any
    text = f" {word} ".join(text for text, _ in parts)
    return f"({text})", lambda each: every(check(each) for _, check in parts)


def _not(sign: str, part: tuple[str, Check]) -> tuple[str, Check]:
    return f"{sign}({part[0]})", lambda each: not part[1](each)


WANTED = st.recursive(
    TERMS,
    lambda inner: st.one_of(
        st.builds(_joined, st.sampled_from(["AND", "OR"]), st.lists(inner, min_size=1, max_size=3)),
        st.builds(_not, st.sampled_from(["NOT ", "-", "NOT"]), inner),
    ),
    max_leaves=6,
)


@given(RESOURCES, WANTED)
def test_sql_finds_what_looking_at_each_resource_finds(
    resources: list[Resource], wanted: tuple[str, Check]
) -> None:
    text, check = wanted

    assert found(resources, text) == [place for place, each in enumerate(resources) if check(each)]


@given(st.text(alphabet="ab=!<>:()\"'\\ .-*,ANDORTlabels_", max_size=40))
def test_any_text_is_a_condition_or_an_input_error(wanted: str) -> None:
    try:
        found([one()], wanted)
    except InputError as refused:
        assert refused.field == "filter"  # noqa: PT017
