"""Stores and tiny snapshots."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.snapshots import write_snapshot
from support.store_worker import NOBODY, Worker, may_become_another

from medport_local.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A snapshot as it would be downloaded."""
    return write_snapshot(tmp_path / "one", seed=1)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another, which has a shard and the settings in common with the first."""
    return write_snapshot(tmp_path / "other", seed=2)


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that an unprivileged process may enter and write to: pytest's own are private."""
    # In memory, where there is a place for it: hundreds of stores, each of which asks the disk for fsync.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    made = Path(tempfile.mkdtemp(prefix="medport-store-test-", dir=memory))
    if may_become_another():
        os.chown(made, NOBODY, NOBODY)
    made.chmod(0o755)
    yield made
    for path, _, _ in os.walk(made):
        os.chmod(path, 0o700)
    shutil.rmtree(made)
