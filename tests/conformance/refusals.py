"""What is refused, where, in which words, and which test holds it: ``refusals.toml`` as a table.

    python tests/conformance/refusals.py > tests/conformance/REFUSALS.md

``test_refusal_table`` looks whether each test is there and each module says the words.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EVERY_WAY = "unit/local/test_refusals.py::test_bad_snapshot_is_refused_by_name_on_every_way_in"
_HEAD = """\
# What is refused, and the test that holds it

Each is refused by the name of the file, before a weight of it is used. The words are a part of the error's.
*Every way in* is `test_refusals::test_bad_snapshot_is_refused_by_name_on_every_way_in`: verified at once, with the
weights verified as they are loaded, in-process, as a container, and into the store."""


@dataclass(frozen=True)
class Refusal:
    """One attack."""

    section: str
    attack: str
    where: str
    """The module that refuses it."""
    words: str = ""
    """A part of the message, as the module writes it; none where nothing of the attack is ever looked at."""
    test: str = EVERY_WAY
    """``path::name`` below ``tests``."""
    case: str | None = None
    """Of ``EVERY_WAY``."""

    @property
    def test_file(self) -> Path:
        """The file of ``test``."""
        return HERE.parent / self.test.partition("::")[0]

    @property
    def test_name(self) -> str:
        """The function of ``test``."""
        return self.test.partition("::")[2]

    def line(self) -> str:
        """Its row."""
        words = f"“{self.words}”" if self.words else "nothing of it is looked at"
        held = f"every way in: {self.case}" if self.case else f"`{self.test_file.stem}::{self.test_name}`"
        return f"| {self.attack} | `{self.where}` | {words} | {held} |"


def refusals() -> list[Refusal]:
    """All of them, in the order of the file."""
    return [Refusal(**each) for each in tomllib.loads((HERE / "refusals.toml").read_text("utf-8"))["refusal"]]


def table() -> list[str]:
    """Markdown, section by section."""
    return [*_HEAD.splitlines(), *_sections()]


def _sections() -> Iterator[str]:
    for section, rows in groupby(refusals(), key=lambda each: each.section):
        yield from ("", f"## {section}", "", "| attack | refused in | words | test |", "| --- | --- | --- | --- |")
        yield from (row.line() for row in rows)


def functions_of(path: Path) -> set[str]:
    """Names of the functions of a file."""
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def keys_of(path: Path, name: str) -> set[str]:
    """The keys of a dictionary that a file assigns to an annotated name."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            assert isinstance(node.value, ast.Dict)
            return {str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)}
    raise AssertionError(f"{path.name} has no {name}")


if __name__ == "__main__":
    print("\n".join(table()))
