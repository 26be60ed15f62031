"""Every engine that can stand behind the protocol, on the phantom that ships with the package."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest
import torch

from medport_local import phantom
from medport_local.engine.engine import Engine, EngineLimits, TorchEngine
from medport_local.engine.loading import Gemma, load_gemma
from medport_local.snapshot import Snapshot, open_snapshot

# The phantom is too small to gain from several threads, and loses to their barriers.
torch.set_num_threads(1)

# Read while tests are collected: afterwards no setting of whoever runs them is there.
DEVICE = os.environ.get("MEDPORT_TEST_DEVICE", "cpu")
"""Where the engines run; the reference runs there too."""


@dataclass(frozen=True)
class Profile:
    """An engine under test, and the same model on transformers."""

    engine: Engine
    gemma: Gemma
    snapshot: Snapshot
    remake: Callable[[EngineLimits], Engine] = field(repr=False)
    """Another one like it; to be closed by the test."""


def _torch(gemma: Gemma, snapshot: Snapshot, limits: EngineLimits) -> Engine:
    return TorchEngine(gemma, snapshot, limits=limits)


ENGINES: Mapping[str, EngineLimits] = {
    "torch": EngineLimits(),
    "torch, work kept": EngineLimits(reuse_bytes=64 * 2**20),
    "torch, smallest chunks": EngineLimits(stall_ms=0.01),
    "torch, one at a time": EngineLimits(max_running=1),
}


@pytest.fixture(scope="session")
def phantom_gemma() -> tuple[Gemma, Snapshot]:
    snapshot = open_snapshot(phantom.weights_dir("medgemma"))
    return load_gemma(snapshot, device=DEVICE), snapshot


@pytest.fixture(params=ENGINES, scope="session")
def profile(request: pytest.FixtureRequest, phantom_gemma: tuple[Gemma, Snapshot]) -> Iterator[Profile]:
    gemma, snapshot = phantom_gemma
    engine = _torch(gemma, snapshot, ENGINES[request.param])
    yield Profile(engine, gemma, snapshot, lambda limits: _torch(gemma, snapshot, limits))
    engine.close()


@pytest.fixture
def engine(profile: Profile) -> Engine:
    return profile.engine
