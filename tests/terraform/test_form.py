"""The form that every module, root and example keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hcl2
import pytest
from support.readme_tables import ROOT, configurations

FOLDERS = list(configurations())


def blocks(folder: Path, kind: str) -> list[tuple[str, dict[str, Any]]]:
    with (folder / f"{kind}s.tf").open(encoding="utf-8") as file:
        return [(name, block) for each in hcl2.load(file)[kind] for name, block in each.items()]


def test_every_folder_with_a_configuration_is_looked_at() -> None:
    assert set(FOLDERS) == {file.parent for file in ROOT.rglob("*.tf") if ".terraform" not in file.parts}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
@pytest.mark.parametrize("kind", ["variable", "output"])
def test_variables_and_outputs_stand_in_the_order_of_the_alphabet(folder: Path, kind: str) -> None:
    names = [name for name, _ in blocks(folder, kind)]

    assert names == sorted(names)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_variable_and_output_says_what_it_is(folder: Path) -> None:
    both = blocks(folder, "variable") + blocks(folder, "output")

    silent = [name for name, block in both if "description" not in block]

    assert silent == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_variable_refuses_null_unless_null_is_its_default(folder: Path) -> None:
    for name, variable in blocks(folder, "variable"):
        null_by_default = "default" in variable and variable["default"] in (None, "null")

        assert (variable.get("nullable") is False) is not null_by_default, name


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_module_has_a_floor_and_all_else_a_range_of_provider_versions(folder: Path) -> None:
    text = (folder / "versions.tf").read_text(encoding="utf-8")

    assert 'required_version = ">= 1.11"' in text
    expected = ">= 7.42" if folder.parent.name == "modules" else ">= 7.42, < 9.0"
    assert f'version = "{expected}"' in text
