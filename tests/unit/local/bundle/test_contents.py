"""What goes into a bundle: whole, checked, and the same again on the other side."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.bundles import Keys
from support.site_parts import build_wheel, oci_layout, provider_mirror

from medport import lock as locks
from medport.errors import ConfigError, NotFound, VerificationError
from medport.lock import Lock
from medport_local.bundle.archive import Bundle, Meta, write_bundle
from medport_local.bundle.contents import SBOM, Contents, Selection, gather
from medport_local.bundle.install import install, plan
from medport_local.cli_lock import locked_model
from medport_local.phantom import weights_dir
from medport_local.sources import DirectorySource, pull
from medport_local.store import Store

CREATED = datetime(2026, 11, 26, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Both phantoms."""
    made = Store(tmp_path_factory.mktemp("store") / "store")
    for family in ("medgemma", "medsiglip"):
        pull(made, DirectorySource(weights_dir(family)), told=lambda _: None)  # type: ignore[arg-type]
    return made


def _lock(store: Store, folder: Path, images: dict[str, str] | None = None) -> tuple[Path, Lock]:
    models = {each.family: locked_model(store.open(each), each) for each in store.list()}
    lock = locks.checked(
        {
            "version": 1,
            "models": {name: each.model_dump(mode="json", exclude_unset=True) for name, each in models.items()},
            "images": {
                name: {"uri": "registry.example/p", "digest": each} for name, each in (images or {}).items()
            },
        }
    )
    locks.write(folder / "medport.lock", lock)
    return folder / "medport.lock", lock


def _gathered(store: Store | None, selection: Selection) -> Contents:
    with gather(store, selection, created_at=CREATED, medport_version="0.1.0") as contents:
        return contents


def _paths(contents: Contents, kind: str) -> list[str]:
    return sorted(item.path for item in contents.items if item.kind == kind)


def test_bundle_of_everything_is_written_verified_and_installed(
    store: Store, tmp_path: Path, trusted: Keys
) -> None:
    (tmp_path / "wheels").mkdir()
    build_wheel(tmp_path / "wheels", "demo")
    digest = oci_layout(tmp_path / "image", platforms=2)
    provider_mirror(tmp_path / "mirror")
    (tmp_path / "letter.txt").write_text("Approved.\n")
    file, lock = _lock(store, tmp_path, {"serving": digest})
    selection = Selection(
        lock=file, wheels=tmp_path / "wheels", images={"serving": tmp_path / "image"},
        providers=tmp_path / "mirror", documents=[tmp_path / "letter.txt"],
    )  # fmt: skip

    with gather(store, selection, created_at=CREATED, medport_version="0.1.0") as contents:
        meta = Meta(created_at=CREATED, medport="0.1.0", lock_id=contents.lock_id)
        write_bundle(tmp_path / "site.mpb", contents.items, meta=meta, signer=trusted.signer)
    with Bundle.open(tmp_path / "site.mpb", trusted.verifier) as bundle:
        bundle.verify()
        assert bundle.manifest.lock_id == lock.lock_id
        done = install(plan(bundle, store_root=tmp_path / "far" / "store", to=tmp_path / "far" / "site"))

    assert [each.snapshot_sha256 for each in done.snapshots] == sorted(
        each.snapshot_sha256 for each in store.list()
    )
    far = Store(tmp_path / "far" / "store")
    assert [far.open(each).files for each in far.list()] == [store.open(each).files for each in store.list()]
    site = tmp_path / "far" / "site"
    assert locks.read(site / "lock/medport.lock").lock_id == lock.lock_id
    assert (site / "documents/letter.txt").read_text() == "Approved.\n"
    assert (site / "wheels/demo-1.0-py3-none-any.whl").is_file()
    assert (site / "images/serving/index.json").is_file()
    bill = json.loads((site / SBOM).read_text())
    names = {component["name"] for component in bill["components"]}
    assert names == {
        "demo", "serving", "terraform-provider-google", "medport/medgemma-phantom", "medport/medsiglip-phantom",
    }  # fmt: skip


def test_snapshot_that_is_named_twice_goes_in_once(store: Store, tmp_path: Path) -> None:
    file, _ = _lock(store, tmp_path)
    reference = store.list()[0].reference

    contents = _gathered(store, Selection(lock=file, snapshots=[reference, reference]))

    assert len(_paths(contents, "snapshot")) == 4
    assert len(set(_paths(contents, "blob"))) == len(_paths(contents, "blob"))


def test_locked_snapshot_that_the_store_lacks_is_named_with_the_command_that_brings_it(
    store: Store, tmp_path: Path
) -> None:
    file, lock = _lock(store, tmp_path)

    with pytest.raises(NotFound, match="medport/medgemma-phantom") as caught:
        _gathered(Store(tmp_path / "empty"), Selection(lock=file))

    assert caught.value.remedy == f"medport snapshot pull {lock.models['medgemma']}"


