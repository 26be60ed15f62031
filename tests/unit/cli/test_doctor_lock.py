"""``medport doctor`` on a profile that serves a lock out of a store in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.stored import bring

from medport import lock as locks
from medport.lock import Lock
from medport_local.cli_lock import locked_model
from medport_local.phantom import weights_dir
from medport_local.store import Store, Stored


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def stored(store: Store) -> Stored:
    return bring(store, weights_dir("medsiglip"))


@pytest.fixture
def profile(store: Store, stored: Stored, tmp_path: Path) -> Path:
    """A file of settings whose only profile serves a lock."""
    locks.write(tmp_path / "medport.lock", Lock(models={"medsiglip": locked_model(store.open(stored), stored)}))
    (tmp_path / "medport.toml").write_text(
        f'default_profile = "site"\n[profiles.site]\nbackend = "in-process"\n'
        f'store = "{store.root}"\nlock = "{tmp_path / "medport.lock"}"\n'
    )
    return tmp_path / "medport.toml"


def snapshots_of(run: Any) -> dict[str, str]:
    (check,) = [each for each in run.json["profiles"][0]["checks"] if each["name"] == "snapshots"]
    found: dict[str, str] = check
    return found


def test_locked_snapshots_are_verified_and_named(
    medport: Any, profile: Path, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDPORT_CONFIG", str(profile))

    check = snapshots_of(medport("doctor", "--json"))

    assert check["status"] == "ok"
    assert check["detail"] == f"{stored.model_id} sha256 {stored.snapshot_sha256[:12]}…"


def test_damaged_locked_snapshot_is_found_before_a_model_is_loaded(
    medport: Any, profile: Path, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDPORT_CONFIG", str(profile))
    weights = stored.directory / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")

    run = medport("doctor", "--json")

    assert run.code == 1
    assert snapshots_of(run)["status"] == "failed"
    assert "model.safetensors" in snapshots_of(run)["detail"]


def test_locked_snapshot_that_is_missing_says_how_to_bring_it(
    medport: Any, profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile.write_text(profile.read_text().replace("/store", "/elsewhere"))
    monkeypatch.setenv("MEDPORT_CONFIG", str(profile))

    run = medport("doctor", "--json")

    assert snapshots_of(run)["status"] == "failed"
    assert "medport snapshot pull" in snapshots_of(run)["remedy"]
