"""SIGKILL before and after every COMMIT, engine start and engine end of a walk; then a restart, killed too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.planes import PROJECT

Json = dict[str, Any]
ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> list[Json]:
    """What was found after each point; the last is of a walk that came to its end."""
    command = [sys.executable, "-m", "tests.support.control_walk", str(tmp_path_factory.mktemp("walk"))]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_the_walk_is_killed_at_many_points_and_then_comes_to_its_end(points: list[Json]) -> None:
    assert [point["ended"] for point in points] == [False] * (len(points) - 1) + [True]
    assert len(points) > 100
    assert sum(point["again"] for point in points) > 50


def test_every_operation_is_done_or_failed_after_the_restart(points: list[Json]) -> None:
    for point in points:
        for operation in point["operations"]:
            assert operation["done"], (point["point"], operation)
            assert ("response" in operation) != ("error" in operation), (point["point"], operation)


def test_no_operation_that_a_caller_was_told_of_is_lost_and_none_that_was_done_changes(points: list[Json]) -> None:
    for point in points:
        kept = {operation["name"]: operation for operation in point["operations"]}
        for told in point["told"]:
            assert told["name"] in kept, (point["point"], told)
            if told["done"]:
                assert kept[told["name"]] == told, point["point"]


def test_no_operation_fails_but_the_one_that_was_meant_to(points: list[Json]) -> None:
    for point in points:
        failed = [operation["error"] for operation in point["operations"] if "error" in operation]
        assert all("does not start" in error["message"] for error in failed), (point["point"], failed)


def test_every_split_adds_up_and_names_what_is_deployed(points: list[Json]) -> None:
    for point in points:
        split, rows = point["state"]["split"], point["state"]["deployed"]
        assert sum(split.values()) in (0, 100), (point["point"], split)
        assert split.keys() <= rows.keys(), (point["point"], split, rows)


def test_no_deployment_is_half_and_none_is_without_its_endpoint(points: list[Json]) -> None:
    for point in points:
        assert set(point["state"]["deployed"].values()) <= {"READY"}, (point["point"], point["state"])
        assert point["orphans"] == 0


def test_exactly_the_engines_of_ready_models_run(points: list[Json]) -> None:
    for point in points:
        assert point["engines"] == sorted(f"e/{id_}" for id_ in point["state"]["deployed"]), point["point"]


def test_requests_follow_the_split_after_the_restart(points: list[Json]) -> None:
    for point in points:
        counts = {id_: point["turns"].count(id_) for id_ in set(point["turns"])}
        assert counts == point["state"]["split"], point["point"]


def test_what_there_is_after_the_restart_is_what_a_step_leaves_or_the_step_before(points: list[Json]) -> None:
    undisturbed = points[-1]["states"]
    nothing = {"resources": [], "split": {}, "deployed": {}}
    for point in points:
        ended = len(point["states"])
        before = undisturbed[ended - 1] if ended else nothing
        possible = [before, *undisturbed[ended : ended + 1], *SEVERAL]
        assert point["state"] in possible, (point["point"], point["state"], possible)


def test_everything_can_be_taken_down_after_the_restart(points: list[Json]) -> None:
    for point in points:
        state, engines = point["left"]
        assert (state["resources"], state["deployed"], engines) == ([], {}, []), point["point"]


def _several(deployed: list[str], split: dict[str, int]) -> Json:
    parent = PROJECT.parent
    names = [f"{parent}/endpoints/e", f"{parent}/models/m", f"{parent}/models/m@1", f"{parent}/models/m@2"]
    return {"resources": names, "split": split, "deployed": dict.fromkeys(deployed, "READY")}


SEVERAL = [_several(["2", "3", "4"], {"2": 50, "3": 50})]
"""One step asks for two operations: the first may be there alone."""
