"""Whether a directory holds exactly the locked bytes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from support.snapshots import write_snapshot

from medport.errors import ConfigError, VerificationError
from medport.lock import LockedFile, LockedModel
from medport_deploy.lock.model_source import locked
from medport_deploy.lock.pinned import chosen, is_allowed, verify_files
from medport_local.sources.wanted import is_wanted

SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_snapshot(tmp_path / "model")


@pytest.fixture
def model(folder: Path) -> LockedModel:
    files = {
        path.name: LockedFile(sha256=hashlib.sha256(path.read_bytes()).hexdigest(), size_bytes=path.stat().st_size)
        for path in folder.iterdir()
    }
    return locked("medport/tiny", "a" * 40, "medgemma", files)


def test_every_file_is_hashed_and_counted(model: LockedModel, folder: Path) -> None:
    (folder / "README.md").write_text("not a part")

    done = verify_files(model, folder)

    assert (done.files, done.size_bytes) == (
        len(model.files),
        sum(each.size_bytes for each in model.files.values()),
    )
    assert done.seconds > 0


def test_one_changed_bit_is_found_and_the_file_named(model: LockedModel, folder: Path) -> None:
    data = bytearray((folder / SHARD).read_bytes())
    data[-1] ^= 1
    (folder / SHARD).write_bytes(data)

    with pytest.raises(
        VerificationError, match=rf"{SHARD} has the sha256 [0-9a-f]{{64}}, and [0-9a-f]{{64}} is"
    ) as refused:
        verify_files(model, folder)
    # What is locked is what is hashed: locking again would end here again.
    assert refused.value.remedy == "fetch the model again: medport snapshot pull"


def test_a_missing_a_shorter_and_a_foreign_kind_of_file_are_found(model: LockedModel, folder: Path) -> None:
    whole = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(whole[:-1])
    with pytest.raises(VerificationError, match=f"has {len(whole) - 1} bytes, and {len(whole)} are locked"):
        verify_files(model, folder)

    (folder / SHARD).unlink()
    with pytest.raises(VerificationError, match="is missing"):
        verify_files(model, folder)

    (folder.parent / "elsewhere").write_bytes(whole)
    (folder / SHARD).symlink_to(folder.parent / "elsewhere")
    with pytest.raises(VerificationError, match="cannot be opened"):
        verify_files(model, folder)

    (folder / SHARD).unlink()
    os.mkfifo(folder / SHARD)
    with pytest.raises(VerificationError, match="is no regular file"):
        verify_files(model, folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [("pytorch_model.bin", "can run code"), ("evil.py", "can run code"), ("extra.safetensors", "would be loaded")],
)
def test_what_lies_beside_and_could_be_loaded_is_refused(
    model: LockedModel, folder: Path, name: str, said: str
) -> None:
    (folder / name).write_bytes(b"x")

    with pytest.raises(VerificationError, match=said):
        verify_files(model, folder)


def test_a_directory_that_is_not_there_is_named(model: LockedModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no directory absent"):
        verify_files(model, tmp_path / "absent")


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors", "config.json", "chat_template.jinja", "spiece.model", "manifest.json", "README.md",
        "pytorch_model.bin", "modeling.py", "sub/model.safetensors", "../config.json", ".hidden.json", "a b.json",
        "tokenizer.txt",
    ],
)  # fmt: skip
def test_the_names_of_a_models_files_are_those_that_pulling_takes(name: str) -> None:
    assert is_allowed(name) == (is_wanted(name) and name != "manifest.json")


def test_two_names_that_are_one_file_on_some_disks_are_refused() -> None:
    with pytest.raises(VerificationError, match="one file on some disks"):
        chosen(["model.safetensors", "config.json", "Config.json"], field="model")
