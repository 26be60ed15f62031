"""A source → plain files in a directory, for a machine whose disk ends with it: a container has no store."""

from __future__ import annotations

import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from medport.errors import ConfigError
from medport_local.snapshot import MANIFEST, FileEntry, Manifest, digest_of
from medport_local.snapshot_file import refuse
from medport_local.sources.judging import Judged, check_size, headed, is_judged, judge
from medport_local.sources.source import Changed, Offer, Source, Tell
from medport_local.sources.wanted import WEIGHTS
from medport_local.sources.whole import Whole

_AT_ONCE = 4


def download(source: Source, directory: Path, *, told: Tell) -> None:
    """Write a source's model, with a ``manifest.json`` where the source proves a commit or has one.

    Nothing is gone on with: a fault leaves files that nobody should use. Every file is compared with the digests
    that its source knows; with those of a manifest ``open_snapshot`` compares it, as it does in any directory.

    Args:
        directory: empty, and nobody else's.
        told: takes lines for people.

    Raises:
        VerificationError: a file is not what its source lists, or the settings are not of a model that is loaded.
        ConfigError: the disk is too small.
        MedportError: the source cannot be read; see there.
    """
    offer = source.offer()
    for line in offer.said:
        told(line)
    _check_space(offer, directory)
    texts = [name for name in offer.files if not name.endswith(WEIGHTS)]
    for name in texts:
        check_size(name, offer.files[name].size_bytes)
    entries = {name: _write(source, offer, name, directory, None) for name in texts}
    for name in texts:
        check_size(name, entries[name].size_bytes)  # a source may not have known it before
    judged = judge(offer, {name: (directory / name).read_bytes() for name in texts if is_judged(name)})
    listed = offer.manifest.files if offer.manifest else {}
    weights = [name for name in offer.files if name not in texts and (name in listed or name not in judged.spare)]
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="medport-model") as pool:
        fetched = pool.map(lambda name: _write(source, offer, name, directory, judged), weights)
        entries |= dict(zip(weights, fetched, strict=True))
    manifest = offer.manifest
    if manifest is None and offer.revision is not None:
        manifest = Manifest(
            repo_id=judged.model_id,
            revision=offer.revision,
            family=judged.family,
            files=entries,
            snapshot_sha256=digest_of(entries),
        )
    if manifest is not None:
        (directory / MANIFEST).write_text(manifest.model_dump_json(exclude_none=True), encoding="utf-8")


def _write(source: Source, offer: Offer, name: str, directory: Path, judged: Judged | None) -> FileEntry:
    offered = offer.files[name]
    size_bytes = offered.size_bytes
    pieces = source.read(name, 0)
    if judged is not None and size_bytes is not None:
        pieces = headed(pieces, name, size_bytes, int8=judged.int8)
    whole = None if size_bytes is None else Whole(offered, size_bytes)
    digest, size = hashlib.sha256(), 0
    # The names are plain, by the allow-list; the directory is ours and was empty.
    with open(directory / name, "xb") as file:
        try:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                if whole is not None:
                    whole.update(piece)
                size += len(piece)
        except Changed:
            refuse(name, "changed while it was read", "start again")
    if size_bytes not in (None, size) or offered.sha256 not in (None, digest.hexdigest()):
        refuse(name, "is not what its source lists", "start again; if it stays so, ask whoever keeps the source")
    if whole is not None and (differing := whole.differing()) is not None:
        refuse(name, f"does not have the {differing} that its source lists", "start again")
    return FileEntry(sha256=digest.hexdigest(), size_bytes=size)


def _check_space(offer: Offer, directory: Path) -> None:
    needed = sum(offered.size_bytes or 0 for offered in offer.files.values())
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise ConfigError(
            f"the model needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free",
            field="TMPDIR",
            remedy="let TMPDIR name a larger disk",
        )
