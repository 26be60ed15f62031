"""Which snapshot a Model version means: each way to say it, what must agree, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.snapshots import add, write_snapshot
from support.stored import bring

from medport.errors import ConfigError, MedportError, NotFound, PreconditionFailed, VerificationError
from medport.wire.vertex import Pins, model_from_pins, to_label
from medport_local.phantom import weights_dir
from medport_local.shelf import Shelf
from medport_local.snapshot import MANIFEST, Manifest
from medport_local.store import Store, Stored
from medport_local.version_snapshot import model_id_of, snapshot_of

Json = dict[str, Any]
GEMMA = Manifest.model_validate_json((weights_dir("medgemma") / MANIFEST).read_bytes())
SIGLIP = Manifest.model_validate_json((weights_dir("medsiglip") / MANIFEST).read_bytes())
OTHER = "0" * 64


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def shelf(store: Store) -> Shelf:
    return Shelf(store.root)


def env(**values: str) -> Json:
    return {"containerSpec": {"env": [{"name": name, "value": value} for name, value in values.items()]}}


def args(*values: str) -> Json:
    return {"containerSpec": {"args": list(values)}}


def from_garden(name: str) -> Json:
    return {"baseModelSource": {"modelGardenSource": {"publicModelName": name}}}


@pytest.mark.parametrize(
    "version",
    [
        env(MEDPORT_SNAPSHOT_SHA256=GEMMA.snapshot_sha256),
        {"labels": {"medport-snap": to_label(GEMMA.snapshot_sha256)}},
        env(MODEL_ID=GEMMA.repo_id),
        env(MODEL_ID=GEMMA.repo_id, MEDPORT_REVISION=str(GEMMA.revision)),
        env(MEDPORT_REVISION=str(GEMMA.revision)),
        {"labels": {"medport-rev": GEMMA.revision}, "displayName": "Some name"},
        args(f"--model={GEMMA.repo_id}", f"--revision={GEMMA.revision}"),
        args("--model", GEMMA.repo_id, "--revision", str(GEMMA.revision), "--max-model-len=4096"),
        args("--model_id=medgemma-phantom"),
        {"containerSpec": {"command": ["python", "-m", "server", f"--model={GEMMA.repo_id}"]}},
        from_garden("publishers/medport/models/medgemma@medgemma-phantom"),
        from_garden("publishers/medport/models/medgemma"),
        from_garden("medport/medgemma@medgemma-phantom"),
        env(MODEL_ID=GEMMA.repo_id) | from_garden("publishers/medport/models/medgemma"),
        from_garden(f"{GEMMA.repo_id}@{GEMMA.revision}"),
        {"displayName": GEMMA.repo_id},
        {"displayName": "medgemma-phantom"},
    ],
    ids=str,
)
def test_version_finds_the_phantom_by_each_thing_that_it_can_say(shelf: Shelf, version: Json) -> None:
    assert snapshot_of(version, shelf).snapshot_sha256 == GEMMA.snapshot_sha256


def test_version_that_the_deploy_tools_would_upload_finds_its_snapshot(shelf: Shelf) -> None:
    pins = Pins(model_id=SIGLIP.repo_id, revision=SIGLIP.revision, snapshot_sha256=SIGLIP.snapshot_sha256)

    found = snapshot_of(model_from_pins("m", "1", pins), shelf)

    assert (found.snapshot_sha256, found.family) == (SIGLIP.snapshot_sha256, "medsiglip")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("google/medgemma-4b-it", ("google/medgemma-4b-it", None)),
        ("publishers/google/models/medgemma@medgemma-4b-it", ("google/medgemma-4b-it", None)),
        ("google/medgemma@medgemma-4b-it", ("google/medgemma-4b-it", None)),
        ("publishers/hf-google/models/medgemma-4b-it@001", ("google/medgemma-4b-it", None)),
        ("google/medsiglip-448@latest", ("google/medsiglip-448", None)),
        (f"google/medsiglip-448@{'a' * 40}", ("google/medsiglip-448", "a" * 40)),
        ("medsiglip-448", ("medsiglip-448", None)),
    ],
)
def test_names_of_one_model_are_one(name: str, found: tuple[str, str | None]) -> None:
    assert model_id_of(name) == found


@pytest.mark.parametrize(
    ("version", "names"),
    [
        (env(MEDPORT_SNAPSHOT_SHA256=OTHER) | {"labels": {"medport-snap": to_label(GEMMA.snapshot_sha256)}},
         ("MEDPORT_SNAPSHOT_SHA256", "medport-snap")),
        (env(MEDPORT_REVISION="a" * 40, MODEL_ID=GEMMA.repo_id) | {"labels": {"medport-rev": "b" * 40}},
         ("MEDPORT_REVISION", "medport-rev")),
        (env(MODEL_ID=SIGLIP.repo_id, MEDPORT_SNAPSHOT_SHA256=GEMMA.snapshot_sha256),
         ("MODEL_ID", GEMMA.repo_id)),
        (env(MEDPORT_REVISION="a" * 40, MEDPORT_SNAPSHOT_SHA256=GEMMA.snapshot_sha256),
         ("MEDPORT_REVISION", str(GEMMA.revision))),
        (env(MODEL_ID=GEMMA.repo_id) | from_garden("google/medgemma-4b-it"), ("MODEL_ID", "publicModelName")),
        (env(MODEL_ID=GEMMA.repo_id) | from_garden("publishers/medport/models/medsiglip"),
         ("MODEL_ID", "publicModelName")),
        (env(MODEL_ID="google/medgemma-phantom", MEDPORT_SNAPSHOT_SHA256=GEMMA.snapshot_sha256),
         ("google/medgemma-phantom", GEMMA.repo_id)),
    ],
)  # fmt: skip
def test_contradiction_is_refused_and_both_sides_are_named(
    shelf: Shelf, version: Json, names: tuple[str, str]
) -> None:
    with pytest.raises(VerificationError) as refusal:
        snapshot_of(version, shelf)

    assert all(name in str(refusal.value) for name in names)


@pytest.mark.parametrize(
    "version",
    [
        env(MEDPORT_SNAPSHOT_SHA256="main"),
        env(MEDPORT_REVISION="main", MODEL_ID=GEMMA.repo_id),
        args(f"--model={GEMMA.repo_id}", "--revision=v1.0"),
        {"labels": {"medport-snap": "short"}, "displayName": GEMMA.repo_id},
        env(MEDPORT_SNAPSHOT_SHA256="", MODEL_ID=GEMMA.repo_id),
        env(MEDPORT_REVISION="", MODEL_ID=GEMMA.repo_id),
        args(f"--model={GEMMA.repo_id}", "--revision="),
        {"labels": {"medport-snap": ""}, "displayName": GEMMA.repo_id},
        {"labels": {"medport-rev": ""}, "displayName": GEMMA.repo_id},
    ],
)
def test_pin_that_is_none_is_refused_and_not_left_out(shelf: Shelf, version: Json) -> None:
    with pytest.raises(VerificationError, match="is no pin"):
        snapshot_of(version, shelf)


def test_snapshot_that_is_not_here_is_refused_with_the_way_to_bring_it(shelf: Shelf) -> None:
    version = env(MODEL_ID="google/medgemma-4b-it", MEDPORT_REVISION="a" * 40)

    with pytest.raises(NotFound, match=f"medport snapshot pull google/medgemma-4b-it@{'a' * 40}"):
        snapshot_of(version, shelf)
    with pytest.raises(NotFound, match=OTHER):
        snapshot_of(env(MEDPORT_SNAPSHOT_SHA256=OTHER), shelf)


def test_version_that_says_nothing_is_refused_with_what_to_say(shelf: Shelf) -> None:
    with pytest.raises(PreconditionFailed, match="MEDPORT_SNAPSHOT_SHA256"):
        snapshot_of({"displayName": "Chest X-rays"}, shelf)


def test_bucket_is_refused_unless_a_pin_says_which_bytes_are_meant(shelf: Shelf) -> None:
    bucket = {"artifactUri": "gs://models/medgemma"}

    with pytest.raises(PreconditionFailed, match="medport snapshot pull gs://models/medgemma"):
        snapshot_of(bucket, shelf)
    pinned = snapshot_of(bucket | env(MEDPORT_SNAPSHOT_SHA256=GEMMA.snapshot_sha256), shelf)
    assert pinned.snapshot_sha256 == GEMMA.snapshot_sha256


def test_snapshot_of_the_store_is_found_by_commit_and_two_of_one_model_are_not_told_apart(
    store: Store, shelf: Shelf, tmp_path: Path
) -> None:
    first = _add(store, tmp_path / "one", seed=1, revision="a" * 40)
    only = snapshot_of(env(MODEL_ID="medport/tiny"), shelf)
    second = _add(store, tmp_path / "two", seed=2, revision="b" * 40)

    assert only.snapshot_sha256 == first.snapshot_sha256
    found = snapshot_of(env(MODEL_ID="medport/tiny", MEDPORT_REVISION="b" * 40), shelf)
    assert found.snapshot_sha256 == second.snapshot_sha256
    with pytest.raises(PreconditionFailed, match="2 snapshots of medport/tiny"):
        snapshot_of(env(MODEL_ID="medport/tiny"), shelf)
    kept = snapshot_of(env(MODEL_ID="medport/tiny"), shelf, pinned=first.snapshot_sha256)
    assert kept.snapshot_sha256 == first.snapshot_sha256


def test_phantom_that_is_in_the_store_as_well_is_one_snapshot(store: Store, shelf: Shelf) -> None:
    bring(store, weights_dir("medgemma"))

    found = snapshot_of(env(MODEL_ID=GEMMA.repo_id), shelf)

    assert found.stored is not None


def test_directory_is_served_only_below_one_that_the_operator_named(tmp_path: Path) -> None:
    inside = shutil.copytree(weights_dir("medgemma"), tmp_path / "models" / "gemma")
    outside = shutil.copytree(weights_dir("medgemma"), tmp_path / "private" / "gemma")
    (tmp_path / "models" / "link").symlink_to(outside)
    shelf = Shelf(Store(tmp_path / "store").root, [tmp_path / "models"])

    for uri in (str(inside), f"file://{inside}", f"{inside}/../gemma"):
        assert snapshot_of({"artifactUri": uri}, shelf).snapshot_sha256 == GEMMA.snapshot_sha256
    said = set()
    for uri in (
        str(outside),
        f"file://{outside}",
        f"{inside}/../../private/gemma",
        str(tmp_path / "models" / "link"),
        str(tmp_path / "private" / "nowhere"),
        "/",
        "/\0",
        "/" + "a" * 9999,
    ):
        with pytest.raises(PreconditionFailed) as refusal:
            snapshot_of({"artifactUri": uri}, shelf)
        said.add(str(refusal.value))
    assert len(said) == 1, "the refusal tells what is on the disk"
    assert str(tmp_path) not in said.pop()


def test_directory_and_hash_must_be_of_the_same_bytes(tmp_path: Path) -> None:
    folder = shutil.copytree(weights_dir("medgemma"), tmp_path / "models" / "gemma")
    shelf = Shelf(Store(tmp_path / "store").root, [tmp_path / "models"])

    with pytest.raises(VerificationError, match="artifactUri"):
        snapshot_of({"artifactUri": str(folder)} | env(MEDPORT_SNAPSHOT_SHA256=OTHER), shelf)
    with pytest.raises(VerificationError, match="MODEL_ID"):
        snapshot_of({"artifactUri": str(folder)} | env(MODEL_ID=SIGLIP.repo_id), shelf)


def test_store_that_is_named_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Shelf(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="model-dir"):
        Shelf(Store(tmp_path / "store").root, [tmp_path / "nowhere"])


_texts = st.text(max_size=30) | st.sampled_from(
    [GEMMA.repo_id, str(GEMMA.revision), GEMMA.snapshot_sha256, "gs://b"]
)


@given(model=_texts, revision=_texts, sha256=_texts, argument=_texts, name=_texts, artifact=st.text(max_size=9))
def test_whatever_a_version_says_it_means_a_snapshot_that_fits_or_is_refused(
    model: str, revision: str, sha256: str, argument: str, name: str, artifact: str
) -> None:
    shelf = Shelf()
    version = env(MODEL_ID=model, MEDPORT_REVISION=revision, MEDPORT_SNAPSHOT_SHA256=sha256) | from_garden(name)
    version["containerSpec"]["args"] = ["--model", argument]
    version["artifactUri"] = artifact

    try:
        found = snapshot_of(version, shelf)
    except MedportError:
        return

    assert sha256.removeprefix("sha256:") in ("", found.snapshot_sha256)
    assert revision in ("", found.revision)


def _add(store: Store, folder: Path, *, seed: int, revision: str) -> Stored:
    return add(store, write_snapshot(folder, seed=seed), revision=revision)
