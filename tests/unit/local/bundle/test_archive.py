"""What write_bundle writes, Bundle reads; the same members give the same bytes."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import subprocess
import tarfile
import threading
import tracemalloc
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.bundles import META, Keys

from medport.errors import ConfigError, VerificationError
from medport_local.bundle import tar_header, writing
from medport_local.bundle.archive import Bundle, Item, Meta, write_bundle

NAMES = st.text(st.characters(codec="utf-8", categories=("L", "N", "S", "P", "Zs")), min_size=1, max_size=90)


def document(name: str, source: Path | bytes, sha256: str | None = None) -> Item:
    return Item(f"documents/{name}", "document", source, sha256)


def write(target: Path, items: list[Item], keys: Keys, meta: Meta = META) -> Path:
    write_bundle(target, items, meta=meta, signer=keys.signer)
    return target


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members=st.dictionaries(NAMES, st.binary(max_size=1500), max_size=6))
def test_whatever_can_be_written_is_read_back(tmp_path: Path, members: dict[str, bytes]) -> None:
    target = tmp_path / "b.mpb"
    items = [document(name, data) for name, data in members.items()]

    try:
        write_bundle(target, items, meta=META, signer=None, replace=True)
    except VerificationError:
        return  # such as a name that not every disk can hold

    with Bundle.open(target, None) as bundle:
        bundle.verify()
        read = {entry.path.removeprefix("documents/"): bundle.small(entry) for entry in bundle.manifest.entries}
    assert read == members


def test_other_programs_unpack_a_bundle(small: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "xf", small, "-C", tmp_path], check=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
    with tarfile.open(small) as archive:
        names = archive.getnames()

    assert (tmp_path / "documents/letter.txt").read_bytes() == b"Approved.\n"
    assert (tmp_path / "documents/Übersicht.txt").read_bytes() == b"x" * 513
    assert names == ["manifest.json", "manifest.sig", "documents/letter.txt", "documents/Übersicht.txt"]


@pytest.mark.parametrize("size", [0, 1, 8**11 - 1, 8**11, 2**45])
@pytest.mark.parametrize("path", ["documents/a", "documents/" + "n" * 120, "documents/ü"])
def test_tarfile_reads_every_header_as_it_was_meant(path: str, size: int) -> None:
    made = tar_header.header(path, size)

    with tarfile.open(fileobj=io.BytesIO(made)) as archive:
        member = archive.next()

    assert member is not None
    assert (member.name, member.size, member.isreg()) == (path, size, True)
    assert (member.mode, member.uid, member.gid, member.mtime, member.uname) == (0o644, 0, 0, 0, "")


def test_equal_members_in_any_order_give_equal_bytes(tmp_path: Path) -> None:
    items = [document("a", b"1"), document("b", b"2"), Item("lock/medport.lock", "lock", b"{}")]

    write_bundle(tmp_path / "one.mpb", items, meta=META, signer=None)
    write_bundle(tmp_path / "two.mpb", items[::-1], meta=META, signer=None)

    assert (tmp_path / "one.mpb").read_bytes() == (tmp_path / "two.mpb").read_bytes()


def test_only_the_time_and_the_signature_tell_two_exports_apart(tmp_path: Path, trusted: Keys) -> None:
    items = [document("a", b"1")]
    later = Meta(created_at=META.created_at + timedelta(hours=1), medport=META.medport, lock_id=META.lock_id)

    one, two = write(tmp_path / "1.mpb", items, trusted), write(tmp_path / "2.mpb", items, trusted, later)

    with Bundle.open(one, trusted.verifier) as first, Bundle.open(two, trusted.verifier) as second:
        assert first.manifest == second.manifest.model_copy(update={"created_at": META.created_at})
    tail = tar_header.header("documents/a", 1)
    assert one.read_bytes()[one.read_bytes().index(tail) :] == two.read_bytes()[two.read_bytes().index(tail) :]


def test_what_describes_comes_before_what_is_large(tmp_path: Path) -> None:
    data = b"weights"
    blob = Item(f"blobs/{hashlib.sha256(data).hexdigest()}", "blob", data)

    manifest = write_bundle(
        tmp_path / "b.mpb",
        [blob, document("z", b""), Item("lock/medport.lock", "lock", b"{}")],
        meta=META,
        signer=None,
    )

    assert [entry.kind for entry in manifest.entries] == ["lock", "document", "blob"]


@pytest.mark.parametrize("known", [True, False])
def test_a_source_that_changes_while_it_is_copied_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"before")
    digest = hashlib.sha256(b"before").hexdigest() if known else None
    copy = writing._copy

    def meddled(*arguments: object) -> None:
        source.write_bytes(b"after!")
        copy(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(writing, "_copy", meddled)

    with pytest.raises(VerificationError, match="should have" if known else "changed while"):
        write_bundle(tmp_path / "b.mpb", [document("a", source, digest)], meta=META, signer=None)
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_a_source_that_grows_without_end_is_given_up(tmp_path: Path) -> None:
    """A size that lies, as of a device or a log that is written."""
    source = tmp_path / "source"
    source.write_bytes(b"x" * 4096)
    item = document("a", source)
    entry = writing._entry(item).model_copy(update={"size_bytes": 100})
    out = io.BytesIO()

    with pytest.raises(VerificationError, match="changed while"):
        writing._copy(item, entry, out, lambda _: None)
    assert out.getvalue() == b""


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "missing"])
def test_only_regular_files_become_members(tmp_path: Path, kind: str) -> None:
    source, target = tmp_path / "source", tmp_path / "b.mpb"
    if kind == "link":
        source.symlink_to("/etc/hostname")
    elif kind == "folder":
        source.mkdir()
    elif kind == "pipe":
        os.mkfifo(source)

    with pytest.raises(VerificationError, match="source"):
        write_bundle(target, [document("a", source)], meta=META, signer=None)
    assert not target.exists()


def test_a_bundle_that_is_there_is_replaced_only_if_told(tmp_path: Path) -> None:
    target = tmp_path / "b.mpb"
    target.write_bytes(b"precious")

    with pytest.raises(ConfigError, match="there already"):
        write_bundle(target, [], meta=META, signer=None)
    assert target.read_bytes() == b"precious"

    write_bundle(target, [], meta=META, signer=None, replace=True)
    with Bundle.open(target, None) as bundle:
        assert bundle.manifest.entries == ()


def test_a_folder_that_cannot_be_written_is_a_setting_at_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no directory"):
        write_bundle(tmp_path / "absent" / "b.mpb", [], meta=META, signer=None)


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: SimpleNamespace(free=5))

    with pytest.raises(ConfigError, match="GB are free"):
        write_bundle(tmp_path / "b.mpb", [document("a", b"123456")], meta=META, signer=None)
    assert list(tmp_path.iterdir()) == []


def test_verify_reads_every_byte_once(small: Path, trusted: Keys) -> None:
    seen, lock = 0, threading.Lock()

    def told(count: int) -> None:
        nonlocal seen
        with lock:
            seen += count

    with Bundle.open(small, trusted.verifier) as bundle:
        bundle.verify(told)

    assert seen == 10 + 513


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Path]:
    """64 MB, most of them a hole in the source."""
    source = tmp_path / "large"
    with open(source, "wb") as file:
        file.truncate(64 * 2**20)
    write_bundle(tmp_path / "large.mpb", [document("large", source)], meta=META, signer=None)
    source.unlink()
    yield tmp_path / "large.mpb"
    (tmp_path / "large.mpb").unlink()


def test_memory_does_not_grow_with_the_members(large: Path) -> None:
    tracemalloc.start()
    try:
        with Bundle.open(large, None) as bundle:
            bundle.verify()
            for entry in bundle.manifest.entries:
                for _ in bundle.read(entry):
                    pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 12 * 2**20


def test_a_member_is_read_from_any_offset(small: Path, trusted: Keys) -> None:
    with Bundle.open(small, trusted.verifier) as bundle:
        letter = bundle.manifest.entry("documents/letter.txt")
        assert letter is not None

        assert b"".join(bundle.read_unchecked(letter, 4)) == b"oved.\n"
        assert list(bundle.read_unchecked(letter, 10)) == []


def test_a_file_that_shrinks_while_it_is_read_is_refused(small: Path, trusted: Keys) -> None:
    with Bundle.open(small, trusted.verifier) as bundle:
        os.truncate(small, 2048)

        with pytest.raises(VerificationError, match="became shorter"):
            bundle.verify()
        with pytest.raises(VerificationError, match="became shorter"):
            bundle.small(bundle.manifest.entries[1])


def test_a_file_that_is_exchanged_after_it_was_opened_changes_nothing(small: Path, trusted: Keys) -> None:
    with Bundle.open(small, trusted.verifier) as bundle:
        os.replace(write(small.with_name("other.mpb"), [], trusted), small)

        bundle.verify()


def test_a_member_that_is_changed_after_it_was_opened_is_refused_when_it_is_read(
    small: Path, trusted: Keys
) -> None:
    with Bundle.open(small, trusted.verifier) as bundle:
        small.write_bytes(small.read_bytes().replace(b"Approved.", b"Rejected."))

        with pytest.raises(VerificationError, match=r"letter\.txt: does not have the hash"):
            bundle.small(bundle.manifest.entries[0])
        with pytest.raises(VerificationError, match=r"letter\.txt: does not have the hash"):
            bundle.verify()


@pytest.mark.parametrize("call", ["pread", "preadv"])
def test_a_disk_that_cannot_be_read_is_said_as_such(
    small: Path, trusted: Keys, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def broken(*arguments: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Bundle.open(small, trusted.verifier) as bundle:
        read = bundle.verify if call == "preadv" else partial(bundle.small, bundle.manifest.entries[0])
        monkeypatch.setattr(os, call, broken)

        with pytest.raises(ConfigError, match="Input/output error"):
            read()
