"""Models in a directory: what is copied, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medport.errors import ConfigError, VerificationError
from medport_local.phantom import weights_dir
from medport_local.snapshot import MANIFEST, open_snapshot
from medport_local.sources import DirectorySource, pull
from medport_local.store import Store, Stored

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the phantom, with its manifest."""
    shutil.copytree(weights_dir("medsiglip"), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def add(store: Store) -> Callable[[Path], Stored]:
    return lambda directory: pull(store, DirectorySource(directory), told=lambda _: None)


def test_a_directory_with_a_manifest_is_what_the_manifest_says(
    folder: Path, add: Callable[[Path], Stored]
) -> None:
    stored = add(folder)

    shipped = open_snapshot(folder)
    assert (stored.model_id, stored.revision, stored.snapshot_sha256) == (
        shipped.model_id,
        shipped.revision,
        shipped.snapshot_sha256,
    )
    assert open_snapshot(stored.directory).notice == shipped.notice
    assert stored.record.source == "directory"


def test_a_directory_without_a_manifest_has_no_revision(folder: Path, add: Callable[[Path], Stored]) -> None:
    (folder / MANIFEST).unlink()

    stored = add(folder)

    assert stored.revision is None
    assert stored.snapshot_sha256 == open_snapshot(folder).snapshot_sha256
    assert stored.model_id == open_snapshot(folder).model_id


def test_files_are_copied_so_that_nobody_who_can_write_there_changes_the_store(
    folder: Path, add: Callable[[Path], Stored]
) -> None:
    stored = add(folder)

    for path in folder.iterdir():
        path.write_bytes(b"other")

    assert open_snapshot(stored.directory).snapshot_sha256 == stored.snapshot_sha256


def test_adding_uses_no_network(
    folder: Path, add: Callable[[Path], Stored], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("a socket was asked for")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refused)

    assert add(folder).model_id


def test_the_same_directory_again_copies_nothing(folder: Path, store: Store) -> None:
    first = pull(store, DirectorySource(folder), told=lambda _: None)
    said: list[str] = []

    again = pull(store, DirectorySource(folder), told=said.append)

    assert again == first
    assert any("already" in line for line in said)


def test_what_a_download_leaves_beside_the_model_stays_there(folder: Path, store: Store) -> None:
    (folder / MANIFEST).unlink()
    (folder / "README.md").write_text("# A model")
    (folder / "notes.txt").write_text("mine")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.json").write_text("{}")
    said: list[str] = []

    stored = pull(store, DirectorySource(folder), told=said.append)

    assert not {"README.md", "notes.txt"} & {path.name for path in stored.directory.iterdir()}
    assert any("notes.txt" in line for line in said)


def _pickled(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    (folder / WEIGHTS).write_bytes(b"\x80\x04\x95" + bytes(1000))


def _flipped(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _linked(folder: Path) -> None:
    (folder / "config.json").rename(folder.parent / "elsewhere.json")
    (folder / "config.json").symlink_to(folder.parent / "elsewhere.json")


def _rewritten(change: dict[str, Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        (folder / MANIFEST).unlink()
        config = json.loads((folder / "config.json").read_bytes())
        (folder / "config.json").write_text(json.dumps({**config, **change}))

    return rewrite


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_linked, r"config\.json.*link"),
        (lambda folder: os.mkfifo(folder / "pipe.json"), r"pipe\.json.*not a regular file"),
        (lambda folder: (folder / "run.py").write_text(""), r"run\.py.*code"),
        (lambda folder: (folder / "extra.json").write_text("{}"), r"extra\.json.*not in the manifest"),
        (_without("spiece.model"), r"spiece\.model.*not in the directory"),
        (_flipped, r"model\.safetensors.*(hash|sha256)"),
        (_pickled, r"model\.safetensors.*not a safetensors file"),
        (_rewritten({"auto_map": {}}), "auto_map"),
        (_rewritten({"_attn_implementation": "x/y"}), "_attn_implementation"),
        (_rewritten({"model_type": "llama", "architectures": None}), "llama"),
    ],
    ids=["link", "pipe", "code", "extra", "missing", "bit", "pickle", "auto_map", "_attn", "family"],
)
def test_a_bad_directory_is_refused_by_name_and_leaves_no_snapshot(
    folder: Path, add: Callable[[Path], Stored], store: Store, spoil: Callable[[Path], Any], said: str
) -> None:
    spoil(folder)

    with pytest.raises(VerificationError, match=said):
        add(folder)

    assert store.list() == []


def test_a_file_that_is_swapped_between_check_and_copy_is_refused(folder: Path, store: Store) -> None:
    class Swapped(DirectorySource):
        def offer(self) -> Any:
            offer = super().offer()
            _flipped(folder)
            return offer

    with pytest.raises(VerificationError, match=r"model\.safetensors"):
        pull(store, Swapped(folder), told=lambda _: None)

    assert store.list() == []


@pytest.mark.parametrize("name", ["absent", "file"])
def test_what_is_no_directory_is_refused(tmp_path: Path, add: Callable[[Path], Stored], name: str) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="no directory"):
        add(tmp_path / name)


def test_a_directory_without_safetensors_says_what_is_needed(
    tmp_path: Path, add: Callable[[Path], Stored]
) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")

    with pytest.raises(ConfigError, match=r"\*\.safetensors"):
        add(tmp_path)


def test_a_flipped_bit_in_the_store_is_not_called_there_already(
    folder: Path, add: Callable[[Path], Stored], store: Store
) -> None:
    stored = add(folder)
    weights = stored.directory / WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)
    weights.chmod(0o444)

    with pytest.raises(VerificationError, match=r"damaged in the store.*verify --repair"):
        add(folder)

    store.verify(repair=True)
    assert store.open(add(folder)).files == stored.manifest.files


def test_a_snapshot_that_would_be_refused_all_the_same_is_not_called_pulled(
    folder: Path, add: Callable[[Path], Stored], store: Store
) -> None:
    stored = add(folder)
    stored.directory.chmod(0o755)
    (stored.directory / "extra.json").write_text("{}")
    stored.directory.chmod(0o555)

    with pytest.raises(VerificationError, match=r"extra\.json: is not in the manifest.*verify --repair"):
        add(folder)

    store.verify(repair=True)
    assert store.open(add(folder)).files == stored.manifest.files


def test_a_record_that_is_lost_is_written_by_a_pull(
    folder: Path, add: Callable[[Path], Stored], store: Store
) -> None:
    stored = add(folder)
    (store.root / "records" / f"{stored.snapshot_sha256}.json").unlink()

    again = add(folder)

    assert again.record.source == "directory"
    assert store.open(again).revision == stored.revision
