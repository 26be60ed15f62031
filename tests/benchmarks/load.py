"""What does loading verified weights cost, against hashing them and against transformers' own loader?

A text-only Gemma of random bfloat16 weights on the CPU, in one file, which the system holds in memory: no disk is
measured. "hash alone" reads the file in slices and hashes them, and is the least that a verified load can take.
"transformers" maps the file and verifies nothing; of its pages it touches few. The peak is that of the process
while it loads, above what it held before, by the bytes of the weights, each in a process of its own.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import harness
import torch
from transformers import Gemma3ForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.checkpoints import write_text_gemma

from medport_local.engine.loading import load_gemma
from medport_local.engine.weights import read_shards
from medport_local.phantom import weights_dir
from medport_local.snapshot import Snapshot, open_snapshot
from medport_local.snapshot_file import entry_of


def main() -> None:
    args = harness.arguments(__doc__, rounds=3)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "model"
        size = write_text_gemma(folder, layers=18)
        snapshot = open_snapshot(folder)
        cases = ways(folder, snapshot)
        samples = harness.alternate(cases, args.rounds, warm_up=1)
        what = f"load {size / 1e6:.0f} MB"
        table = harness.rows(what, samples, baseline="hash alone")
        for how in ("verified load", "transformers"):
            peaks = sorted(peak(folder, how) / size for _ in range(args.rounds))
            table.append(
                harness.Row(what, f"{how}: peak", len(peaks), statistics.median(peaks), peaks[-1], "x size")
            )
    harness.report(__doc__, table, args.json)


def ways(folder: Path, snapshot: Snapshot) -> dict[str, Callable[[], object]]:
    return {
        "hash alone": lambda: entry_of(folder, "model.safetensors"),
        "read and hash into private memory": lambda: [shard.name for shard in read_shards(snapshot)],
        "verified load": lambda: load_gemma(snapshot, device="cpu", dtype="bfloat16"),
        "transformers": lambda: Gemma3ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16),
    }


def peak(folder: Path, how: str) -> int:
    """Bytes by which a process of its own grew at most; pages of a mapped file count as soon as they are read."""
    done = subprocess.run(
        [sys.executable, __file__, str(folder), how], capture_output=True, text=True, check=True, timeout=300
    )
    return int(done.stdout)


def grow(folder: Path, how: str) -> int:
    load_gemma(open_snapshot(weights_dir("medgemma")), device="cpu")
    load = ways(folder, open_snapshot(folder))[how]
    # Sets the peak back to what is held now (man 5 proc).
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    held = load()
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
