"""Engines for deployed models: what is verified, shared, refused and given back. Real engines of the phantoms."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.stored import bring

from medport.errors import MedportError, NotReady, QuotaExceeded, VerificationError
from medport.wire.vertex import to_label
from medport_local.control.database import Database
from medport_local.control.host import Intent
from medport_local.controlled_models import ControlledModels
from medport_local.engine import devices
from medport_local.hosting import EngineHost, HostOptions
from medport_local.model_options import ModelOptions
from medport_local.phantom import weights_dir
from medport_local.serving import container
from medport_local.serving.batch_rows import Row
from medport_local.serving.endpoints import DEDICATED, SHARED, Served, Threads
from medport_local.serving.fetch import Fetcher
from medport_local.serving.lifecycle import Lifecycle
from medport_local.settings import ControlPlane, Settings
from medport_local.shelf import Known, Shelf
from medport_local.snapshot import Snapshot, open_snapshot
from medport_local.store import Store

Json = dict[str, Any]
PARENT = "projects/1/locations/europe-west4"
GEMMA = open_snapshot(weights_dir("medgemma"))
SIGLIP = open_snapshot(weights_dir("medsiglip"))
IMAGE, LOCK = "a" * 64, "b" * 64
CHAT = {
    "@requestFormat": "chatCompletions",
    "messages": [{"role": "user", "content": "Describe."}],
    "max_tokens": 4,
}


@pytest.fixture(scope="module")
def threads() -> Iterator[Threads]:
    with ThreadPoolExecutor(1) as decode, ThreadPoolExecutor(1) as fetch:
        yield Threads(decode=decode, fetch=fetch)


@pytest.fixture
def fetcher() -> Iterator[Fetcher]:
    fetcher = Fetcher(())
    yield fetcher
    fetcher.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def host(threads: Threads, fetcher: Fetcher, store: Store) -> EngineHost:
    return EngineHost(Shelf(store.root), threads, fetcher, HostOptions(models=ModelOptions(device="cpu")))


def intent(model_id: str = GEMMA.model_id, *, labels: Json | None = None, spec: Json | None = None) -> Intent:
    return Intent(
        endpoint=f"{PARENT}/endpoints/chest",
        deployed_model_id="1234567890",
        model=f"{PARENT}/models/gemma",
        model_version_id="3",
        display_name="first",
        version={
            "displayName": "Our model",
            "labels": labels or {},
            "containerSpec": {"env": [{"name": "MODEL_ID", "value": model_id}], **(spec or {})},
        },
    )


def started(host: EngineHost, wanted: Intent) -> Served:
    return host.start(replace(wanted, snapshot_sha256=host.resolve(wanted)), lambda: False)


def answer(served: Served, instance: object) -> Json:
    return asyncio.run(container.predict(Row(), served, {"instances": [instance]}))


def descriptors() -> int:
    """Sealed weights that this process keeps."""
    return sum("medport-weights" in os.readlink(each) for each in _links())


def _links() -> Iterator[Path]:
    for each in Path("/proc/self/fd").iterdir():
        if each.is_symlink():
            yield each


def test_deployed_model_answers_under_the_names_of_its_deployment(host: EngineHost) -> None:
    served = started(host, intent(labels={"medport-lock": to_label(LOCK)}))

    try:
        said = answer(served, CHAT)
    finally:
        host.stop(served)

    assert said["predictions"]["choices"][0]["message"]["content"]
    assert (served.endpoint_id, served.deployed_model_id) == ("chest", "1234567890")
    assert (served.model, served.model_version_id) == (f"{PARENT}/models/gemma", "3")
    assert served.pins.snapshot_sha256 == GEMMA.snapshot_sha256
    assert served.pins.revision == GEMMA.revision
    assert served.pins.lock_id == LOCK
    assert served.bounds == DEDICATED


def test_embedding_model_answers_and_is_gone_after_stop(host: EngineHost) -> None:
    served = started(host, intent(SIGLIP.model_id))

    said = answer(served, {"text": "normal lungs"})
    host.stop(served)

    assert len(said["predictions"][0]["embedding"]) > 8
    assert served.dialect == "medsiglip"
    with pytest.raises(NotReady):
        answer(served, {"text": "normal lungs"})


def test_endpoint_without_a_name_of_its_own_has_the_bounds_of_the_shared_host(host: EngineHost) -> None:
    served = started(host, replace(intent(SIGLIP.model_id), dedicated=False))
    host.stop(served)

    assert served.bounds == SHARED


@pytest.mark.parametrize("said", [{"labels": {"medport-dialect": "dicom"}}, {"spec": "MEDPORT_DIALECT"}])
def test_version_may_ask_for_the_other_container_of_medgemma(host: EngineHost, said: Json) -> None:
    env = [{"name": "MODEL_ID", "value": GEMMA.model_id}, {"name": "MEDPORT_DIALECT", "value": "dicom"}]
    wanted = intent(spec={"env": env}) if "spec" in said else intent(**said)

    served = started(host, wanted)
    host.stop(served)

    assert served.dialect == "dicom"


def test_dialect_that_is_none_is_refused_before_anything_is_loaded(host: EngineHost) -> None:
    with pytest.raises(VerificationError, match="medport-dialect"):
        started(host, intent(labels={"medport-dialect": "klingon"}))


def test_deployments_of_one_snapshot_share_its_weights_until_the_last_is_stopped(host: EngineHost) -> None:
    before = descriptors()

    first = started(host, intent())
    shards = descriptors() - before
    second = started(host, intent())

    assert shards > 0
    assert descriptors() - before == shards
    host.stop(first)
    assert descriptors() - before == shards
    assert answer(second, CHAT)["predictions"]["choices"]
    host.stop(second)
    assert descriptors() == before


def test_flipped_bit_in_the_store_is_refused_and_leaves_nothing(host: EngineHost, store: Store) -> None:
    stored = bring(store, weights_dir("medgemma"))
    path = (stored.directory / "model.safetensors").resolve()
    before = descriptors()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))

    with pytest.raises(VerificationError, match=r"model\.safetensors") as refusal:
        started(host, intent())

    assert descriptors() == before, "whoever keeps the exception keeps the weights"
    assert str(store.root) not in str(refusal.value)
    assert store.collect(dry_run=True).snapshots, "the snapshot is still held"


def test_snapshot_of_the_store_is_held_while_it_is_deployed(host: EngineHost, store: Store) -> None:
    bring(store, weights_dir("medsiglip"))

    served = started(host, intent(SIGLIP.model_id))

    assert not store.collect(dry_run=False).snapshots
    host.stop(served)
    assert store.collect(dry_run=False).snapshots


def test_snapshot_of_a_model_that_sleeps_is_held_until_it_is_not_deployed_any_more(
    host: EngineHost, store: Store
) -> None:
    sha256 = bring(store, weights_dir("medsiglip")).snapshot_sha256
    served = started(host, intent(SIGLIP.model_id))

    host.keep({sha256, "0" * 64})
    host.stop(served)

    assert not store.collect(dry_run=False).snapshots
    host.keep(frozenset())
    assert store.collect(dry_run=False).snapshots


def test_model_that_does_not_fit_is_refused_with_the_bytes_needed_and_free(
    host: EngineHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    little = devices.DeviceFacts("tiny", 2**30, 2**20)
    monkeypatch.setattr(devices, "describe", lambda device: little)

    with pytest.raises(QuotaExceeded, match=r"needs 5\.15 MiB .* 1 MiB are free"):
        started(host, intent())


def test_image_of_the_version_must_be_the_one_that_this_runs_in(
    threads: Threads, fetcher: Fetcher, store: Store
) -> None:
    options = HostOptions(models=ModelOptions(device="cpu"), image_digest=IMAGE)
    host = EngineHost(Shelf(store.root), threads, fetcher, options)

    with pytest.raises(VerificationError, match="imageUri"):
        started(host, intent(spec={"imageUri": f"registry/server@sha256:{'c' * 64}"} | _env(SIGLIP.model_id)))
    served = started(host, intent(spec={"imageUri": f"registry/server@sha256:{IMAGE}"} | _env(SIGLIP.model_id)))
    host.stop(served)

    assert served.pins.image_digest == IMAGE


def test_image_that_a_version_names_is_not_claimed_by_a_server_that_runs_in_none(host: EngineHost) -> None:
    served = started(host, intent(spec={"imageUri": f"registry/server@sha256:{'c' * 64}"} | _env(SIGLIP.model_id)))
    host.stop(served)

    assert served.pins.image_digest is None


def test_lock_in_the_name_of_the_deployed_model_must_be_that_of_the_version(
    host: EngineHost,
) -> None:
    named = replace(intent(SIGLIP.model_id), display_name=f"first mp1.{to_label(LOCK)}")

    served = started(host, named)
    host.stop(served)

    assert served.pins.lock_id == LOCK
    other = intent(SIGLIP.model_id, labels={"medport-lock": to_label("c" * 64)})
    with pytest.raises(VerificationError, match="two locks"):
        started(host, replace(other, display_name=named.display_name))


def test_version_may_not_mean_other_bytes_after_a_restart(host: EngineHost) -> None:
    with pytest.raises(MedportError, match="0" * 12):
        host.start(replace(intent(), snapshot_sha256="0" * 64), lambda: False)


def test_cancelled_start_leaves_no_engine(host: EngineHost) -> None:
    before = descriptors()
    asked: list[bool] = []

    def cancelled() -> bool:
        asked.append(True)
        return len(asked) > 1  # only once it is loaded

    with pytest.raises(NotReady, match="cancelled"):
        host.start(intent(), cancelled)

    assert descriptors() == before


def test_directory_is_deployed_and_a_changed_one_is_refused(
    threads: Threads, fetcher: Fetcher, store: Store, tmp_path: Path
) -> None:
    folder = shutil.copytree(weights_dir("medsiglip"), tmp_path / "models" / "siglip")
    shelf = Shelf(store.root, [tmp_path / "models"])
    host = EngineHost(shelf, threads, fetcher, HostOptions(models=ModelOptions(device="cpu")))
    wanted = replace(intent(), version={"displayName": "x", "artifactUri": str(folder)})
    served = started(host, wanted)
    host.stop(served)
    (folder / "tokenizer_config.json").write_text("{}")

    with pytest.raises(VerificationError, match=r"tokenizer_config\.json"):
        started(host, wanted)
    assert served.pins.snapshot_sha256 == SIGLIP.snapshot_sha256


@pytest.mark.parametrize("model_id", [GEMMA.model_id, SIGLIP.model_id])
def test_memory_of_a_stopped_model_is_free_at_once_and_not_when_somebody_collects(
    host: EngineHost, model_id: str
) -> None:
    gc.collect()
    gc.disable()
    try:
        served = started(host, intent(model_id))
        engine = weakref.ref(served.engine)
        host.stop(served)
        del served

        assert engine() is None
    finally:
        gc.enable()


def test_directory_that_changes_while_it_is_opened_is_refused(
    threads: Threads, fetcher: Fetcher, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(weights_dir("medsiglip"), tmp_path / "models" / "siglip")
    (folder / "manifest.json").unlink()
    shelf = Shelf(store.root, [tmp_path / "models"])
    host = EngineHost(shelf, threads, fetcher, HostOptions(models=ModelOptions(device="cpu")))
    wanted = replace(intent(), version={"displayName": "x", "artifactUri": str(folder)})
    wanted = replace(wanted, snapshot_sha256=host.resolve(wanted))
    opened = shelf.open

    def changed_first(known: Known, held: ExitStack) -> Snapshot:
        with (folder / "config.json").open("a") as file:
            file.write("\n")
        return opened(known, held)

    monkeypatch.setattr(shelf, "open", changed_first)

    with pytest.raises(VerificationError, match="changed while"):
        host.start(wanted, lambda: False)


def _env(model_id: str) -> Json:
    return {"env": [{"name": "MODEL_ID", "value": model_id}]}


def test_server_whose_state_cannot_be_read_for_a_moment_is_not_taken_for_one_that_has_loaded(
    tmp_path: Path, fetcher: Fetcher
) -> None:
    plane = ControlPlane(directory=tmp_path / "plane")
    models = ControlledModels(Settings(control_plane=plane), plane, fetcher, Lifecycle())
    models._database = Database(plane.directory, {})
    models._database.close()

    assert models._loads_again()
