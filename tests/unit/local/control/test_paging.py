"""Lists by pages: each row once, whatever is made or deleted meanwhile."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator
from pathlib import Path
from sqlite3 import Row

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medport.errors import InputError
from medport_local.control import filters, paging, records
from medport_local.control.database import Database
from medport_local.control.paging import Listing

LISTING = Listing(
    condition="kind = 'model' AND parent = ?",
    filters={"display_name": filters.Text(sql="json_extract(body, '$.displayName')")},
    orders={"display_name": "json_extract(body, '$.displayName')", "create_time": "created"},
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "plane", {})
    yield opened
    opened.close()


def put(database: Database, *names: str) -> None:
    with database.writing() as tx:
        for name in names:
            records.insert(tx, f"p/models/{tx.next('id')}", "model", "p", {"displayName": name})


def page(database: Database, **query: str) -> tuple[list[str], str]:
    with database.reading() as tx:
        rows, token = paging.page(tx, LISTING, ("p",), query)
    return [records.of_row(row).body["displayName"] for row in rows], token


def pages(database: Database, **query: str) -> list[list[str]]:
    found, token = page(database, **query)
    every = [found]
    while token:
        found, token = page(database, **query, pageToken=token)
        every.append(found)
    return every


def test_rows_come_in_the_order_in_which_they_were_made(database: Database) -> None:
    put(database, "c", "a", "b")

    assert pages(database, pageSize="2") == [["c", "a"], ["b"]]


def test_a_list_that_fits_its_page_has_no_next_one(database: Database) -> None:
    put(database, "a", "b")

    assert pages(database, pageSize="2") == [["a", "b"]]
    assert page(database)[1] == ""


def test_fields_order_up_and_down_and_ties_by_age(database: Database) -> None:
    put(database, "b", "a", "b", "c")

    assert pages(database, orderBy="display_name desc, create_time", pageSize="3") == [["c", "b", "b"], ["a"]]
    assert pages(database, order_by="displayName ASC", page_size="1") == [["a"], ["b"], ["b"], ["c"]]


def test_the_next_page_begins_where_the_last_ended_although_rows_came_and_went(database: Database) -> None:
    put(database, "b", "d", "f", "h")
    first, token = page(database, orderBy="display_name", pageSize="2")

    put(database, "a", "e")
    with database.writing() as tx:
        tx.run("DELETE FROM resource WHERE json_extract(body, '$.displayName') = 'd'")
    second, _ = page(database, orderBy="display_name", pageSize="9", pageToken=token)

    assert first == ["b", "d"]
    assert second == ["e", "f", "h"]


@pytest.mark.parametrize("size", ["0", "", "101", "100000"])
def test_a_page_is_at_most_as_large_as_pages_are(database: Database, size: str) -> None:
    put(database, *(["x"] * (paging.LARGEST + 1)))

    assert [len(each) for each in pages(database, pageSize=size)] == [paging.LARGEST, 1]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"pageSize": "-1"}, "page_size"),
        ({"pageSize": "many"}, "page_size"),
        ({"orderBy": "colour"}, "order_by"),
        ({"orderBy": "display_name down"}, "order_by"),
        ({"orderBy": "display_name,display_name desc"}, "order_by"),
        ({"orderBy": "display_name,,"}, "order_by"),
        ({"pageToken": "nonsense"}, "page_token"),
        ({"pageToken": "W10"}, "page_token"),
        ({"pageToken": "ü"}, "page_token"),
        ({"pageToken": "WyJhIiwiYiJd"}, "page_token"),
        ({"filter": "colour=red"}, "filter"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_name(database: Database, query: dict[str, str], field: str) -> None:
    with pytest.raises(InputError) as refused:
        page(database, **query)

    assert refused.value.field == field


@pytest.mark.parametrize("place", [2**63, "1", None])
def test_a_token_that_was_changed_is_refused(database: Database, place: object) -> None:
    put(database, "a", "b")
    _, token = page(database, pageSize="1")
    belongs, _ = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))

    changed = base64.urlsafe_b64encode(orjson.dumps([belongs, place])).decode()
    with pytest.raises(InputError, match="page_token"):
        page(database, pageToken=changed)


@pytest.mark.parametrize("other", [{"filter": "display_name!=x"}, {"orderBy": "display_name"}, {}])
def test_a_token_of_another_list_is_refused(database: Database, other: dict[str, str]) -> None:
    put(database, "a", "b")
    _, token = page(database, filter="display_name!=z", pageSize="1")

    with pytest.raises(InputError, match="another list"):
        page(database, **other, pageToken=token)


def test_a_page_is_filled_with_what_the_caller_may_see(database: Database) -> None:
    put(database, *"axbxcxdx")

    def seen(row: Row) -> bool:
        return bool(records.of_row(row).body["displayName"] != "x")

    with database.reading() as tx:
        first, token = paging.page(tx, LISTING, ("p",), {"pageSize": "2"}, keep=seen)
        second, end = paging.page(tx, LISTING, ("p",), {"pageSize": "2", "pageToken": token}, keep=seen)

    assert [records.of_row(row).body["displayName"] for row in [*first, *second]] == list("abcd")
    assert end == ""


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text(alphabet="ab'\"é", max_size=2), max_size=12),
    st.integers(1, 5),
    st.sampled_from(["", "display_name", "display_name desc", "create_time desc,display_name"]),
)
def test_pages_together_are_the_whole_list(names: list[str], size: int, order: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        database = Database(Path(directory), {})
        put(database, *names)

        whole, _ = page(database, orderBy=order)
        parts = pages(database, orderBy=order, pageSize=str(size))
        database.close()

    assert [name for part in parts for name in part] == whole
    assert sorted(whole) == sorted(names)
    assert all(len(part) == size for part in parts[:-1])
