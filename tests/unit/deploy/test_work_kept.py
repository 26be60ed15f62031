"""What an open run was made of is kept whole, for its owner alone, and is gone with the run."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from support import deploy_plans

from medport.errors import ConfigError, PreconditionFailed
from medport_deploy.work import kept as work_kept

PLAN = "a" * 64


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    data = deploy_plans.spec_bytes()
    lock = deploy_plans.lock(deploy_plans.spec())

    file = work_kept.keep(tmp_path, PLAN, b"{}", data, lock)
    found = work_kept.load(tmp_path, PLAN)

    assert (found.spec_bytes, found.lock.lock_id) == (data, lock.lock_id)
    assert (found.plan_file, file.read_bytes()) == (file, b"{}")
    assert work_kept.has(tmp_path, PLAN)
    assert not work_kept.has(tmp_path, "b" * 64)


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    file = work_kept.keep(tmp_path, PLAN, b"{}", b"x", deploy_plans.lock(deploy_plans.spec()))

    modes = {stat.S_IMODE(each.stat().st_mode) for each in file.parent.iterdir()}

    assert (stat.S_IMODE(file.parent.stat().st_mode), modes) == (0o700, {0o600})


def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    lock = deploy_plans.lock(deploy_plans.spec())
    file = work_kept.keep(tmp_path, PLAN, b"first", b"x", lock)

    work_kept.keep(tmp_path, PLAN, b"second", b"y", lock)

    assert file.read_bytes() == b"first"
    assert [each.name for each in file.parent.parent.iterdir()] == [PLAN]


def test_other_runs_are_forgotten(tmp_path: Path) -> None:
    lock = deploy_plans.lock(deploy_plans.spec())
    for plan in (PLAN, "b" * 64):
        work_kept.keep(tmp_path, plan, b"{}", b"x", lock)

    work_kept.forget(tmp_path, [PLAN])

    assert [each.name for each in (tmp_path / "runs").iterdir()] == [PLAN]
    with pytest.raises(PreconditionFailed, match="not there any more"):
        work_kept.load(tmp_path, "b" * 64)


def test_where_nothing_can_be_written_nothing_is_begun(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")

    with pytest.raises(ConfigError, match="nothing is begun without a copy"):
        work_kept.keep(tmp_path, PLAN, b"{}", b"x", deploy_plans.lock(deploy_plans.spec()))
