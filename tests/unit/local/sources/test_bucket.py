"""Models in a bucket of the real emulator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.gcs import Emulator, gcs_emulator

from medport.errors import AuthError, ConfigError, ConnectionFailed, NotFound, Timeout, VerificationError
from medport_local.phantom import weights_dir
from medport_local.snapshot import MANIFEST, open_snapshot
from medport_local.sources import BucketSource, bucket, pull
from medport_local.store import Store, Stored

WEIGHTS = "model.safetensors"
PHANTOM = {path.name: path.read_bytes() for path in weights_dir("medsiglip").iterdir()}


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with gcs_emulator("models") as running:
        yield running


@pytest.fixture
def objects(emulator: Emulator, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """Uploads the phantom without its manifest to a folder of the test's own; gives the folder and an uploader."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator.url)
    folder = hashlib.sha256(request.node.name.encode()).hexdigest()[:16]

    def upload(name: str, data: bytes, **options: Any) -> None:
        emulator.upload("models", f"{folder}/{name}", data, **options)

    upload.uri = f"gs://models/{folder}"  # type: ignore[attr-defined]
    for name, data in PHANTOM.items():
        if name != MANIFEST:
            upload(name, data)
    return upload


def bring(store: Store, objects: Any, said: list[str] | None = None) -> Stored:
    source = BucketSource(objects.uri)
    try:
        return pull(store, source, told=(said if said is not None else []).append)
    finally:
        source.close()


def test_a_folder_becomes_a_snapshot_of_exactly_its_models_files(store: Store, objects: Any) -> None:
    for name in ("README.md", "run.py", "old/model.safetensors", "pytorch_model.bin"):
        objects(name, b"not for us")
    said: list[str] = []

    stored = bring(store, objects, said)

    snapshot = open_snapshot(stored.directory)
    assert {name: snapshot.read(name) for name in snapshot.files} == {
        name: data for name, data in PHANTOM.items() if name != MANIFEST
    }
    assert (stored.record.source, stored.record.requested, stored.revision) == ("bucket", objects.uri, None)
    assert any("old/model.safetensors" in line and "run.py" in line for line in said)


def test_a_manifest_in_the_folder_says_what_the_model_is(store: Store, objects: Any) -> None:
    objects(MANIFEST, PHANTOM[MANIFEST])

    stored = bring(store, objects)

    shipped = open_snapshot(weights_dir("medsiglip"))
    assert (stored.model_id, stored.revision) == (shipped.model_id, shipped.revision)
    assert stored.snapshot_sha256 == shipped.snapshot_sha256


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("config.json", PHANTOM["config.json"] + b" ", r"config\.json"),
        ("extra.json", b"{}", r"extra\.json.*not in the manifest"),
        (MANIFEST, b"{}", r"manifest\.json.*cannot be read"),
        (MANIFEST, PHANTOM[MANIFEST].replace(b'"spiece.model"', b'"absent.model"'), r"absent\.model.*not there"),
        (MANIFEST, PHANTOM[MANIFEST].replace(b'"medsiglip"', b'"medgemma"'), r"says medgemma"),
    ],
)
def test_a_folder_that_is_not_what_its_manifest_says_is_refused(
    store: Store, objects: Any, name: str, data: bytes, said: str
) -> None:
    objects(MANIFEST, PHANTOM[MANIFEST])
    objects(name, data)

    with pytest.raises(VerificationError, match=said):
        bring(store, objects)

    assert store.list() == []


