"""Real snapshots brought into a store under the names that their own manifests give them."""

from __future__ import annotations

from pathlib import Path

from medport_local.snapshot import MANIFEST, Manifest
from medport_local.store import Store, Stored
from support.snapshots import read_from, record


def bring(store: Store, folder: Path) -> Stored:
    """A directory with a manifest into a store."""
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    with store.intake(f"directory {folder}") as intake:
        for name, entry in manifest.files.items():
            intake.receive(
                name,
                lambda offset, path=folder / name: read_from(path, offset, chunk_bytes=2**20),  # type: ignore[misc]
                size_bytes=entry.size_bytes,
                sha256=entry.sha256,
            )
        return intake.commit(manifest, record(requested=str(folder)))
