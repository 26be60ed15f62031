"""Tiny snapshots, made by hand in a millisecond: whole as to layout, hashes and headers, and no use as models."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medport_local.snapshot import MANIFEST, FileEntry, Manifest, digest_of
from medport_local.snapshot_file import entry_of
from medport_local.store import Record, Store, Stored

CONFIG: Mapping[str, Any] = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "max_position_embeddings": 128,
}


def safetensors(tensors: Mapping[str, int], seed: int) -> bytes:
    """A file of BF16 vectors with so many random numbers each."""
    table, start = {}, 0
    for name, count in tensors.items():
        table[name] = {"dtype": "BF16", "shape": [count], "data_offsets": [start, start + 2 * count]}
        start += 2 * count
    header = json.dumps(table).encode()
    return len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(start)


def write_small(folder: Path, *, seed: int = 0) -> Path:
    """As few files as there can be: settings that are the same for every seed, and weights."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(safetensors({"layer": 2_000}, seed))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def write_snapshot(folder: Path, *, seed: int = 0, numbers: int = 2_000) -> Path:
    """Two shards, of which the second is the same for every seed, an index, and settings; no manifest."""
    folder.mkdir(parents=True)
    shards = {"model-00001-of-00002.safetensors": seed, "model-00002-of-00002.safetensors": -1}
    names = {shard: f"layer.{number}" for number, shard in enumerate(shards)}
    for shard, its_seed in shards.items():
        (folder / shard).write_bytes(safetensors({names[shard]: numbers}, its_seed))
    index = {"weight_map": {name: shard for shard, name in names.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps({"seed": seed}))
    return folder


def manifest_of(folder: Path, *, repo_id: str = "medport/tiny", revision: str | None = "a" * 40) -> Manifest:
    """The manifest of a directory as it stands."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    files: dict[str, FileEntry] = {
        (name := path.relative_to(folder).as_posix()): entry_of(folder, name) for path in paths
    }
    return Manifest(
        repo_id=repo_id, revision=revision, family="medgemma", files=files, snapshot_sha256=digest_of(files)
    )


def record(**changes: Any) -> Record:
    """Who brought it in, and from where."""
    told = {"source": "directory", "requested": "tiny", "added_at": datetime.now(UTC), "by": "tester"}
    return Record.model_validate(told | changes)


def read_from(path: Path, offset: int, *, chunk_bytes: int = 1024) -> Iterator[bytes]:
    """A file's bytes from an offset on, in small pieces."""
    with open(path, "rb") as file:
        file.seek(offset)
        while chunk := file.read(chunk_bytes):
            yield chunk


def add(
    store: Store,
    folder: Path,
    *,
    repo_id: str = "medport/tiny",
    revision: str | None = "a" * 40,
    identity: str | None = None,
    **changes: Any,
) -> Stored:
    """Bring a directory into a store."""
    manifest = manifest_of(folder, repo_id=repo_id, revision=revision)
    with store.intake(identity or f"directory {folder}") as intake:
        for name, entry in manifest.files.items():
            intake.receive(
                name,
                lambda offset, path=folder / name: read_from(path, offset),  # type: ignore[misc]
                size_bytes=entry.size_bytes,
                sha256=entry.sha256,
            )
        return intake.commit(manifest, record(**changes))
