"""A bundle is installed whole or not at all, and only from whom the site trusts."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.bundle_site import GEMMA, LOCK, OTHERS, SIGLIP, Place, items, lock_item, meta
from support.bundles import NOW, Keys, snapshot_items

from medport.errors import ConfigError, NotReady, VerificationError
from medport_local.bundle import install as installing
from medport_local.bundle import site as sites
from medport_local.bundle.archive import Bundle, Item, write_bundle
from medport_local.snapshot import digest_of, open_snapshot
from medport_local.snapshot_file import entry_of
from medport_local.store import Store
from medport_local.store.locks import locked


def test_everything_that_was_bundled_is_installed(place: Place, whole: Path) -> None:
    done = place.install(whole)

    store = Store(place.store)
    assert [open_snapshot(each.directory).snapshot_sha256 for each in done.snapshots] == sorted(
        open_snapshot(each).snapshot_sha256 for each in (GEMMA, SIGLIP)
    )
    assert all(each.pinned_by == (done.pin,) for each in store.list())
    assert store.verify() == []
    assert (place.to / "documents/Freigabe Übersicht.txt").read_bytes() == b"approved"
    assert (place.to / "lock/medport.lock").read_bytes() == LOCK.text().encode()
    assert done.lock == place.to / "lock/medport.lock"
    assert done.wheels == place.to / "wheels"
    assert done.previous is None
    assert not (place.to / "blobs").exists()


def test_the_record_says_which_bundle_brought_it_and_keeps_the_terms(place: Place, whole: Path) -> None:
    record = place.install(whole).snapshots[0].record

    assert record.source == "bundle"
    assert record.terms is not None
    assert record.terms.name == "HAI-DEF"
    assert any("signed by key sha256:" in note for note in record.notes)
    assert any("from hub" in note for note in record.notes)


def test_pip_installs_the_wheels_without_a_network(place: Place, whole: Path, tmp_path: Path) -> None:
    done = place.install(whole)

    command = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", str(done.wheels)]
    subprocess.run([*command, "--target", tmp_path / "here", "example"], check=True, capture_output=True)

    assert (tmp_path / "here" / "example.py").is_file()


def test_the_command_of_model_signing_checks_an_installation(place: Place, whole: Path) -> None:
    place.install(whole)

    done = subprocess.run(
        [sys.executable, "-m", "model_signing", "verify", "key", place.to / "signed",
         "--signature", place.to / "manifest.sig", "--public_key", place.keys.public],
        capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr


def test_files_are_readable_by_all_and_written_by_nobody_else(place: Place, whole: Path) -> None:
    before = os.umask(0o077)
    try:
        place.install(whole)
    finally:
        os.umask(before)

    for path in (place.to, *place.to.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_every_byte_is_told_of_once(place: Place, whole: Path) -> None:
    counts: list[int] = []

    place.install(whole, counts.append)

    with Bundle.open(whole, None) as bundle:
        expected = sum(entry.size_bytes for entry in bundle.manifest.entries if entry.kind != "snapshot")
    assert sum(counts) == expected


def test_a_second_install_copies_no_weights_but_reads_them(place: Place, whole: Path) -> None:
    place.install(whole)
    before = {path: path.stat().st_ino for path in (place.store / "blobs").rglob("*")}
    counts: list[int] = []

    with Bundle.open(whole, place.keys.verifier) as bundle:
        plan = place.plan(bundle)
    done = place.install(whole, counts.append)

    assert plan.absent == ()
    assert any("installed already" in note for note in plan.notes)
    assert {path: path.stat().st_ino for path in (place.store / "blobs").rglob("*")} == before
    assert sum(counts) > 10e6
    assert done.previous == place.root / "site.previous"


@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.98])
def test_a_damaged_bundle_changes_nothing(place: Place, whole: Path, tmp_path: Path, fraction: float) -> None:
    first = tmp_path / "first.mpb"
    write_bundle(first, [Item("documents/x", "document", b"1")], meta=meta(lock_id=None), signer=place.keys.signer)
    place.install(first)
    before = {path: data for path, data in place.files().items() if path.startswith("site/")}
    data = bytearray(whole.read_bytes())
    with Bundle.open(whole, None) as bundle:
        start = bundle._members[bundle.manifest.entries[0].path].start
    data[start + int((len(data) - start - 2048) * fraction)] ^= 1
    broken = tmp_path / "broken.mpb"
    broken.write_bytes(data)

    with pytest.raises(VerificationError):
        place.install(broken)

    assert {path: data for path, data in place.files().items() if path.startswith("site/")} == before
    assert Store(place.store).list() == []
    assert not (place.root / ".site.staging").exists()
    assert place.install(whole).previous is not None


@pytest.mark.parametrize("unwilling", ["unsigned", "stranger", "unasked"])
def test_a_bundle_that_nobody_trusted_signed_is_not_installed(
    place: Place, tmp_path: Path, stranger: Keys, unwilling: str
) -> None:
    file = tmp_path / "b.mpb"
    signer = {"unsigned": None, "stranger": stranger.signer, "unasked": place.keys.signer}[unwilling]
    write_bundle(file, OTHERS, meta=meta(lock_id=None), signer=signer)

    if unwilling == "unasked":
        with Bundle.open(file, None) as bundle, pytest.raises(ConfigError, match="who signed"):
            place.plan(bundle)
    else:
        with pytest.raises(VerificationError, match=r"manifest\.sig"):
            place.install(file)
    assert list(place.root.iterdir()) == []


def test_planning_writes_nothing(place: Place, whole: Path) -> None:
    with Bundle.open(whole, place.keys.verifier) as bundle:
        plan = place.plan(bundle)

    assert list(place.root.iterdir()) == []
    assert plan.copied_bytes > 10e6
    assert plan.notes == ()


def test_a_bundle_from_the_future_is_said(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "b.mpb"
    write_bundle(file, OTHERS, meta=meta(NOW + timedelta(days=1), None), signer=place.keys.signer)

    with Bundle.open(file, place.keys.verifier) as bundle:
        assert "future" in place.plan(bundle).notes[0]


@pytest.mark.parametrize("kind", ["file", "link", "other things"])
def test_a_place_that_is_taken_by_something_else_is_left_alone(place: Place, whole: Path, kind: str) -> None:
    if kind == "file":
        place.to.write_text("mine")
    elif kind == "link":
        (place.root / "elsewhere").mkdir()
        place.to.symlink_to(place.root / "elsewhere")
    else:
        place.to.mkdir()
        (place.to / "thesis.txt").write_text("mine")
    before = place.files()

    with pytest.raises(ConfigError, match="to"):
        place.install(whole)

    assert place.files() == before


def test_an_empty_directory_is_taken(place: Place, whole: Path) -> None:
    place.to.mkdir()

    assert place.install(whole).previous is None


def test_the_directory_may_not_lie_in_the_store(place: Place, whole: Path) -> None:
    place.to = place.store / "site"

    with pytest.raises(ConfigError, match="in one another"):
        place.install(whole)


def test_two_installs_into_one_directory_do_not_meet(place: Place, whole: Path) -> None:
    with locked(place.root / ".site.lock"), pytest.raises(NotReady, match="another installs"):
        place.install(whole)


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
    place: Place, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installing.disk, "free_bytes", lambda path: 70 * 2**20)

    with pytest.raises(ConfigError, match="GB are free"):
        place.install(whole)
    assert list(place.root.iterdir()) == []


def test_a_disk_that_fills_up_leaves_the_earlier_installation(
    place: Place, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / "first.mpb"
    write_bundle(first, [Item("documents/x", "document", b"1")], meta=meta(lock_id=None), signer=place.keys.signer)
    place.install(first)

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(sites.disk, "write_all", full)
        with pytest.raises(ConfigError, match="No space left"):
            place.install(whole)

    assert (place.to / "documents/x").read_bytes() == b"1"
    assert place.install(whole).previous is not None


KILLED = """
import sys, time
from pathlib import Path
from medport_local.bundle import install
from medport_local.bundle.archive import Bundle
from medport_local.bundle.signing import Verifier