@pytest.mark.parametrize(
    ("change", "said"),
    [({"revision": "c" * 40}, "the revision is"), ({"model_id": "google/medgemma-4b-it"}, "the model is")],
    ids=["revision", "model"],
)
def test_snapshot_that_has_the_bytes_and_not_the_name_that_is_locked_is_refused(
    store: Store, tmp_path: Path, change: dict[str, str], said: str
) -> None:
    _, lock = _lock(store, tmp_path)
    model = lock.models["medgemma"].model_copy(update=change)
    locks.write(tmp_path / "other.lock", lock.model_copy(update={"models": {"medgemma": model}}))

    with pytest.raises(VerificationError, match=said):
        _gathered(store, Selection(lock=tmp_path / "other.lock"))


def test_record_leaves_this_machines_user_and_paths_at_home(tmp_path: Path) -> None:
    folder = tmp_path / "project of somebody"
    shutil.copytree(weights_dir("medsiglip"), folder)
    store = Store(tmp_path / "store")
    stored = pull(store, DirectorySource(folder), told=lambda _: None)
    assert "project of somebody" in stored.record.requested

    (record,) = (
        item.source
        for item in _gathered(store, Selection(snapshots=[stored.reference])).items
        if item.path.endswith("record.json")
    )

    assert isinstance(record, bytes)
    assert b"project of somebody" not in record
    said = json.loads(record)
    assert (said["by"], said["requested"], said["source"]) == ("unknown", stored.reference, "directory")


def test_weights_that_changed_in_the_store_are_refused_when_the_bundle_is_written(
    tmp_path: Path, trusted: Keys
) -> None:
    store = Store(tmp_path / "store")
    stored = pull(store, DirectorySource(weights_dir("medsiglip")), told=lambda _: None)
    contents = _gathered(store, Selection(snapshots=[stored.reference]))
    weights = stored.directory / "model.safetensors"
    weights.chmod(0o600)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)

    with pytest.raises(VerificationError, match="does not have the hash"):
        write_bundle(
            tmp_path / "x.mpb", contents.items, meta=Meta(created_at=CREATED, medport="0"), signer=trusted.signer
        )

    assert not (tmp_path / "x.mpb").exists()


def test_manifest_that_is_exchanged_after_it_was_proved_does_not_go_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Store(tmp_path / "store")
    stored = pull(own, DirectorySource(weights_dir("medsiglip")), told=lambda _: None)
    manifest = stored.directory / "manifest.json"
    proved, really = manifest.read_bytes(), Store.open

    def exchanged(*arguments: Any, **options: Any) -> Any:
        snapshot = really(*arguments, **options)
        manifest.chmod(0o644)
        manifest.write_bytes(proved.replace(b'"revision":"', b'"revision":"f', 1))
        return snapshot

    monkeypatch.setattr(Store, "open", exchanged)

    contents = _gathered(own, Selection(snapshots=[stored.reference]))

    (item,) = (each for each in contents.items if each.path.endswith("/manifest.json"))
    assert item.source == proved


def test_image_must_be_the_one_that_the_lock_names(store: Store, tmp_path: Path) -> None:
    oci_layout(tmp_path / "image")
    file, _ = _lock(store, tmp_path, {"serving": "sha256:" + "0" * 64})

    with pytest.raises(VerificationError, match="the lock names sha256:0000"):
        _gathered(store, Selection(lock=file, images={"serving": tmp_path / "image"}))
    with pytest.raises(ConfigError, match="the lock names no image other"):
        _gathered(store, Selection(lock=file, images={"other": tmp_path / "image"}))


def test_image_of_the_lock_that_is_left_out_is_said(store: Store, tmp_path: Path) -> None:
    file, _ = _lock(store, tmp_path, {"serving": "sha256:" + "0" * 64})
    told: list[str] = []

    with gather(store, Selection(lock=file), created_at=CREATED, medport_version="0", told=told.append):
        pass

    assert [line for line in told if "serving" in line] == [
        "image serving of the lock is not in the bundle: no --image serving=DIR was given"
    ]


def test_nothing_asked_for_is_an_error(store: Store) -> None:
    with pytest.raises(ConfigError, match="nothing to put into the bundle"):
        _gathered(store, Selection())
    with pytest.raises(ConfigError, match="snapshots come from a store"):
        _gathered(None, Selection(snapshots=["google/x"]))


def test_snapshots_cannot_be_collected_while_the_bundle_is_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    stored = pull(store, DirectorySource(weights_dir("medsiglip")), told=lambda _: None)

    with gather(store, Selection(snapshots=[stored.reference]), created_at=CREATED, medport_version="0"):
        store.collect(dry_run=False)
        assert stored.directory.is_dir()

    store.collect(dry_run=False)
    assert not stored.directory.exists()
