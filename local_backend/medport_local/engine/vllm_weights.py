"""Watching a snapshot while another program reads it from its directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from medport.errors import VerificationError
from medport_local.snapshot import Snapshot, open_snapshot


@contextmanager
def unchanged(snapshot: Snapshot) -> Iterator[None]:
    """Check that the files were not written to while the block ran, and hold what was verified.

    They are hashed once more, after the block.

    Raises:
        VerificationError: they were, or hold something else. What was read must not be used.
    """
    before = _stamps(snapshot)
    yield
    # Change times cannot be set back: what is hashed between two equal ones is what was read between them.
    again = open_snapshot(snapshot.directory)
    if again.snapshot_sha256 != snapshot.snapshot_sha256 or _stamps(snapshot) != before:
        raise VerificationError(
            "the snapshot changed while it was being loaded",
            field="snapshot",
            remedy="stop whatever writes there, and fetch it again",
        )


def _stamps(snapshot: Snapshot) -> list[tuple[int, ...]]:
    found = [os.lstat(snapshot.directory / name) for name in sorted(snapshot.files)]
    return [(each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for each in found]
