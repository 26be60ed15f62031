"""Which paths may stand in a bundle."""

from __future__ import annotations

import os
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medport_local.bundle import paths


@settings(max_examples=300, deadline=None)
@given(path=st.text(max_size=60))
def test_a_path_without_fault_stays_inside_its_folder(path: str) -> None:
    if paths.fault_of(path) is None:
        inside = os.path.normpath(os.path.join("/site", path))

        assert inside == f"/site/{path}"
        assert path.isprintable()


@settings(max_examples=200, deadline=None)
@given(names=st.lists(st.text("aAbBßSsﬁi/İı", min_size=1, max_size=6), max_size=5, unique=True))
def test_paths_without_twins_can_stand_on_a_disk_that_folds_case(names: list[str]) -> None:
    names = [name for name in names if paths.fault_of(name) is None]
    if paths.twins(names) is not None:
        return
    files: set[str] = set()
    folders: set[str] = set()
    for name in names:
        *above, _ = (folded := name.casefold()).split("/")

        assert folded not in files | folders
        files.add(folded)
        folders.update("/".join(above[:count]) for count in range(1, len(above) + 1))
    assert not files & folders


def one_by_one(names: list[str]) -> bool:
    """The same in the plainest way: every beginning of every path is remembered."""
    spelled: dict[str, str] = {}
    files: set[str] = set()
    folders: set[str] = set()
    for name in names:
        parts = name.split("/")
        for count in range(1, len(parts) + 1):
            shown = "/".join(parts[:count])
            folded = paths._fold(shown)
            if spelled.setdefault(folded, shown) != shown or folded in files:
                return True
            if count == len(parts) and folded in folders:
                return True
            (files if count == len(parts) else folders).add(folded)
    return False


@settings(max_examples=400, deadline=None)
@given(names=st.lists(st.text("aAß!/İı.é", min_size=1, max_size=7), max_size=6, unique=True))
def test_twins_are_found_exactly_where_a_plain_search_finds_them(names: list[str]) -> None:
    names = [name for name in names if paths.fault_of(name) is None]

    assert (paths.twins(names) is not None) == one_by_one(names)


def test_looking_for_twins_takes_memory_by_the_length_of_the_paths_and_not_by_their_depth() -> None:
    names = [f"documents/{number:05d}/" + "a/" * 490 + "b" for number in range(100)]
    tracemalloc.start()
    try:
        assert paths.twins(names) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 20 * sum(map(len, names))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("a/" * 32 + "b", "lies deeper than 32 folders"),
        ("a/\N{ACCOUNT OF}.pdf", "spelled with a /"),
        ("a/\N{FULLWIDTH SOLIDUS}.pdf", "spelled with a /"),
    ],
)
def test_path_that_is_too_deep_or_hides_a_separator_is_refused(path: str, said: str) -> None:
    assert said in (paths.fault_of(path) or "")


def test_path_of_32_parts_may_stand_in_a_bundle() -> None:
    assert paths.fault_of("a/" * 31 + "b") is None
