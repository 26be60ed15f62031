"""Resources as rows: kept, changed, deleted; the etag tells who read before somebody else wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medport.errors import AlreadyExists, Conflict, NotFound
from medport_local.control import records
from medport_local.control.database import Database

TEXTS = st.text(st.characters(codec="utf-8"))
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    opened = Database(tmp_path_factory.mktemp("records"), {})
    yield opened
    opened.close()


def empty(database: Database) -> None:
    with database.writing() as tx:
        tx.run("DELETE FROM resource")


def test_what_is_kept_is_found_with_its_first_etag(database: Database) -> None:
    empty(database)
    with database.writing() as tx:
        kept = records.insert(tx, "p/endpoints/e", "endpoint", "p", {"displayName": "e"})

    with database.reading() as tx:
        found = records.get(tx, "p/endpoints/e")

    assert found == kept
    assert (found.id, found.etag, found.body) == ("e", "1", {"displayName": "e"})
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", found.created)
    assert found.updated == found.created


@given(st.dictionaries(TEXTS, JSON, max_size=5))
def test_any_json_comes_back_as_it_was_given(database: Database, body: dict[str, Any]) -> None:
    empty(database)
    with database.writing() as tx:
        records.insert(tx, "n", "model", "p", body)

    with database.reading() as tx:
        assert records.get(tx, "n").body == body


def test_a_name_that_is_taken_is_refused_and_what_has_it_is_untouched(database: Database) -> None:
    empty(database)
    with database.writing() as tx:
        first = records.insert(tx, "p/endpoints/e", "endpoint", "p", {"displayName": "first"})
        with pytest.raises(AlreadyExists, match="p/endpoints/e"):
            records.insert(tx, "p/endpoints/e", "endpoint", "p", {"displayName": "second"})

    with database.reading() as tx:
        assert records.get(tx, "p/endpoints/e") == first


def test_the_etag_moves_with_each_change_and_only_then(database: Database) -> None:
    empty(database)
    with database.writing() as tx:
        one = records.insert(tx, "n", "model", "p", {"displayName": "a"})
        two = records.update(tx, one, {"displayName": "b"})
        three = records.update(tx, two, {"displayName": "b"})
        found = records.get(tx, "n")

    assert len({one.etag, two.etag, three.etag}) == 3
    assert found == three
    assert (found.created, found.place, found.body) == (one.created, one.place, {"displayName": "b"})


@pytest.mark.parametrize("given", [None, ""])
def test_who_sends_no_etag_overwrites(database: Database, given: object) -> None:
    empty(database)
    with database.writing() as tx:
        records.insert(tx, "n", "model", "p", {}).check_etag(given)


@pytest.mark.parametrize("given", ["2", "01", 1, "AMEw9yM="])
def test_a_stale_etag_is_a_conflict_that_says_to_read_again(database: Database, given: object) -> None:
    empty(database)
    with database.writing() as tx:
        record = records.insert(tx, "n", "model", "p", {})
    record.check_etag("1")

    with pytest.raises(Conflict, match="read it again") as refused:
        record.check_etag(given)

    assert refused.value.field == "etag"


def test_what_was_deleted_is_not_found_and_its_name_is_free(database: Database) -> None:
    empty(database)
    with database.writing() as tx:
        first = records.insert(tx, "n", "model", "p", {})
        records.delete(tx, "n")
        with pytest.raises(NotFound, match="there is no n"):
            records.get(tx, "n")
        second = records.insert(tx, "n", "model", "p", {})

    assert second.place > first.place


def test_places_grow_so_that_lists_have_an_order(database: Database) -> None:
    empty(database)
    with database.writing() as tx:
        places = [records.insert(tx, f"n{i}", "model", "p", {}).place for i in range(5)]

    assert places == sorted(set(places))
