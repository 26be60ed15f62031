"""Weights kept for the next model: sealed by the kernel, hashed once, shared, and never taken from a path."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import json
import mmap
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import write_text_gemma
from support.lora import write_adapter

from medport.errors import ConfigError, VerificationError
from medport_local.engine import sealed as module
from medport_local.engine import weights
from medport_local.engine.embedder import Embedder
from medport_local.engine.loading import load_gemma, load_siglip
from medport_local.engine.quantise import quantise
from medport_local.engine.sealed import NAME, SealedWeights
from medport_local.engine.sequence import GenerationRequest, Sampling
from medport_local.engine.weights import read_shards
from medport_local.opening import ModelOptions, Opened, open_model
from medport_local.phantom import weights_dir
from medport_local.snapshot import Snapshot, open_snapshot

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux seals files of memory")

IDS = [2, 105, 50, 60, 70, 80, 90, 106]


@pytest.fixture
def pinned(tmp_path: Path) -> Path:
    """The Gemma phantom with its manifest, to be changed."""
    return Path(shutil.copytree(weights_dir("medgemma"), tmp_path / "pinned"))


@pytest.fixture
def snapshot(pinned: Path) -> Snapshot:
    return open_snapshot(pinned, defer_weights=True)


def read(kept: SealedWeights, snapshot: Snapshot) -> list[weights.Shard]:
    return list(read_shards(snapshot, kept.read))


def descriptors() -> list[int]:
    """Those of this process that are of sealed weights; a map of one keeps one of its own."""
    found = []
    for each in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{each}")
        except FileNotFoundError:  # that of the listing itself
            continue
        if target.startswith(f"/memfd:{NAME}"):
            found.append(int(each))
    return sorted(found)


def same(one: Any, two: Any) -> bool:
    mine, other = one.state_dict(), two.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def flip_last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


# ---- what comes out


def test_shards_are_those_of_plain_reading_at_first_and_again(snapshot: Snapshot) -> None:
    kept = SealedWeights()
    (plain,) = read_shards(snapshot)

    (first,) = read(kept, snapshot)
    (again,) = read(kept, snapshot)

    assert first.name == again.name == plain.name
    assert first.tensors == again.tensors == plain.tensors
    assert first.data[:] == again.data[:] == plain.data[:]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_models_out_of_kept_weights_are_those_of_plain_loading(snapshot: Snapshot, dtype: Any) -> None:
    kept = SealedWeights()
    plain = load_gemma(snapshot, device="cpu", dtype=dtype)

    first = load_gemma(snapshot, device="cpu", dtype=dtype, read=kept.read)
    again = load_gemma(snapshot, device="cpu", dtype=dtype, read=kept.read)

    assert same(first.model, plain.model)
    assert same(again.model, plain.model)


def test_image_embedder_out_of_kept_weights_is_that_of_plain_loading(siglip_folder: Path) -> None:
    snapshot, kept = open_snapshot(siglip_folder), SealedWeights()
    plain = load_siglip(snapshot, device="cpu")
    # Packs the weights of the first, which must not reach the second.
    Embedder(load_siglip(snapshot, device="cpu", read=kept.read)).close()

    again = load_siglip(snapshot, device="cpu", read=kept.read)

    assert same(again.model, plain.model)


def test_int8_model_out_of_kept_weights_is_that_of_plain_loading(snapshot: Snapshot, tmp_path: Path) -> None:
    short, kept = quantise(snapshot, tmp_path / "int8", device="cpu").snapshot, SealedWeights()
    plain = load_gemma(short, device="cpu").int8
    load_gemma(short, device="cpu", read=kept.read)

    again = load_gemma(short, device="cpu", read=kept.read).int8

    assert again.keys() == plain.keys() != set()
    assert all(torch.equal(again[name].weight, plain[name].weight) for name in plain)
    assert all(torch.equal(again[name].scale, plain[name].scale) for name in plain)


def test_two_engines_on_one_snapshot_answer_as_one_alone_with_and_without_an_adapter(
    snapshot: Snapshot, pinned: Path, tmp_path: Path
) -> None:
    config = json.loads((pinned / "config.json").read_text())["text_config"]
    plain = ModelOptions(device="cpu", dtype="bfloat16")
    adapted = replace(plain, adapters={"chest": write_adapter(tmp_path / "chest", config)})
    asked = GenerationRequest(tokens=IDS, sampling=Sampling(max_tokens=8, ignore_eos=True, logprobs=2))
    chest = replace(asked, adapter="chest")
    alone = [answer(open_model(snapshot, adapted), each) for each in (asked, chest)]
    kept = SealedWeights()

    one = open_model(snapshot, replace(adapted, sealed=kept))
    two = open_model(snapshot, replace(plain, sealed=kept))
    together = [answer(one, chest, close=False), answer(two, asked), answer(one, chest)]

    assert together == [alone[1], alone[0], alone[1]]
    assert alone[0] != alone[1]


def answer(opened: Opened, asked: GenerationRequest, *, close: bool = True) -> list[Any]:
    """Tokens and their log probabilities, to the bit."""

    async def told() -> list[Any]:
        assert not isinstance(opened.engine, Embedder)
        return [event.tokens async for event in opened.engine.submit(asked)]

    try:
        return asyncio.run(told())
    finally:
        if close:
            opened.engine.close()


# ---- what is trusted


def test_second_load_opens_no_file_of_weights(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, opened, real = SealedWeights(), [], os.open
    read(kept, snapshot)

    def spy(path: Any, *arguments: Any, **keywords: Any) -> int:
        opened.append(Path(path).name)
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", spy)

    load_gemma(snapshot, device="cpu", read=kept.read)

    assert "config.json" in opened
    assert "model.safetensors" not in opened


def test_file_that_is_gone_or_changed_does_not_reach_the_next_model(snapshot: Snapshot, pinned: Path) -> None:
    kept = SealedWeights()
    before = load_gemma(snapshot, device="cpu", dtype="bfloat16", read=kept.read)
    (pinned / "model.safetensors").write_bytes(b"\xff" * (pinned / "model.safetensors").stat().st_size)

    after = load_gemma(snapshot, device="cpu", dtype="bfloat16", read=kept.read)

    assert same(after.model, before.model)


def test_changed_file_is_refused_and_not_kept(snapshot: Snapshot, pinned: Path) -> None:
    kept = SealedWeights()
    flip_last_bit(pinned / "model.safetensors")

    with pytest.raises(VerificationError, match=r"model\.safetensors.*hash that the manifest lists"):
        load_gemma(snapshot, device="cpu", read=kept.read)

    gc.collect()
    assert kept.nbytes == 0
    assert descriptors() == []


@pytest.mark.parametrize("change", [lambda data: data + b"\0", lambda data: data[:-1], lambda data: data[:5]])
def test_file_that_grew_or_shrank_is_refused(
    snapshot: Snapshot, pinned: Path, change: Callable[[bytes], bytes]
) -> None:
    weights = pinned / "model.safetensors"
    weights.write_bytes(change(weights.read_bytes()))

    with pytest.raises(VerificationError, match=r"model\.safetensors"):
        read(SealedWeights(), snapshot)


def test_snapshot_that_lists_other_weights_gets_its_own(snapshot: Snapshot, pinned: Path, tmp_path: Path) -> None:
    kept = SealedWeights()
    (original,) = read(kept, snapshot)
    other = Path(shutil.copytree(pinned, tmp_path / "other"))
    (other / "manifest.json").unlink()
    flip_last_bit(other / "model.safetensors")

    (changed,) = read(kept, open_snapshot(other))

    assert changed.data[:-1] == original.data[:-1]
    assert changed.data[-1] != original.data[-1]


def test_same_weights_under_another_path_are_not_read_again(
    snapshot: Snapshot, pinned: Path, tmp_path: Path
) -> None:
    kept = SealedWeights()
    read(kept, snapshot)
    other = open_snapshot(shutil.copytree(pinned, tmp_path / "other"), defer_weights=True)
    (tmp_path / "other" / "model.safetensors").unlink()

    (again,) = read(kept, other)

    assert again.name == "model.safetensors"
    assert kept.nbytes == len(again.data)


# ---- the seals


@pytest.mark.parametrize(
    "change",
    [
        lambda descriptor: os.pwrite(descriptor, b"\0", 0),
        lambda descriptor: os.ftruncate(descriptor, 10),
        lambda descriptor: os.ftruncate(descriptor, os.fstat(descriptor).st_size + 1),
        lambda descriptor: mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_WRITE),
        lambda descriptor: fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, 0),
    ],
    ids=["write", "shorten", "lengthen", "map to write", "seal otherwise"],
)
def test_kernel_refuses_to_change_what_is_kept(snapshot: Snapshot, change: Callable[[int], object]) -> None:
    kept = SealedWeights()
    read(kept, snapshot)
    gc.collect()
    (descriptor,) = descriptors()

    with pytest.raises(PermissionError):
        change(descriptor)


def test_other_process_of_the_same_user_cannot_write_to_what_is_kept(snapshot: Snapshot) -> None:
    kept = SealedWeights()
    (shard,) = read(kept, snapshot)
    before = shard.data[:]
    program = "import sys\nwith open(sys.argv[1], 'r+b', buffering=0) as file: file.write(b'x' * 100)"

    done = subprocess.run(
        [sys.executable, "-c", program, f"/proc/{os.getpid()}/fd/{descriptors()[0]}"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert "PermissionError" in done.stderr
    assert shard.data[:] == before


def test_bytes_are_sealed_before_they_are_hashed(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    seals: list[int] = []
    real = module._hash

    def spy(*arguments: Any) -> None:
        seals.append(fcntl.fcntl(descriptors()[0], fcntl.F_GET_SEALS))
        real(*arguments)

    monkeypatch.setattr(module, "_hash", spy)

    read(SealedWeights(), snapshot)

    assert [each & fcntl.F_SEAL_WRITE for each in seals] == [fcntl.F_SEAL_WRITE]


def test_what_one_model_writes_no_other_sees(snapshot: Snapshot) -> None:
    kept = SealedWeights()
    (one,) = read(kept, snapshot)
    before = one.data[:]
    one.view(one.tensors[0]).zero_()

    (two,) = read(kept, snapshot)

    assert one.data[:] != before
    assert two.data[:] == before


def foreign(snapshot: Snapshot, seals: int) -> int:
    """Another file of memory, with the very bytes that are kept."""
    (shard,) = read_shards(snapshot)
    descriptor = os.memfd_create("foreign", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(shard.data[:])
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


@pytest.mark.parametrize("kind", ["unsealed", "sealed", "plain file", "none"])
def test_descriptor_that_is_not_that_of_the_sealed_file_is_refused(
    snapshot: Snapshot, pinned: Path, kind: str
) -> None:
    kept = SealedWeights()
    read(kept, snapshot)
    gc.collect()
    (descriptor,) = descriptors()
    own = os.dup(descriptor)
    if kind == "plain file":
        other = os.open(pinned / "model.safetensors", os.O_RDONLY)
    else:
        other = foreign(snapshot, module._seals() if kind == "sealed" else 0)
    if kind == "none":
        os.close(descriptor)
    else:
        os.dup2(other, descriptor)

    try:
        with pytest.raises(VerificationError, match="not that of the sealed file"):
            read(kept, snapshot)
    finally:
        os.dup2(own, descriptor)
        os.close(own)
        os.close(other)


# ---- how much is kept, and how long


def test_kept_bytes_are_counted_until_they_are_dropped(snapshot: Snapshot, siglip_folder: Path) -> None:
    kept, siglip = SealedWeights(), open_snapshot(siglip_folder)
    (gemma_shard,) = read(kept, snapshot)
    (siglip_shard,) = read(kept, siglip)
    sizes = len(gemma_shard.data), len(siglip_shard.data)

    both = kept.nbytes
    dropped = kept.drop(snapshot)

    assert (both, dropped, kept.nbytes) == (sum(sizes), sizes[0], sizes[1])
    assert kept.drop(snapshot) == 0


def test_model_outlives_what_was_dropped(snapshot: Snapshot) -> None:
    kept = SealedWeights()
    gemma = load_gemma(snapshot, device="cpu", dtype="bfloat16", read=kept.read)
    kept.drop(snapshot)
    gc.collect()

    plain = load_gemma(snapshot, device="cpu", dtype="bfloat16")

    assert same(gemma.model, plain.model)


@pytest.mark.parametrize("how", ["dropped", "forgotten"])
def test_descriptors_are_closed_when_nothing_needs_them(snapshot: Snapshot, how: str) -> None:
    kept: SealedWeights | None = SealedWeights()
    assert kept is not None
    gemma: Any = load_gemma(snapshot, device="cpu", dtype="bfloat16", read=kept.read)
    open_before = len(descriptors())

    del gemma
    if how == "dropped":
        kept.drop(snapshot)
    else:
        kept = None
    gc.collect()

    assert open_before > 0
    assert descriptors() == []


def test_dropped_weights_are_read_and_hashed_again(snapshot: Snapshot, pinned: Path) -> None:
    kept = SealedWeights()
    read(kept, snapshot)
    kept.drop(snapshot)
    flip_last_bit(pinned / "model.safetensors")

    with pytest.raises(VerificationError, match=r"model\.safetensors"):
        read(kept, snapshot)


def test_weights_that_two_models_ask_for_at_once_are_hashed_once(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, begun, go, hashed = SealedWeights(), threading.Event(), threading.Event(), []
    real = module._hash

    def slowly(*arguments: Any) -> None:
        hashed.append(1)
        begun.set()
        assert go.wait(30)
        real(*arguments)

    monkeypatch.setattr(module, "_hash", slowly)
    shards: list[weights.Shard] = []
    threads = [threading.Thread(target=lambda: shards.extend(read(kept, snapshot))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert begun.wait(30)
    go.set()
    for thread in threads:
        thread.join(30)

    assert len(hashed) == 1
    assert shards[0].data[:] == shards[1].data[:]


def test_two_models_take_the_memory_of_one(tmp_path: Path) -> None:
    size = write_text_gemma(tmp_path / "model", layers=4)

    one, two, without = (int(each) for each in program(_MEMORY, str(tmp_path / "model")).split())

    # 1.03 and 1.06 as a rule; a second copy would make it 2.
    assert size * 0.9 < one < size * 1.3
    assert one < two < size * 1.4
    assert without > size * 1.9


_MEMORY = """
import gc, sys
import torch
from medport_local.engine.loading import load_gemma
from medport_local.engine.sealed import SealedWeights
from medport_local.engine.weights import read_shard
from medport_local.phantom import weights_dir
from medport_local.snapshot import open_snapshot

