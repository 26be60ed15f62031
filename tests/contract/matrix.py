"""Which promise holds where: a table of test by backend, from a JUnit file.

    python -m pytest tests/contract --junitxml=out/contract.xml
    python tests/contract/matrix.py out/contract.xml

Cases of one test are counted together: ``12`` means that all twelve passed, ``10/12`` that two did not.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

COLUMNS = tuple(f"{place}-{colour}" for place in ("in-process", "local", "vertex") for colour in ("sync", "async"))
_CASE = re.compile(r"(?P<test>[^\[]+)\[(?P<column>[a-z-]+?-(?:sync|async))(?:-(?P<case>.*))?\]", re.DOTALL)

Counts = dict[tuple[str, str], Counter[str]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("junit", type=Path)
    counts = read(parser.parse_args().junit)
    print(table(counts))
    return 0 if counts and not any(c["failed"] for c in counts.values()) else 1


def read(junit: Path) -> Counts:
    """(file and test, backend and colour) → how many cases passed, failed, were skipped."""
    counts: Counts = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        found = _CASE.fullmatch(case.get("name", ""))
        if found is None:
            continue
        file = case.get("classname", "").rpartition(".")[2].removeprefix("test_")
        name = f"{file}: {found['test'].removeprefix('test_').replace('_', ' ')}"
        broken = case.find("failure") is not None or case.find("error") is not None
        outcome = "failed" if broken else "skipped" if case.find("skipped") is not None else "passed"
        counts.setdefault((name, found["column"]), Counter())[outcome] += 1
    return counts


def table(counts: Counts) -> str:
    """Markdown, the tests in the order they ran, the sums below."""
    tests = list(dict.fromkeys(test for test, _ in counts))
    rows = [[test, *(cell(counts.get((test, column), Counter())) for column in COLUMNS)] for test in tests]
    sums = [sum((c for (_, at), c in counts.items() if at == column), Counter()) for column in COLUMNS]
    lines = [["promise", *COLUMNS], ["---"] * (len(COLUMNS) + 1), *rows, ["all", *map(cell, sums)]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(count: Counter[str]) -> str:
    if not count:
        return "-"
    passed, total = count["passed"], count.total()
    return str(total) if passed == total else f"{passed}/{total}"


if __name__ == "__main__":
    sys.exit(main())
