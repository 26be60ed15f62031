"""SIGKILL at every change of the disk, one after the other: the store is as before or as after, never between."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.snapshots import manifest_of, write_small
from support.store_worker import NOBODY, Worker

from medport_local.store import Finding, Store
from medport_local.store.layout import OWNER

Run = Callable[..., dict[str, Any]]


def kills(worker: Worker, action: str, prepare: Callable[[], Path], **order: Any) -> Iterator[Path]:
    """A store for each change that the action makes, killed in that change; the last one was not killed."""
    at = 0
    while True:
        at += 1
        root = prepare()
        outcome = worker.run(action, root, kill_at=at, unprivileged=True, **order)
        yield root
        if not outcome["killed"]:
            assert "error" not in outcome, outcome
            assert at > 5, "the action changes next to nothing: is it counted?"
            return


class Stores:
    """Stores that are prepared in the same way, one for each kill."""

    def __init__(self, place: Path, worker: Worker) -> None:
        self.place, self.worker, self._count = place, worker, 0
        self.one, self.other = write_small(place / "one", seed=1), write_small(place / "other", seed=2)
        self.sha256 = {path: manifest_of(path).snapshot_sha256 for path in (self.one, self.other)}

    def empty(self) -> Path:
        self._count += 1
        return self.place / f"store-{self._count}"

    def having(self, *folders: Path, revision: str | None = "a" * 40, **order: Any) -> Path:
        root = self.empty()
        added = self.add(root, *folders, revision=revision, **order)
        assert "error" not in added, added
        return root

    def add(self, root: Path, *folders: Path, **order: Any) -> dict[str, Any]:
        return self.worker.run("add", root, folders=[str(each) for each in folders], unprivileged=True, **order)


@pytest.fixture
def stores(open_place: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Stores:
    monkeypatch.setenv(OWNER, str(NOBODY))  # they are made by another user than this one
    return Stores(open_place, worker)


def there(root: Path) -> set[str]:
    """What a store has; nothing, if its making was cut off. Without making it: this is another user."""
    if not (root / "format").exists():
        return set()
    return {each.snapshot_sha256 for each in Store(root, create=False).list()}


def faults(root: Path) -> list[Finding]:
    return Store(root, create=False).verify() if (root / "format").exists() else []


def leftovers(root: Path) -> list[str]:
    """What lies in a store that holds no snapshot, but its own directories."""
    paths = (path for path in root.rglob("*") if path.parent.name != "locks" and path.parent != root)
    return [path.relative_to(root).as_posix() for path in paths if path.parent.name != "blobs"]


@pytest.mark.parametrize("no_links", [False, True], ids=["links", "copies"])
def test_pull_that_is_killed_leaves_nothing_half_and_can_be_gone_on_with(
    stores: Stores, worker: Worker, no_links: bool
) -> None:
    for root in kills(worker, "add", stores.empty, folders=[str(stores.one)], no_links=no_links):
        seen = there(root)
        assert seen in (set(), {stores.sha256[stores.one]})
        assert faults(root) == []

        again = stores.add(root, stores.one, no_links=no_links)

        assert again.get("result") == [stores.sha256[stores.one]], again

        assert there(root) == {stores.sha256[stores.one]}
        assert faults(root) == []
        assert Store(root).open(Store(root).list()[0]).family == "medgemma"
        assert not list((root / "partial").iterdir())


def test_pull_of_shared_files_that_is_killed_does_not_touch_what_was_there(stores: Stores, worker: Worker) -> None:
    for root in kills(worker, "add", lambda: stores.having(stores.one), folders=[str(stores.other)]):
        assert stores.sha256[stores.one] in there(root)
        assert faults(root) == []

        collected = worker.run("collect", root, unprivileged=True, keep_days=1)
        assert collected["result"] == []
        again = stores.add(root, stores.other)

        assert again.get("result") == [stores.sha256[stores.other]], again
        assert there(root) == set(stores.sha256.values())
        assert faults(root) == []


def test_second_name_for_the_same_bytes_is_there_or_not_if_killed(stores: Stores, worker: Worker) -> None:
    for root in kills(
        worker,
        "add",
        lambda: stores.having(stores.one, revision=None),
        folders=[str(stores.one)],
        revision="b" * 40,
    ):
        (stored,) = Store(root).list()
        assert stored.revision in (None, "b" * 40)
        assert Store(root).open(stored).snapshot_sha256 == stored.snapshot_sha256

        stores.add(root, stores.one, revision="b" * 40)

        assert Store(root).find("medport/tiny@bbbbbbb").revision == "b" * 40
        assert faults(root) == []


def test_collection_that_is_killed_keeps_the_pinned_and_is_gone_on_with(stores: Stores, worker: Worker) -> None:
    def prepare() -> Path:
        root = stores.having(stores.one, stores.other)
        pinned = worker.run("pin", root, name="x", snapshots=[stores.sha256[stores.one]], unprivileged=True)
        assert "error" not in pinned
        return root

    for root in kills(worker, "collect", prepare):
        assert stores.sha256[stores.one] in there(root)
        assert faults(root) == []

        assert "error" not in worker.run("collect", root, unprivileged=True)

        assert there(root) == {stores.sha256[stores.one]}
        assert faults(root) == []
        Store(root).unpin("x")
        Store(root).collect(dry_run=False)
        assert leftovers(root) == []


@pytest.mark.parametrize("no_links", [False, True], ids=["links", "copies"])
def test_repair_that_is_killed_is_gone_on_with(stores: Stores, worker: Worker, no_links: bool) -> None:
    def prepare() -> Path:
        root = stores.having(stores.one, stores.other, no_links=no_links)
        shared = manifest_of(stores.one).files["config.json"].sha256
        damage(root / "blobs" / shared[:2] / shared)
        (root / "snapshots" / stores.sha256[stores.one] / "manifest.json").chmod(0o644)
        return root

    for root in kills(worker, "verify", prepare, repair=True, no_links=no_links):
        assert "error" not in worker.run("verify", root, repair=True, unprivileged=True, no_links=no_links)
        stores.add(root, stores.one, no_links=no_links)
        stores.add(root, stores.other, no_links=no_links)

        assert faults(root) == []
        assert there(root) == set(stores.sha256.values())
        assert len(list((root / "quarantine").iterdir())) == 1


def test_pin_that_is_killed_is_there_or_not(stores: Stores, worker: Worker) -> None:
    for root in kills(
        worker, "pin", lambda: stores.having(stores.one), name="x", snapshots=[stores.sha256[stores.one]]
    ):
        assert Store(root).pins().keys() in (set(), {"x"})
        assert faults(root) == []


def test_abandoned_pull_is_collected_a_day_later(stores: Stores, worker: Worker) -> None:
    root = stores.empty()
    stores.add(root, stores.one, kill_at=45)
    assert list((root / "partial").iterdir())

    Store(root).collect(dry_run=False)
    assert list((root / "partial").iterdir())
    for path, folders, files in os.walk(root / "partial"):
        for name in [*folders, *files, "."]:
            os.utime(Path(path) / name, (0, 0))
    collected = Store(root).collect(dry_run=False, keep=timedelta(0))

    assert collected.partials == 1
    assert leftovers(root) == []


def damage(path: Path) -> None:
    """Flip one bit, whoever may write there."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    mode = path.stat().st_mode & 0o777
    path.chmod(0o600)
    path.write_bytes(data)
    path.chmod(mode)
