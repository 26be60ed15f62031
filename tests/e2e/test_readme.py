"""What the README shows is what happens, and the examples run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support import forked

from medport import config
from medport_local.phantom import demo

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def demo_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the demo's X-rays under ``out/demo``."""
    directory = tmp_path_factory.mktemp("readme")
    demo.write_cases(directory / "out" / "demo")
    return directory


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_first_program_prints_what_the_readme_says(demo_files: Path) -> None:
    command = [sys.executable, "-c", blocks("python")[0]]
    printed = subprocess.run(
        command, cwd=demo_files, stdout=subprocess.PIPE, text=True, timeout=120, check=True
    ).stdout

    shown = blocks("text")[0]
    assert re.sub(r"\d+ ms", "N ms", printed) == re.sub(r"\d+ ms", "N ms", shown)


def test_the_profiles_of_the_readme_are_valid(tmp_path: Path) -> None:
    text = blocks("toml")[0]
    (tmp_path / "medport.toml").write_text(text)

    for name in tomllib.loads(text)["profiles"]:
        resolved = config.resolve(name, environment={}, directory=tmp_path)
        assert resolved.chain


def test_the_two_commands_stand_on_lines_of_their_own() -> None:
    lines = README.splitlines()

    assert "make demo" in lines
    assert "make test" in lines


@pytest.mark.parametrize(
    ("program", "arguments", "expected"),
    [
        ("report.py", ["out/demo/phantom-02.png"], "Pleural effusion"),
        ("stream_async.py", ["out/demo/phantom-01.png", "out/demo/phantom-03.png"], "Pneumothorax"),
        ("classify_folder.py", ["out/demo"], "phantom-11.png cardiomegaly"),
        ("deploy_on_prem.py", ["out/demo/phantom-02.png"], "Pleural effusion"),
        ("search.py", ["a pleural effusion", "out/demo/phantom-01.png", "out/demo/phantom-02.png"], "phantom-02"),
    ],
)
def test_an_example_runs_as_it_stands(demo_files: Path, program: str, arguments: list[str], expected: str) -> None:
    done = forked.run(str(ROOT / "examples" / program), *arguments, cwd=demo_files, timeout=120)

    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert "reliminary" in done.stdout


def test_every_example_is_tested() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == {
        "report.py",
        "stream_async.py",
        "classify_folder.py",
        "deploy_on_prem.py",
        "search.py",
    }
