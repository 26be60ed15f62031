"""A server that dies with a job under way: the next one ends it as if nothing had been."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[2] / "support" / "killed_batch.py"


@pytest.fixture(scope="module")
def walked(siglip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    root = tmp_path_factory.mktemp("killed")
    ran = subprocess.run(
        [sys.executable, str(PROGRAM), str(siglip_folder), str(root)], capture_output=True, text=True, timeout=170
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return root, [json.loads(line) for line in ran.stdout.splitlines()]


def written(root: Path, step: int) -> dict[str, bytes]:
    """What is in the one folder of results."""
    (folder,) = (root / str(step) / "files" / "out").glob("prediction-*")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_whenever_a_server_is_killed_the_results_are_those_of_an_undisturbed_run(
    walked: tuple[Path, list[dict[str, Any]]],
) -> None:
    root, steps = walked
    undisturbed = written(root, 0)

    assert sorted(undisturbed) == [
        "prediction.errors_stats-00001-of-00005",
        "prediction.errors_stats-00003-of-00005",
        *(f"prediction.results-0000{i}-of-00005" for i in range(5)),
    ]
    assert sum(each["killed"] for each in steps) > 25
    for each in steps:
        assert written(root, each["step"]) == undisturbed, each


def test_rows_of_files_that_are_whole_are_not_asked_again(walked: tuple[Path, list[dict[str, Any]]]) -> None:
    _, steps = walked
    killed = [each for each in steps if each["killed"]]

    assert len({len(each["whole"]) for each in killed}) == 6
    for each in killed:
        assert set(each["asked"]) & set(each["whole"]) == set(), each
