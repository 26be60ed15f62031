"""Weights into safetensors files of a bounded size, each written as soon as it is full."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from medport_local.safetensors_header import INDEX, SINGLE

SHARD_BYTES = 2_000_000_000
"""Of a file at most, unless it holds a single weight."""


class ShardWriter:
    """Takes weights one by one; ``close`` gives the files their names.

    Holds the weights of one file at a time.

    Args:
        folder: where the files go.
        metadata: stands in each file's header.
    """

    def __init__(self, folder: Path, metadata: dict[str, str]) -> None:
        self._folder = folder
        self._metadata = metadata
        self._waiting: dict[str, Tensor] = {}
        self._waiting_bytes = 0
        self._written: list[tuple[Path, list[str]]] = []
        self._total_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one weight, which nobody may change any more."""
        if self._waiting and self._waiting_bytes + tensor.nbytes > SHARD_BYTES:
            self._flush()
        self._waiting[name] = tensor.detach().cpu().contiguous()
        self._waiting_bytes += tensor.nbytes

    def close(self) -> None:
        """Write the rest, name the files and, if there are several, write their index."""
        self._flush()
        count = len(self._written)
        if count == 1:
            self._written[0][0].rename(self._folder / SINGLE)
            return
        places: dict[str, str] = {}
        for number, (path, names) in enumerate(self._written, start=1):
            final = f"model-{number:05}-of-{count:05}.safetensors"
            path.rename(self._folder / final)
            places |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": dict(sorted(places.items()))}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _flush(self) -> None:
        path = self._folder / f"{len(self._written)}.part"
        # Made here and only filled by the library, which would make it readable for its owner alone.
        path.touch()
        mode = path.stat().st_mode
        save_file(self._waiting, path, metadata=self._metadata)
        path.chmod(mode)
        self._written.append((path, list(self._waiting)))
        self._total_bytes += self._waiting_bytes
        self._waiting, self._waiting_bytes = {}, 0
