"""What does loading verified weights cost, against hashing them and against transformers' own loader?

A text-only Gemma of 1.5 GB of random bfloat16 weights on the CPU, in three files, which the system holds in
memory: no disk is measured. "hash alone" reads the files and hashes them, side by side, and is the least that a
verified load can take. "verified load" is what a server does: manifest, headers, configuration, weights.
"transformers" maps the files and verifies nothing; of their pages it touches few. "sealed" keeps the weights for
the next load; the products say what that memory costs or spares a model afterwards.

The peak is that of the process while it loads, above what it held before, by the bytes of the weights, each in a
process of its own.
"""

from __future__ import annotations

import mmap
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import harness
import torch
from checkpoint_text import checkpoint
from transformers import Gemma3ForCausalLM
from verify_rate import side_by_side

from medport_local.engine.loading import Gemma, load_gemma
from medport_local.engine.sealed import SealedWeights
from medport_local.engine.weights import ReadShard, read_shard, read_shards
from medport_local.phantom import weights_dir
from medport_local.snapshot import open_snapshot

BASELINE = "hash alone"
BOTH = "sealed: first and second load"


def main() -> None:
    args = harness.arguments(__doc__, rounds=5)
    folder = checkpoint()
    snapshot = open_snapshot(folder, defer_weights=True)
    size = sum(snapshot.files[name].size_bytes for name in snapshot.shards)
    what = f"load {size / 1e6:.0f} MB"
    ways = loads(folder)
    cases = {
        BASELINE: lambda: side_by_side(folder, snapshot.shards),
        "read and hash into private memory": lambda: [shard.name for shard in read_shards(snapshot)],
        **{how: way for how, way in ways.items() if how != BOTH},
    }
    table = harness.rows(what, alternate(cases, args.rounds, size), baseline=BASELINE)
    plain, sealed = load(folder, read_shard), load(folder, SealedWeights().read)
    passes = {"own memory": lambda: pass_over(plain), "sealed": lambda: pass_over(sealed)}
    samples = harness.alternate(passes, 4 * args.rounds, warm_up=2)
    table += harness.rows("a product with each weight", samples, baseline="own memory")
    for how in ways.keys() - {"sealed: second load"}:
        peaks = sorted(peak(folder, how) / size for _ in range(3))
        table.append(harness.Row(what, f"{how}: peak", len(peaks), statistics.median(peaks), peaks[-1], "x size"))
    harness.report(__doc__, table, args.json)


def alternate(
    cases: Mapping[str, Callable[[], object]], rounds: int, size: int
) -> dict[str, list[harness.Sample]]:
    """``harness.alternate`` of one round at a time, with memory at hand before each case.

    A virtual machine may give free memory back to its host after two seconds, and touching it again then takes
    as long as hashing ("free page reporting", https://docs.kernel.org/mm/free_page_reporting.html). Whoever ran
    after something slow would pay for it.
    """
    samples: dict[str, list[harness.Sample]] = {how: [] for how in cases}
    for number in range(rounds + 1):
        for how, case in cases.items():
            touch(size)
            (sample,) = harness.alternate({how: case}, 1, warm_up=0)[how]
            if number > 0:
                samples[how].append(sample)
    return samples


def touch(size: int) -> None:
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as fresh:
        # In the pieces that loading asks for: others would come out of other free memory.
        fresh.madvise(mmap.MADV_HUGEPAGE)
        for start in range(0, size, mmap.PAGESIZE):
            fresh[start] = 1


def loads(folder: Path) -> dict[str, Callable[[], object]]:
    kept = SealedWeights()

    def twice() -> list[Gemma]:
        fresh = SealedWeights()
        return [load(folder, fresh.read), load(folder, fresh.read)]

    return {
        "verified load": lambda: load(folder, read_shard),
        "sealed: first load": lambda: load(folder, SealedWeights().read),
        "sealed: second load": lambda: load(folder, kept.read),
        BOTH: twice,
        "transformers": lambda: Gemma3ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16),
    }


def load(folder: Path, read: ReadShard) -> Gemma:
    """As a server does it."""
    return load_gemma(open_snapshot(folder, defer_weights=True), device="cpu", dtype="bfloat16", read=read)


def pass_over(gemma: Gemma) -> None:
    """The products of a decode step, which reads every weight once."""
    for weight in gemma.model.parameters():
        if weight.ndim == 2:
            torch.mv(weight, torch.ones(weight.shape[1], dtype=weight.dtype))


def peak(folder: Path, how: str) -> int:
    """Bytes by which a process of its own grew at most; pages of a mapped file count as soon as they are read."""
    done = subprocess.run(
        [sys.executable, __file__, str(folder), how], capture_output=True, text=True, check=True, timeout=300
    )
    return int(done.stdout)


def grow(folder: Path, how: str) -> int:
    load_gemma(open_snapshot(weights_dir("medgemma")), device="cpu")
    way = loads(folder)[how]
    # Sets the peak back to what is held now (man 5 proc).
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    held = way()
    assert held is not None
    return memory("VmHWM") - before


def memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


if __name__ == "__main__":
    if sys.argv[1:2] and Path(sys.argv[1]).is_dir():
        print(grow(Path(sys.argv[1]), sys.argv[2]))
    else:
        main()
