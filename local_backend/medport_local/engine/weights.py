"""A snapshot's weights: the very bytes that were hashed become the tensors, in memory that nobody else can write.

Each shard is opened once and read once, into a buffer of its own; the hash is computed on the way. So loading
takes as long as hashing, and what happens to the files afterwards does not matter. A memory map of the file would
be faster, and would change under the running model with the file.
"""

from __future__ import annotations

import hashlib
import io
import mmap
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from medport_local import safetensors_header
from medport_local.safetensors_header import INDEX, LENGTH_BYTES, StoredTensor
from medport_local.snapshot import Snapshot
from medport_local.snapshot_file import FileEntry, fill, readers

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I8": torch.int8}


@dataclass(frozen=True, slots=True)
class Shard:
    """A verified file of weights in memory."""

    name: str
    tensors: tuple[StoredTensor, ...]
    """In the order of their bytes."""
    data: mmap.mmap
    """What the file holds after its header; private, so that what is written there is seen by nobody else. Lives
    as long as a tensor that views it."""

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
        """Give a tensor's memory back to the system; nobody may look at its view afterwards.

        The pages that it shares with its neighbours stay, and so does what ``sealed.SealedWeights`` keeps.
        """
        start = -(-stored.start // mmap.PAGESIZE) * mmap.PAGESIZE
        end = stored.end // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start:
            self.data.madvise(mmap.MADV_DONTNEED, start, end - start)


ReadShard = Callable[[Snapshot, str], Shard]
"""Gives the verified shard of a name; raises as ``read_shard``. Called from several threads."""


def read_shard(snapshot: Snapshot, name: str) -> Shard:
    """Read one shard into memory of its own, and verify it.

    Raises:
        VerificationError: it is not what the snapshot says it is, or cannot be what it claims.
    """
    size = snapshot.files[name].size_bytes
    digest = hashlib.sha256()
    with snapshot.open(name) as file:
        header = take_header(file, size, digest, shard=name)
        behind = size - LENGTH_BYTES - len(header)
        data = _private(behind)
        with memoryview(data) as buffer:
            read = size - behind + fill(file, buffer[:behind], digest)
        # One byte more than expected is as wrong as one less.
        read += len(file.read(1))
    return verified(snapshot, name, FileEntry(sha256=digest.hexdigest(), size_bytes=read), header, data)


def verified(snapshot: Snapshot, name: str, found: FileEntry, header: bytes, data: mmap.mmap) -> Shard:
    """The shard of a file that was read whole, if it holds what the snapshot says.

    Args:
        header: the JSON, without its length.
        data: at least what the file holds after it.

    Raises:
        VerificationError: it holds something else, or cannot be what it claims.
    """
    snapshot.expect(name, found)
    behind = found.size_bytes - LENGTH_BYTES - len(header)
    return Shard(name, safetensors_header.parse(header, behind, shard=name, int8=snapshot.int8), data)


def take_header(file: io.FileIO, size_bytes: int, digest: hashlib._Hash, *, shard: str) -> bytes:
    """Read the header's length and the header from a file's start, and hash both.

    Returns:
        The JSON, without its length; less of it where the file ends early.

    Raises:
        VerificationError: it claims to be longer than the file, of ``size_bytes``, or than 100 MiB.
    """
    length = _take(file, min(LENGTH_BYTES, size_bytes), digest)
    return _take(file, safetensors_header.header_bytes(length, size_bytes, shard=shard), digest)


@contextmanager
def reading(snapshot: Snapshot, read: ReadShard = read_shard) -> Iterator[Iterator[Shard]]:
    """Read a snapshot's shards side by side, beginning at once, while the block does something else or takes them.

    The shards come as they get ready. Whoever drops one before taking the next, and forgets its tensors, holds
    few of them at once.

    Args:
        read: what reads one; ``SealedWeights.read`` reads each only once for several models.

    Raises:
        VerificationError: while they are taken: a shard is not what the snapshot says it is, or cannot be what it
            claims; before any byte of it was used.
    """
    longest_first = sorted(snapshot.shards, key=lambda name: -snapshot.files[name].size_bytes)
    pool = ThreadPoolExecutor(readers(len(longest_first)), thread_name_prefix="medport-weights")
    try:
        yield _taken(snapshot, {pool.submit(read, snapshot, name) for name in longest_first})
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_shards(snapshot: Snapshot, read: ReadShard = read_shard) -> Iterator[Shard]:
    """``reading``, begun when the first shard is taken."""
    with reading(snapshot, read) as shards:
        yield from shards


def _taken(snapshot: Snapshot, waiting: set[Future[Shard]]) -> Iterator[Shard]:
    index = snapshot.read(INDEX) if INDEX in snapshot.files else None
    layouts: dict[str, tuple[StoredTensor, ...]] = {}
    for done in as_completed(waiting):
        waiting.discard(done)
        shard = done.result()
        layouts[shard.name] = shard.tensors
        yield shard
        del shard, done
    safetensors_header.check_together(layouts, index)


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
