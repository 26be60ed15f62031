"""Files on their way in: hashed, resumed, refused."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medport.errors import ConfigError, ConnectionFailed, NotReady, VerificationError
from medport_local.snapshot_file import FileEntry
from medport_local.store import Intake, Store

DATA = bytes(range(256)) * 40
SHA256 = hashlib.sha256(DATA).hexdigest()
ENTRY = FileEntry(sha256=SHA256, size_bytes=len(DATA))


class Source:
    """Bytes that are given from an offset on, perhaps only so many, and a memory of what was asked."""

    def __init__(self, data: bytes = DATA, *, breaks_after: int | None = None) -> None:
        self.data, self.breaks_after = data, breaks_after
        self.offsets: list[int] = []
        self.given = 0
        self.closed = 0

    def __call__(self, offset: int) -> Iterator[bytes]:
        self.offsets.append(offset)
        try:
            for at in range(offset, len(self.data), 100):
                if self.breaks_after is not None and self.given >= self.breaks_after:
                    raise ConnectionFailed("the line broke")
                piece = self.data[at : at + 100]
                self.given += len(piece)
                yield piece
        finally:
            self.closed += 1


def take(
    store: Store,
    source: Callable[[int], Iterator[bytes]],
    *,
    sha256: str | None = SHA256,
    size_bytes: int | None = len(DATA),
    version: str = "",
) -> FileEntry:
    with store.intake("x") as intake:
        return intake.receive("a.json", source, size_bytes=size_bytes, sha256=sha256, version=version)


def full_disk_for_parts() -> Callable[[int], None]:
    """An ``fsync`` that fails for partial files, as it does where room is found only when it is needed."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".part"):
            raise OSError(errno.ENOSPC, "full")
        real(descriptor)

    return fsync


def broken(store: Store, after: int, *, version: str = "", sha256: str | None = SHA256) -> None:
    """A first try that ends after so many bytes."""
    with pytest.raises(ConnectionFailed):
        take(store, Source(breaks_after=after), version=version, sha256=sha256)


def test_file_is_what_was_sent(store: Store) -> None:
    assert take(store, Source(), sha256=None, size_bytes=None) == ENTRY
    assert (store.root / "blobs" / SHA256[:2] / SHA256).read_bytes() == DATA


def test_broken_file_is_gone_on_with_where_it_ended(store: Store) -> None:
    broken(store, 3000)
    source = Source()

    assert take(store, source) == ENTRY

    assert source.offsets == [3000]


def test_same_version_is_gone_on_with_though_its_hash_is_not_known(store: Store) -> None:
    broken(store, 3000, version="etag-1", sha256=None)
    source = Source()

    assert take(store, source, version="etag-1", sha256=None) == ENTRY

    assert source.offsets == [3000]


@pytest.mark.parametrize(("before", "after"), [("etag-1", "etag-2"), ("", "")])
def test_file_that_may_have_changed_is_begun_again(store: Store, before: str, after: str) -> None:
    broken(store, 3000, version=before, sha256=None)
    source = Source()

    assert take(store, source, version=after, sha256=None) == ENTRY

    assert source.offsets == [0]


