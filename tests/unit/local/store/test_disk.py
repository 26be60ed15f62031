"""Disks that are full, read-only, another user's, or of several file systems."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.snapshots import add, manifest_of, write_snapshot
from support.store_worker import Worker, may_become_another

from medport.errors import ConfigError
from medport_local.store import Store, default_root
from medport_local.store.layout import OWNER

as_root = pytest.mark.skipif(not may_become_another(), reason="this process cannot become somebody else")


def mounted(where: Path, *options: str) -> bool:
    made = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(where)], capture_output=True)
    return made.returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    where = tmp_path / "disk"
    where.mkdir()
    if shutil.which("mount") is None or not mounted(where, "-o", "size=1m"):
        pytest.skip("a small file system cannot be mounted here")
    yield where
    subprocess.run(["umount", str(where)], check=True)


@pytest.fixture
def other_disk(store: Store) -> Iterator[Store]:
    """A store whose snapshots lie on another file system than its blobs."""
    if shutil.which("mount") is None or not mounted(store.root / "snapshots", "-o", "mode=755"):
        pytest.skip("a second file system cannot be mounted here")
    yield store
    subprocess.run(["umount", str(store.root / "snapshots")], check=True)


def test_pull_that_does_not_fit_is_refused_before_it_begins(small_disk: Path, tmp_path: Path) -> None:
    folder = write_snapshot(tmp_path / "large", numbers=10**6)
    store = Store(small_disk / "store")

    with pytest.raises(ConfigError, match=r"0\.00 GB too little for model-00001.*medport snapshot gc"):
        add(store, folder)

    assert store.list() == []
    assert list((store.root / "partial").glob("*/*.part")) == []


def test_disk_that_fills_up_leaves_a_store_that_is_right_and_goes_on_later(
    small_disk: Path, tmp_path: Path
) -> None:
    kept = write_snapshot(tmp_path / "kept", seed=3)
    store = Store(small_disk / "store")
    add(store, kept, revision="c" * 40)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(500_000))
    data = bytes(range(256)) * 2500

    # Its size is not known, as that of a stream.
    with pytest.raises(ConfigError, match="its disk is full"), store.intake("x") as intake:
        intake.receive(
            "a.json",
            lambda at: iter([data[at:400_000], data[400_000:]]),
            size_bytes=None,
            sha256=None,
            version="1",
        )

    assert [each.revision for each in store.list()] == ["c" * 40]
    assert store.verify() == []
    ballast.unlink()
    offsets: list[int] = []
    with store.intake("x") as intake:
        found = intake.receive(
            "a.json",
            lambda at: offsets.append(at) or iter([data[at:]]),  # type: ignore[func-returns-value]
            size_bytes=None,
            sha256=None,
            version="1",
        )
        assert intake.read(found) == data
    assert offsets[0] > 400_000


def test_file_that_may_not_grow_is_a_full_disk(open_place: Path, worker: Worker) -> None:
    folder = write_snapshot(open_place / "one", numbers=20_000)
    root = open_place / "store"
    limited = worker.run("add", root, folders=[str(folder)], file_limit=30_000)

    assert limited["error"][0] == "ConfigError"
    assert "its disk is full" in limited["error"][1]
    assert Store(root).verify() == []
    again = worker.run("add", root, folders=[str(folder)])
    assert again["result"] == [manifest_of(folder).snapshot_sha256]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_files_are_copied_where_links_cannot_be(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refused)

    stored = add(store, folder)

    assert not any(path.stat().st_nlink > 1 for path in stored.directory.iterdir())
    assert {stat.S_IMODE(path.stat().st_mode) for path in stored.directory.iterdir()} == {0o444}
    assert store.verify() == []
    assert store.open(stored).snapshot_sha256 == stored.snapshot_sha256


def test_snapshots_on_another_file_system_come_and_go(other_disk: Store, folder: Path) -> None:
    stored = add(other_disk, folder)

    assert other_disk.verify() == []
    assert other_disk.open(stored).snapshot_sha256 == stored.snapshot_sha256
    (stored.directory / "config.json").chmod(0o644)
    (stored.directory / "config.json").write_text("{}")
    other_disk.verify(repair=True)
    assert other_disk.verify() == []
    assert len(other_disk.collect(dry_run=False).snapshots) == 1
    assert list((other_disk.root / "blobs").glob("*/*")) == []


@as_root
@pytest.mark.parametrize("unprivileged", [True, False], ids=["another user's", "mounted read-only"])
def test_store_that_cannot_be_written_is_listed_opened_and_verified(
    open_place: Path, worker: Worker, unprivileged: bool
) -> None:
    folder = write_snapshot(open_place / "one")
    root = open_place / "store"
    sha256 = add(Store(root), folder).snapshot_sha256
    root.chmod(0o755)
    if not unprivileged and subprocess.run(["mount", "--bind", str(root), str(root)]).returncode:
        pytest.skip("nothing can be mounted here")
    if not unprivileged:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(root)], check=True)
    try:
        read = worker.run("read", root, unprivileged=unprivileged)
        verified = worker.run("verify", root, unprivileged=unprivileged)
        written = [
            worker.run("add", root, folders=[str(folder)], unprivileged=unprivileged),
            worker.run("collect", root, unprivileged=unprivileged),
            worker.run("pin", root, name="x", snapshots=[sha256], unprivileged=unprivileged),
        ]
    finally:
        if not unprivileged:
            subprocess.run(["umount", str(root)], check=True)

    assert read["result"] == [sha256]
    assert verified["result"] == []
    for outcome in written:
        assert outcome["error"][0] == "ConfigError", outcome
        assert "may not be written" in outcome["error"][1]


@as_root
def test_private_store_of_another_user_is_said_to_be_one(open_place: Path, worker: Worker) -> None:
    add(Store(open_place / "store"), write_snapshot(open_place / "one"))

    outcomes = [worker.run(action, open_place / "store", unprivileged=True) for action in ("read", "collect")]

    assert [each["error"][0] for each in outcomes] == ["ConfigError"] * 2
    assert all("may not be read by this user" in each["error"][1] for each in outcomes)


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
@pytest.mark.parametrize("part", ["", "blobs", "snapshots", "records", "pins", "locks", "partial", "quarantine"])
def test_store_that_others_may_write_to_is_refused(store: Store, part: str, mode: int) -> None:
    (store.root / part).chmod(mode)

    with pytest.raises(ConfigError, match=r"others may write to .*chmod go-w"):
        Store(store.root)


@as_root
@pytest.mark.parametrize("part", ["", "blobs", "snapshots", "records", "pins"])
def test_store_of_another_user_is_refused_unless_the_operator_names_him(
    store: Store, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(OWNER, raising=False)
    os.chown(store.root / part, 12345, -1)

    with pytest.raises(ConfigError, match=r"belongs to another user.*12345.*MEDPORT_STORE_OWNER=12345"):
        Store(store.root)

    for named in ("12346", "nobody"):
        monkeypatch.setenv(OWNER, named)
        with pytest.raises(ConfigError, match="belongs to another user"):
            Store(store.root)
    monkeypatch.setenv(OWNER, "12345")
    assert Store(store.root).list() == []


@as_root
def test_store_of_root_is_believed_by_everybody(open_place: Path, worker: Worker) -> None:
    add(Store(open_place / "store"), write_snapshot(open_place / "one"))
    (open_place / "store").chmod(0o755)

    assert len(worker.run("read", open_place / "store", unprivileged=True)["result"]) == 1


def test_owner_that_is_no_user_is_a_setting_at_fault(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWNER, "no such user")

    with pytest.raises(ConfigError, match="there is no such user"):
        Store(store.root)


@pytest.mark.parametrize("part", ["blobs", "snapshots", "partial"])
def test_store_with_a_link_for_a_directory_is_refused(store: Store, tmp_path: Path, part: str) -> None:
    shutil.rmtree(store.root / part)
    (store.root / part).symlink_to(tmp_path)

    with pytest.raises(ConfigError, match="not a directory"):
        Store(store.root)


def test_store_may_be_reached_by_a_link(store: Store, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "shortcut").symlink_to(store.root)

    add(Store(tmp_path / "shortcut"), folder)

    assert len(store.list()) == 1


def test_directory_with_other_things_is_not_made_a_store(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(ConfigError, match="holds other things"):
        Store(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_store_of_another_format_is_refused(store: Store) -> None:
    (store.root / "format").write_text("medport-store 2\n")

    with pytest.raises(ConfigError, match="another format"):
        Store(store.root)


def test_store_that_lacks_a_part_is_refused(store: Store) -> None:
    (store.root / "records").rmdir()

    with pytest.raises(ConfigError, match="lacks records/"):
        Store(store.root)


def test_store_is_not_made_where_only_one_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no store.*medport snapshot pull"):
        Store(tmp_path / "store", create=False)

    assert list(tmp_path.iterdir()) == []


def test_file_in_the_place_of_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")

    with pytest.raises(ConfigError, match="is not a directory"):
        Store(tmp_path / "store")


def test_place_of_the_store_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MEDPORT_STORE", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_root() == tmp_path / "medport" / "store"

    monkeypatch.setenv("MEDPORT_STORE", str(tmp_path / "named"))
    assert default_root() == tmp_path / "named"

    monkeypatch.delenv("MEDPORT_STORE")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert default_root() == Path.home() / ".local" / "share" / "medport" / "store"

    def nowhere() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(ConfigError, match=r"no home directory.*MEDPORT_STORE"):
        default_root()


def test_file_system_without_locks_is_said(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", refused)

    with pytest.raises(ConfigError, match="cannot lock files"):
        add(store, folder)
