"""What is served: directories, snapshots of a store, and exactly what a lock names."""

from __future__ import annotations

import json
import os
import shutil
import signal
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import forked
from support.snapshots import add, write_snapshot
from support.stored import bring

import medport
from medport import lock as locks
from medport.errors import ConfigError, NotFound, VerificationError
from medport.lock import Lock, LockedImage
from medport_local import container, inprocess
from medport_local.cli_lock import locked_model
from medport_local.container_settings import ContainerSettings
from medport_local.phantom import weights_dir
from medport_local.selection import Selection, Wanted, image_digest_of, is_reference, select, verified
from medport_local.snapshot import Snapshot, open_snapshot
from medport_local.store import Store, Stored

DIGEST = "d" * 64
SIGLIP = weights_dir("medsiglip")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def siglip(store: Store) -> Stored:
    return bring(store, SIGLIP)


@pytest.fixture
def locked(store: Store, siglip: Stored, tmp_path: Path) -> Path:
    return write_lock(tmp_path / "medport.lock", store, siglip)


def write_lock(path: Path, store: Store, *stored: Stored, **more: Any) -> Path:
    models = {f"m{i}": locked_model(store.open(each), each) for i, each in enumerate(stored)}
    locks.write(path, Lock(models=models, **more))
    return path


def selected(**wanted: Any) -> Selection:
    with select(Wanted(**wanted)) as selection:
        return selection


def flip(directory: Path, name: str = "model.safetensors") -> None:
    path = directory / name
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


# References


@pytest.mark.parametrize(
    "text",
    [
        "google/medgemma-4b-it",
        "google/medgemma-4b-it@main",
        "a/b@0123456",
        "sha256:0123",
        "google/medgemma-4b-it int8",
    ],
)
def test_reference_is_told_from_a_directory(text: str) -> None:
    assert is_reference(text)


@pytest.mark.parametrize("text", ["/models/medgemma", "models", "./a/b", "../a/b", "a/b/c", "~/a", "a/b int4"])
def test_path_is_no_reference(text: str) -> None:
    assert not is_reference(text)


def test_directory_goes_before_a_name_and_never_before_a_pinned_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "google" / "medgemma-4b-it").mkdir(parents=True)
    (tmp_path / "google" / "medgemma-4b-it@0123456").mkdir()
    monkeypatch.chdir(tmp_path)

    assert not is_reference("google/medgemma-4b-it")
    assert is_reference("google/medgemma-4b-it@0123456")


@pytest.mark.parametrize("lock", [False, True], ids=["alone", "with a lock"])
def test_directory_that_is_a_name_in_the_store_too_is_not_chosen_by_where_the_server_starts(
    store: Store, siglip: Stored, locked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: bool
) -> None:
    shutil.copytree(SIGLIP, tmp_path / "here" / siglip.model_id)
    monkeypatch.chdir(tmp_path / "here")
    more = {"lock": locked} if lock else {}

    with pytest.raises(ConfigError, match="may be a directory here or a snapshot of the store") as caught:
        selected(snapshots={"medsiglip": siglip.model_id}, store=store.root, **more)

    assert f"./{siglip.model_id}" in str(caught.value.remedy)
    for text in (f"./{siglip.model_id}", siglip.reference):
        assert selected(snapshots={"medsiglip": text}, store=store.root, **more).snapshots
    assert selected(snapshots={"medsiglip": siglip.model_id}, store=tmp_path / "none").snapshots == {
        "medsiglip": Path(siglip.model_id)
    }