def test_the_generation_that_was_listed_is_read_or_none(store: Store, objects: Any) -> None:
    class Overwritten(BucketSource):
        def offer(self) -> Any:
            offer = super().offer()
            objects("spiece.model", b"written over the listed one")
            return offer

    with pytest.raises(VerificationError, match=r"spiece\.model.*changed"):
        pull(store, Overwritten(objects.uri), told=lambda _: None)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_one_bit_that_flips_on_the_way_is_seen_by_the_crc32c(
    store: Store, objects: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fetched = BucketSource._part

    def flipped(self: BucketSource, blob: Any, position: int) -> bytes:
        data = fetched(self, blob, position)
        return data if not blob.name.endswith(name) else data[:-1] + bytes([data[-1] ^ 1])

    monkeypatch.setattr(BucketSource, "_part", flipped)

    with pytest.raises(VerificationError, match=f"{name}.*crc32c"):
        bring(store, objects)

    assert store.list() == []


class Broken:
    """Lets ``parts`` parts of the weights pass, then none until ``mend``; counts where reading began."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
        self.left, self.positions = parts, []  # type: int, list[int]
        fetched = BucketSource._part

        def part(source: BucketSource, blob: Any, position: int) -> bytes:
            if blob.name.endswith(WEIGHTS):
                if self.left == 0:
                    raise ConnectionFailed("the line is cut")
                self.left -= 1
                self.positions.append(position)
            return fetched(source, blob, position)

        monkeypatch.setattr(bucket, "_CHUNK_BYTES", 2**20)
        monkeypatch.setattr(BucketSource, "_part", part)


def test_a_broken_pull_is_gone_on_with_where_it_broke(
    store: Store, objects: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Broken(monkeypatch, 3)
    with pytest.raises(ConnectionFailed):
        bring(store, objects)
    broken.left = 100

    stored = bring(store, objects)

    assert broken.positions == [number * 2**20 for number in range(6)]
    assert open_snapshot(stored.directory).files


def test_an_object_that_was_replaced_meanwhile_is_begun_again(
    store: Store, objects: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Broken(monkeypatch, 3)
    with pytest.raises(ConnectionFailed):
        bring(store, objects)
    broken.left, broken.positions = 100, []
    objects(WEIGHTS, PHANTOM[WEIGHTS])

    bring(store, objects)

    assert broken.positions == [number * 2**20 for number in range(6)]


def test_what_was_kept_and_altered_meanwhile_is_fetched_again(
    store: Store, objects: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Broken(monkeypatch, 3)
    with pytest.raises(ConnectionFailed):
        bring(store, objects)
    broken.left = 100
    (part,) = store.root.glob("partial/*/*.part")
    data = part.read_bytes()
    part.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    said: list[str] = []

    stored = bring(store, objects, said)

    assert open_snapshot(stored.directory).files
    assert any("crc32c" in line and "again" in line for line in said)


def test_an_object_that_is_stored_packed_is_refused(store: Store, objects: Any) -> None:
    objects("config.json", b"\x1f\x8b\x08", content_encoding="gzip")

    with pytest.raises(VerificationError, match=r"config\.json.*packed"):
        bring(store, objects)


def test_a_folder_without_a_model_says_what_is_needed(emulator: Emulator, store: Store, objects: Any) -> None:
    with pytest.raises(ConfigError, match=r"\*\.safetensors"):
        pull(store, BucketSource("gs://models/nothing-here"), told=lambda _: None)


def test_a_bucket_that_is_not_there_is_named(store: Store, objects: Any) -> None:
    with pytest.raises(NotFound, match="no bucket absent-bucket"):
        pull(store, BucketSource("gs://absent-bucket/model"), told=lambda _: None)


def test_without_credentials_the_role_is_named(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials.json").write_text('{"type": "external_account_of_nobody"}')
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "credentials.json"))

    with pytest.raises(AuthError, match=r"storage\.objectViewer"):
        pull(store, BucketSource("gs://models/x"), told=lambda _: None)


def test_a_bucket_that_cannot_be_reached_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    monkeypatch.setattr(bucket, "_PATIENCE_S", 0.1)

    with pytest.raises((ConnectionFailed, Timeout), match="the bucket models"):
        pull(store, BucketSource("gs://models/x"), told=lambda _: None)


@pytest.mark.parametrize(
    "uri", ["gs://", "gs://A/x", "gs://x", "s3://models/x", "gs://models\n/x", "gs://models/\x00"]
)
def test_what_is_no_bucket_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="gs://BUCKET"):
        BucketSource(uri)
