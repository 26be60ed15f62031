"""Taking damaged files out of the store, to ``quarantine/``, and mending what can be mended from good blobs.

Nothing is deleted: what was damaged can be looked at there, and is removed by hand. A snapshot that lost a file
keeps its manifest, so that gc goes on keeping its other blobs; a pull brings the file again.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medport.errors import ConfigError
from medport_local.store import disk, entries
from medport_local.store.layout import Layout
from medport_local.store.locks import Busy, locked
from medport_local.store.publishing import mend
from medport_local.store.verifying import Finding, is_damaged, structure


def repair(layout: Layout, findings: Sequence[Finding], sha256: str | None = None) -> list[Finding]:
    """Do what can be done about what is wrong, and say so in each finding.

    While it was looked at, the store may have changed: gc, pulls, another repair. So nothing is done before it was
    seen again under the store's lock, and what is right by then is no finding any more.

    Args:
        findings: of ``verify``; what it hashed and found damaged is hashed once more.
        sha256: the snapshot that was looked at, or everything.
    """
    if not os.access(layout.snapshots, os.W_OK):
        raise ConfigError("may not be written by this user", field="store", remedy="run as its owner")
    with locked(layout.mutex):
        damaged = [
            each for each in findings if each.kind == "damaged" and is_damaged(layout, layout.root / each.path)
        ]
        done = [_repair(layout, finding) for finding in [*structure(layout, sha256), *damaged]]
        for name in entries.snapshot_names(layout):
            _mend(layout, name)
    return [_mended(layout, finding) for finding in done]


def _repair(layout: Layout, finding: Finding) -> Finding:
    path = layout.root / finding.path
    if finding.kind in ("mode", "damaged", "stranger") and not os.path.lexists(path):
        return finding  # gone meanwhile, or with what it lay in
    match finding.kind:
        case "mode":
            os.chmod(path, disk.SEALED_DIRECTORY if path.is_dir() else disk.FILE_MODE)
        case "damaged" if not path.is_relative_to(layout.snapshots):
            _take_out_blob(layout, path)
        case "stranger" if not path.is_relative_to(layout.snapshots) or path.parent == layout.snapshots:
            _take_out(layout, path)
        case "damaged" | "stranger":
            with disk.unsealed(_snapshot_of(layout, path)):
                _take_out(layout, path)
        case "snapshot":
            directory = _snapshot_of(layout, path)
            try:
                with locked(layout.lease(directory.name), wait_s=0):
                    _take_out(layout, directory)
            except Busy:
                return replace(finding, remedy="it is in use: stop the server, and repair again")
        case "lost" | "note":
            return finding
    remedy = finding.remedy.partition("then ")[2] or "nothing is left to do"
    return replace(finding, repaired=True, remedy=remedy)


def _take_out_blob(layout: Layout, blob: Path) -> None:
    """A damaged blob, and every link to it: where one is, all are."""
    damaged = os.lstat(blob)
    for sha256 in entries.snapshot_names(layout):
        directory = layout.snapshot(sha256)
        links = [
            Path(folder) / name
            for folder, _, files in os.walk(directory)
            for name in files
            if os.path.samestat(os.lstat(Path(folder) / name), damaged)
        ]
        if links:
            with disk.unsealed(directory):
                for link in links:
                    os.unlink(link)
                    disk.sync_directory(link.parent)
    _take_out(layout, blob)


def _take_out(layout: Layout, path: Path) -> None:
    number = 0
    while os.path.lexists(target := layout.quarantine / f"{path.name[:200]}.{number}"):
        number += 1
    if stat.S_ISDIR(os.lstat(path).st_mode):
        os.chmod(path, disk.PRIVATE_DIRECTORY)  # a directory that may not be written cannot be moved
    shutil.move(path, target)  # a rename, unless something is mounted in between
    disk.sync_directory(target.parent)
    disk.sync_directory(path.parent)


def _snapshot_of(layout: Layout, path: Path) -> Path:
    return layout.snapshots / path.relative_to(layout.snapshots).parts[0]


def _mend(layout: Layout, sha256: str) -> None:
    directory = layout.snapshot(sha256)
    manifest = entries.read_manifest(directory)
    if manifest is None:
        return
    lost = {
        name: entry
        for name, entry in manifest.files.items()
        if not os.path.lexists(directory / name) and os.path.lexists(layout.blob(entry.sha256))
    }
    if lost:
        mend(layout, directory, lost)


def _mended(layout: Layout, finding: Finding) -> Finding:
    path = layout.root / finding.path
    if finding.kind in ("lost", "damaged") and path.is_relative_to(layout.snapshots) and os.path.lexists(path):
        return replace(finding, repaired=True, snapshots=(), remedy="nothing is left to do")
    return finding
