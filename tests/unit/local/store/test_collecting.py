"""What gc removes, and what it must not."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.polling import wait_until
from support.snapshots import add, manifest_of, read_from
from support.store_worker import Worker

from medport.errors import VerificationError
from medport_local.store import Store


def blobs(store: Store) -> set[str]:
    return {path.name for path in (store.root / "blobs").glob("*/*")}


def test_dry_run_says_what_would_go_and_removes_nothing(store: Store, folder: Path, other: Path) -> None:
    one, two = add(store, folder), add(store, other, revision="b" * 40)
    store.pin("x", [one])
    before = sorted(store.root.rglob("*"))

    told = store.collect(dry_run=True)

    assert sorted(store.root.rglob("*")) == before
    done = store.collect(dry_run=False)
    assert told == done
    assert [each.snapshot_sha256 for each in done.snapshots] == [two.snapshot_sha256]
    assert [(each.snapshot_sha256, why) for each, why in done.kept] == [(one.snapshot_sha256, "pinned by x")]


def test_files_that_another_snapshot_needs_stay(store: Store, folder: Path, other: Path) -> None:
    one, _ = add(store, folder), add(store, other, revision="b" * 40)
    store.pin("x", [one])

    collected = store.collect(dry_run=False)

    only_its = manifest_of(other).files["model-00001-of-00002.safetensors"].size_bytes
    only_its += manifest_of(other).files["tokenizer.json"].size_bytes
    assert (collected.blobs, collected.freed_bytes) == (2, only_its)
    assert blobs(store) == {entry.sha256 for entry in one.manifest.files.values()}
    assert store.verify() == []
    assert store.open(one).snapshot_sha256 == one.snapshot_sha256


def test_files_that_another_snapshot_needs_stay_where_links_are_copies(
    store: Store, folder: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refused)
    one, two = add(store, folder), add(store, other, revision="b" * 40)
    assert {path.stat().st_nlink for path in (store.root / "blobs").glob("*/*")} == {1}
    store.pin("x", [one])

    collected = store.collect(dry_run=False)

    assert blobs(store) == {entry.sha256 for entry in one.manifest.files.values()}
    unshared = sum(
        entry.size_bytes for name, entry in two.manifest.files.items() if entry != one.manifest.files[name]
    )
    assert collected.freed_bytes == two.size_bytes + unshared
    assert store.verify() == []


def test_recent_snapshots_stay_as_long_as_is_asked(store: Store, folder: Path, other: Path) -> None:
    add(store, folder, added_at=datetime.now(UTC) - timedelta(days=8))
    add(store, other, revision="b" * 40, added_at=datetime.now(UTC) - timedelta(days=6))

    collected = store.collect(dry_run=False, keep=timedelta(days=7))

    assert [each.revision for each in collected.snapshots] == ["a" * 40]
    assert [(each.revision, why) for each, why in collected.kept] == [("b" * 40, "recent")]


def test_snapshot_that_another_process_holds_stays_until_that_ends(
    store: Store, folder: Path, worker: Worker, tmp_path: Path
) -> None:
    add(store, folder)
    process = worker.start("hold", store.root, sign=str(tmp_path / "held"), until=str(tmp_path / "end"))
    wait_until((tmp_path / "held").exists)

    assert [why for _, why in store.collect(dry_run=True).kept] == ["in use"]
    assert [why for _, why in store.collect(dry_run=False).kept] == ["in use"]
    os.kill(process, 9)
    worker.wait(process)

    assert len(store.collect(dry_run=False).snapshots) == 1
    assert store.list() == []


def test_snapshot_that_this_process_holds_stays(store: Store, folder: Path) -> None:
    stored = add(store, folder)

    with store.hold(stored), store.hold(stored):
        assert store.collect(dry_run=False).snapshots == ()

    assert len(store.collect(dry_run=False).snapshots) == 1


def test_files_of_a_pull_that_is_under_way_stay(store: Store, folder: Path, other: Path) -> None:
    add(store, folder)
    manifest = manifest_of(other)
    with store.intake("pull") as intake:
        for name, entry in manifest.files.items():
            if not intake.have(entry):
                intake.receive(
                    name, lambda offset, name=name: read_from(other / name, offset), size_bytes=None, sha256=None
                )  # type: ignore[misc]

        collected = store.collect(dry_run=False)

        assert len(collected.snapshots) == 1
        assert blobs(store) == {entry.sha256 for entry in manifest.files.values()}


def test_files_of_a_pull_that_broke_off_stay_for_a_day(store: Store, folder: Path) -> None:
    with store.intake("pull") as intake:
        intake.receive(
            "a.json", lambda offset: read_from(folder / "config.json", offset), size_bytes=None, sha256=None
        )
    (partial,) = (store.root / "partial").iterdir()

    assert store.collect(dry_run=False).blobs == 0
    yesterday = datetime.now().timestamp() - 25 * 3600
    for path in (*partial.iterdir(), partial):
        os.utime(path, (yesterday, yesterday))
    collected = store.collect(dry_run=False)

    assert (collected.partials, collected.blobs) == (1, 1)
    assert list((store.root / "partial").iterdir()) == []


def test_old_pull_that_is_still_under_way_stays(store: Store, folder: Path) -> None:
    with store.intake("pull") as intake:
        intake.receive(
            "a.json", lambda offset: read_from(folder / "config.json", offset), size_bytes=None, sha256=None
        )
        (partial,) = (store.root / "partial").iterdir()
        for path in (*partial.iterdir(), partial):
            os.utime(path, (0, 0))

        collected = store.collect(dry_run=False)

    assert (collected.partials, collected.blobs) == (0, 0)


def test_nothing_is_removed_while_a_pin_cannot_be_read(store: Store, folder: Path) -> None:
    add(store, folder)
    (store.root / "pins" / "x.json").write_text('{"snapshots": "all"}')

    with pytest.raises(VerificationError, match=r"pins/x\.json: cannot be read"):
        store.collect(dry_run=False)

    assert len(store.list()) == 1


def test_nothing_is_removed_while_a_manifest_cannot_be_read(store: Store, folder: Path, other: Path) -> None:
    stored = add(store, folder)
    add(store, other, revision="b" * 40)
    (stored.directory / "manifest.json").chmod(0o644)
    (stored.directory / "manifest.json").write_text("{")
    before = blobs(store)

    with pytest.raises(VerificationError, match="not known which blobs it needs"):
        store.collect(dry_run=False)

    assert blobs(store) == before
    assert [each.revision for each in store.list()] == ["b" * 40]


def alter_a_hash(manifest: Path) -> None:
    """One digit of a manifest, which is a manifest still."""
    told = json.loads(manifest.read_bytes())
    entry = told["files"]["tokenizer.json"]
    entry["sha256"] = ("0" if entry["sha256"][0] != "0" else "1") + entry["sha256"][1:]
    manifest.chmod(0o644)
    manifest.write_text(json.dumps(told))
    manifest.chmod(0o444)


def test_nothing_is_removed_while_a_manifest_is_another_than_its_snapshots(store: Store, folder: Path) -> None:
    stored = add(store, folder)
    store.pin("keep", [stored])
    alter_a_hash(stored.directory / "manifest.json")
    before = blobs(store)

    with pytest.raises(
        VerificationError, match=r"not that of this snapshot.*nothing was removed.*verify --repair"
    ):
        store.collect(dry_run=False)

    assert blobs(store) == before


@pytest.mark.parametrize("way_out", ["pull", "unpin"])
def test_nothing_is_removed_while_a_pinned_snapshot_is_in_quarantine(
    store: Store, folder: Path, way_out: str
) -> None:
    stored = add(store, folder)
    store.pin("keep", [stored])
    alter_a_hash(stored.directory / "manifest.json")
    store.verify(repair=True)
    before = blobs(store)

    with pytest.raises(VerificationError, match=r"pins/keep\.json.*in quarantine.*unpin keep"):
        store.collect(dry_run=False)

    assert blobs(store) == before
    if way_out == "pull":
        add(store, folder)
        assert store.collect(dry_run=False).blobs == 0
    else:
        store.unpin("keep")
        assert store.collect(dry_run=False).blobs == len(before)


def test_snapshot_whose_record_is_lost_can_be_removed(store: Store, folder: Path) -> None:
    stored = add(store, folder)
    (store.root / "records" / f"{stored.snapshot_sha256}.json").unlink()

    assert len(store.collect(dry_run=False).snapshots) == 1

    assert blobs(store) == set()


def test_locks_of_what_is_gone_go_as_well(store: Store, folder: Path) -> None:
    stored = add(store, folder)
    store.collect(dry_run=False)
    with pytest.raises(Exception, match="no longer"), store.hold(stored):
        pass

    store.collect(dry_run=False)

    assert [path.name for path in (store.root / "locks").iterdir()] == ["store.lock"]


def refused(*_: object, **__: object) -> None:
    raise PermissionError(1, "no links here")
