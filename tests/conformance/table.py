"""What of the serving contract is held, a row for each field.

    python tests/conformance/table.py > tests/conformance/TABLE.md      which test holds what
    python -m pytest tests/conformance --junitxml=out/conformance.xml
    python tests/conformance/table.py out/conformance.xml               and how many of its cases passed

A row is a test: what the contract says is its docstring.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).parent


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
    print(f"\n{len(counts)} rows, {total['passed']} of {total.total()} cases passed")
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
    lines = ["# The serving contract, and the test that holds each part of it"]
    columns = ("contract", "test") if counts is None else ("contract", "test", "passed")
    for path in sorted(HERE.glob("test_*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
        if path.stem in ("test_table", "test_refusal_table") or path.stem.startswith("test_control_"):
            continue
        lines += ["", f"## {(ast.get_docstring(tree) or path.stem).splitlines()[0]}", ""]
        lines += [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
        for node in tests:
            said = " ".join((ast.get_docstring(node) or "").split()).replace("|", "\\|")
            cells = [said, f"`{path.stem}::{node.name}`"]
            if counts is not None:
                count = counts.get((path.stem, node.name), Counter())
                cells.append(f"{count['passed']}/{count.total()}")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
