"""What was verified is kept whole, for its owner alone, and is not taken when somebody has changed it."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest
from support.deploy_plans import lock, spec, spec_bytes

from medport.errors import ConfigError, NotFound, VerificationError
from medport_deploy.past import approved


def test_pair_comes_back_as_it_was(tmp_path: Path) -> None:
    data = spec_bytes() + b"# with a comment\n"
    kept = lock(spec())

    place = approved.keep(tmp_path, data, kept)

    assert approved.load(tmp_path, kept.lock_id) == (data, kept)
    assert place == tmp_path / "approved" / kept.lock_id
    assert {stat.S_IMODE(each.stat().st_mode) for each in place.iterdir()} == {0o600}
    assert {stat.S_IMODE(each.stat().st_mode) for each in (place, place.parent)} == {0o700}


def test_same_pair_twice_is_kept_once_and_nothing_else_is_left(tmp_path: Path) -> None:
    kept = lock(spec())

    first = approved.keep(tmp_path, spec_bytes(), kept)
    second = approved.keep(tmp_path, spec_bytes(), kept)

    assert first == second
    assert sorted(each.name for each in tmp_path.rglob("*") if each.is_file()) == ["medport.lock", "medport.yaml"]
    assert [each.name for each in (tmp_path / "approved").iterdir()] == [kept.lock_id]


def test_specification_that_was_verified_last_under_a_lock_counts(tmp_path: Path) -> None:
    kept = lock(spec())
    approved.keep(tmp_path, spec_bytes(), kept)

    more = spec_bytes(model={"replicas": {"min": 2}})
    approved.keep(tmp_path, more, kept)

    assert approved.load(tmp_path, kept.lock_id)[0] == more


def test_locks_are_kept_side_by_side(tmp_path: Path) -> None:
    one, two = lock(spec()), lock(spec(), said="two")
    approved.keep(tmp_path, spec_bytes(), one)

    approved.keep(tmp_path, spec_bytes(), two)

    assert approved.load(tmp_path, one.lock_id)[1] == one
    assert approved.load(tmp_path, two.lock_id)[1] == two


def test_specification_other_than_the_history_says_is_refused_also_where_the_lock_says_nothing_of_it(
    tmp_path: Path,
) -> None:
    kept = lock(spec())
    place = approved.keep(tmp_path, spec_bytes(), kept)
    was = hashlib.sha256(spec_bytes()).hexdigest()
    before = approved.load(tmp_path, kept.lock_id, spec_sha256=was)
    (place / "medport.yaml").write_bytes(spec_bytes(model={"replicas": {"min": 9, "max": 9}}))

    with pytest.raises(VerificationError, match="was changed since it was approved"):
        approved.load(tmp_path, kept.lock_id, spec_sha256=was)

    assert before == (spec_bytes(), kept)


def test_lock_that_was_never_verified_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="was never verified here"):
        approved.load(tmp_path, "a" * 64)


def test_other_lock_under_the_same_id_is_refused_by_keep_and_by_load(tmp_path: Path) -> None:
    kept = lock(spec())
    place = approved.keep(tmp_path, spec_bytes(), kept)
    (place / "medport.lock").write_text(lock(spec(), said="another").text())

    with pytest.raises(VerificationError, match="was changed since it was approved"):
        approved.keep(tmp_path, spec_bytes(), kept)
    with pytest.raises(VerificationError, match="was changed since it was approved"):
        approved.load(tmp_path, kept.lock_id)


def test_specification_that_somebody_changed_is_refused(tmp_path: Path) -> None:
    kept = lock(spec())
    place = approved.keep(tmp_path, spec_bytes(), kept)
    (place / "medport.yaml").write_bytes(spec_bytes(model={"args": ["--limit=9"]}))

    with pytest.raises(VerificationError, match="was changed since it was approved"):
        approved.load(tmp_path, kept.lock_id)


def test_change_that_the_lock_does_not_count_is_refused_by_the_sha256_of_the_file(tmp_path: Path) -> None:
    kept = lock(spec())
    place = approved.keep(tmp_path, spec_bytes(), kept)
    (place / "medport.yaml").write_bytes(spec_bytes(model={"replicas": {"min": 9}}))

    with pytest.raises(VerificationError, match="was changed since it was approved"):
        approved.load(tmp_path, kept.lock_id, spec_sha256=hashlib.sha256(spec_bytes()).hexdigest())


def test_nothing_is_left_where_writing_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = lock(spec())

    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="cannot be kept"):
        approved.keep(tmp_path, spec_bytes(), kept)

    assert list((tmp_path / "approved").iterdir()) == []
