"""The READMEs of the modules, roots and examples say what the configuration says."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.readme_tables import BEGIN, END, configurations, with_tables

FOLDERS = list(configurations())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_readme_has_the_inputs_and_outputs_of_the_configuration(folder: Path) -> None:
    assert (folder / "README.md").read_text(encoding="utf-8") == with_tables(folder), (
        "run python tests/support/readme_tables.py"
    )


def test_a_changed_default_and_a_pipe_reach_the_table(tmp_path: Path) -> None:
    (tmp_path / "variables.tf").write_text(
        'variable "a" {\n  description = "This or that: x | y."\n  type = string\n  default = "z"\n}\n'
        'variable "b" {\n  description = "Needed."\n  type = list(number)\n}\n'
    )
    (tmp_path / "outputs.tf").write_text('output "c" {\n  description = "One."\n  value = var.b[0]\n}\n')
    (tmp_path / "README.md").write_text(f"# m\n\n{BEGIN}\nold\n{END}\n\nlast\n")

    text = with_tables(tmp_path)

    assert '| `a` | This or that: x \\| y. | `string` | `"z"` |' in text
    assert "| `b` | Needed. | `list(number)` | required |" in text
    assert "| `c` | One. |" in text
    assert "old" not in text
    assert text.endswith(f"{END}\n\nlast\n")


@pytest.mark.parametrize("text", ["# m\n", f"{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n"])
def test_a_readme_without_one_place_for_the_tables_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)

    with pytest.raises(ValueError, match="needs one"):
        with_tables(tmp_path)
