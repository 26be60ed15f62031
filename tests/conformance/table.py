"""What of the serving contract is held, a row for each field: a table from a JUnit file.

    python -m pytest tests/conformance --junitxml=out/conformance.xml
    python tests/conformance/table.py out/conformance.xml

A row is a test: what the contract says (the first line of the test's docstring), and how many cases passed.
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
    parser.add_argument("junit", type=Path)
    counts = read(parser.parse_args().junit)
    print("\n".join(table(counts)))
    return 0 if counts and not any(count["failed"] for count in counts.values()) else 1


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


def table(counts: dict[tuple[str, str], Counter[str]]) -> list[str]:
    """Markdown, file by file."""
    lines = []
    for path in sorted(HERE.glob("test_*.py")):
        tree = ast.parse(path.read_text())
        lines += [
            "",
            f"**{(ast.get_docstring(tree) or path.stem).splitlines()[0]}**",
            "",
            "| contract | test | passed |",
        ]
        lines.append("| --- | --- | --- |")
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            count = counts.get((path.stem, node.name), Counter())
            said = " ".join((ast.get_docstring(node) or "").split()).replace("|", "\\|")
            lines.append(f"| {said} | `{node.name}` | {count['passed']}/{count.total()} |")
    total = sum(counts.values(), Counter[str]())
    return [*lines, "", f"{len(counts)} rows, {total['passed']} of {total.total()} cases passed"]


if __name__ == "__main__":
    sys.exit(main())
