"""What is let in and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from medport.errors import ConfigError, VerificationError
from medport_local.engine.loading import load_gemma
from medport_local.snapshot import KNOWN_MODELS, FileEntry, KnownModel, Snapshot, _hash_all, open_snapshot
from medport_local.snapshot_file import entry_of, open_file


@pytest.fixture
def copy(gemma_folder: Path, tmp_path: Path) -> Path:
    """A snapshot with a manifest, to be spoiled."""
    return Path(shutil.copytree(gemma_folder, tmp_path / "snapshot"))


@pytest.fixture
def plain(copy: Path) -> Path:
    """The same as it would be downloaded: no manifest."""
    (copy / "manifest.json").unlink()
    return copy


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_manifest_gives_name_revision_and_notice(gemma_snapshot: Snapshot) -> None:
    assert gemma_snapshot.family == "medgemma"
    assert gemma_snapshot.model_id == "medport/medgemma-toy"
    assert gemma_snapshot.revision == "0123456789abcdef0123456789abcdef01234567"
    assert gemma_snapshot.notice == "Toy model. Not for medical use."
    assert gemma_snapshot.takes_images
    assert gemma_snapshot.max_context == 512


def test_same_bytes_have_the_same_digest_with_and_without_a_manifest(
    gemma_snapshot: Snapshot, plain: Path
) -> None:
    (plain / "README.md").write_text("as downloaded")
    (plain / ".cache").mkdir()
    (plain / ".cache" / "x.lock").write_text("")

    snapshot = open_snapshot(plain)

    assert snapshot.snapshot_sha256 == gemma_snapshot.snapshot_sha256
    assert snapshot.revision is None


def test_missing_directory_is_a_setting_at_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model directory"):
        open_snapshot(tmp_path / "nowhere")


def test_one_flipped_bit_is_found(copy: Path) -> None:
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)

    with pytest.raises(VerificationError, match=r"model\.safetensors.*hash"):
        open_snapshot(copy)


def test_file_that_is_not_listed_is_refused(copy: Path) -> None:
    (copy / "README.md").write_text("hello")

    with pytest.raises(VerificationError, match=r"README\.md.*not in the manifest"):
        open_snapshot(copy)


def test_listed_file_that_is_missing_is_refused(copy: Path) -> None:
    (copy / "generation_config.json").unlink()

    with pytest.raises(VerificationError, match=r"generation_config\.json.*not in the directory"):
        open_snapshot(copy)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "a.pt", "b.pkl", "modeling.py", "w.h5", "sub/x.PY", ".cache/../y.ckpt"]
)
def test_file_that_can_hold_code_is_refused(plain: Path, name: str) -> None:
    (plain / "sub").mkdir()
    (plain / ".cache").mkdir()
    (plain / name).write_text("")

    with pytest.raises(VerificationError, match="can hold code"):
        open_snapshot(plain)


def test_link_is_refused(plain: Path) -> None:
    (plain / "config.json").rename(plain.parent / "elsewhere.json")
    (plain / "config.json").symlink_to(plain.parent / "elsewhere.json")

    with pytest.raises(VerificationError, match=r"config\.json.*link"):
        open_snapshot(plain)


def test_pipe_is_refused_without_being_opened(plain: Path) -> None:
    os.mkfifo(plain / "tokens.json")

    with pytest.raises(VerificationError, match="not a regular file"):
        open_snapshot(plain)


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoModel": "evil.Model"}},
        {"_attn_implementation_internal": "evil/kernel"},
        {"text_config": {"_attn_implementation": "evil/kernel"}},
    ],
)
def test_config_that_makes_code_run_is_refused(plain: Path, changes: dict[str, object]) -> None:
    edit_config(plain, **changes)

    with pytest.raises(VerificationError, match="can make code run"):
        open_snapshot(plain)


@pytest.mark.parametrize("changes", [{"model_type": "llama"}, {"architectures": ["Evil"]}])
def test_other_kinds_of_models_are_refused(plain: Path, changes: dict[str, object]) -> None:
    edit_config(plain, **changes)

    with pytest.raises(VerificationError, match="does not load"):
        open_snapshot(plain)


def test_pickle_named_safetensors_is_refused(plain: Path) -> None:
    (plain / "model.safetensors").write_bytes(b"\x80\x04" + b"X" * 100)

    with pytest.raises(VerificationError, match="not a safetensors file"):
        open_snapshot(plain)


def test_index_that_names_an_absent_shard_is_refused(plain: Path) -> None:
    (plain / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../x.safetensors"}}')

    with pytest.raises(VerificationError, match="shard that is not there"):
        open_snapshot(plain)


def test_weights_that_do_not_fit_the_config_are_refused(plain: Path) -> None:
    config = json.loads((plain / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 7
    config["text_config"].pop("layer_types", None)
    (plain / "config.json").write_text(json.dumps(config))

    with pytest.raises(VerificationError, match=r"lacks .*layers\.6"):
        load_gemma(open_snapshot(plain))


def test_weights_are_hashed_only_where_they_are_not_deferred(copy: Path) -> None:
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)

    snapshot = open_snapshot(copy, defer_weights=True)

    assert snapshot.shards == ("model.safetensors",)
    with pytest.raises(VerificationError, match=r"model\.safetensors.*hash"):
        open_snapshot(copy)


def test_deferring_changes_nothing_that_a_snapshot_says(copy: Path) -> None:
    assert open_snapshot(copy, defer_weights=True) == open_snapshot(copy)


def test_other_files_are_hashed_even_if_weights_are_deferred(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")

    with pytest.raises(VerificationError, match=r"tokenizer\.json.*hash"):
        open_snapshot(copy, defer_weights=True)


def test_without_a_manifest_weights_cannot_be_deferred(plain: Path) -> None:
    before = open_snapshot(plain, defer_weights=True).snapshot_sha256
    weights = bytearray((plain / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (plain / "model.safetensors").write_bytes(weights)

    assert open_snapshot(plain, defer_weights=True).snapshot_sha256 != before


def test_deferred_weights_of_another_size_are_found_at_once(copy: Path) -> None:
    with open(copy / "model.safetensors", "ab") as file:
        file.write(b"\0")

    with pytest.raises(VerificationError, match=r"model\.safetensors.*size"):
        open_snapshot(copy, defer_weights=True)


def test_small_file_is_read_only_as_it_was_when_the_snapshot_was_opened(plain: Path) -> None:
    snapshot = open_snapshot(plain)
    before = (plain / "config.json").read_bytes()
    assert snapshot.read("config.json") == before

    (plain / "config.json").write_bytes(before + b" ")

    with pytest.raises(VerificationError, match=r"config\.json.*changed after"):
        snapshot.read("config.json")


def test_file_that_is_gone_is_named(plain: Path) -> None:
    snapshot = open_snapshot(plain)
    (plain / "config.json").unlink()

    with pytest.raises(VerificationError, match=r"config\.json.*missing"):
        snapshot.read("config.json")


def test_pipe_put_in_place_of_a_file_is_not_waited_for(plain: Path) -> None:
    snapshot = open_snapshot(plain)
    (plain / "config.json").unlink()
    os.mkfifo(plain / "config.json")

    with pytest.raises(VerificationError, match=r"config\.json.*not a regular file"):
        snapshot.read("config.json")


def test_index_beside_weights_that_it_does_not_name_is_refused(plain: Path) -> None:
    shutil.copy(plain / "model.safetensors", plain / "other.safetensors")
    (plain / "model.safetensors.index.json").write_text('{"weight_map": {"a": "other.safetensors"}}')

    with pytest.raises(VerificationError, match=r"does not name model\.safetensors"):
        open_snapshot(plain)


def test_tensor_in_two_shards_is_refused(plain: Path) -> None:
    shutil.copy(plain / "model.safetensors", plain / "other.safetensors")
    index = {"weight_map": {"a": "other.safetensors", "b": "model.safetensors"}}
    (plain / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(VerificationError, match=r"is also in model\.safetensors"):
        open_snapshot(plain)


def published(known: KnownModel) -> dict[str, object]:
    """A configuration of the shape that is known."""
    parts = {part: dict(values) for part, values in known.shape.items() if part}
    return {"model_type": known.model_type, **known.shape.get("", {}), **parts}


@pytest.mark.parametrize("known", KNOWN_MODELS, ids=lambda known: known.model_id)
def test_published_model_is_known_by_its_shape(plain: Path, known: KnownModel) -> None:
    folder = plain.rename(plain.parent / known.model_id.split("/")[1])
    (folder / "config.json").write_text(json.dumps(published(known)))

    snapshot = open_snapshot(folder)

    assert snapshot.model_id == known.model_id
    assert snapshot.takes_images == (known.model_type != "gemma3_text")
    assert snapshot.max_context == (64 if known.model_type == "siglip" else 131_072)


def test_4b_without_any_name_says_that_it_is_not_identified(plain: Path) -> None:
    config = published(KNOWN_MODELS[0])
    (plain / "config.json").write_text(json.dumps(config))
    assert open_snapshot(plain).model_id == "medgemma-4b (unidentified)"

    (plain / "config.json").write_text(json.dumps(config | {"_name_or_path": "google/medgemma-1.5-4b-it"}))
    assert open_snapshot(plain).model_id == "google/medgemma-1.5-4b-it"


def test_shape_that_is_nearly_a_published_one_is_not_identified(plain: Path) -> None:
    config = published(KNOWN_MODELS[0]) | {"_name_or_path": "google/medgemma-4b-it"}
    (plain / "config.json").write_text(json.dumps(config | {"mm_tokens_per_image": 255}))

    assert open_snapshot(plain).model_id == "medgemma (unidentified)"


def test_manifest_must_be_one_of_those_that_are_known(copy: Path) -> None:
    sha256 = entry_of(copy, "manifest.json").sha256

    snapshot = open_snapshot(copy, manifest_sha256=("0" * 64, sha256))

    assert snapshot.manifest == (copy / "manifest.json").read_bytes()
    with pytest.raises(VerificationError, match=r"manifest\.json: is not the one that was stored"):
        open_snapshot(copy, manifest_sha256=("0" * 64,))
    (copy / "manifest.json").unlink()
    with pytest.raises(VerificationError, match=r"manifest\.json: is missing"):
        open_snapshot(copy, manifest_sha256=(sha256,))


def test_snapshot_with_deferred_weights_can_be_verified_later(copy: Path) -> None:
    snapshot = open_snapshot(copy, defer_weights=True)
    snapshot.verify()
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)

    with pytest.raises(VerificationError, match=r"model\.safetensors.*hash"):
        snapshot.verify()


def test_directory_in_place_of_a_file_is_refused_and_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(3):
        with pytest.raises(VerificationError, match="is not a regular file"):
            open_file(tmp_path, "config.json")

    assert len(os.listdir("/proc/self/fd")) == before


def test_file_that_goes_while_the_directory_is_listed_is_named(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = os.walk

    def overtaken(root: Path) -> Any:
        for found in walk(root):
            (copy / "config.json").unlink()
            yield found

    monkeypatch.setattr(os, "walk", overtaken)

    with pytest.raises(VerificationError, match=r"config\.json: is missing"):
        open_snapshot(copy)


@pytest.mark.parametrize("cores", [1, 2])
def test_three_shards_are_hashed_side_by_side_whatever_the_cores_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    names = ["a", "b", "c"]
    for name in names:
        (tmp_path / name).write_text(name)
    together = threading.Barrier(len(names), timeout=10)

    def hash_one(root: Path, name: str) -> FileEntry:
        together.wait()
        return entry_of(root, name)

    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr("medport_local.snapshot.entry_of", hash_one)

    assert list(_hash_all(tmp_path, names)) == names