def test_name_of_several_snapshots_is_no_directory_either(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(2):
        add(store, write_snapshot(tmp_path / f"s{seed}", seed=seed), repo_id="medport/tiny", revision=None)
    (tmp_path / "medport" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError, match="may be a directory here"):
        is_reference("medport/tiny", store.root)


@pytest.mark.parametrize("text", [f"sha256:{DIGEST}", DIGEST, f" {DIGEST}\n"])
def test_digest_is_taken_in_either_form(text: str) -> None:
    assert image_digest_of(text) == DIGEST


@pytest.mark.parametrize("text", ["latest", DIGEST[:-1], DIGEST.upper(), f"x@sha256:{DIGEST}"])
def test_digest_that_is_none_is_a_setting_at_fault(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a digest"):
        image_digest_of(text)


# Without a lock


def test_nothing_asked_for_is_nothing_selected(tmp_path: Path) -> None:
    assert selected(store=tmp_path / "none") == Selection(snapshots={})


def test_directory_is_left_to_whoever_loads_it() -> None:
    assert selected(snapshots={"medsiglip": str(SIGLIP)}).snapshots == {"medsiglip": SIGLIP}


@pytest.mark.parametrize("form", ["{0.model_id}", "{0.model_id}@{0.revision}", "sha256:{0.snapshot_sha256}"])
def test_snapshot_of_the_store_is_opened_and_checked(store: Store, siglip: Stored, form: str) -> None:
    found = selected(snapshots={"medsiglip": form.format(siglip)}, store=store.root).snapshots["medsiglip"]

    assert isinstance(found, Snapshot)
    assert found.snapshot_sha256 == open_snapshot(SIGLIP).snapshot_sha256


def test_name_that_is_neither_a_directory_nor_in_the_store_says_both(store: Store, siglip: Stored) -> None:
    with pytest.raises(NotFound, match="there is no directory models/medsiglip, and the store has no"):
        selected(snapshots={"medsiglip": "models/medsiglip"}, store=store.root)


def test_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no store"):
        selected(snapshots={"medsiglip": f"sha256:{DIGEST}"}, store=tmp_path / "none")

    assert not (tmp_path / "none").exists()


def test_selected_snapshot_is_kept_from_gc_until_the_end(store: Store, siglip: Stored) -> None:
    with select(Wanted(snapshots={"medsiglip": siglip.reference}, store=store.root)):
        store.collect(dry_run=False, keep=timedelta(0))
        assert siglip.directory.is_dir()

    store.collect(dry_run=False, keep=timedelta(0))
    assert not siglip.directory.exists()


# With a lock


def test_lock_alone_serves_what_it_names(store: Store, locked: Path, siglip: Stored) -> None:
    found = selected(lock=locked, store=store.root)

    assert {family: each.snapshot_sha256 for family, each in found.snapshots.items()} == {  # type: ignore[union-attr]
        "medsiglip": siglip.snapshot_sha256
    }
    assert found.lock_id == locks.read(locked).lock_id


def test_directory_with_the_locked_bytes_may_stand_for_the_store(tmp_path: Path, locked: Path) -> None:
    found = selected(lock=locked, snapshots={"medsiglip": str(SIGLIP)}, store=tmp_path / "none")

    assert found.lock_id == locks.read(locked).lock_id


def test_other_snapshot_than_the_locked_one_is_refused(tmp_path: Path, locked: Path) -> None:
    other = Path(shutil.copytree(SIGLIP, tmp_path / "other"))
    (other / "manifest.json").unlink()
    (other / "extra.json").write_text("{}")

    with pytest.raises(VerificationError, match=r"the snapshot is .* is locked"):
        selected(lock=locked, snapshots={"medsiglip": str(other)})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"repo_id": "medport/other"}, "the model is medport/other"),
        ({"revision": "f" * 40}, "the revision is ffff"),
    ],
)
def test_locked_bytes_under_another_name_are_refused(
    tmp_path: Path, locked: Path, changes: dict[str, str], said: str
) -> None:
    other = Path(shutil.copytree(SIGLIP, tmp_path / "other"))
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | changes))

    with pytest.raises(VerificationError, match=said):
        selected(lock=locked, snapshots={"medsiglip": str(other)})


def test_family_that_is_not_locked_is_not_served(locked: Path) -> None:
    with pytest.raises(ConfigError, match="the lock holds no medgemma"):
        selected(lock=locked, snapshots={"medgemma": str(weights_dir("medgemma"))})


@pytest.mark.parametrize("made", [True, False], ids=["empty store", "no store"])
def test_locked_snapshot_that_is_missing_says_how_to_bring_it(
    locked: Path, siglip: Stored, tmp_path: Path, made: bool
) -> None:
    if made:
        Store(tmp_path / "bare")

    with pytest.raises(NotFound, match=f"the locked {siglip.model_id} is not here") as fault:
        selected(lock=locked, store=tmp_path / "bare")

    remedy = fault.value.remedy or ""
    assert f"medport snapshot pull {siglip.reference}" in remedy
    assert "medport bundle install" in remedy


def test_missing_snapshot_without_a_commit_is_not_to_be_pulled(store: Store, tmp_path: Path) -> None:
    stored = add(store, write_snapshot(tmp_path / "tiny"), revision=None)
    path = write_lock(tmp_path / "medport.lock", store, stored)

    with pytest.raises(NotFound) as fault:
        selected(lock=path, store=tmp_path / "bare")

    assert "pull" not in (fault.value.remedy or "")
    assert "medport snapshot add DIR" in (fault.value.remedy or "")


