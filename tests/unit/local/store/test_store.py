"""What the store answers: snapshots in, found, opened, held, pinned."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.snapshots import add, manifest_of, read_from, record, safetensors, write_snapshot

from medport.errors import ConfigError, NotFound, VerificationError
from medport_local.snapshot import MANIFEST, digest_of, open_snapshot
from medport_local.store import Store, Terms, entries


def test_what_was_put_in_is_found_and_opens_as_it_was(store: Store, folder: Path) -> None:
    stored = add(store, folder, terms=Terms(name="health-ai-developer-foundations", gated=True))

    snapshot = store.open(store.find("medport/tiny@aaaaaaa"))

    assert snapshot.snapshot_sha256 == stored.snapshot_sha256 == open_snapshot(folder).snapshot_sha256
    assert (snapshot.model_id, snapshot.revision) == ("medport/tiny", "a" * 40)
    assert {name: (stored.directory / name).read_bytes() for name in snapshot.files} == {
        name: (folder / name).read_bytes() for name in snapshot.files
    }
    assert stored.record.terms == Terms(name="health-ai-developer-foundations", gated=True)
    assert stored.size_bytes == sum(path.stat().st_size for path in folder.iterdir())


def test_store_is_the_same_for_another_process(store: Store, folder: Path) -> None:
    stored = add(store, folder)

    assert Store(store.root, create=False).list() == [stored]


def test_same_bytes_are_on_the_disk_once(store: Store, folder: Path, other: Path) -> None:
    one, two = add(store, folder), add(store, other, revision="b" * 40)

    shared = [name for name in one.manifest.files if one.manifest.files[name] == two.manifest.files[name]]
    assert len(shared) == 3
    for name in shared:
        assert (one.directory / name).samefile(two.directory / name)
    assert len(list((store.root / "blobs").glob("*/*"))) == 5 + 2


def test_nothing_in_a_snapshot_can_be_written(store: Store, folder: Path) -> None:
    stored = add(store, folder)

    modes = {stat.S_IMODE(path.stat().st_mode) for path in stored.directory.iterdir()}
    assert modes == {0o444}
    assert stat.S_IMODE(stored.directory.stat().st_mode) == 0o555


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store = Store(tmp_path / "store")
        stored = add(store, folder)
    finally:
        os.umask(before)

    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert mode(store.root) == 0o700
    assert mode(store.root / "partial") == 0o700
    assert mode(store.root / "blobs") == 0o755
    assert {mode(path) for path in (store.root / "blobs").iterdir()} == {0o755}
    assert {mode(path) for path in (store.root / "blobs").glob("*/*")} == {0o444}
    assert mode(stored.directory) == 0o555
    assert mode(store.root / "records" / f"{stored.snapshot_sha256}.json") == 0o644


def test_manifest_with_another_revision_is_not_opened(store: Store, folder: Path) -> None:
    stored = add(store, folder)
    manifest = stored.directory / MANIFEST
    changed = json.loads(manifest.read_bytes()) | {"revision": "f" * 40}
    manifest.chmod(0o644)
    manifest.write_text(json.dumps(changed))

    open_snapshot(stored.directory)  # its files are right: only the store knows that it says another revision
    with pytest.raises(VerificationError, match=r"manifest\.json.*not the one that was stored"):
        store.open(stored)


def test_one_flipped_bit_is_refused_at_the_load(store: Store, folder: Path) -> None:
    stored = add(store, folder)
    shard = stored.directory / "model-00001-of-00002.safetensors"
    shard.chmod(0o644)
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)

    with pytest.raises(VerificationError, match="model-00001"):
        store.open(stored)


def test_snapshot_that_a_server_would_refuse_does_not_come_in(store: Store, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(VerificationError, match=r"config\.json.*auto_map"):
        add(store, folder)

    assert store.list() == []
    assert [path.name for path in (store.root / "snapshots").iterdir()] == []


def test_manifest_that_names_a_file_that_did_not_come_is_refused(store: Store, folder: Path) -> None:
    manifest = manifest_of(folder)

    with store.intake("x") as intake, pytest.raises(VerificationError, match=r"config\.json.*was not received"):
        intake.commit(manifest, record())


def test_manifest_whose_digest_is_not_its_own_is_refused(store: Store, folder: Path) -> None:
    manifest = manifest_of(folder)

    with store.intake("x") as intake:
        receive(intake, folder, manifest.files)
        with pytest.raises(VerificationError, match="not that of its own table"):
            intake.commit(manifest.model_copy(update={"snapshot_sha256": "0" * 64}), record())


@pytest.mark.parametrize(
    "name", ["../../outside.json", "/tmp/outside.json", "a/../../../outside.json", "x.py", "x"]
)
def test_manifest_cannot_give_received_bytes_a_name_outside(
    store: Store, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked: list[Path] = []
    monkeypatch.setattr(os, "link", lambda source, target, **_: linked.append(target))
    manifest = manifest_of(folder)
    files = {**manifest.files, name: manifest.files["config.json"]}
    told = manifest.model_copy(update={"files": files, "snapshot_sha256": digest_of(files)})

    with store.intake("x") as intake:
        receive(intake, folder, manifest.files)
        with pytest.raises(VerificationError):
            intake.commit(told, record())

    assert linked == []  # before anything has a name


@pytest.mark.parametrize("repo_id", ["", "x" * 201, "a\x1b[2Jb", "a/b@main", "a\nb"])
def test_model_id_that_could_deceive_is_refused(store: Store, folder: Path, repo_id: str) -> None:
    with pytest.raises(VerificationError, match="repo_id"):
        add(store, folder, repo_id=repo_id)


def test_files_are_received_by_several_threads_at_once(store: Store, tmp_path: Path) -> None:
    folder = write_snapshot(tmp_path / "many", numbers=200_000)
    for number in range(20):
        (folder / f"same-{number}.json").write_text("{}")
    manifest = manifest_of(folder)

    with store.intake("x") as intake, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: receive(intake, folder, [name]), manifest.files))
        stored = intake.commit(manifest, record())

    assert store.open(stored).snapshot_sha256 == manifest.snapshot_sha256
    assert store.verify() == []


def test_same_bytes_under_a_second_revision_are_found_by_both(store: Store, folder: Path) -> None:
    add(store, folder, revision="a" * 40)

    second = add(store, folder, revision="b" * 40)

    assert len(store.list()) == 1
    assert second.record.also == (f"medport/tiny@{'b' * 40}",)
    assert store.find("medport/tiny@bbbbbbb") == store.find("medport/tiny@aaaaaaa")
    add(store, folder, revision="b" * 40)
    assert store.find("medport/tiny").record.also == second.record.also


def test_files_of_a_directory_that_turn_out_to_be_a_commit_take_its_name(store: Store, folder: Path) -> None:
    add(store, folder, repo_id="medgemma (unidentified)", revision=None)

    stored = add(store, folder, revision="b" * 40, source="hub")

    assert [each.reference for each in store.list()] == [f"medport/tiny@{'b' * 40}"]
    assert store.open(stored).revision == "b" * 40
    assert stored.record.source == "hub"


def test_directory_with_the_bytes_of_a_commit_takes_nothing_from_it(store: Store, folder: Path) -> None:
    stored = add(store, folder)

    add(store, folder, repo_id="medgemma (unidentified)", revision=None)

    assert store.list() == [stored]


def test_pull_brings_back_what_is_missing_in_a_snapshot(store: Store, folder: Path) -> None:
    stored = add(store, folder)
    stored.directory.chmod(0o755)
    (stored.directory / "config.json").unlink()

    add(store, folder)

    assert store.open(stored).snapshot_sha256 == stored.snapshot_sha256
    assert store.verify() == []


def test_several_snapshots_come_in_at_one_intake(store: Store, folder: Path, other: Path) -> None:
    with store.intake("bundle") as intake:
        for each in (folder, other):
            receive(intake, each, manifest_of(each).files)
        committed = [intake.commit(manifest_of(each), record(source="bundle")) for each in (folder, other)]

    assert sorted(each.snapshot_sha256 for each in store.list()) == sorted(
        each.snapshot_sha256 for each in committed
    )
    assert list((store.root / "partial").iterdir()) == []


def test_snapshot_is_not_collected_before_its_intake_has_ended(store: Store, folder: Path) -> None:
    with store.intake("bundle") as intake:
        receive(intake, folder, manifest_of(folder).files)
        stored = intake.commit(manifest_of(folder), record())
        collected = store.collect(dry_run=False)
        store.pin("kept", [stored])

    assert collected.snapshots == ()
    assert store.find("medport/tiny").pinned_by == ("kept",)


def test_pins_are_named_where_a_snapshot_is_listed(store: Store, folder: Path, other: Path) -> None:
    one, two = add(store, folder), add(store, other, revision="b" * 40)
    store.pin("ward", [one], why="validated")
    store.pin("site", [one, two])

    assert store.find("medport/tiny@aaaaaaa").pinned_by == ("site", "ward")
    assert store.pins()["ward"].why == "validated"
    store.unpin("ward")
    assert store.find("medport/tiny@aaaaaaa").pinned_by == ("site",)


def test_pin_that_is_not_there_is_told_with_those_that_are(store: Store, folder: Path) -> None:
    store.pin("ward-3", [add(store, folder)])

    with pytest.raises(NotFound, match="there are: ward-3"):
        store.unpin("ward")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 101, "a\n", "ä"])
def test_pin_with_a_name_that_is_a_path_is_refused(store: Store, folder: Path, name: str) -> None:
    stored = add(store, folder)

    with pytest.raises(ConfigError, match="not a pin's name"):
        store.pin(name, [stored])


def test_collected_snapshot_can_neither_be_held_nor_pinned_nor_opened(store: Store, folder: Path) -> None:
    stored = add(store, folder)
    store.collect(dry_run=False)

    with pytest.raises(NotFound, match="no longer has medport/tiny"), store.hold(stored):
        pass
    with pytest.raises(NotFound, match="no longer has medport/tiny"):
        store.pin("x", [stored])
    with pytest.raises(NotFound, match="no longer has medport/tiny"):
        store.open(stored)
    with pytest.raises(NotFound, match="no longer has medport/tiny"):
        store.verify(stored)


def test_broken_pin_does_not_keep_a_server_from_its_model(store: Store, folder: Path) -> None:
    add(store, folder)
    (store.root / "pins" / "x.json").write_text("{")

    assert store.open(store.find("medport/tiny")).family == "medgemma"


def test_pull_puts_a_damaged_manifest_right(store: Store, folder: Path) -> None:
    stored = add(store, folder)
    manifest = stored.directory / MANIFEST
    manifest.chmod(0o644)
    manifest.write_bytes(manifest.read_bytes().replace(b"medport/tiny", b"medport/TINY"))

    add(store, folder)

    assert store.open(store.find("medport/tiny")).model_id == "medport/tiny"
    assert store.verify() == []


@pytest.mark.parametrize("spoilt", ["lost", "unreadable"])
def test_manifest_is_not_believed_without_the_record_that_proves_it(
    store: Store, folder: Path, spoilt: str
) -> None:
    stored = add(store, folder)
    record_file = store.root / "records" / f"{stored.snapshot_sha256}.json"
    if spoilt == "lost":
        record_file.unlink()
    else:
        record_file.write_bytes(b"z" + record_file.read_bytes()[1:])

    again = store.find("medport/tiny")

    assert again.record.source == "unknown"
    with pytest.raises(VerificationError, match=r"records/.*missing or cannot be read.*pull it again"):
        store.open(again)
    add(store, folder)
    assert store.open(store.find("medport/tiny")).revision == "a" * 40
    assert store.find("medport/tiny").record.source == "directory"


def test_manifest_that_is_exchanged_after_it_was_compared_is_not_believed(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = add(store, folder)

    def exchanged(*arguments: Any, **options: Any) -> Any:
        rewrite(stored.directory / MANIFEST, revision="f" * 40)
        return open_snapshot(*arguments, **options)

    monkeypatch.setattr("medport_local.store.store.open_snapshot", exchanged)

    with pytest.raises(VerificationError, match=r"manifest\.json.*not the one that was stored.*verify --repair"):
        store.open(stored)


def test_snapshot_keeps_the_bytes_of_the_manifest_that_was_believed(store: Store, folder: Path) -> None:
    stored = add(store, folder)
    there = (stored.directory / MANIFEST).read_bytes()

    snapshot = store.open(stored)
    rewrite(stored.directory / MANIFEST, revision="f" * 40)

    assert snapshot.manifest == there
    assert open_snapshot(folder).manifest == b""


def test_snapshot_that_gets_its_name_while_it_is_opened_has_it(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = add(store, folder, repo_id="medgemma (unidentified)", revision=None)
    read = entries.read

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(entries, "read", read)
        found = read(*arguments)
        add(store, folder, revision="b" * 40)
        return found

    monkeypatch.setattr(entries, "read", overtaken)

    assert store.open(stored).revision == "b" * 40


def test_file_that_is_taken_out_before_the_commit_is_named(store: Store, folder: Path) -> None:
    manifest = manifest_of(folder)
    sha256 = manifest.files["tokenizer.json"].sha256

    with store.intake("x") as intake:
        receive(intake, folder, manifest.files)
        (store.root / "blobs" / sha256[:2] / sha256).unlink()
        with pytest.raises(VerificationError, match=r"tokenizer\.json: was taken out of the store meanwhile"):
            intake.commit(manifest, record())

    assert store.list() == []
    add(store, folder)
    assert store.verify() == []


def test_pins_beside_unpin_are_those_that_are_there(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = add(store, folder)
    store.pin("x", [stored])
    store.pin("y", [stored])
    monkeypatch.setattr(entries, "pin_names", lambda _: ["x", "y"])
    store.unpin("x")

    assert list(store.pins()) == ["y"]
    assert store.find("medport/tiny").pinned_by == ("y",)


def test_snapshot_with_folders_comes_in_whole(store: Store, folder: Path) -> None:
    (folder / "extra").mkdir()
    (folder / "extra" / "notes.json").write_text("{}")

    stored = add(store, folder)

    assert (stored.directory / "extra" / "notes.json").read_text() == "{}"
    assert stat.S_IMODE((stored.directory / "extra").stat().st_mode) == 0o555
    assert store.verify() == []
    store.collect(dry_run=False)
    assert store.list() == []


def test_single_file_of_weights_comes_in(store: Store, tmp_path: Path) -> None:
    folder = write_snapshot(tmp_path / "single")
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "model.safetensors").write_bytes(safetensors({"layer": 100_000}, 5))

    stored = add(store, folder)

    assert store.open(stored).shards == ("model.safetensors",)


def rewrite(manifest: Path, **changes: object) -> None:
    """Let a manifest of the store say something else."""
    changed = json.loads(manifest.read_bytes()) | changes
    manifest.chmod(0o644)
    manifest.write_text(json.dumps(changed))
    manifest.chmod(0o444)


def receive(intake: object, folder: Path, names: object) -> None:
    """Bring these files of a directory."""
    from medport_local.store import Intake

    assert isinstance(intake, Intake)

    def read(name: str, offset: int) -> Iterator[bytes]:
        return read_from(folder / name, offset)

    for name in names:  # type: ignore[attr-defined]
        intake.receive(name, lambda offset, name=name: read(name, offset), size_bytes=None, sha256=None)  # type: ignore[misc]
