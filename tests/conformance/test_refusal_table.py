"""The table of attacks is the one that is committed; each test that it names is there, and each module says so."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("conformance_refusals", HERE / "refusals.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


REFUSALS = _load()
each = pytest.mark.parametrize("row", REFUSALS.refusals(), ids=lambda row: f"{row.section}: {row.attack}")


def test_table_is_current() -> None:
    committed = (HERE / "REFUSALS.md").read_text("utf-8").splitlines()

    assert committed == REFUSALS.table(), "run tests/conformance/refusals.py again"


@each
def test_refusal_is_held_by_a_test_that_is_there(row: Any) -> None:
    assert row.test_name in REFUSALS.functions_of(row.test_file)


@each
def test_refusal_is_in_the_words_of_its_module(row: Any) -> None:
    assert row.words in (REFUSALS.ROOT / row.where).read_text("utf-8")


def test_what_is_tried_on_every_way_in_is_what_the_table_says() -> None:
    tried = REFUSALS.keys_of(HERE.parent / "unit/local/test_refusals.py", "ATTACKS")
    told = [row.case for row in REFUSALS.refusals() if row.case is not None]

    assert sorted(told) == sorted(tried)
