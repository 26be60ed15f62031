"""What verify finds, and what repairing does about it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.snapshots import add

from medport.errors import VerificationError
from medport_local.store import Finding, Store, Stored, disk, entries, hashing, verifying
from medport_local.store.locks import locked

REFERENCE = "medport/tiny@" + "a" * 40
SHARD = "model-00001-of-00002.safetensors"


def damage(path: Path) -> None:
    """Flip one bit, and leave all else as it was."""
    data, before = bytearray(path.read_bytes()), path.stat()
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(before.st_mode & 0o777)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def blob(store: Store, stored: Stored, name: str) -> Path:
    sha256 = stored.manifest.files[name].sha256
    return store.root / "blobs" / sha256[:2] / sha256


def test_store_that_is_right_has_no_finding(store: Store, folder: Path, other: Path) -> None:
    add(store, folder)
    add(store, other, revision="b" * 40)

    assert store.verify() == []


def test_one_flipped_bit_is_found_with_file_snapshots_and_remedy(store: Store, folder: Path, other: Path) -> None:
    stored = add(store, folder)
    add(store, other, revision="b" * 40)
    shared = "model-00002-of-00002.safetensors"
    damage(blob(store, stored, shared))

    (finding,) = store.verify()

    sha256 = stored.manifest.files[shared].sha256
    assert finding.path == f"blobs/{sha256[:2]}/{sha256}"
    assert finding.fault == "does not hold the bytes that its name says"
    assert finding.remedy == "medport snapshot verify --repair, then pull it again"
    assert finding.snapshots == (REFERENCE, "medport/tiny@" + "b" * 40)
    assert not finding.repaired
    assert list((store.root / "quarantine").iterdir()) == []


def test_damaged_file_is_taken_out_and_brought_again_by_a_pull(store: Store, folder: Path) -> None:
    stored = add(store, folder)
    damage(blob(store, stored, SHARD))
    with pytest.raises(VerificationError, match="damaged in the store"):
        add(store, folder)

    (finding,) = store.verify(repair=True)

    assert (finding.repaired, finding.remedy) == (True, "pull it again")
    assert [path.name for path in (store.root / "quarantine").iterdir()] == [
        f"{stored.manifest.files[SHARD].sha256}.0"
    ]
    with pytest.raises(VerificationError, match=f"shard that is not there: {SHARD}"):
        store.open(stored)
    store.collect(dry_run=True)
    add(store, folder)
    assert store.verify() == []
    assert store.open(stored).snapshot_sha256 == stored.snapshot_sha256


def test_good_files_of_a_damaged_snapshot_stay_for_the_next_pull(store: Store, folder: Path) -> None:
    stored = add(store, folder)
    store.pin("x", [stored])
    damage(blob(store, stored, SHARD))
    store.verify(repair=True)

    store.collect(dry_run=False)

    assert {path.name for path in (store.root / "blobs").glob("*/*")} == {
        entry.sha256 for name, entry in stored.manifest.files.items() if name != SHARD
    }


def test_damaged_copy_is_replaced_from_the_good_blob(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refused)
    stored = add(store, folder)
    damage(stored.directory / SHARD)

    found = store.verify()
    repaired = store.verify(repair=True)

    assert [(each.path, each.fault) for each in found] == [
        (f"snapshots/{stored.snapshot_sha256}/{SHARD}", "is damaged")
    ]
    assert [(each.repaired, each.remedy) for each in repaired] == [(True, "nothing is left to do")]
    assert store.verify() == []
    assert store.open(stored).snapshot_sha256 == stored.snapshot_sha256


def test_file_that_is_missing_is_put_back_from_its_blob(store: Store, folder: Path) -> None:
    stored = add(store, folder)
    stored.directory.chmod(0o755)
    (stored.directory / SHARD).unlink()
    stored.directory.chmod(0o555)

    (found,) = store.verify()
    (repaired,) = store.verify(repair=True)

    assert (found.fault, found.snapshots) == ("is missing", (REFERENCE,))
    assert (repaired.repaired, repaired.snapshots) == (True, ())
    assert store.verify() == []


def spoil_manifest(store: Store, stored: Stored) -> None:
    damage(stored.directory / "manifest.json")


def rename_model(store: Store, stored: Stored) -> None:
    manifest = stored.directory / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_bytes(manifest.read_bytes().replace(b"medport/tiny", b"medport/TINY"))
    manifest.chmod(0o444)


def swap_manifests(store: Store, stored: Stored) -> None:
    stored.directory.chmod(0o755)
    (stored.directory / "manifest.json").unlink()
    stored.directory.chmod(0o555)


@pytest.mark.parametrize("spoil", [spoil_manifest, rename_model, swap_manifests])
def test_snapshot_with_a_bad_manifest_is_taken_out_whole_and_brought_again(
    store: Store, folder: Path, spoil: Callable[[Store, Stored], None]
) -> None:
    stored = add(store, folder)
    spoil(store, stored)

    (found,) = store.verify()
    (repaired,) = store.verify(repair=True)

    assert found.path == f"snapshots/{stored.snapshot_sha256}/manifest.json"
    assert (repaired.repaired, repaired.remedy) == (True, "pull it again")
    assert store.list() == []
    assert store.verify() == []
    add(store, folder)
    assert store.list() == [stored] or store.list()[0].snapshot_sha256 == stored.snapshot_sha256
    assert store.verify() == []


def test_snapshot_in_use_is_not_taken_out(store: Store, folder: Path) -> None:
    stored = add(store, folder)
    spoil_manifest(store, stored)

    with store.hold(stored):
        (finding,) = store.verify(repair=True)

    assert not finding.repaired
    assert "stop the server" in finding.remedy
    assert stored.directory.is_dir()


@pytest.mark.parametrize("kind", ["file", "link", "folder", "pipe"])
@pytest.mark.parametrize("place", ["snapshots", "snapshots/{0}", "blobs", "blobs/00"])
def test_what_does_not_belong_there_is_found_and_taken_out(
    store: Store, folder: Path, kind: str, place: str
) -> None:
    stored = add(store, folder)
    where = store.root / place.format(stored.snapshot_sha256)
    where.mkdir(exist_ok=True)
    where.chmod(0o755)
    stranger = where / "evil.json"
    if kind == "file":
        stranger.write_text("{}")
    elif kind == "link":
        stranger.symlink_to("/etc/passwd")
    elif kind == "folder":
        (stranger / "inner").mkdir(parents=True)
        (stranger / "inner" / "x").write_text("")
    else:
        os.mkfifo(stranger)
    if place == "snapshots/{0}":
        where.chmod(0o555)

    found = store.verify()
    repaired = store.verify(repair=True)

    assert [(each.path, each.fault) for each in found] == [
        (f"{place.format(stored.snapshot_sha256)}/evil.json", "does not belong there")
    ]
    assert [each.repaired for each in repaired] == [True]
    assert [path.name for path in (store.root / "quarantine").iterdir()] == ["evil.json.0"]
    assert store.verify() == []
    assert store.open(stored).snapshot_sha256 == stored.snapshot_sha256


def test_link_to_a_directory_is_no_snapshot_and_what_it_points_to_is_not_touched(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    stored = add(store, folder)
    elsewhere = tmp_path / "elsewhere"
    stored.directory.chmod(0o755)
    stored.directory.rename(elsewhere)
    elsewhere.chmod(0o555)
    stored.directory.symlink_to(elsewhere)

    assert store.list() == []
    (finding,) = store.verify(repair=True)

    assert (finding.path, finding.fault) == (f"snapshots/{stored.snapshot_sha256}", "does not belong there")
    assert finding.repaired
    assert elsewhere.stat().st_mode & 0o777 == 0o555
    assert store.verify() == []


def test_blob_under_a_wrong_name_is_found(store: Store, folder: Path) -> None:
    stored = add(store, folder)
    place = blob(store, stored, SHARD)
    os.link(place, place.with_name("f" * 64) if not place.name.startswith("f") else place.with_name("e" * 64))

    findings = store.verify()

    assert [each.fault for each in findings] == ["does not belong there"]


@pytest.mark.parametrize("mode", [0o644, 0o464, 0o446])
def test_file_that_may_be_written_is_found_and_closed(store: Store, folder: Path, mode: int) -> None:
    stored = add(store, folder)
    blob(store, stored, SHARD).chmod(mode)
    stored.directory.chmod(0o755)

    found = store.verify()
    store.verify(repair=True)

    assert [each.fault for each in found] == ["may be written", "may be written"]
    assert store.verify() == []


def test_pin_of_what_is_not_there_is_found(store: Store, folder: Path) -> None:
    stored = add(store, folder)
    store.pin("x", [stored])
    stored.directory.rename(store.root / "snapshots" / ".elsewhere")

    findings = store.verify()

    assert [each.path for each in findings] == ["pins/x.json"]
    assert "medport snapshot unpin x" in findings[0].remedy


def test_record_and_pin_that_cannot_be_read_are_found(store: Store, folder: Path) -> None:
    stored = add(store, folder)
    (store.root / "records" / f"{stored.snapshot_sha256}.json").write_text("{")
    (store.root / "pins" / "x.json").write_text("{")

    findings = store.verify()

    assert sorted((each.path.partition("/")[0], each.snapshots) for each in findings) == [
        ("pins", ()),
        ("records", (REFERENCE,)),
    ]
    add(store, folder)
    store.unpin("x")
    assert store.verify() == []


def test_only_the_snapshot_that_is_asked_for_is_read(store: Store, folder: Path, other: Path) -> None:
    one, two = add(store, folder), add(store, other, revision="b" * 40)
    damage(blob(store, two, SHARD))
    told: list[tuple[int, int]] = []

    assert store.verify(one, told=lambda done, of: told.append((done, of))) == []

    assert told[-1] == (one.size_bytes, one.size_bytes)
    assert len(store.verify(two)) == 1


def test_progress_ends_with_every_byte_read_once(store: Store, folder: Path, other: Path) -> None:
    add(store, folder)
    add(store, other, revision="b" * 40)
    told: list[tuple[int, int]] = []

    store.verify(told=lambda done, of: told.append((done, of)))

    on_disk = sum(path.stat().st_size for path in (store.root / "blobs").glob("*/*"))
    assert told[-1] == (on_disk, on_disk)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_verify_beside_gc_finds_nothing(store: Store, folder: Path, other: Path) -> None:
    findings: list[Finding] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            findings.extend(store.verify())

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(10):
        add(store, folder if number % 2 else other)
        store.collect(dry_run=False)
    ended.set()
    thread.join()

    assert findings == []


def test_repair_leaves_alone_what_another_repair_and_a_pull_made_good_meanwhile(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = add(store, folder)
    damage(blob(store, stored, SHARD))
    hash_files = verifying.hash_files

    def overtaken(*arguments: Any) -> Any:
        found = hash_files(*arguments)
        monkeypatch.setattr(verifying, "hash_files", hash_files)
        store.verify(repair=True)
        add(store, folder)
        return found

    monkeypatch.setattr(verifying, "hash_files", overtaken)

    assert store.verify(repair=True) == []

    assert store.verify() == []
    assert store.open(stored).snapshot_sha256 == stored.snapshot_sha256


def test_repair_leaves_alone_a_blob_that_went_and_came_again(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = add(store, folder)
    hash_files = verifying.hash_files
    gone = blob(store, stored, SHARD)

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(verifying, "hash_files", hash_files)
        gone.unlink()
        found = hash_files(*arguments)
        os.link(stored.directory / SHARD, gone)
        return found

    monkeypatch.setattr(verifying, "hash_files", overtaken)

    assert store.verify(repair=True) == []

    assert list((store.root / "quarantine").iterdir()) == []
    assert store.verify() == []


def test_blob_that_is_gone_is_lost_and_not_damaged(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = add(store, folder)
    hash_files = verifying.hash_files

    def overtaken(*arguments: Any) -> Any:
        blob(store, stored, SHARD).unlink()
        return hash_files(*arguments)

    monkeypatch.setattr(verifying, "hash_files", overtaken)

    (finding,) = store.verify()

    assert (finding.fault, finding.kind, finding.snapshots) == ("is missing", "lost", (REFERENCE,))


def test_what_a_pull_is_just_mending_is_no_finding(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = add(store, folder)
    looked, findings = threading.Event(), []
    structure = verifying._Look.structure

    def look(self: Any) -> Any:
        found = structure(self)
        looked.set()
        return found

    monkeypatch.setattr(verifying._Look, "structure", look)
    thread = threading.Thread(target=lambda: findings.append(store.verify()))

    with locked(store.root / "locks" / "store.lock"), disk.unsealed(stored.directory):
        thread.start()
        assert looked.wait(10)
    thread.join()

    assert findings == [[]]


@pytest.mark.parametrize("place", ["snapshots/{0}/manifest.json", "records/{0}.json", "pins/x.json"])
def test_file_beside_the_blobs_that_others_may_write_is_found_and_closed(
    store: Store, folder: Path, place: str
) -> None:
    stored = add(store, folder)
    store.pin("x", [stored])
    path = store.root / place.format(stored.snapshot_sha256)
    path.chmod(0o666)

    (found,) = store.verify()
    store.verify(repair=True)

    assert (found.path, found.fault) == (place.format(stored.snapshot_sha256), "may be written")
    assert path.stat().st_mode & 0o777 == 0o444
    assert store.verify() == []
    store.unpin("x")
    add(store, folder, revision="b" * 40)
    assert store.verify() == []


def test_pin_that_is_removed_meanwhile_is_no_finding(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pin("x", [add(store, folder)])
    pin_names = entries.pin_names

    def overtaken(layout: Any) -> list[str]:
        monkeypatch.setattr(entries, "pin_names", pin_names)
        names = pin_names(layout)
        store.unpin("x")
        return names

    monkeypatch.setattr(entries, "pin_names", overtaken)

    assert store.verify() == []


def test_name_that_is_given_meanwhile_is_no_finding(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, folder, repo_id="medgemma (unidentified)", revision=None)
    read = entries.read_manifest_hashed

    def overtaken(directory: Path) -> Any:
        monkeypatch.setattr(entries, "read_manifest_hashed", read)
        found = read(directory)
        add(store, folder, revision="b" * 40)
        return found

    monkeypatch.setattr(entries, "read_manifest_hashed", overtaken)

    assert store.verify() == []


@pytest.mark.parametrize("cores", [1, 2])
def test_three_files_are_hashed_side_by_side_whatever_the_cores_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text(path.name)
    together, hash_file = threading.Barrier(3, timeout=10), hashing.hash_file

    def hash_one(path: Path, *more: Any) -> Any:
        together.wait()
        return hash_file(path, *more)

    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(hashing, "hash_file", hash_one)

    found = hashing.hash_files(paths)

    assert {path.name: entry.size_bytes for path, entry in found.items()} == {"a": 1, "b": 1, "c": 1}  # type: ignore[union-attr]


def refused(*_: object, **__: object) -> None:
    raise PermissionError(1, "no links here")
