"""Which calls of Google's client work against the control plane, a row for each call.

    python tests/conformance/control_table.py > tests/conformance/CONTROL.md
    python -m pytest tests/clients/control_plane --junitxml=out/control.xml
    python tests/conformance/control_table.py out/control.xml        and how many of its cases passed

A row is a call that a test makes with the unmodified client, over TLS, and what comes of it; the test fails when
something else does. ``support.client_calls.call`` marks them.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

TESTS = Path(__file__).parents[1] / "clients" / "control_plane"
WORDS = {"ok": "ok", "refused": "refused as it should", "501": "501", "no": "no"}


@dataclass(frozen=True)
class Row:
    """A call, what comes of it and why, and the test that makes it."""

    said: str
    outcome: str
    why: str
    file: str
    test: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("junit", type=Path, nargs="?")
    junit = parser.parse_args().junit
    if junit is None:
        print("\n".join(table()))
        return 0
    counts = read(junit)
    print("\n".join(table(counts)))
    total = sum(counts.values(), Counter[str]())
    return 0 if counts and not total["failed"] else 1


def read(junit: Path) -> dict[tuple[str, str], Counter[str]]:
    """(file, test) → how many cases passed, failed, were skipped."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        file = case.get("classname", "").rpartition(".")[2]
        name = case.get("name", "").partition("[")[0]
        broken = case.find("failure") is not None or case.find("error") is not None
        outcome = "failed" if broken else "skipped" if case.find("skipped") is not None else "passed"
        counts.setdefault((file, name), Counter())[outcome] += 1
    return counts


def table(counts: dict[tuple[str, str], Counter[str]] | None = None) -> list[str]:
    """Markdown, file by file; with the counts of a run if there is one."""
    found = list(rows())
    kinds = Counter(row.outcome for row in found)
    lines = ["# What google-cloud-aiplatform asks of the control plane, and what comes of it", ""]
    lines += [f"{len(found)} calls: {', '.join(f'{kinds[key]} {word}' for key, word in WORDS.items())}."]
    columns = ["client call", "works", "test", *(["passed"] if counts is not None else [])]
    for path in _files():
        heading = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or path.stem).splitlines()[0]
        lines += ["", f"## {heading}", "", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
        for row in found:
            if row.file != path.stem:
                continue
            works = WORDS[row.outcome] + (f": {row.why}" if row.why else "")
            cells = [f"`{row.said}`", works, f"`{row.file}::{row.test}`"]
            if counts is not None:
                count = counts.get((row.file, row.test), Counter())
                cells.append(f"{count['passed']}/{count.total()}")
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


def rows() -> Iterator[Row]:
    """All rows, in the order of the files."""
    for path in _files():
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for each in node.decorator_list:
                    if isinstance(each, ast.Call) and isinstance(each.func, ast.Name) and each.func.id == "call":
                        said, outcome, why = [*(ast.literal_eval(part) for part in each.args), "ok", "", ""][:3]
                        yield Row(said, outcome, why if len(each.args) > 1 else "", path.stem, node.name)


def _files() -> list[Path]:
    return sorted(TESTS.glob("test_*.py"))


if __name__ == "__main__":
    sys.exit(main())
