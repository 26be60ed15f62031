"""Several processes at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.snapshots import manifest_of, write_small, write_snapshot
from support.store_worker import Worker

from medport_local.store import Store


def everything(worker: Worker, processes: list[int]) -> list[dict[str, object]]:
    return [worker.wait(process) for process in processes]


def test_stores_are_made_by_several_at_once(open_place: Path, worker: Worker) -> None:
    folders = [write_small(open_place / str(seed), seed=seed) for seed in range(6)]
    for round_ in range(5):
        root = open_place / f"store-{round_}"

        outcomes = everything(worker, [worker.start("add", root, folders=[str(folder)]) for folder in folders])

        assert [each for each in outcomes if "error" in each] == []
        assert len(Store(root).list()) == len(folders)


@pytest.mark.parametrize("same_identity", [True, False])
def test_same_snapshot_pulled_at_once_comes_in_once(open_place: Path, worker: Worker, same_identity: bool) -> None:
    folder, root = write_snapshot(open_place / "one"), open_place / "store"

    processes = [
        worker.start("add", root, folders=[str(folder)], identity="x" if same_identity else f"x{number}")
        for number in range(6)
    ]
    outcomes = everything(worker, processes)

    assert [each.get("result") for each in outcomes] == [[manifest_of(folder).snapshot_sha256]] * 6
    store = Store(root)
    assert len(store.list()) == 1
    assert store.verify() == []
    assert len(list((root / "blobs").glob("*/*"))) == 5
    assert list((root / "partial").iterdir()) == []
    assert [path.name for path in (root / "snapshots").iterdir()] == [store.list()[0].snapshot_sha256]


def test_pulls_that_share_files_beside_gc_all_succeed(open_place: Path, worker: Worker) -> None:
    folders = [write_snapshot(open_place / str(seed), seed=seed) for seed in range(4)]
    root = open_place / "store"
    Store(root)
    os.sync()

    outcomes = []
    for _ in range(5):
        pulls = [worker.start("add", root, folders=[str(folder)]) for folder in folders]
        sweeps = [worker.start("collect", root) for _ in range(3)]
        looks = [worker.start("verify", root), worker.start("read", root)]
        outcomes += everything(worker, pulls + sweeps)
        found, read = everything(worker, looks)
        assert found["result"] == [], found
        # What is listed may be collected before it is opened, and is then said to be gone. Nothing else.
        assert "error" not in read or read["error"][0] == "NotFound", read  # type: ignore[index]

    assert [each for each in outcomes if "error" in each] == []
    store = Store(root)
    assert store.verify() == []
    store.collect(dry_run=False)
    assert store.list() == []
    assert list((root / "blobs").glob("*/*")) == []
    assert list((root / "partial").iterdir()) == []


def test_killed_among_others_does_not_hold_them_up(open_place: Path, worker: Worker) -> None:
    folder, root = write_snapshot(open_place / "one"), open_place / "store"
    Store(root)

    for at in range(10, 120, 10):
        processes = [worker.start("add", root, folders=[str(folder)], kill_at=kill) for kill in (at, 0, at + 5)]
        outcomes = everything(worker, processes)

        assert outcomes[1].get("result") == [manifest_of(folder).snapshot_sha256], outcomes[1]
        assert Store(root).verify() == []
        Store(root).collect(dry_run=False)
