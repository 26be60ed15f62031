"""Another revision of the phantom: the same model but for the lowest bit of one weight, under another commit."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

WEIGHTS, MANIFEST = "model.safetensors", "manifest.json"


def make(source: Path, target: Path) -> str:
    """Write the other revision; its commit.

    Args:
        source: a snapshot with a manifest, which stays as it is.
        target: a directory that is not there yet.
    """
    shutil.copytree(source, target)
    weights = bytearray((target / WEIGHTS).read_bytes())
    # Its format: the length of a header in eight bytes, the header, and then the first tensor's numbers, whose
    # lowest bits come first.
    weights[8 + int.from_bytes(weights[:8], "little")] ^= 1
    (target / WEIGHTS).write_bytes(weights)

    before = json.loads((source / MANIFEST).read_text("utf-8"))
    files = dict(before["files"])
    files[WEIGHTS] = {"sha256": hashlib.sha256(weights).hexdigest(), "size_bytes": len(weights)}
    table = json.dumps(files, sort_keys=True, separators=(",", ":")).encode()
    commit = hashlib.sha1(table, usedforsecurity=False).hexdigest()
    # What was measured of the first one, such as its scores, was not measured of this one.
    manifest = {key: before[key] for key in ("repo_id", "family", "notice")}
    manifest |= {"revision": commit, "files": files, "snapshot_sha256": hashlib.sha256(table).hexdigest()}
    (target / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    return commit
