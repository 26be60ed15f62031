"""A contact sheet: each drawing with what was drawn, what was found, and both boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from medport_local.phantom.draw import Box, Gray8

COLUMNS, TILE_PX, CAPTION_PX = 6, 224, 36
DRAWN, FOUND, WRONG, INK, PAPER = "#35c46a", "#ff9a2e", "#ff5a5a", "#f2f2f2", "#16181d"


@dataclass(frozen=True, slots=True)
class Panel:
    """One image of the sheet. Boxes are (top, left, bottom, right) in 0..1000 of the image."""

    pixels: Gray8
    drawn: str
    found: str
    drawn_box: Box | None
    found_box: Box | None


def write(path: Path, panels: Sequence[Panel]) -> Path:
    """Draw the panels row by row and save them as one PNG."""
    rows = -(-len(panels) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * TILE_PX, rows * (TILE_PX + CAPTION_PX)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, panel in enumerate(panels):
        x, y = i % COLUMNS * TILE_PX, i // COLUMNS * (TILE_PX + CAPTION_PX)
        sheet.paste(
            Image.fromarray(panel.pixels).resize((TILE_PX - 4, TILE_PX - 4)).convert("RGB"), (x + 2, y + 2)
        )
        for box, colour in ((panel.drawn_box, DRAWN), (panel.found_box, FOUND)):
            if box is not None:
                pen.rectangle(_corners(box, x + 2, y + 2, TILE_PX - 4), outline=colour, width=2)
        pen.text((x + 4, y + TILE_PX + 2), f"drawn: {panel.drawn}", fill=DRAWN)
        right = panel.drawn == panel.found
        pen.text((x + 4, y + TILE_PX + 18), f"found: {panel.found}", fill=INK if right else WRONG)
    sheet.save(path)
    return path


def _corners(box: Box, x: int, y: int, side: int) -> tuple[float, float, float, float]:
    top, left, bottom, right = (min(1000, max(0, v)) * side / 1000 for v in box)
    return x + min(left, right), y + min(top, bottom), x + max(left, right), y + max(top, bottom)
