"""The demo does what ``make demo`` promises."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from medport_local.phantom import demo, sheet


def test_the_demo_finds_both_backends_identical_and_leaves_a_contact_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = demo.run(tmp_path)

    printed = capsys.readouterr().out
    assert code == 0
    assert "identical" in printed
    assert "24 of 24 as drawn" in printed
    assert demo.NOTICE in printed
    with Image.open(tmp_path / "contact-sheet.png") as picture:
        assert picture.width == sheet.COLUMNS * sheet.TILE_PX
    assert len(list(tmp_path.glob("phantom-*.dcm"))) == 6
