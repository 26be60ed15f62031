"""A text-only Gemma of 1.5 GB of random bfloat16 weights in three files, made once into a cache directory."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.checkpoints import write_text_gemma
from support.snapshots import manifest_of

from medport_local.engine import shard_writer
from medport_local.snapshot import MANIFEST

_LAYERS = 48
_SHARDS = 3


def checkpoint() -> Path:
    """The directory of a pinned snapshot, made if it is not there (1.5 GB; half a minute)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "medport-benchmarks" / "gemma-text-3-shards"
    if not folder.is_dir():
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        _write(part)
        part.rename(folder)
    return folder


def _write(folder: Path) -> None:
    size = write_text_gemma(folder, layers=_LAYERS)
    whole = folder / "model.safetensors"
    weights = load_file(whole)
    whole.unlink()
    # Of equal size to a hair: a file is begun with the weight that would make it larger than this.
    shard_writer.SHARD_BYTES = size // _SHARDS + max(each.nbytes for each in weights.values())
    writer = shard_writer.ShardWriter(folder, {"format": "pt"})
    for name, tensor in weights.items():
        writer.add(name, tensor)
    writer.close()
    manifest = manifest_of(folder, repo_id="medport/random", revision=None)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1))
