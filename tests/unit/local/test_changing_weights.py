"""Weights that another process changes while they are loaded: refused, or the original to the bit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from medport.errors import VerificationError
from medport_local.engine.loading import load_gemma
from medport_local.engine.sealed import SealedWeights
from medport_local.engine.weights import ReadShard, read_shard, read_shards
from medport_local.phantom import weights_dir
from medport_local.snapshot import Snapshot, open_snapshot

READS, LOADS = 150, 15
IDS = torch.tensor([[2, 105, 50, 60, 70, 80, 90, 106]])

# Each spoils the file for a random while and mends it for another, so that some loads meet it whole.
_WRITER = """
import os, random, sys, time
path, kind, seed = sys.argv[1:]
draw, size = random.Random(int(seed)), os.path.getsize(path)
file = os.open(path, os.O_RDWR)
print("ready", flush=True)
while True:
    place = draw.randrange(size)
    if kind == "flip":
        right = os.pread(file, 1, place)
        os.pwrite(file, bytes([right[0] ^ 1 << draw.randrange(8)]), place)
    else:
        right = os.pread(file, size - place, place)
        os.ftruncate(file, place)
    time.sleep(draw.random() * 0.004)
    written = os.pwrite(file, right, place)
    assert written == len(right)
    time.sleep(draw.random() * 0.012)
"""


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    return open_snapshot(shutil.copytree(weights_dir("medgemma"), tmp_path / "pinned"), defer_weights=True)


@pytest.fixture(params=["flip", "truncate"])
def writer(request: pytest.FixtureRequest, snapshot: Snapshot) -> Iterator[None]:
    """Another process that changes the weights and puts them right again, until the test is over."""
    command = [sys.executable, "-c", _WRITER, str(snapshot.directory / "model.safetensors"), request.param, "7"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield
        still_at_it = process.poll() is None
        process.kill()
    assert still_at_it


def plain() -> ReadShard:
    return read_shard


def sealed() -> ReadShard:
    """A fresh one for each load: one that keeps them would not read again."""
    return SealedWeights().read


def attempts(load: Callable[[], Any], times: int) -> tuple[list[Any], int]:
    """What was loaded, and how often it was refused."""
    loaded, refused = [], 0
    for _ in range(times):
        try:
            loaded.append(load())
        except VerificationError:
            refused += 1
    return loaded, refused


@pytest.mark.parametrize("new", [plain, sealed])
@pytest.mark.usefixtures("writer")
def test_shards_read_while_the_file_changes_are_refused_or_the_original(
    snapshot: Snapshot, new: Callable[[], ReadShard]
) -> None:
    (original,) = read_shards(open_snapshot(weights_dir("medgemma")))

    loaded, refused = attempts(lambda: list(read_shards(snapshot, new())), READS)

    # Compared when the writer has long gone on: what was taken must not follow the file.
    assert all(shard.data[:] == original.data[:] for (shard,) in loaded)
    assert refused > 0


@pytest.mark.parametrize("new", [plain, sealed])
@pytest.mark.usefixtures("writer")
@torch.inference_mode()
def test_models_loaded_while_the_file_changes_are_refused_or_give_the_original_logits(
    snapshot: Snapshot, new: Callable[[], ReadShard]
) -> None:
    def load(source: Snapshot, read: ReadShard) -> Any:
        return load_gemma(source, device="cpu", dtype="bfloat16", read=read).model

    expected = load(open_snapshot(weights_dir("medgemma")), read_shard)(input_ids=IDS).logits

    loaded, _ = attempts(lambda: load(snapshot, new()), LOADS)

    assert all(torch.equal(model(input_ids=IDS).logits, expected) for model in loaded)
