"""Files of a deployment's state: nobody is waited for, and nobody else may write."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import deploying

from medport.errors import ConfigError, PolicyError
from medport_deploy import state_files
from medport_deploy.past import history
from medport_deploy.plan import file as plan_file
from medport_deploy.run import journal, run_lock
from medport_deploy.trial import golden


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (history.FILE_NAME, history.read),
        ("apply-1.jsonl", journal.all_of),
        (plan_file.PLAN_NAME, lambda place: plan_file.read(place / plan_file.PLAN_NAME, medport="1.0")),
        ("golden/a.json", lambda place: golden.load(place, "a", "reader")),
        ("run.lock", lambda place: run_lock.held(place, "apply").__enter__()),
    ],
)
def test_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(
    tmp_path: Path, name: str, read: Callable[[Path], Any]
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)

    with pytest.raises(ConfigError, match=f"{Path(name).name} is no regular file"):
        read(tmp_path)


def test_no_more_is_read_than_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")

    assert (state_files.read(tmp_path / "file"), state_files.read(tmp_path / "file", 3)) == (b"12345", b"123")


def test_directories_are_for_their_user_alone_at_every_level_whatever_the_umask(tmp_path: Path) -> None:
    directory = deploying.directory(tmp_path, "chest")
    before = os.umask(0)
    try:
        state_files.make_directory(directory)
    finally:
        os.umask(before)

    made = [directory, directory.parent, directory.parent.parent]
    assert {stat.S_IMODE(each.stat().st_mode) for each in made} == {0o700}
    assert directory.parent.parent.parent == tmp_path


@pytest.mark.parametrize("mode", [0o770, 0o707])
@pytest.mark.parametrize("level", [".medport", ".medport/deploy", ".medport/deploy/chest"])
def test_state_in_which_others_may_write_is_refused_with_the_way_to_end_that(
    tmp_path: Path, level: str, mode: int
) -> None:
    directory = deploying.directory(tmp_path, "chest")
    state_files.make_directory(directory)
    (tmp_path / level).chmod(mode)

    with pytest.raises(PolicyError, match="others may write") as refused:
        state_files.require_private(directory, tmp_path)

    assert f"chmod go-w {tmp_path / level};" in str(refused.value.remedy)


def test_state_that_others_may_read_or_that_is_not_there_is_taken(tmp_path: Path) -> None:
    directory = deploying.directory(tmp_path, "chest")
    state_files.require_private(directory, tmp_path)
    directory.mkdir(parents=True, mode=0o755)
    tmp_path.chmod(0o777)  # of the specification's own directory nothing is said

    state_files.require_private(directory, tmp_path)