def test_file_of_unknown_hash_is_begun_again_after_a_restart(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken(store, 3000, version="etag-1", sha256=None)
    restarted = tmp_path / "boot_id"
    restarted.write_text("another\n")
    monkeypatch.setattr("medport_local.store.partial._BOOT_ID", restarted)
    source = Source()

    assert take(store, source, version="etag-1", sha256=None) == ENTRY

    assert source.offsets == [0]


def test_file_whose_bytes_did_not_reach_the_disk_is_not_gone_on_with(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", full_disk_for_parts())
    with pytest.raises(ConfigError, match="its disk is full"):
        take(store, Source(), version="etag-1", sha256=None)
    monkeypatch.undo()
    source = Source()

    assert take(store, source, version="etag-1", sha256=None) == ENTRY

    assert source.offsets == [0]


def test_partial_file_that_was_damaged_is_begun_again(store: Store) -> None:
    broken(store, 3000)
    (part,) = (store.root / "partial").glob("*/*.part")
    part.write_bytes(bytes(3000))
    source = Source()

    assert take(store, source) == ENTRY

    assert source.offsets == [3000, 0]


def test_partial_file_that_is_longer_than_the_whole_is_begun_again(store: Store) -> None:
    broken(store, 3000)
    (part,) = (store.root / "partial").glob("*/*.part")
    part.write_bytes(bytes(len(DATA) + 1))
    source = Source()

    assert take(store, source) == ENTRY

    assert source.offsets == [0]


def test_file_that_lacks_nothing_is_not_asked_for(store: Store) -> None:
    broken(store, 3000)
    (part,) = (store.root / "partial").glob("*/*.part")
    part.write_bytes(DATA)
    part.chmod(0o444)
    source = Source()

    assert take(store, source) == ENTRY

    assert source.offsets == []


def test_file_that_arrived_is_not_fetched_by_the_next_try(store: Store) -> None:
    take(store, Source(), version="etag-1", sha256=None)
    source = Source()

    assert take(store, source, version="etag-1", sha256=None) == ENTRY
    assert source.offsets == []
    assert take(store, source, version="etag-2", sha256=None) == ENTRY
    assert source.offsets == [0]


def test_blob_that_is_there_is_not_fetched(store: Store) -> None:
    take(store, Source())
    source = Source()

    with store.intake("another") as intake:
        assert intake.have(ENTRY)
        assert intake.receive("b.json", source, size_bytes=None, sha256=SHA256) == ENTRY

    assert source.offsets == []


def test_store_says_that_it_has_not_what_it_has_not(store: Store) -> None:
    with store.intake("x") as intake:
        assert not intake.have(ENTRY)


def test_damaged_blob_is_not_taken_for_what_it_is_called(store: Store) -> None:
    take(store, Source())
    blob = store.root / "blobs" / SHA256[:2] / SHA256
    blob.chmod(0o644)
    blob.write_bytes(bytes(len(DATA)))

    with store.intake("another") as intake:
        with pytest.raises(VerificationError, match=r"damaged in the store.*verify --repair"):
            intake.have(ENTRY)
        with pytest.raises(VerificationError, match="damaged in the store"):
            intake.receive("b.json", Source(), size_bytes=None, sha256=None)


def test_other_bytes_than_listed_are_refused_and_not_kept(store: Store) -> None:
    with pytest.raises(VerificationError, match=r"a\.json.*sha256 that its source lists"):
        take(store, Source(bytes(len(DATA))))

    assert list((store.root / "blobs").glob("*/*")) == []
    assert list((store.root / "partial").glob("*/*.part")) == []


def test_more_bytes_than_listed_are_refused_before_they_fill_the_disk(store: Store) -> None:
    def endless(offset: int) -> Iterator[bytes]:
        while True:
            yield bytes(1000)

    with pytest.raises(VerificationError, match=r"longer than the 10240 bytes"):
        take(store, endless)

    assert list((store.root / "partial").glob("*/*.part")) == []


def test_fewer_bytes_than_listed_are_refused_and_kept_for_the_next_try(store: Store) -> None:
    with pytest.raises(VerificationError, match="ended after 5000 of 10240 bytes"):
        take(store, Source(DATA[:5000]))
    source = Source()

    take(store, source)

    assert source.offsets == [5000]


def test_size_that_contradicts_the_hash_is_refused(store: Store) -> None:
    take(store, Source())

    with pytest.raises(VerificationError, match="not 10240, the size of what has this sha256"):
        take(store, Source(), size_bytes=5)


@pytest.mark.parametrize("sha256", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_hash_that_is_none_is_refused(store: Store, sha256: str) -> None:
    with pytest.raises(VerificationError, match=r"a\.json.*64 hex digits"):
        take(store, Source(), sha256=sha256)


@pytest.mark.parametrize("name", ["../a.json", "/etc/a.json", "a\\b.json", "c:a.json", "model.bin", "x.py", "a"])
def test_file_that_may_not_be_in_a_snapshot_is_refused_before_it_is_read(store: Store, name: str) -> None:
    source = Source()

    with store.intake("x") as intake, pytest.raises(VerificationError):
        intake.receive(name, source, size_bytes=None, sha256=None)

    assert source.offsets == []


def test_source_is_closed_when_its_bytes_are_refused(store: Store) -> None:
    source = Source(DATA + DATA)

    with pytest.raises(VerificationError):
        take(store, source)

    assert source.closed == 1


def test_large_pieces_are_hashed_as_small_ones(store: Store) -> None:
    data = bytes(3 * 2**20) + DATA

    with store.intake("x") as intake:
        found = intake.receive("a.json", lambda offset: iter([data]), size_bytes=len(data), sha256=None)

    assert found == FileEntry(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def test_received_file_can_be_looked_into_before_the_others_come(store: Store) -> None:
    with store.intake("x") as intake:
        entry = intake.receive("a.json", Source(), size_bytes=None, sha256=None)

        assert intake.read(entry) == DATA
        with intake.open(entry) as file:
            assert file.read(10) == DATA[:10]


def test_second_taker_of_the_same_waits_for_the_first(store: Store) -> None:
    source, waiting, order = Source(), threading.Event(), []

    def second() -> None:
        waiting.set()
        with store.intake("x") as intake:
            order.append("second")
            assert intake.receive("a.json", source, size_bytes=len(DATA), sha256=SHA256) == ENTRY

    with store.intake("x") as intake:
        thread = threading.Thread(target=second)
        thread.start()
        waiting.wait()
        intake.receive("a.json", source, size_bytes=len(DATA), sha256=SHA256)
        order.append("first")
    thread.join()

    assert order == ["first", "second"]
    assert source.offsets == [0]


def test_who_does_not_want_to_wait_is_told(store: Store) -> None:
    with store.intake("x"), pytest.raises(NotReady, match="another process"), store.intake("x", wait_s=0):
        pass


def test_others_are_not_waited_for(store: Store) -> None:
    with store.intake("x"), store.intake("y", wait_s=0) as intake:
        assert isinstance(intake, Intake)


def test_identity_never_becomes_a_path(store: Store) -> None:
    with store.intake("../../../../tmp/evil\0\n") as intake:
        intake.receive("a.json", Source(), size_bytes=None, sha256=None)

    (partial,) = (store.root / "partial").iterdir()
    assert len(partial.name) == 32
    assert partial.name.isalnum()


@settings(max_examples=30, deadline=None)
@given(breaks=st.lists(st.integers(0, len(DATA)), max_size=4), known=st.booleans(), versioned=st.booleans())
def test_however_often_the_line_breaks_the_file_is_what_was_sent(
    tmp_path_factory: pytest.TempPathFactory, breaks: list[int], known: bool, versioned: bool
) -> None:
    store = Store(tmp_path_factory.mktemp("law") / "store")
    sha256, version = SHA256 if known else None, "v" if versioned else ""

    for after in breaks:
        try:
            take(store, Source(breaks_after=after), sha256=sha256, version=version)
        except ConnectionFailed:
            continue
    found = take(store, Source(), sha256=sha256, version=version)

    assert found == ENTRY
    assert (store.root / "blobs" / SHA256[:2] / SHA256).read_bytes() == DATA