def test_lock_of_two_models_of_a_family_is_not_served(store: Store, tmp_path: Path) -> None:
    two = [add(store, write_snapshot(tmp_path / f"s{i}", seed=i), repo_id=f"medport/s{i}") for i in range(2)]

    with pytest.raises(ConfigError, match="holds two models of medgemma"):
        selected(lock=write_lock(tmp_path / "medport.lock", store, *two), store=store.root)


def test_lock_without_a_model_is_not_served(tmp_path: Path) -> None:
    locks.write(tmp_path / "medport.lock", Lock())

    with pytest.raises(ConfigError, match="holds no model"):
        selected(lock=tmp_path / "medport.lock")


@pytest.mark.parametrize(("running", "passes"), [(DIGEST, True), ("e" * 64, False), (None, True)])
def test_image_that_is_not_locked_serves_nothing(
    store: Store, siglip: Stored, tmp_path: Path, running: str | None, passes: bool
) -> None:
    images = {"serving": LockedImage(uri="registry.example/serving", digest=f"sha256:{DIGEST}")}
    path = write_lock(tmp_path / "image.lock", store, siglip, images=images)

    with ExitStack() as stack:
        if not passes:
            stack.enter_context(pytest.raises(VerificationError, match="the lock holds another"))
        selected(lock=path, store=store.root, image_digest=running)


def test_checking_hashes_weights_that_serving_would_hash_later(store: Store, locked: Path, siglip: Stored) -> None:
    flip(siglip.directory)

    assert selected(lock=locked, store=store.root).snapshots  # its weights are hashed when they are loaded
    with pytest.raises(VerificationError, match=r"model\.safetensors.*hash"):
        verified(Wanted(lock=locked, store=store.root))


# Servers


