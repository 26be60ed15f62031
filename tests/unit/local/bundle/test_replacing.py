"""What takes the place of an installed bundle: not an older one, and never half."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.bundle_site import OTHERS, SIGLIP, Place, meta
from support.bundles import NOW, Certifier, Keys, snapshot_items

from medport.errors import ConfigError, NotReady, VerificationError
from medport_local.bundle import install as installing
from medport_local.bundle import site as sites
from medport_local.bundle.archive import Bundle, Item, write_bundle
from medport_local.bundle.signing import Signer, Verifier
from medport_local.snapshot import digest_of
from medport_local.snapshot_file import entry_of
from medport_local.store import Store


def test_what_was_there_before_is_kept_once(place: Place, tmp_path: Path) -> None:
    for name in "abc":
        file = tmp_path / f"{name}.mpb"
        write_bundle(
            file, [Item(f"documents/{name}", "document", b"")], meta=meta(lock_id=None), signer=place.keys.signer
        )
        done = place.install(file)

    assert done.previous is not None
    assert (done.previous / "documents/b").is_file()
    assert (place.to / "documents/c").is_file()
    assert not (place.to / "documents/b").exists()
    assert sorted(path.name for path in place.root.iterdir() if not path.name.startswith(".")) == [
        "site", "site.previous", "store",
    ]  # fmt: skip


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_an_installation_is_replaced_as_a_whole(
    place: Place, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    place.install(whole)
    file = tmp_path / "other.mpb"
    write_bundle(file, [Item("documents/x", "document", b"")], meta=meta(lock_id=None), signer=place.keys.signer)
    if not exchange:
        monkeypatch.setattr(sites, "_exchange", lambda one, other: False)

    place.install(file)

    assert [path.name for path in (place.to / "documents").iterdir()] == ["x"]
    assert not (place.to / "lock").exists()


def test_the_system_exchanges_two_directories_in_one_step(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "inside").mkdir(parents=True)

    if not sites._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot")
    assert (tmp_path / "a" / "inside").is_dir()


def test_an_exchange_that_is_not_possible_is_no_error_and_one_that_fails_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="No such file"):
        sites._exchange(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(sites.ctypes, "get_errno", lambda: errno.EINVAL)
    assert sites._exchange(tmp_path / "a", tmp_path / "b") is False


def test_an_installation_that_was_left_between_two_renames_is_put_back(
    place: Place, whole: Path, tmp_path: Path, stranger: Keys
) -> None:
    place.install(whole)
    os.rename(place.to, place.root / "site.previous")
    broken = tmp_path / "broken.mpb"
    data = bytearray(whole.read_bytes())
    data[-2000] ^= 1
    broken.write_bytes(data)

    with pytest.raises(VerificationError):
        place.install(broken)

    assert (place.to / "receipt.json").is_file()


def test_an_older_bundle_another_lock_and_another_signer_are_said(
    place: Place, whole: Path, tmp_path: Path, stranger: Keys
) -> None:
    place.install(whole)
    older = tmp_path / "older.mpb"
    write_bundle(older, OTHERS, meta=meta(NOW - timedelta(days=9), None), signer=stranger.signer)

    with Bundle.open(older, stranger.verifier) as bundle:
        notes = " ".join(place.plan(bundle, older=True, other_signer=True).notes)

    assert "OLDER than what is installed" in notes
    assert "another lock" in notes
    assert "another key" in notes


def test_an_older_bundle_is_installed_only_if_that_is_asked_for(place: Place, whole: Path, tmp_path: Path) -> None:
    place.install(whole)
    older = tmp_path / "older.mpb"
    write_bundle(older, OTHERS, meta=meta(NOW - timedelta(seconds=1), None), signer=place.keys.signer)

    with Bundle.open(older, place.keys.verifier) as bundle:
        with pytest.raises(ConfigError, match="OLDER") as caught:
            place.plan(bundle, other_signer=True)
        assert place.plan(bundle, older=True).before is not None

    assert caught.value.field == "older"


def test_a_bundle_of_another_signer_is_installed_only_if_that_is_asked_for(
    place: Place, whole: Path, tmp_path: Path, stranger: Keys
) -> None:
    place.install(whole)
    other = tmp_path / "other.mpb"
    write_bundle(other, OTHERS, meta=meta(lock_id=None), signer=stranger.signer)

    with Bundle.open(other, stranger.verifier) as bundle:
        with pytest.raises(ConfigError, match="is signed by") as caught:
            place.plan(bundle, older=True)
        assert place.plan(bundle, other_signer=True).before is not None

    assert caught.value.field == "other-signer"


def test_a_signer_who_renewed_his_certificate_is_the_same_one(place: Place, tmp_path: Path) -> None:
    root = Certifier(tmp_path)
    place.keys = dataclasses.replace(place.keys, verifier=Verifier(authorities=[root.file], clock=lambda: NOW))
    for day in range(2):
        file = tmp_path / f"{day}.mpb"
        key, chain = root.certify("Release")
        signer = Signer(key, certificate=chain, clock=lambda: NOW)
        write_bundle(file, OTHERS, meta=meta(NOW + timedelta(days=day), None), signer=signer)
        with Bundle.open(file, place.keys.verifier) as bundle:
            plan = place.plan(bundle)
            installing.install(plan)

    assert any("another key" in note for note in plan.notes)


def test_what_a_killed_installation_left_aside_counts_as_installed(place: Place) -> None:
    place.put("one")
    os.rename(place.to, place.root / "site.previous")

    with pytest.raises(ConfigError, match="OLDER"):
        place.put("older", NOW - timedelta(days=1))


def test_a_receipt_that_cannot_be_read_hides_no_newer_bundle(place: Place) -> None:
    place.put("one")
    (place.to / "receipt.json").write_text("{")

    with pytest.raises(ConfigError, match="not known which bundle"):
        place.put("older", NOW - timedelta(days=1))


def test_a_bundle_is_not_compared_with_one_and_put_in_place_of_another(place: Place, whole: Path) -> None:
    place.put("one")
    with Bundle.open(whole, place.keys.verifier) as bundle:
        plan = place.plan(bundle)
        place.put("two")

        with pytest.raises(NotReady, match="meanwhile"):
            installing.install(plan)

    assert place.shown() == {"site": "two", "site.previous": "one"}


def test_a_fault_after_the_exchange_loses_neither_installation(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.put("one")
    place.put("two")
    remove = sites._remove

    def fail(path: Path) -> None:
        if path.name in ("site.previous", ".site.older") and path.exists():
            raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
        remove(path)

    with monkeypatch.context() as patch:
        patch.setattr(sites, "_remove", fail)
        done = place.put("three")
        with pytest.raises(ConfigError, match=r"\.site\.older cannot be written or removed"):
            place.put("four")

    assert done.previous == place.root / "site.previous"
    assert place.shown() == {"site": "three", "site.previous": "two", ".site.older": "one"}
    place.put("four")
    assert place.shown() == {"site": "four", "site.previous": "three"}


@pytest.mark.parametrize("step", ["leaving", "older", "exchange"])
def test_a_fault_before_the_exchange_leaves_both_installations(
    place: Place, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    place.put("one")
    place.put("two")
    rename, write, exchange = os.rename, sites.disk.write_file, sites._exchange

    def fail(this: str, *paths: Path) -> None:
        if this == step and any("site" in str(path) for path in paths):
            raise PermissionError(errno.EPERM, "Operation not permitted")

    def failing_rename(one: Path, other: Path) -> None:
        fail("older", *[Path(other)] if Path(other).name == ".site.older" else [])
        rename(one, other)

    def failing_write(path: Path, data: bytes, **options: Any) -> None:
        fail("leaving", *[path] if path.name == ".site.leaving" else [])
        write(path, data, **options)

    def failing_exchange(one: Path, other: Path) -> bool:
        fail("exchange", one)
        return exchange(one, other)

    with monkeypatch.context() as patch:
        patch.setattr(sites.os, "rename", failing_rename)
        patch.setattr(sites.disk, "write_file", failing_write)
        patch.setattr(sites, "_exchange", failing_exchange)
        with pytest.raises(ConfigError, match="cannot be written"):
            place.put("three")

    assert place.shown() == {"site": "two", "site.previous": "one"}


EXCHANGE_KILLED = """
import os, signal, sys
from pathlib import Path
from medport_local.bundle import install, site
from medport_local.bundle.archive import Bundle
from medport_local.bundle.signing import Verifier

