"""Which paths may stand in a bundle."""

from __future__ import annotations

import os

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
