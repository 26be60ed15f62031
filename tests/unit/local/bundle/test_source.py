"""One snapshot of a bundle comes into the store as from any other source, if the bundle is trusted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.bundles import META, Keys, snapshot_items

from medport.errors import ConfigError, NotFound, VerificationError
from medport_local.bundle import trust
from medport_local.bundle.archive import Item, write_bundle
from medport_local.bundle.source import BundleSource, open_source
from medport_local.phantom import weights_dir
from medport_local.snapshot import open_snapshot
from medport_local.sources import pull, source_for
from medport_local.store import Store

GEMMA, SIGLIP = open_snapshot(weights_dir("medgemma")), open_snapshot(weights_dir("medsiglip"))


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory, trusted: Keys) -> Path:
    target = tmp_path_factory.mktemp("both") / "both.mpb"
    items = [*snapshot_items(GEMMA.directory), *snapshot_items(SIGLIP.directory)]
    write_bundle(target, items, meta=META, signer=trusted.signer)
    return target


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "store")
    yield made
    for folder, _, _ in os.walk(made.root):
        os.chmod(folder, 0o700)


def told(line: str) -> None:
    assert line.isprintable()


def references() -> list[str]:
    assert SIGLIP.revision is not None
    return [
        f"{SIGLIP.model_id}@{SIGLIP.revision}",
        f"{SIGLIP.model_id}@{SIGLIP.revision[:7]}",
        SIGLIP.model_id,
        f"sha256:{SIGLIP.snapshot_sha256}",
        f"sha256:{SIGLIP.snapshot_sha256[:12]}",
    ]


@pytest.mark.parametrize("reference", references())
def test_a_snapshot_is_pulled_by_each_way_to_name_it(
    store: Store, both: Path, trusted: Keys, reference: str
) -> None:
    source = BundleSource(both, reference, trusted.verifier)
    try:
        stored = pull(store, source, told=told)
    finally:
        source.close()

    assert stored.snapshot_sha256 == SIGLIP.snapshot_sha256
    assert stored.record.source == "bundle"
    assert stored.record.terms is not None
    assert store.open(stored).files == SIGLIP.files


def test_a_snapshot_that_is_there_is_not_read_again(
    store: Store, both: Path, trusted: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = BundleSource(both, SIGLIP.model_id, trusted.verifier)
    pull(store, source, told=told)
    monkeypatch.setattr(BundleSource, "read", None)

    assert pull(store, source, told=told).snapshot_sha256 == SIGLIP.snapshot_sha256
    source.close()


def test_a_file_is_read_from_any_offset(both: Path, trusted: Keys) -> None:
    source = BundleSource(both, SIGLIP.model_id, trusted.verifier)
    whole = SIGLIP.read("config.json")

    assert b"".join(source.read("config.json", 5)) == whole[5:]
    source.close()


@pytest.mark.parametrize("reference", ["google/other", "sha256:" + "0" * 64, "sha256:", f"{SIGLIP.model_id}@abc"])
def test_a_snapshot_that_is_not_there_is_not_found_and_those_that_are_named(
    both: Path, trusted: Keys, reference: str
) -> None:
    with pytest.raises(NotFound, match=SIGLIP.model_id):
        BundleSource(both, reference, trusted.verifier)


def test_of_two_snapshots_one_must_be_named(both: Path, trusted: Keys) -> None:
    with pytest.raises(ConfigError, match="not clear"):
        BundleSource(both, None, trusted.verifier)


def test_a_bundle_of_a_stranger_is_no_source(both: Path, stranger: Keys) -> None:
    with pytest.raises(VerificationError, match="another key"):
        BundleSource(both, None, stranger.verifier)


def test_one_altered_bit_of_the_weights_is_refused(
    store: Store, both: Path, trusted: Keys, tmp_path: Path
) -> None:
    data = bytearray(both.read_bytes())
    data[-4096] ^= 1
    (tmp_path / "bad.mpb").write_bytes(data)
    faults = []

    for snapshot in (GEMMA, SIGLIP):
        source = BundleSource(tmp_path / "bad.mpb", snapshot.model_id, trusted.verifier)
        try:
            pull(store, source, told=told)
        except VerificationError as fault:
            faults.append(fault)
        finally:
            source.close()

    assert len(faults) == 1
    assert len(store.list()) == 1


def test_a_bundle_is_a_source_by_its_text_if_the_machine_trusts_its_signer(
    store: Store, both: Path, trusted: Keys, stranger: Keys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trust, "MACHINE", tmp_path)
    text = f"bundle:{both}#{SIGLIP.model_id}"
    with pytest.raises(ConfigError, match="who may sign"):
        source_for(text, bundle=open_source)
    monkeypatch.setenv("MEDPORT_BUNDLE_KEY", str(stranger.public))
    with pytest.raises(VerificationError, match="another key"):
        source_for(text, bundle=open_source)
    monkeypatch.setenv("MEDPORT_BUNDLE_KEY", str(trusted.public))

    source = source_for(text, bundle=open_source)

    assert pull(store, source, told=told).snapshot_sha256 == SIGLIP.snapshot_sha256
    source.close()


def test_a_bundle_that_contradicts_itself_is_no_source(tmp_path: Path, trusted: Keys) -> None:
    items: list[Item] = snapshot_items(SIGLIP.directory)[:-1]
    write_bundle(tmp_path / "b.mpb", items, meta=META, signer=trusted.signer)

    with pytest.raises(VerificationError, match="not in the bundle"):
        BundleSource(tmp_path / "b.mpb", None, trusted.verifier)
