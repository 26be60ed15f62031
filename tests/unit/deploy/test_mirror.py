"""Models that lie on this machine: a real store, directories, another lock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.snapshots import add, manifest_of, write_snapshot

from medport import lock as locks
from medport.errors import ConfigError, NotFound, VerificationError
from medport.lock import Lock
from medport_deploy.lock.mirror import Mirror
from medport_deploy.lock.pinned import Verified
from medport_local.phantom import weights_dir
from medport_local.snapshot import open_snapshot
from medport_local.store import Store

MODEL, FIELD = "medport/tiny", "models.medgemma.model"
A, B = "a" * 40, "b" * 40


def written(folder: Path, *, seed: int = 0, revision: str | None = A, repo_id: str = MODEL) -> Path:
    """A snapshot with its manifest."""
    write_snapshot(folder, seed=seed)
    manifest = manifest_of(folder, repo_id=repo_id, revision=revision)
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def test_a_directory_with_a_manifest_is_a_model(tmp_path: Path) -> None:
    folder = written(tmp_path / "model")
    told: list[Verified] = []

    found = Mirror(folder, tell=lambda field, done: told.append(done)).find(MODEL, A, field=FIELD)

    assert (found.model.model_id, found.model.revision) == (MODEL, A)
    assert found.model.snapshot_sha256 == open_snapshot(folder).snapshot_sha256
    assert [each.files for each in told] == [len(found.model.files)]


def test_the_phantoms_are_found_in_the_directory_above_them() -> None:
    place = weights_dir("medgemma").parent

    found = Mirror(place).find("medport/medsiglip-phantom", "main", field=FIELD)

    assert (found.model.family, found.terms) == ("medsiglip", None)
    assert found.model.snapshot_sha256 == open_snapshot(weights_dir("medsiglip")).snapshot_sha256


def test_of_several_commits_the_one_that_was_meant_is_taken(tmp_path: Path) -> None:
    written(tmp_path / "one")
    written(tmp_path / "two", seed=1, revision=B)

    assert Mirror(tmp_path).find(MODEL, B, field=FIELD).model.revision == B
    with pytest.raises(ConfigError, match=f"several snapshots of {MODEL}: {A}, {B}"):
        Mirror(tmp_path).find(MODEL, "main", field=FIELD)
    with pytest.raises(NotFound, match="medport snapshot pull"):
        Mirror(tmp_path).find(MODEL, "c" * 40, field=FIELD)
    with pytest.raises(NotFound):
        Mirror(tmp_path).find("medport/other", A, field=FIELD)


@pytest.mark.parametrize("requested", ["v2.0", "nosuch", A[:7]])
def test_what_may_be_another_snapshot_is_not_taken_for_the_only_one(tmp_path: Path, requested: str) -> None:
    written(tmp_path / "model")

    with pytest.raises(NotFound, match=f"no {MODEL}@{requested}") as refused:
        Mirror(tmp_path).find(MODEL, requested, field=FIELD)

    assert f"write its commit as the revision: {A}" in str(refused.value.remedy)


def test_snapshot_that_was_fetched_by_a_tag_is_not_taken_for_a_branch(tmp_path: Path) -> None:
    add(
        Store(tmp_path / "store"),
        write_snapshot(tmp_path / "one"),
        revision=A,
        requested="v1.0",
        source="hub",
    )
    mirror = Mirror(tmp_path / "store")

    assert mirror.find(MODEL, "v1.0", field=FIELD).model.revision == A
    for other in ("main", "v2.0"):
        with pytest.raises(NotFound):
            mirror.find(MODEL, other, field=FIELD)


def test_a_changed_byte_is_found_and_only_where_files_are_hashed(tmp_path: Path) -> None:
    folder = written(tmp_path / "model")
    (folder / "tokenizer.json").write_bytes(b"{}".ljust((folder / "tokenizer.json").stat().st_size))

    with pytest.raises(VerificationError, match=r"tokenizer\.json has the sha256"):
        Mirror(folder).find(MODEL, A, field=FIELD)
    assert Mirror(folder, verify=False).find(MODEL, A, field=FIELD).model.revision == A


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"snapshot_sha256": "0" * 64}, "not one of a snapshot"),
        ({"revision": "main"}, "at revision"),
        ({"family": "medsiglip"}, "two families"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, change: dict[str, str], said: str) -> None:
    folder = written(tmp_path / "model")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **change}))

    with pytest.raises(VerificationError, match=said):
        Mirror(folder).find(MODEL, manifest["revision"], field=FIELD)


def test_a_store_knows_by_which_branch_a_commit_was_fetched(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    hub = {"source": "hub", "terms": {"name": "House Rules", "url": "https://example.org/r", "gated": True}}
    add(store, write_snapshot(tmp_path / "one"), revision=A, requested=A, **hub)
    add(store, write_snapshot(tmp_path / "two", seed=1), revision=B, requested="main", **hub)

    mirror = Mirror(tmp_path / "store")
    found = mirror.find(MODEL, "main", field=FIELD)

    assert found.model.revision == B
    assert mirror.find(MODEL, A, field=FIELD).model.revision == A
    assert found.terms is not None
    assert (found.terms.id, found.terms.gated) == ("house-rules", True)


def test_a_manifest_in_a_store_that_was_changed_by_hand_is_refused(tmp_path: Path) -> None:
    stored = add(Store(tmp_path / "store"), write_snapshot(tmp_path / "one"))
    manifest = tmp_path / "store" / "snapshots" / stored.snapshot_sha256 / "manifest.json"
    said = manifest.read_text().replace(A, B)
    manifest.parent.chmod(0o755)
    manifest.unlink()
    manifest.write_text(said)

    with pytest.raises(VerificationError, match="is not the one that was stored"):
        Mirror(tmp_path / "store").find(MODEL, B, field=FIELD)


def test_another_lock_is_believed_as_it_is(tmp_path: Path) -> None:
    model = Mirror(written(tmp_path / "model")).find(MODEL, A, field=FIELD).model
    locks.write(tmp_path / "medport.lock", Lock(models={"chat": model}))

    found = Mirror(tmp_path / "medport.lock").find(MODEL, A, field=FIELD)

    assert found.model == model


def test_a_place_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "format").write_text("medport-store 9\n")

    with pytest.raises(ConfigError, match="there is no absent"):
        Mirror(tmp_path / "absent").find(MODEL, A, field=FIELD)
    with pytest.raises(ConfigError, match="of another format"):
        Mirror(tmp_path / "store").find(MODEL, A, field=FIELD)