def test_checking_says_the_revision_that_was_proved_whatever_is_written_meanwhile(
    store: Store, siglip: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = Snapshot.verify

    def exchanged(self: Snapshot) -> None:
        manifest = siglip.directory / "manifest.json"
        changed = json.loads(manifest.read_bytes()) | {"revision": "f" * 40}
        manifest.chmod(0o644)
        manifest.write_text(json.dumps(changed))
        really(self)

    monkeypatch.setattr(Snapshot, "verify", exchanged)

    found = verified(Wanted(snapshots={"medsiglip": siglip.reference}, store=store.root))

    assert found["medsiglip"].revision == siglip.revision


def test_server_in_this_process_serves_a_lock_and_holds_it(
    store: Store, locked: Path, siglip: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDPORT_IMAGE_DIGEST", f"sha256:{DIGEST}")

    with medport.Client(backend="in-process", lock=locked, store=store.root) as client:
        source = client.embed_texts("normal").provenance
        store.collect(dry_run=False, keep=timedelta(0))
        assert siglip.directory.is_dir()

    assert source.lock_id == locks.read(locked).lock_id
    assert source.snapshot_sha256 == siglip.snapshot_sha256
    assert source.image_digest == DIGEST
    store.collect(dry_run=False, keep=timedelta(0))
    assert not siglip.directory.exists()


def test_profile_names_a_snapshot_of_the_store(store: Store, siglip: Stored, tmp_path: Path) -> None:
    (tmp_path / "medport.toml").write_text(
        f'[profiles.site]\nbackend = "in-process"\nstore = "{store.root}"\n'
        f'snapshot = {{ medsiglip = "{siglip.reference}" }}\n'
    )
    resolved = medport.config.resolve("site", environment={"MEDPORT_CONFIG": str(tmp_path / "medport.toml")})

    profile = resolved.profile
    with inprocess.start(dict(profile.snapshot), store=profile.store, lock=profile.lock) as server:
        assert server.app is not None
        served = server.app.state.deployed["medsiglip"].pins

    assert (served.revision, served.lock_id) == (siglip.revision, None)


@pytest.mark.parametrize("key", ["snapshot", "store", "lock"])
def test_profile_of_a_server_elsewhere_names_no_snapshots(key: str) -> None:
    value = {"medsiglip": "x"} if key == "snapshot" else "x"

    with pytest.raises(ConfigError, match="is for the in-process backend") as fault:
        medport.config.resolve(arguments={"url": "https://gpu.example", key: value}, environment={})

    assert fault.value.field == f"profiles.local.{key}"


def test_server_that_cannot_start_lets_go_of_its_snapshots(store: Store, siglip: Stored) -> None:
    flip(siglip.directory)

    with pytest.raises(VerificationError, match="hash"):
        inprocess.start({"medsiglip": siglip.reference}, store=store.root)

    store.collect(dry_run=False, keep=timedelta(0))
    assert not siglip.directory.exists()


def test_program_serves_a_lock_and_nothing_that_is_not_in_it(store: Store, locked: Path, siglip: Stored) -> None:
    command = ["medport_local.cli", "serve", "--port", "0", "--json"]
    environment = {**os.environ, "MEDPORT_IMAGE_DIGEST": DIGEST}
    options = ["--lock", str(locked), "--store", str(store.root)]

    refused = forked.run(
        *command, *options, "--snapshot", f"medgemma={weights_dir('medgemma')}", env=environment, timeout=90
    )
    with forked.Process(*command, *options, env=environment, stderr=forked.DEVNULL) as process:
        try:
            assert process.stdout is not None
            line = json.loads(process.stdout.readline())
            with medport.Client(backend="local", url=line["url"]) as client:
                source = client.embed_texts("normal").provenance
            store.collect(dry_run=False, keep=timedelta(0))
            assert siglip.directory.is_dir()  # another process holds it
            other = httpx.get(f"{line['url']}/v1/models").json()["data"]
        finally:
            process.send_signal(signal.SIGTERM)

    assert refused.returncode == 64
    assert "the lock holds no medgemma" in refused.stderr
    assert (source.lock_id, source.image_digest) == (locks.read(locked).lock_id, DIGEST)
    assert source.snapshot_sha256 == siglip.snapshot_sha256
    assert [card["id"] for card in other] == ["medsiglip"]
    assert other[0]["lock_id"] == source.lock_id


# Containers


def prepared(**settings: Any) -> tuple[Snapshot, str | None]:
    with ExitStack() as stack:
        return container._prepared(ContainerSettings(**settings), stack)


@pytest.mark.parametrize("models", [(), ("medport/medsiglip-phantom",)], ids=["by the lock", "by name"])
def test_container_takes_a_locked_model_out_of_its_store(
    store: Store, locked: Path, siglip: Stored, models: tuple[str, ...]
) -> None:
    snapshot, lock_id = prepared(store=store.root, lock=locked, models=models, revision=siglip.revision)

    assert snapshot.snapshot_sha256 == siglip.snapshot_sha256
    assert lock_id == locks.read(locked).lock_id


def test_container_holds_a_directory_against_its_lock(locked: Path, tmp_path: Path) -> None:
    snapshot, lock_id = prepared(lock=locked, models=(str(SIGLIP),))
    assert lock_id == locks.read(locked).lock_id
    settings = container.app_settings(ContainerSettings(image_digest=DIGEST), snapshot, lock_id)
    assert (settings.lock_id, settings.image_digest) == (lock_id, DIGEST)

    with pytest.raises(VerificationError, match="is locked"):
        prepared(lock=locked, models=(str(weights_dir("medgemma")),))


def test_container_serves_no_lock_of_two(store: Store, siglip: Stored, tmp_path: Path) -> None:
    path = write_lock(tmp_path / "two.lock", store, siglip, bring(store, weights_dir("medgemma")))

    with pytest.raises(ConfigError, match="holds 2 models, and a container serves one"):
        prepared(lock=path, store=store.root)


def test_container_does_not_look_elsewhere_for_a_pinned_snapshot(store: Store, siglip: Stored) -> None:
    with pytest.raises(NotFound):
        prepared(store=store.root, models=("medport/medsiglip-phantom@fffffff",))


def test_container_that_pins_a_parent_refuses_another(store: Store, siglip: Stored) -> None:
    with pytest.raises(VerificationError, match="was derived from no other"):
        prepared(store=store.root, models=(siglip.reference,), parent="google/medgemma-4b-it@unpinned sha256:0")


def test_container_reads_its_store_lock_and_digest_from_the_environment() -> None:
    settings = ContainerSettings.from_environment(
        {
            "MEDPORT_STORE": "/models/store",
            "MEDPORT_LOCK": "/etc/medport.lock",
            "MEDPORT_IMAGE_DIGEST": f"sha256:{DIGEST}",
            "MEDPORT_PARENT": "a@b sha256:c",
        }
    )

    assert (settings.store, settings.lock) == (Path("/models/store"), Path("/etc/medport.lock"))
    assert (settings.image_digest, settings.parent) == (DIGEST, "a@b sha256:c")
