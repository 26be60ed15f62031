"""A snapshot's weights: the very bytes that were hashed become the tensors, in memory that nobody else can write.

Each shard is opened once and read once, into a buffer of its own; the hash is computed on the way. So loading
takes as long as hashing, and what happens to the files afterwards does not matter. A memory map of the file would
be faster, and would change under the running model with the file.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from medport_local import safetensors_header
from medport_local.safetensors_header import INDEX, LENGTH_BYTES, StoredTensor
from medport_local.snapshot import Snapshot
from medport_local.snapshot_file import FileEntry, fill

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I8": torch.int8}


@dataclass(frozen=True, slots=True)
class Shard:
    """A verified file of weights in memory."""

    name: str
    tensors: tuple[StoredTensor, ...]
    """In the order of their bytes."""
    data: mmap.mmap
    """What the file holds after its header; anonymous and private. Lives as long as a tensor that views it."""

    def view(self, stored: StoredTensor) -> Tensor:
        """The tensor, over the shard's own memory wherever its numbers are aligned there."""
        dtype = _DTYPES[stored.dtype]
        count = (stored.end - stored.start) // dtype.itemsize
        if count == 0:
            return torch.empty(stored.shape, dtype=dtype)
        if stored.start % dtype.itemsize:
            copy = bytearray(self.data[stored.start : stored.end])
            return torch.frombuffer(copy, dtype=dtype).view(stored.shape)
        return torch.frombuffer(self.data, dtype=dtype, count=count, offset=stored.start).view(stored.shape)

    def forget(self, stored: StoredTensor) -> None:
        """Give a tensor's memory back to the system; afterwards its view, but no other, reads zeros.

        The pages that it shares with its neighbours stay.
        """
        start = -(-stored.start // mmap.PAGESIZE) * mmap.PAGESIZE
        end = stored.end // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start:
            self.data.madvise(mmap.MADV_DONTNEED, start, end - start)


def read_shards(snapshot: Snapshot) -> Iterator[Shard]:
    """The shards of a snapshot as they get ready, read and hashed side by side.

    Whoever drops a shard before taking the next one, and forgets its tensors, holds few of them at once.

    Raises:
        VerificationError: a shard is not what the snapshot says it is, or cannot be what it claims; before any
            byte of it was used.
    """
    index = snapshot.read(INDEX) if INDEX in snapshot.files else None
    layouts: dict[str, tuple[StoredTensor, ...]] = {}
    pool = ThreadPoolExecutor(
        max_workers=min(len(snapshot.shards), os.cpu_count() or 1), thread_name_prefix="medport-weights"
    )
    try:
        reading = {pool.submit(_read, snapshot, name) for name in snapshot.shards}
        for done in as_completed(reading):
            reading.discard(done)
            shard = done.result()
            layouts[shard.name] = shard.tensors
            yield shard
            del shard, done
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    safetensors_header.check_together(layouts, index)


def _read(snapshot: Snapshot, name: str) -> Shard:
    size = snapshot.files[name].size_bytes
    digest = hashlib.sha256()
    with snapshot.open(name) as file:
        length = _take(file, min(LENGTH_BYTES, size), digest)
        header = _take(file, safetensors_header.header_bytes(length, size, shard=name), digest)
        data = _private(size - LENGTH_BYTES - len(header))
        read = LENGTH_BYTES + len(header)
        with memoryview(data) as buffer:
            read += fill(file, buffer[: size - read], digest)
        # One byte more than expected is as wrong as one less.
        read += len(file.read(1))
    snapshot.expect(name, FileEntry(sha256=digest.hexdigest(), size_bytes=read))
    behind = size - LENGTH_BYTES - len(header)
    return Shard(name, safetensors_header.parse(header, behind, shard=name, int8=snapshot.int8), data)


def _take(file: io.FileIO, count: int, digest: hashlib._Hash) -> bytes:
    taken = bytearray(count)
    with memoryview(taken) as buffer:
        got = fill(file, buffer, digest)
    return bytes(taken[:got])


def _private(size_bytes: int) -> mmap.mmap:
    """Anonymous memory of this process alone, whole pages of which can be given back one by one."""
    memory = mmap.mmap(-1, max(size_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A fault for each 2 MiB instead of each 4 KiB: the faults took longer than the hash.
        with suppress(OSError):  # a kernel built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
