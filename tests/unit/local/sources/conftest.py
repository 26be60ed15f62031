"""A hub of the test's own with a model in it, and a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session
from support.hub_server import Hub, hub_server, sharded

from medport_local.phantom import weights_dir
from medport_local.sources import HubSource, pull
from medport_local.store import Store, Stored

MODEL = "google/toy"
STRANGE = {
    "README.md": b"# A model",
    "LICENSE": b"The terms.",
    "modeling.py": b"raise SystemExit",
    "pytorch_model.bin": b"\x80\x04.",
    "old/model.safetensors": b"an older one",
}
"""What lies beside a model and is never fetched, but for the licence's hash."""


@pytest.fixture(scope="session")
def files() -> dict[str, bytes]:
    """A published MedGemma: three files of weights and their index."""
    return sharded(weights_dir("medgemma"))


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    """A hub that has it."""
    with hub_server() as server:
        server.add(MODEL, {**files, **STRANGE})
        yield server
        close_session()  # its connections are to this server


@pytest.fixture
def commit(hub: Hub) -> str:
    return hub.repositories[MODEL].branches["main"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def fetch(hub: Hub, store: Store) -> Callable[..., Stored]:
    """Pulls from the hub; ``said`` holds the lines for people, ``waits`` the seconds that it would have waited."""

    def run(revision: str | None = None, *, model: str = MODEL, **options: Any) -> Stored:
        source = HubSource(model, revision, **{"endpoint": hub.endpoint, "sleep": run.waits.append, **options})
        return pull(store, source, told=run.said.append)

    run.said, run.waits = [], []  # type: ignore[attr-defined]
    return run