file, key, store, to, when, way = sys.argv[1:]

def killed(one, other):
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "exchange":
        exchange(one, other)
    else:
        os.rename(other, other.with_name("site.previous"))
        if when == "after":
            os.rename(one, other)
    os.kill(os.getpid(), signal.SIGKILL)

exchange, site._exchange = site._exchange, killed
with Bundle.open(Path(file), Verifier(key=Path(key))) as bundle:
    install.install(install.plan(bundle, store_root=Path(store), to=Path(to)))
"""


@pytest.mark.parametrize("earlier", [["two"], ["one", "two"]], ids=["no previous", "a previous"])
@pytest.mark.parametrize(
    ("when", "way", "left"),
    [
        ("before", "exchange", "two"),
        ("after", "exchange", "new"),
        ("between", "renames", "two"),
        ("after", "renames", "new"),
    ],
)
def test_an_install_that_is_killed_while_it_exchanges_loses_no_installation(
    place: Place, tmp_path: Path, when: str, way: str, left: str, earlier: list[str]
) -> None:
    for text in earlier:
        place.put(text)
    file, broken = tmp_path / "new.mpb", tmp_path / "broken.mpb"
    write_bundle(
        file, [Item("documents/x", "document", b"new")], meta=meta(lock_id=None), signer=place.keys.signer
    )
    data = bytearray(file.read_bytes())
    data[-1024 - 512] ^= 1
    broken.write_bytes(data)

    command = [sys.executable, "-c", EXCHANGE_KILLED, file, place.keys.public, place.store, place.to, when, way]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(VerificationError):
        place.install(broken)

    expected = {"new": ["two", "new"], "two": earlier}[left]
    assert place.shown() == dict(zip(["site", "site.previous"], reversed(expected), strict=False))
    assert {path.name for path in place.root.iterdir()} <= {"site", "site.previous", "store", ".site.lock"}


def test_what_is_pinned_is_what_is_installed_and_the_one_before_it(place: Place, tmp_path: Path) -> None:
    for number in range(3):
        folder = copied(tmp_path / f"model{number}", revision=str(number) * 40)
        file = tmp_path / f"{number}.mpb"
        at = NOW + timedelta(days=number)
        write_bundle(file, snapshot_items(folder), meta=meta(at, None), signer=place.keys.signer)
        done = place.install(file)

    store = Store(place.store)
    assert list(store.pins()) == [done.pin]
    kept = {each.revision for each in store.list() if each.pinned_by}
    assert kept == {"1" * 40, "2" * 40}
    store.collect(dry_run=False)
    assert {each.revision for each in store.list()} == kept


def test_two_directories_of_one_store_keep_their_snapshots_apart(place: Place, whole: Path) -> None:
    place.install(whole)
    place.to = place.root / "second"
    place.install(whole)

    place.put("none of a model")
    place.put("again none")

    assert all(each.pinned_by for each in Store(place.store).list())
    place.to = place.root / "site"
    place.put("none of a model")
    assert all(each.pinned_by for each in Store(place.store).list()), "the one before still has them"
    place.put("again none")
    assert not Store(place.store).pins()


def copied(folder: Path, *, revision: str) -> Path:
    """The phantom of another commit, told apart by one file."""
    shutil.copytree(SIGLIP, folder)
    (folder / "LICENSE.txt").write_text(revision)
    plain = json.loads((folder / "manifest.json").read_bytes())
    files = {name: entry_of(folder, name) for name in (*plain["files"], "LICENSE.txt")}
    plain |= {
        "files": {name: entry.model_dump() for name, entry in files.items()},
        "snapshot_sha256": digest_of(files),
        "revision": revision,
    }
    (folder / "manifest.json").write_text(json.dumps(plain))
    return folder