def pss():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])

def load(read):
    gemma = load_gemma(snapshot, device="cpu", dtype="bfloat16", read=read)
    with torch.inference_mode():
        gemma.model(input_ids=torch.tensor([[2, 105, 50]]))
    return gemma

load_gemma(open_snapshot(weights_dir("medgemma")), device="cpu")
snapshot, kept = open_snapshot(sys.argv[1]), SealedWeights()
found = [pss()]
models = [load(kept.read)]
found.append(pss())
models.append(load(kept.read))
found.append(pss())
models.clear()
kept.drop(snapshot)
gc.collect()
base = pss()
models = [load(read_shard), load(read_shard)]
print(found[1] - found[0], found[2] - found[0], pss() - base)
"""


def program(text: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text, *arguments],
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip


# ---- where it cannot be


@pytest.mark.parametrize("why", ["other system", "sandbox"])
def test_without_sealed_files_weights_are_read_as_ever_and_nothing_is_kept(
    snapshot: Snapshot, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: Any) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    if why == "other system":
        monkeypatch.setattr(module, "AVAILABLE", False)
    else:
        monkeypatch.setattr(os, "memfd_create", refused)
    kept = SealedWeights()

    (shard,) = read(kept, snapshot)
    (plain,) = read_shards(snapshot)

    assert shard.data[:] == plain.data[:]
    assert kept.nbytes == 0


def test_kernel_before_6_3_seals_as_well(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.memfd_create

    def older(name: str, flags: int) -> int:
        if flags & module._NOEXEC:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(name, flags)

    monkeypatch.setattr(os, "memfd_create", older)
    kept = SealedWeights()

    read(kept, snapshot)

    assert kept.nbytes > 0


def test_too_little_memory_is_said_with_its_remedy(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    kept = SealedWeights()

    with pytest.raises(ConfigError, match="no memory to keep weights") as fault:
        read(kept, snapshot)

    assert fault.value.field == "sealed"
    assert kept.nbytes == 0


def test_shard_without_numbers_is_read_and_not_kept(pinned: Path, tmp_path: Path) -> None:
    (pinned / "manifest.json").unlink()
    header = b"{}"
    (pinned / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    kept = SealedWeights()

    (shard,) = read(kept, open_snapshot(pinned))

    assert shard.tensors == ()
    assert kept.nbytes == 0
