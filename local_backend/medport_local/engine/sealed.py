"""Verified weights that a process keeps, so that the next model of the same snapshot needs no hashing.

Each shard's bytes lie in a file of memory without a name, which is sealed: from then on the kernel refuses to
write to it, to shorten or to lengthen it, for every process and for ever. Only then are they hashed, so what was
hashed is what stays. Models map the file privately: they share its pages, and what one would write to them is a
copy of its own.

A later load trusts the descriptor and no path: the file in the snapshot's directory is not opened again, and the
descriptor must still be that of the sealed file that was hashed. Which bytes are wanted is said by the snapshot's
own table of sha256.

Two prices: the first load copies the bytes once more than ``weights.read_shard``, and the pages are of 4 KiB where
the system has no huge ones for files of memory, as is the default
(https://docs.kernel.org/admin-guide/mm/transhuge.html, "Hugepages in tmpfs/shmem").

Linux only (``man 2 memfd_create``; ``man 2 fcntl``, "File Sealing"); elsewhere nothing is kept.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import sys
import threading
import weakref
from contextlib import suppress

from medport.errors import ConfigError, VerificationError
from medport_local.engine.weights import Shard, read_shard, take_header, verified
from medport_local.safetensors_header import LENGTH_BYTES
from medport_local.snapshot import Snapshot
from medport_local.snapshot_file import FileEntry

if sys.platform == "linux":
    import fcntl

AVAILABLE = sys.platform == "linux"
"""Whether the system has sealed files of memory."""
NAME = "medport-weights"
"""Under which /proc shows them."""

_SLICE_BYTES = 16 * 2**20
_BUFFER_BYTES = 2**20
_NOEXEC = 0x0008  # MFD_NOEXEC_SEAL, since Linux 6.3; Python has no name for it
_POPULATE_READ = 22  # MADV_POPULATE_READ, since Linux 5.14


class SealedWeights:
    """Keeps the shards that are read through it until they are dropped, or it is itself.

    Models that were loaded through it keep their memory all the same. On a GPU, or in another dtype than the
    stored one, a model has a copy of its own, and what is kept here comes on top.

    Safe to use from several threads: a shard that two models ask for at once is read and hashed for one of them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[FileEntry, _Sealed] = {}
        self._turns: dict[FileEntry, threading.Lock] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of memory that are kept, whether a model uses them as well or not."""
        with self._lock:
            return sum(each.size_bytes for each in self._kept.values())

    def read(self, snapshot: Snapshot, name: str) -> Shard:
        """A ``weights.ReadShard``: the shard as ``weights.read_shard`` gives it, out of what is kept if it is.

        Raises:
            VerificationError: the file is not what the snapshot says it is, or cannot be what it claims; or the
                descriptor is no longer that of the sealed bytes.
            ConfigError: the system has no memory for it.
        """
        wanted = snapshot.files[name]
        with self._lock:
            turn = self._turns.setdefault(wanted, threading.Lock())
        with turn:
            with self._lock:
                sealed = self._kept.get(wanted)
            if sealed is not None:
                return verified(snapshot, name, wanted, sealed.header, sealed.mapped())
            shard, sealed = _read(snapshot, name)
            if sealed is not None:
                with self._lock:
                    self._kept[wanted] = sealed
            return shard

    def drop(self, snapshot: Snapshot) -> int:
        """Keep a snapshot's weights no longer; shards that another snapshot shares with it are dropped as well.

        Returns:
            How many bytes were kept. They are free as soon as no model uses them.
        """
        with self._lock:
            dropped = [self._kept.pop(snapshot.files[name], None) for name in snapshot.shards]
        return sum(each.size_bytes for each in dropped if each is not None)


class _Sealed:
    """A file of memory without a name that is filled once, sealed, and mapped from then on.

    Raises:
        OSError: the system has none.
    """

    def __init__(self) -> None:
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        try:
            self._descriptor = os.memfd_create(NAME, flags | _NOEXEC)
        except OSError:
            self._descriptor = os.memfd_create(NAME, flags)
        # With the last reference, and not by a method: a thread may still be about to map it.
        weakref.finalize(self, os.close, self._descriptor)
        self.header = b""
        self.size_bytes = 0
        self._file = (0, 0)

    def take(self, file: io.FileIO, count: int) -> None:
        """Copy so many bytes of a file, or fewer if it ends before.

        Raises:
            ConfigError: there is no memory for them.
        """
        with memoryview(bytearray(_BUFFER_BYTES)) as buffer:
            while self.size_bytes < count:
                got = file.readinto(buffer[: count - self.size_bytes])
                if not got:
                    return
                written = 0
                while written < got:
                    try:
                        written += os.write(self._descriptor, buffer[written:got])
                    except OSError as fault:
                        raise ConfigError(
                            f"there is no memory to keep weights in ({type(fault).__name__})",
                            field="sealed",
                            remedy="load without keeping them, or drop others",
                        ) from fault
                self.size_bytes += got

    def seal(self, header: bytes) -> None:
        """From here on nobody can change what was taken.

        Args:
            header: the shard's JSON, which belongs to it.
        """
        fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _seals())
        self.header = header
        self._file = _file_of(self._descriptor)

    def mapped(self) -> mmap.mmap:
        """What was taken, in a private map of its own.

        Raises:
            VerificationError: the descriptor is that of another file, or of none.
        """
        try:
            same = _file_of(self._descriptor) == self._file
            sealed = fcntl.fcntl(self._descriptor, fcntl.F_GET_SEALS) & _seals() == _seals()
        except OSError:  # closed, or of a kind of file that has no seals
            same = sealed = False
        if not (same and sealed):
            raise VerificationError(
                "the descriptor of the weights that are kept is not that of the sealed file any more",
                field="sealed",
                remedy="drop them; something in this process closes descriptors that it did not open",
            )
        # Writable, as torch knows no read-only tensors; a page that is written to becomes a private copy first.
        return mmap.mmap(
            self._descriptor, self.size_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )


def _read(snapshot: Snapshot, name: str) -> tuple[Shard, _Sealed | None]:
    """Read, seal and verify a shard, in this order; ``None`` where it cannot be kept or holds no numbers."""
    try:
        sealed = _Sealed() if AVAILABLE else None
    except OSError:  # a sandbox that has no such files
        sealed = None
    if sealed is None:
        return read_shard(snapshot, name), None
    size = snapshot.files[name].size_bytes
    digest = hashlib.sha256()
    with snapshot.open(name) as file:
        header = take_header(file, size, digest, shard=name)
        behind = size - LENGTH_BYTES - len(header)
        sealed.take(file, behind)
        # One byte more than expected is as wrong as one less.
        read = size - behind + sealed.size_bytes + len(file.read(1))
    if sealed.size_bytes == 0:
        return read_shard(snapshot, name), None
    # Before the hash: until it is sealed, other processes of this user can open it through /proc and write to it.
    sealed.seal(header)
    data = sealed.mapped()
    _hash(data, digest)
    return verified(snapshot, name, FileEntry(sha256=digest.hexdigest(), size_bytes=read), header, data), sealed


def _hash(data: mmap.mmap, digest: hashlib._Hash) -> None:
    for start in range(0, len(data), _SLICE_BYTES):
        count = min(_SLICE_BYTES, len(data) - start)
        with suppress(OSError):  # an older kernel finds the pages one by one
            data.madvise(_POPULATE_READ, start, count)
        with memoryview(data) as whole, whole[start : start + count] as part:
            digest.update(part)


def _seals() -> int:
    return fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def _file_of(descriptor: int) -> tuple[int, int]:
    """Which file it is."""
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino
