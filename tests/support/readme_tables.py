"""The tables of inputs and outputs in the READMEs under terraform/, written from the configuration itself.

``python tests/support/readme_tables.py`` writes them; a test says whether they are current.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hcl2

ROOT = Path(__file__).resolve().parents[2] / "terraform"
BEGIN = "<!-- tables: written by tests/support/readme_tables.py -->"
END = "<!-- tables end -->"


def configurations(root: Path = ROOT) -> Iterator[Path]:
    """Every folder that holds a configuration of its own: modules, roots, examples."""
    for versions in sorted(root.glob("*/*/versions.tf")):
        yield versions.parent


def with_tables(folder: Path) -> str:
    """The folder's README as it should be.

    Raises:
        ValueError: the README has not exactly one place for the tables.
    """
    text = (folder / "README.md").read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after:
        raise ValueError(f"{folder.name}/README.md needs one {BEGIN!r} and one {END!r}")
    return f"{before}{BEGIN}\n{_tables(folder)}\n{END}{after}"


def _tables(folder: Path) -> str:
    inputs = [
        (f"`{name}`", _text(block["description"]), f"`{_expression(block['type'])}`", _default(block))
        for name, block in _blocks(folder / "variables.tf", "variable")
    ]
    outputs = [
        (f"`{name}`", _text(block["description"])) for name, block in _blocks(folder / "outputs.tf", "output")
    ]
    return "\n".join(
        [
            "## Inputs",
            "",
            *_table(("Name", "What it is", "Type", "Default"), inputs),
            "",
            "## Outputs",
            "",
            *_table(("Name", "What it is"), outputs),
        ]
    )


def _blocks(file: Path, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with file.open(encoding="utf-8") as stream:
        for each in hcl2.load(stream)[kind]:
            for name, block in each.items():
                yield _text(name), block


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _text(quoted: str) -> str:
    """The library keeps a string's quotes and escapes."""
    text: str = json.loads(quoted)
    return text


def _expression(value: Any) -> str:
    """The library wraps an expression as ``${…}``."""
    return str(value).removeprefix("${").removesuffix("}")


def _default(block: dict[str, Any]) -> str:
    if "default" not in block:
        return "required"
    value = block["default"]
    shown = value if isinstance(value, str) and value.startswith('"') else json.dumps(value, ensure_ascii=False)
    return f"`{shown}`"


def main() -> int:
    """Write every README anew."""
    for folder in configurations():
        (folder / "README.md").write_text(with_tables(folder), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
