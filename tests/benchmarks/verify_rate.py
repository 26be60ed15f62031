"""How fast is a snapshot verified, as a share of what this CPU's cores can hash?

A snapshot of 1.5 GB in three files, which the system holds in memory: no disk is measured. The limit is sha256
over as many bytes that lie in each core's cache, one thread a core; nothing that hashes a snapshot can be faster.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import harness
from checkpoint_text import checkpoint

from medport_local.snapshot import open_snapshot
from medport_local.snapshot_file import entry_of, readers
from medport_local.sources import pull, source_for
from medport_local.store import Store

_BLOCK = bytes(2**18)
LIMIT = "sha256 of bytes in the cache, a thread a core"


def main() -> None:
    args = harness.arguments(__doc__, rounds=7)
    folder = checkpoint()
    snapshot = open_snapshot(folder)
    size = sum(snapshot.files[name].size_bytes for name in snapshot.shards)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        store = Store(Path(made) / "store")
        source = source_for(str(folder))
        stored = pull(store, source, told=lambda line: None)
        cases = {
            LIMIT: lambda: _in_cache(size, os.cpu_count() or 1),
            "sha256 of bytes in the cache, one thread": lambda: _in_cache(size, 1),
            "the files, one after the other": lambda: [entry_of(folder, name) for name in snapshot.shards],
            "the files, side by side": lambda: side_by_side(folder, snapshot.shards),
            "open_snapshot": lambda: open_snapshot(folder),
            "Store.open": lambda: store.open(stored),
            "Store.verify": lambda: _nothing(store.verify(stored)),
        }
        samples = harness.alternate(cases, args.rounds, warm_up=1)
    table = harness.rows(f"verify {size / 1e6:.0f} MB", samples, baseline=LIMIT)
    harness.report(__doc__, table, args.json, notes=_rates(samples, size))


def side_by_side(folder: Path, names: Sequence[str]) -> None:
    """Hash files as verifying does, and no more."""
    with ThreadPoolExecutor(readers(len(names))) as pool:
        list(pool.map(lambda name: entry_of(folder, name), names))


def _in_cache(size: int, threads: int) -> None:
    def hash_share(_: int) -> None:
        digest = hashlib.sha256()
        for _ in range(size // threads // len(_BLOCK)):
            digest.update(_BLOCK)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(hash_share, range(threads)))


def _nothing(found: Sequence[object]) -> None:
    assert not found, found


def _rates(samples: Mapping[str, Sequence[harness.Sample]], size: int) -> list[str]:
    """Of the clock on the wall, and of this process's own, which other programs disturb less."""
    notes = []
    for how, mine in samples.items():
        wall, cpu = (
            statistics.median(size / of(each) / 1e9 for each in mine)
            for of in (lambda each: each.wall_s, lambda each: each.cpu_s)
        )
        share = statistics.median(
            limit.wall_s / each.wall_s for limit, each in zip(samples[LIMIT], mine, strict=True)
        )
        notes.append(f"{how:44} {wall:5.2f} GB/s, {share:4.0%} of the limit; {cpu:5.2f} GB per CPU second")
    return notes


if __name__ == "__main__":
    sys.exit(main())