file, key, store, to, limit = sys.argv[1:]
seen = 0
def told(count):
    global seen
    seen += count
    if seen > int(limit):
        print("now", flush=True)
        time.sleep(60)
with Bundle.open(Path(file), Verifier(key=Path(key))) as bundle:
    install.install(install.plan(bundle, store_root=Path(store), to=Path(to)), told=told)
"""


@pytest.mark.parametrize("limit", [0, 3_000_000, 9_000_000])
def test_a_killed_install_leaves_the_earlier_one_and_can_be_run_again(
    place: Place, whole: Path, tmp_path: Path, limit: int
) -> None:
    first = tmp_path / "first.mpb"
    write_bundle(first, [Item("documents/x", "document", b"1")], meta=meta(lock_id=None), signer=place.keys.signer)
    place.install(first)
    command = [sys.executable, "-c", KILLED, whole, place.keys.public, place.store, place.to, str(limit)]

    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()

    assert (place.to / "documents/x").read_bytes() == b"1"
    assert Store(place.store).list() == []
    place.install(whole)
    assert Store(place.store).verify() == []
    assert not (place.to / "documents/x").exists()
    assert not (place.root / ".site.staging").exists()


# What is truly signed and still may not be installed.


def refused(place: Place, tmp_path: Path, parts: list[Item], match: str, lock_id: str | None = None) -> None:
    file = tmp_path / "b.mpb"
    write_bundle(file, parts, meta=meta(lock_id=lock_id), signer=place.keys.signer)

    with pytest.raises(VerificationError, match=match):
        place.install(file)
    assert not place.to.exists()


def test_a_snapshot_without_one_of_its_blobs_is_refused(place: Place, tmp_path: Path) -> None:
    refused(place, tmp_path, snapshot_items(SIGLIP)[:-1], "which is not in the bundle")


def test_a_blob_of_no_snapshot_is_refused(place: Place, tmp_path: Path) -> None:
    refused(place, tmp_path, snapshot_items(SIGLIP)[2:], "belongs to no snapshot")


@pytest.mark.parametrize("missing", [0, 1])
def test_half_of_what_describes_a_snapshot_is_refused(place: Place, tmp_path: Path, missing: int) -> None:
    parts = snapshot_items(SIGLIP)
    parts.pop(missing)

    refused(place, tmp_path, parts, "is missing, and belongs to a snapshot")


def changed(change: Callable[[dict[str, Any]], object], index: int = 0) -> list[Item]:
    parts = snapshot_items(SIGLIP)
    source = parts[index].source
    assert isinstance(source, bytes)
    plain = json.loads(source)
    change(plain)
    parts[index] = Item(parts[index].path, "snapshot", json.dumps(plain).encode())
    return parts


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plain: plain.update(snapshot_sha256="0" * 64), "another snapshot than its place"),
        (lambda plain: plain["files"].pop("config.json"), "not that of its own table"),
        (lambda plain: plain["files"].update({"../x": plain["files"]["config.json"]}), "plain relative path"),
        (
            lambda plain: plain["files"].update({"CONFIG.json": plain["files"]["config.json"]}),
            "differs from config",
        ),
        (lambda plain: plain.update(family="llama"), "cannot be read"),
        (lambda plain: plain.update(files=[]), "cannot be read"),
    ],
    ids=["place", "table", "path", "twin", "family", "form"],
)
def test_a_snapshot_that_contradicts_itself_is_refused(
    place: Place, tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    refused(place, tmp_path, changed(change), said)


def test_a_record_that_cannot_be_read_is_refused(place: Place, tmp_path: Path) -> None:
    refused(place, tmp_path, changed(lambda plain: plain.pop("source"), 1), r"record\.json: cannot be read")


def evil(tmp_path: Path, name: str, data: bytes) -> list[Item]:
    """The phantom with one file exchanged, and a manifest that lists the exchange."""
    folder = tmp_path / "evil"
    shutil.copytree(SIGLIP, folder)
    (folder / name).write_bytes(data)
    files = {path.name: entry_of(folder, path.name) for path in folder.iterdir() if path.name != "manifest.json"}
    plain = json.loads((folder / "manifest.json").read_bytes())
    plain |= {
        "files": {name: entry.model_dump() for name, entry in files.items()},
        "snapshot_sha256": digest_of(files),
    }
    (folder / "manifest.json").write_text(json.dumps(plain))
    return snapshot_items(folder)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("run.py", b"import os", "not a kind of file"),
        ("model.safetensors", b"\x80\x04\x95pickle", "safetensors"),
        ("pytorch_model.bin", b"", "not a kind of file"),
        (
            "config.json",
            json.dumps(
                json.loads((SIGLIP / "config.json").read_text()) | {"auto_map": {"AutoModel": "x.y"}}
            ).encode(),
            "auto_map",
        ),
    ],
)
def test_what_no_load_would_take_is_not_installed_either(
    place: Place, tmp_path: Path, name: str, data: bytes, said: str
) -> None:
    refused(place, tmp_path, evil(tmp_path, name, data), said)

    assert not place.store.exists() or Store(place.store).list() == []


def test_a_lock_that_is_missing_or_another_is_refused(place: Place, tmp_path: Path) -> None:
    snapshots = [*snapshot_items(GEMMA), *snapshot_items(SIGLIP)]

    refused(place, tmp_path, snapshots, "made for a lock", LOCK.lock_id)


@pytest.mark.parametrize("lock_id", [None, "0" * 64])
def test_a_lock_of_another_id_is_refused(place: Place, tmp_path: Path, lock_id: str | None) -> None:
    refused(place, tmp_path, items(), "not the lock that the bundle was made for", lock_id)


def test_a_lock_whose_snapshot_is_not_there_is_refused(place: Place, tmp_path: Path) -> None:
    refused(place, tmp_path, [*snapshot_items(GEMMA), lock_item()], "names a snapshot for medsiglip", LOCK.lock_id)


def test_a_lock_that_is_none_is_refused(place: Place, tmp_path: Path) -> None:
    refused(place, tmp_path, [Item("lock/medport.lock", "lock", b"{}")], "version", LOCK.lock_id)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"revision": "c" * 40}, "medsiglip: the revision"), ({"model_id": "google/x"}, "medsiglip: the model is")],
    ids=["revision", "model"],
)
def test_a_lock_that_names_the_bytes_otherwise_is_refused(
    place: Place, tmp_path: Path, change: dict[str, str], said: str
) -> None:
    models = {"medsiglip": LOCK.models["medsiglip"].model_copy(update=change)}
    other = LOCK.model_copy(update={"models": models})
    parts = [*snapshot_items(SIGLIP), Item("lock/medport.lock", "lock", other.text().encode())]

    refused(place, tmp_path, parts, said, other.lock_id)
