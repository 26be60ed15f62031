"""The manifest of a phantom snapshot: what it is, how it was made, and the hash of every file."""

import json
import os
import shutil
from collections.abc import Mapping
from hashlib import sha1, sha256
from pathlib import Path
from typing import TypedDict

from medport_local.phantom import Family
from medport_local.phantom.words import Language

MANIFEST = "manifest.json"
NOTICE = "Phantom model, trained on drawings. Not for medical use."

Scores = Mapping[str, object]


class FileEntry(TypedDict):
    """One file of a snapshot."""

    sha256: str
    size_bytes: int


class Manifest(TypedDict):
    """The content of ``manifest.json``."""

    repo_id: str
    revision: str
    """40 hexadecimal digits that follow from the files alone."""
    family: Family
    notice: str
    files: dict[str, FileEntry]
    snapshot_sha256: str
    made: dict[str, object]
    scores: dict[str, Scores]


def write_manifest(
    folder: Path, family: Family, *, made: Mapping[str, object], scores: Mapping[Language, Scores]
) -> Manifest:
    """Hash every file of the folder and write its manifest."""
    files = file_table(folder)
    manifest = Manifest(
        repo_id=f"medport/{family}-phantom",
        revision=revision(files),
        family=family,
        notice=NOTICE,
        files=files,
        snapshot_sha256=snapshot_digest(files),
        made=dict(made),
        scores={str(language): each for language, each in scores.items()},
    )
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a snapshot, as it stands."""
    manifest: Manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def file_table(folder: Path) -> dict[str, FileEntry]:
    """Every file but the manifest, by its path inside the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        path.relative_to(folder).as_posix(): FileEntry(
            sha256=sha256(path.read_bytes()).hexdigest(), size_bytes=path.stat().st_size
        )
        for path in paths
    }


def revision(files: Mapping[str, FileEntry]) -> str:
    """An id in the form of a git commit, so that it can stand wherever a hub revision does."""
    lines = sorted(f"{entry['sha256']} {path}\n" for path, entry in files.items())
    return sha1("".join(lines).encode(), usedforsecurity=False).hexdigest()


def snapshot_digest(files: Mapping[str, FileEntry]) -> str:
    """The sha256 of the canonical JSON of the file table."""
    return sha256(json.dumps(files, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def replace_folder(new: Path, target: Path) -> None:
    """Put a finished folder in the place of another; a reader never meets half of one."""
    old = target.with_name(f"{target.name}.old")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)
