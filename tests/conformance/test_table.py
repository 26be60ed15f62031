"""The table of the contract is the one that is committed, and no row of it is empty."""

from __future__ import annotations

import importlib.util
from pathlib import Path

HERE = Path(__file__).parent


def test_table_is_current() -> None:
    spec = importlib.util.spec_from_file_location("conformance_table", HERE / "table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    lines = module.table()

    assert not [line for line in lines if line.startswith("|  |")]
    assert (HERE / "TABLE.md").read_text("utf-8").splitlines() == lines, "run tests/conformance/table.py again"
