"""An overload run as a picture: goodput, memory and refusals over time, in SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WIDTH, HEIGHT, LEFT, GAP = 860, 170, 70, 46
WINDOW = 10
"""Looks at the engine that one point of a rate spans."""
MIB = 2**20

Line = tuple[str, str, Sequence[float]]
"""Name, colour, one value for each moment."""


def plot(found: dict[str, Any]) -> str:
    """SVG of what ``engine_overload`` wrote."""
    moments = found["moments"]
    at = [each["at_s"] for each in moments]
    flat = [1.0] * len(at)
    declared = found["declared_bytes"] / MIB
    grown = [(each["rss_bytes"] - found["baseline_rss_bytes"]) / MIB for each in moments]
    panels: list[tuple[str, list[Line]]] = [
        (
            "tokens/s of whole answers",
            [
                ("goodput", "#1f6fb2", _rate(at, [each["good_tokens"] for each in moments])),
                ("peak, measured before", "#999999", [found["peak_tokens_per_s"] * one for one in flat]),
            ],
        ),
        (
            "MiB",
            [
                ("memory grown", "#b2431f", grown),
                ("keys and values lent", "#1f6fb2", [each["kv_bytes_used"] / MIB for each in moments]),
                ("declared", "#999999", [declared * one for one in flat]),
            ],
        ),
        (
            "requests",
            [
                ("refused a second", "#b2431f", _rate(at, [each["refused"] for each in moments])),
                ("waiting", "#1f6fb2", [each["queued"] for each in moments]),
                ("running", "#2a8f5a", [each["running"] for each in moments]),
            ],
        ),
    ]
    drawn = [_panel(i, title, at, lines) for i, (title, lines) in enumerate(panels)]
    size = f'width="{WIDTH}" height="{len(panels) * (HEIGHT + GAP) + 20}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect {size} fill="white"/>', *drawn, "</svg>", ""])


def _rate(at: Sequence[float], counts: Sequence[int]) -> list[float]:
    """Growth a second of a count, over the last few moments."""
    rates = []
    for i in range(len(at)):
        start = max(0, i - WINDOW)
        rates.append((counts[i] - counts[start]) / (at[i] - at[start]) if i > start else 0.0)
    return rates


def _panel(number: int, title: str, at: Sequence[float], lines: Sequence[Line]) -> str:
    top, width = number * (HEIGHT + GAP) + 24, WIDTH - LEFT - 20
    most = max((value for _, _, values in lines for value in values), default=1.0) or 1.0
    end = at[-1] or 1.0
    parts = [f'<text x="{LEFT}" y="{top - 8}" font-weight="bold">{title}</text>']
    for share in (0, 0.5, 1):
        y = top + HEIGHT * (1 - share)
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + width}" y1="{y:.0f}" y2="{y:.0f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{most * share:.4g}</text>')
    for i, (name, colour, values) in enumerate(lines):
        points = " ".join(
            f"{LEFT + width * t / end:.1f},{top + HEIGHT * (1 - value / most):.1f}"
            for t, value in zip(at, values, strict=True)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="{LEFT + 220 + 170 * i}" y="{top - 8}" fill="{colour}">{name}</text>')
    parts.append(f'<text x="{LEFT + width}" y="{top + HEIGHT + 15}" text-anchor="end">{end:.0f} s</text>')
    return "\n".join(parts)
