"""What a person writes, and which snapshot is meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.snapshots import add, write_small

from medport.errors import ConfigError, NotFound
from medport_local.store import Store

ONE, TWO, THREE = "290dda" + "1" * 34, "290dda" + "2" * 34, "c" * 40


@pytest.fixture
def full(store: Store, tmp_path: Path) -> Store:
    """Three snapshots of two models, and one without a commit."""
    for seed, (model, revision) in enumerate(
        [("ward/chest-4b", ONE), ("ward/chest-4b", TWO), ("ward/vectors-448", THREE)]
    ):
        add(store, write_small(tmp_path / str(seed), seed=seed), repo_id=model, revision=revision)
    add(store, write_small(tmp_path / "own", seed=9), repo_id="ward/own int8", revision=None)
    return store


@pytest.mark.parametrize(
    ("reference", "revision"),
    [
        (f"ward/chest-4b@{ONE}", ONE),
        ("ward/chest-4b@290dda1", ONE),
        ("ward/chest-4b@290dda2", TWO),
        ("ward/vectors-448", THREE),
        ("ward/own int8", None),
    ],
)
def test_reference_means_one_snapshot(full: Store, reference: str, revision: str | None) -> None:
    assert full.find(reference).revision == revision


@pytest.mark.parametrize("digits", [12, 30, 64])
def test_sha256_means_one_snapshot(full: Store, digits: int) -> None:
    for stored in full.list():
        assert full.find(f"sha256:{stored.snapshot_sha256[:digits]}") == stored


def test_name_that_means_two_lists_both(full: Store) -> None:
    with pytest.raises(ConfigError, match=r"means 2 snapshots: .*@290dda111111 \(sha256:.*@290dda222222"):
        full.find("ward/chest-4b")


@pytest.mark.parametrize("revision", ["main", "", "290dda", "v1.0", "290DDA1", "290dda1" * 6])
def test_branch_or_too_few_digits_is_refused(full: Store, revision: str) -> None:
    with pytest.raises(ConfigError, match="commit"):
        full.find(f"ward/chest-4b@{revision}")


@pytest.mark.parametrize("digest", ["", "0123456789a", "z" * 64, "0" * 65])
def test_sha256_that_is_none_is_refused(full: Store, digest: str) -> None:
    with pytest.raises(ConfigError, match="12 to 64 hex digits"):
        full.find(f"sha256:{digest}")


@pytest.mark.parametrize(
    ("reference", "nearest"),
    [
        (
            "ward/chest-4b@fffffff",
            "ward/chest-4b@290dda111111, ward/chest-4b@290dda222222",
        ),
        ("ward/vectors-384", "ward/vectors-448@cccccccccccc"),
        ("vectors-448", "ward/vectors-448@cccccccccccc"),
        ("own int8", "ward/own int8"),
    ],
)
def test_what_is_not_there_is_told_with_the_nearest(full: Store, reference: str, nearest: str) -> None:
    with pytest.raises(NotFound) as caught:
        full.find(reference)

    assert caught.value.message == f"the store has no {reference}"
    assert f"the nearest: {nearest}" in str(caught.value)


def test_empty_store_says_that_it_is_empty(store: Store) -> None:
    with pytest.raises(NotFound, match="the store is empty; medport snapshot pull"):
        store.find("ward/chest-4b")


def test_reference_does_not_reach_the_terminal_as_it_is(store: Store) -> None:
    with pytest.raises(NotFound) as caught:
        store.find("x\x1b[2J" + "y" * 500)

    assert "\x1b" not in str(caught.value)
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("reference", ["../../etc", "/etc/passwd", ".", ""])
def test_path_is_no_reference(full: Store, reference: str) -> None:
    with pytest.raises(NotFound):
        full.find(reference)
