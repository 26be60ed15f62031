import json
from hashlib import sha1, sha256
from pathlib import Path

import pytest

from medport_local.phantom import weights_dir
from medport_local.phantom.manifest import MANIFEST, read_manifest, replace_folder, write_manifest

FAMILIES = ("medgemma", "medsiglip")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "snapshot"
    made.mkdir()
    (made / "b.json").write_bytes(b"{}")
    (made / "a.safetensors").write_bytes(b"weights")
    return made


def test_the_manifest_lists_every_other_file_with_its_hash(folder: Path) -> None:
    manifest = write_manifest(folder, "medgemma", made={"seed": 1}, scores={})

    assert manifest["files"] == {
        "a.safetensors": {"sha256": sha256(b"weights").hexdigest(), "size_bytes": 7},
        "b.json": {"sha256": sha256(b"{}").hexdigest(), "size_bytes": 2},
    }
    assert read_manifest(folder) == manifest


def test_the_revision_follows_from_the_files_alone(folder: Path) -> None:
    first = write_manifest(folder, "medgemma", made={"seed": 1}, scores={})
    second = write_manifest(folder, "medgemma", made={"seed": 2}, scores={"en": {"x": 1.0}})
    (folder / "b.json").write_bytes(b"[]")
    third = write_manifest(folder, "medgemma", made={"seed": 1}, scores={})

    assert first["revision"] == second["revision"] != third["revision"]
    lines = sorted(f"{entry['sha256']} {path}\n" for path, entry in first["files"].items())
    assert first["revision"] == sha1("".join(lines).encode()).hexdigest()


def test_a_folder_is_replaced_as_a_whole(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "weights"
    target.mkdir()
    (target / "stale.json").write_bytes(b"")

    replace_folder(folder, target)

    assert sorted(path.name for path in target.iterdir()) == ["a.safetensors", "b.json"]
    assert not folder.exists()
    assert not (tmp_path / "weights.old").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shipped_snapshot_is_what_its_manifest_says(family: str) -> None:
    shipped = weights_dir("medgemma" if family == "medgemma" else "medsiglip")
    manifest = read_manifest(shipped)

    found = {path.relative_to(shipped).as_posix() for path in shipped.rglob("*") if path.is_file()}
    assert found == {*manifest["files"], MANIFEST}
    for path, entry in manifest["files"].items():
        content = (shipped / path).read_bytes()
        assert entry == {"sha256": sha256(content).hexdigest(), "size_bytes": len(content)}
    table = json.dumps(manifest["files"], sort_keys=True, separators=(",", ":"))
    assert manifest["snapshot_sha256"] == sha256(table.encode()).hexdigest()
    assert manifest["family"] == family
    assert manifest["repo_id"] == f"medport/{family}-phantom"
    assert "Not for medical use" in manifest["notice"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shipped_weights_stay_under_eight_megabytes(family: str) -> None:
    shipped = weights_dir("medgemma" if family == "medgemma" else "medsiglip")

    assert (shipped / "model.safetensors").stat().st_size <= 8_000_000
