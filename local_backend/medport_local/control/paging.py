"""Lists by pages, in an order, in a filter: one query each.

A page token says behind which row the next page begins, by that row's values in the list's order. So a list keeps
its place whatever is made or deleted meanwhile. It belongs to the list that gave it.

Source: google.aip.dev/132 and /158.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from sqlite3 import Row

import orjson
from pydantic.alias_generators import to_snake

from medport.errors import InputError
from medport_local.control.database import Transaction
from medport_local.control.filters import Field, where
from medport_local.control.masks import given

LARGEST = 100
Key = list[object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A list that can be asked for: what it holds, and what callers may say about it."""

    table: str = "resource"
    """Has a column ``place``, unique and growing, by which the list is ordered if nothing else is asked for."""
    condition: str
    """SQL with a question mark for each of ``page``'s ``values``."""
    filters: Mapping[str, Field]
    """By proto name."""
    orders: Mapping[str, str] = field(default_factory=dict)
    """SQL expressions that are never ``NULL``, by proto name."""


def page(
    transaction: Transaction,
    listing: Listing,
    values: tuple[str, ...],
    query: Mapping[str, str],
    *,
    keep: Callable[[Row], bool] = lambda row: True,
) -> tuple[list[Row], str]:
    """The rows of one page, and the token of the next; ``""`` if this is the last.

    Not for the event loop: a filter may cost a second where there is much to go through.

    Args:
        values: bound to the listing's condition.
        query: ``filter``, ``order_by``, ``page_size`` (0: as many as a page holds) and ``page_token``, in either
            spelling.
        keep: what the caller may see; the page is filled up with what follows.

    Raises:
        InputError: one of them cannot be read, or the token is of another list.
    """
    wanted, order = given(query, "filter"), given(query, "order_by")
    size = _size(given(query, "page_size"))
    keys = [*_keys(order, listing.orders), ("place", False)]
    condition, bound = where(wanted, listing.filters)
    belongs = hashlib.sha256(orjson.dumps([listing.condition, values, wanted, order])).hexdigest()[:16]
    after = _opened(given(query, "page_token"), belongs, len(keys))
    kept: list[Row] = []
    while True:
        beyond, before = _beyond(keys, after)
        rows = transaction.all(
            f"SELECT *, {', '.join(f'{sql} AS key{at}' for at, (sql, _) in enumerate(keys))}"  # noqa: S608
            f" FROM {listing.table} WHERE {listing.condition} AND {condition} AND {beyond}"
            f" ORDER BY {', '.join(f'{sql} DESC' if down else sql for sql, down in keys)} LIMIT {size + 1}",
            *values,
            *bound,
            *before,
        )
        for row in rows:
            if keep(row):
                kept.append(row)
            if len(kept) > size:
                return kept[:size], _token(belongs, _key(kept[size - 1], len(keys)))
        if len(rows) <= size:
            return kept, ""
        after = _key(rows[-1], len(keys))


def _size(asked: str) -> int:
    try:
        size = int(asked or "0")
    except ValueError:
        raise InputError("is not a whole number", field="page_size", remedy=f"give 1 to {LARGEST}") from None
    if size < 0:
        raise InputError("is negative", field="page_size", remedy=f"give 1 to {LARGEST}, or leave it out")
    return min(size, LARGEST) or LARGEST


def _keys(order: str, orders: Mapping[str, str]) -> list[tuple[str, bool]]:
    """Expressions, and whether they go down."""
    found: dict[str, bool] = {}
    for part in order.split(",") if order.strip() else ():
        name, *way = part.split() or [""]
        name = to_snake(name)
        if name not in orders or name in found or [word.lower() for word in way] not in ([], ["asc"], ["desc"]):
            known = ", ".join(sorted(orders)) or "none"
            raise InputError(
                f"{part.strip()[:80]!r} is not an order",
                field="order_by",
                remedy=f'write fields once each, with " desc" where they go down; known are: {known}',
            )
        found[name] = bool(way) and way[0].lower() == "desc"
    return [(orders[name], down) for name, down in found.items()]


def _beyond(keys: list[tuple[str, bool]], after: Key | None) -> tuple[str, Key]:
    """The condition of being behind a row in an order, and what is bound to it."""
    if after is None:
        return "1", []
    (sql, down), value = keys[0], after[0]
    further = f"{sql} {'<' if down else '>'} ?"
    if len(keys) == 1:
        return f"({further})", [value]
    rest, bound = _beyond(keys[1:], after[1:])
    return f"({further} OR ({sql} = ? AND {rest}))", [value, value, *bound]


def _key(row: Row, length: int) -> Key:
    return [row[f"key{at}"] for at in range(length)]


def _token(belongs: str, key: Key) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([belongs, *key])).decode().rstrip("=")


def _opened(token: str, belongs: str, length: int) -> Key | None:
    if not token:
        return None
    try:
        found = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except ValueError:
        found = None
    if not isinstance(found, list) or len(found) < 2 or type(found[-1]) is not int or found[-1] >= 2**63:
        raise _foreign("is not one of this server")
    if found[0] != belongs:
        raise _foreign("belongs to another list")
    if len(found) != length + 1 or not all(isinstance(each, str) for each in found[:-1]):
        raise _foreign("is not one of this server")
    return list(found[1:])


def _foreign(why: str) -> InputError:
    return InputError(
        why,
        field="page_token",
        remedy="send the filter and order that it was given for, or begin again without it",
    )
