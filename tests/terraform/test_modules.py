"""Every module, root and example: terraform's format, its own validation, and its own tests, counted."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.configurations import SOURCE, Cli, checked, directories, refused, runs

EVERY = directories()


@pytest.fixture(params=EVERY)
def directory(request: pytest.FixtureRequest, configurations: Path) -> Path:
    return configurations / str(request.param)


@pytest.fixture
def cli(directory: Path, provider: dict[str, str]) -> Cli:
    return Cli(directory, provider).ready()


def test_there_are_modules_roots_and_an_example() -> None:
    kinds = {each.partition("/")[0] for each in EVERY}

    assert kinds == {"modules", "roots", "examples"}


def test_every_file_has_terraforms_own_format(terraform: str) -> None:
    ran = subprocess.run(
        [terraform, "fmt", "-check", "-recursive", "-diff", str(SOURCE)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout


def test_configuration_fits_the_providers_schema_without_a_warning(cli: Cli) -> None:
    said = cli("validate", "-json", codes=(0, 1)).json()

    assert said["diagnostics"] == []
    assert said["valid"] is True


def test_its_own_tests_ran_and_all_passed(cli: Cli) -> None:
    said = cli("test", "-json", codes=(0, 1))

    counted = runs(said)
    assert counted.good, (counted, said.out[-5000:])
    assert counted.files == len(list(cli.directory.glob("tests/*.tftest.hcl")))


def test_every_variable_with_a_validation_is_refused_by_some_test(directory: Path) -> None:
    assert checked(directory) - refused(directory) == set()


@pytest.mark.parametrize("module", [each for each in EVERY if each.startswith("modules/")])
def test_module_leaves_the_provider_to_its_caller(module: str) -> None:
    text = "\n".join(file.read_text(encoding="utf-8") for file in (SOURCE / module).glob("*.tf"))

    assert "required_providers {" in text
    assert "\nprovider " not in text


def test_directory_without_tests_does_not_count_as_passed(tmp_path: Path, provider: dict[str, str]) -> None:
    (tmp_path / "main.tf").write_text('output "one" { value = 1 }\n')
    cli = Cli(tmp_path, provider).ready()

    said = cli("test", "-json")

    assert said.code == 0  # What terraform itself calls a success.
    assert not runs(said).good


def test_directory_with_a_skipped_test_does_not_count_as_passed(tmp_path: Path, provider: dict[str, str]) -> None:
    (tmp_path / "main.tf").write_text('output "one" { value = 1 }\n')
    (tmp_path / "tests").mkdir()
    assertion = 'assert {\n condition = output.one == %s\n error_message = "other"\n }'
    right, wrong = (f'run "{name}" {{\n {assertion % value}\n}}\n' for name, value in (("a", 1), ("b", 2)))
    (tmp_path / "tests" / "some.tftest.hcl").write_text(right + wrong)
    cli = Cli(tmp_path, provider).ready()

    counted = runs(cli("test", "-json", codes=(1,)))

    assert (counted.files, counted.passed, counted.others) == (1, 1, 1)
    assert not counted.good
