"""The lock: one form, one id, and nothing in it that moves."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medport import lock
from medport.errors import ConfigError, VerificationError
from medport.lock import Lock

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": {"sha256": "ab" * 32, "size_bytes": 12},
    "model.safetensors": {"sha256": "cd" * 32, "size_bytes": 2**40},
}


def digest(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def model(**changes: Any) -> dict[str, Any]:
    return {
        "model_id": "google/medgemma-4b-it",
        "revision": COMMIT,
        "snapshot_sha256": digest(FILES),
        "family": "medgemma",
        "files": FILES,
        **changes,
    }


def content(**changes: Any) -> dict[str, Any]:
    return {"version": 1, "models": {"medgemma": model()}, **changes}


def parsed(value: object) -> Lock:
    return lock.parse(json.dumps(value))


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcé ", max_size=4), inner, max_size=3),
    max_leaves=8,
)
others = st.dictionaries(st.text("xyzü-", min_size=1, max_size=6), values, max_size=4)


@given(others, others)
def test_what_is_written_is_what_was_read_with_every_key_of_other_tools(
    top: dict[str, Any], inner: dict[str, Any]
) -> None:
    given_ = content(**top) | {"models": {"medgemma": model(**inner)}}

    read = parsed(given_)

    assert json.loads(read.text()) == given_
    assert lock.parse(read.text()) == read


@given(others)
def test_id_is_of_what_is_said_and_not_of_how_it_is_laid_out(top: dict[str, Any]) -> None:
    given_ = content(**top)
    canonical = json.dumps(given_, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    backwards = dict(reversed(given_.items()))

    assert parsed(given_).lock_id == hashlib.sha256(canonical).hexdigest()
    assert lock.parse(json.dumps(backwards, indent=7)).lock_id == parsed(given_).lock_id
    assert parsed(given_ | {"another": 1}).lock_id != parsed(given_).lock_id


def test_default_that_is_left_out_stays_left_out() -> None:
    said = parsed({"version": 1, "models": {"m": {k: v for k, v in model().items() if k != "revision"}}})

    assert "revision" not in json.loads(said.text())["models"]["m"]
    assert said.models["m"].revision is None


@pytest.mark.parametrize("moving", ["main", "v1.0", COMMIT[:39], COMMIT.upper(), COMMIT + "\n", "refs/pr/1"])
def test_branch_or_tag_never_stands_where_a_commit_must(moving: str) -> None:
    with pytest.raises(ConfigError, match="is not a commit; a branch or a tag moves"):
        parsed(content(models={"m": model(revision=moving)}))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "no JSON object"),
        ({"models": {}}, "of a version"),
        ({"version": 2}, "of a version"),
        ({"version": True}, "of a version"),
        (content(models={"../m": model()}), "pattern"),
        (content(models={"m": model(family="llama")}), "medgemma"),
        (content(models={"m": model(files={})}), "files"),
        (content(models={"m": model(snapshot_sha256="AB" * 32)}), "pattern"),
        (content(models={"m": model(terms={"name": "x", "gated": "yes"})}), "bool"),
        (content(images={"serving": {"uri": "r/x", "digest": "latest"}}), "pattern"),
        (content(images={"serving": {"uri": "r/x:1"}}), "digest"),
        (content(more="\ud800"), "no canonical form"),
    ],
)
def test_what_no_lock_holds_is_refused(value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as fault:
        parsed(value)

    assert fault.value.field == "lock"


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../x", "a/../b", "a//b", "./a", "", ".", "a\\b", "c:x", "a\x00b", "a\nb", "x" * 1025, "a/"],
)
def test_file_name_that_leads_out_of_a_snapshot_is_refused(name: str) -> None:
    files = {name: FILES["config.json"]}

    with pytest.raises(ConfigError, match="no path inside a snapshot"):
        parsed(content(models={"m": model(files=files, snapshot_sha256=digest(files))}))


@pytest.mark.parametrize(
    "entry", [{"sha256": "ab" * 32}, {"sha256": "ab" * 32, "size_bytes": -1}, {**FILES["config.json"], "url": "x"}]
)
def test_entry_of_a_file_is_its_hash_and_its_size(entry: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        parsed(content(models={"m": model(files={"config.json": entry})}))


def test_table_of_files_that_was_changed_by_hand_is_refused() -> None:
    files = FILES | {"config.json": {"sha256": "ee" * 32, "size_bytes": 12}}

    with pytest.raises(VerificationError, match="not that of its own table of files") as fault:
        parsed(content(models={"m": model(files=files)}))

    assert fault.value.field == "models.m"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ('{"version": 1, "version": 1}', "a key stands twice"),
        ('{"version": 1, "models": {}, "x": {"a": 1, "a": 1}}', "a key stands twice"),
        ('{"version": 1, "x": NaN}', "NaN is no number"),
        ('{"version": 1, "x": -Infinity}', "no number"),
        ('{"version": 1, "x": 1e999}', "a number is too large"),
        (b"\xff\xfe", "is no JSON"),
        (" " * (lock.MAX_BYTES + 1), "larger than 16 MiB"),
    ],
)
def test_text_that_means_two_things_or_nothing_is_refused(text: str | bytes, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        lock.parse(text)


def test_file_that_is_missing_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read") as fault:
        lock.read(tmp_path / "medport.lock")

    assert "medport snapshot lock" in (fault.value.remedy or "")


def test_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "medport.lock"
    lock.write(path, parsed(content()))
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    path.chmod(0o600)

    lock.write(path, parsed(content(more=1)))

    assert lock.read(path) == parsed(content(more=1))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["medport.lock"]


def test_reader_beside_a_writer_sees_one_lock_or_the_other(tmp_path: Path) -> None:
    path = tmp_path / "medport.lock"
    both = [parsed(content(more="x" * 200_000)), parsed(content(more="y"))]
    lock.write(path, both[0])
    ended = threading.Event()

    def keep_writing() -> None:
        for i in range(60):
            lock.write(path, both[i % 2])
        ended.set()

    writer = threading.Thread(target=keep_writing)
    writer.start()
    seen = set()
    while not ended.is_set():
        seen.add(lock.read(path).lock_id)
    writer.join()

    assert seen <= {each.lock_id for each in both}


def test_directory_that_cannot_be_written_is_a_setting_at_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        lock.write(tmp_path / "missing" / "medport.lock", parsed(content()))
