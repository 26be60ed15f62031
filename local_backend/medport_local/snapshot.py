"""Snapshots: directories in Hugging Face layout, checked byte by byte before anything in them is loaded.

With a ``manifest.json`` every file must be listed and have the listed hash. Without one (the real model, as it is
downloaded) everything is hashed and the result is what provenance reports. Either way nothing that can run code
comes in: no pickles, no Python, no ``auto_map``.

A snapshot remembers what each file must hold. Who reads one later reads it through the snapshot, which hashes
those very bytes again; so it does not matter what is written to the directory meanwhile.

This module reads files only; it needs neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medport.errors import ConfigError
from medport_local import safetensors_header
from medport_local.model_identity import (
    INT8_SUFFIX,
    KNOWN_MODELS,
    Family,
    KnownModel,
    check_identity,
    holds_int8,
    identify,
    kind_of,
    max_context,
)
from medport_local.safetensors_header import INDEX, LENGTH_BYTES, MAX_INDEX_BYTES
from medport_local.snapshot_file import NO_LINKS, FileEntry, entry_of, open_file, read_whole, refuse
from medport_local.snapshot_names import check_names, check_twins

__all__ = [
    "INT8_SUFFIX",
    "KNOWN_MODELS",
    "MANIFEST",
    "Family",
    "FileEntry",
    "KnownModel",
    "Manifest",
    "Parent",
    "Snapshot",
    "digest_of",
    "open_snapshot",
    "read_config",
]

MANIFEST = "manifest.json"
_REFUSED = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".h5", ".msgpack"})
# What a download leaves beside the model; nothing reads them.
_BYSTANDERS = re.compile(r"(?i)(readme\.md|license[^/]*|notice[^/]*|\.gitattributes|\.gitignore|\.cache/.*)\Z")
_MAX_CONFIG_BYTES = 4 * 2**20
# More than there are cores on small machines: three shards on two cores take one and a half turns when three
# threads share the cores, and two turns when one thread takes two of them.
_THREADS = 8


class Parent(BaseModel):
    """The snapshot that another one was derived from."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model_id: str
    revision: str | None
    snapshot_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    def __str__(self) -> str:
        """One line for provenance."""
        return f"{self.model_id}@{self.revision or 'unpinned'} sha256:{self.snapshot_sha256}"


class Manifest(BaseModel):
    """``manifest.json``: what the snapshot is, and every file in it. Other keys, such as scores, are not read."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    repo_id: str
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    """40 hex digits of a commit; ``None`` for files that come from a directory or a bucket, which have none."""
    family: Family
    files: dict[str, FileEntry]
    snapshot_sha256: str
    notice: str | None = None
    parent: Parent | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A verified model directory."""

    directory: Path
    family: Family
    model_id: str
    """Such as ``google/medgemma-4b-it``; says "unidentified" where the files cannot tell."""
    revision: str | None
    """40 hex digits of a commit; ``None`` where no manifest pins it."""
    snapshot_sha256: str
    """sha256 of the canonical JSON of the table of files."""
    notice: str | None = None
    """A warning that belongs to the model, such as that it is a phantom."""
    parent: str | None = None
    """What it was derived from, for one of int8 weights: model, revision and sha256 in one line."""
    int8: bool = False
    """Whether the language model's weights are int8, each row with its scale (``engine.quantise``)."""
    takes_images: bool = True
    max_context: int = 8192
    """Tokens of prompt and answer together; of a text for MedSigLIP."""
    files: Mapping[str, FileEntry] = field(default_factory=dict, repr=False)
    """What each file but the manifest holds, by its path inside the directory."""
    shards: tuple[str, ...] = ()
    """The files that hold the weights."""
    manifest: bytes = field(default=b"", repr=False)
    """``manifest.json`` as it was read when the snapshot was opened; empty where there is none."""

    def open(self, name: str) -> io.FileIO:
        """Open a file for whoever hashes what he reads; ``files`` says what must come out.

        Raises:
            VerificationError: it is gone, or is no regular file.
        """
        return open_file(self.directory, name)

    def read(self, name: str) -> bytes:
        """The verified bytes of a small file.

        Raises:
            VerificationError: they are others than when the snapshot was opened.
        """
        data, entry = read_whole(self.directory, name)
        self.expect(name, entry)
        return data

    def verify(self) -> None:
        """Hash every file here and now. For who opened it with ``defer_weights`` and does not load it.

        Raises:
            VerificationError: a file holds other bytes than it must, or is gone.
        """
        for name, entry in _hash_all(self.directory, list(self.files)).items():
            self.expect(name, entry)

    def expect(self, name: str, found: FileEntry) -> None:
        """Compare what was read from a file with what it must hold.

        Raises:
            VerificationError: they differ; nothing of what was read may be used.
        """
        if found != self.files[name]:
            if self.revision is None:
                refuse(name, "changed after the snapshot was opened", "stop whatever writes there")
            refuse(name, "does not have the hash that the manifest lists")


def open_snapshot(
    directory: str | os.PathLike[str], *, defer_weights: bool = False, manifest_sha256: Collection[str] = ()
) -> Snapshot:
    """Verify a model directory and say what it is.

    Args:
        defer_weights: do not hash the weights here if a manifest says what they must be. For who loads them next:
            loading hashes them in any case, as it reads them. Their headers are checked here all the same.
        manifest_sha256: one of these the bytes of ``manifest.json`` must have, where they are known. The table of
            files proves itself by ``snapshot_sha256``; the revision, the notice and the parent are proved by this.

    Raises:
        ConfigError: there is no such directory.
        VerificationError: a file is missing, changed, not listed, of a kind that can run code, or the
            configuration is not of a model that this server loads. Names the file.
    """
    root = Path(directory)
    if not root.is_dir():
        raise ConfigError(
            f"there is no model directory {root}",
            field="snapshot",
            remedy="give a directory that holds config.json and *.safetensors; nothing is downloaded",
        )
    manifest, data = _read_manifest(root, manifest_sha256)
    names = list(_files(root, strict=manifest is not None))
    check_twins(names)
    if manifest is not None:
        check_names(manifest.files)
    texts = _read_texts(root, names)
    index = texts[INDEX][0] if INDEX in texts else None
    shards = safetensors_header.shards_of(names, index)
    table = {name: entry for name, (_, entry) in texts.items()}
    if manifest is not None and defer_weights:
        table |= {name: manifest.files[name] for name in shards if name in manifest.files}
    table |= _hash_all(root, [name for name in names if name not in table])
    if manifest is not None:
        _compare(manifest, table)
    config = read_config({name: data for name, (data, _) in texts.items()})
    kind = kind_of(config)
    int8 = holds_int8(config, kind)
    _check_headers(root, shards, table, index, int8=int8)
    if manifest is not None:
        _check_name(manifest, kind.family, config, int8=int8)
    return Snapshot(
        directory=root,
        family=kind.family,
        model_id=manifest.repo_id if manifest else identify(config, kind, root) + (INT8_SUFFIX if int8 else ""),
        revision=manifest.revision if manifest else None,
        snapshot_sha256=digest_of(table),
        notice=manifest.notice if manifest else None,
        parent=str(manifest.parent) if manifest and manifest.parent else None,
        int8=int8,
        takes_images=kind.takes_images,
        max_context=max_context(config, kind),
        files=table,
        shards=shards,
        manifest=data,
    )


def digest_of(table: Mapping[str, FileEntry]) -> str:
    """The sha256 over a table of files: canonical JSON, keys sorted, no blanks."""
    plain = {name: entry.model_dump() for name, entry in table.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read_manifest(root: Path, known: Collection[str]) -> tuple[Manifest | None, bytes]:
    if not known and not os.path.lexists(root / MANIFEST):
        return None, b""
    data, entry = read_whole(root, MANIFEST)
    if known and entry.sha256 not in known:
        refuse(MANIFEST, "is not the one that was stored")
    try:
        return Manifest.model_validate_json(data), data
    except ValidationError as fault:
        place = ".".join(str(step) for step in fault.errors(include_url=False, include_input=False)[0]["loc"])
        refuse(MANIFEST, f"cannot be read as a manifest (at {place or 'its start'})")


def _files(root: Path, *, strict: bool) -> Iterator[str]:
    """Every file but the manifest by its path inside the directory; refuses what must not be there."""
    for folder, folders, files in os.walk(root):
        inside = Path(folder).relative_to(root)
        for name in sorted(folders):
            path = (inside / name).as_posix()
            if (Path(folder) / name).is_symlink():
                refuse(path, "is a link", NO_LINKS)
        for name in sorted(files):
            path = (inside / name).as_posix()
            try:
                mode = os.lstat(Path(folder) / name).st_mode
            except FileNotFoundError:
                refuse(path, "is missing")  # taken out just now
            if stat.S_ISLNK(mode):
                refuse(path, "is a link", NO_LINKS)
            if not stat.S_ISREG(mode):
                refuse(path, "is not a regular file", "remove it")
            if path == MANIFEST or (not strict and _BYSTANDERS.match(path)):
                continue
            if Path(name).suffix.lower() in _REFUSED:
                refuse(path, "can hold code, and is never loaded", "remove it; weights come as *.safetensors")
            yield path


def _check_name(manifest: Manifest, family: Family, config: Mapping[str, Any], *, int8: bool) -> None:
    """What the manifest calls the model must be what its configuration describes."""
    if manifest.family != family:
        refuse(MANIFEST, f"says {manifest.family}, but config.json describes a {family}")
    check_identity(manifest.repo_id, config, int8=int8)
    if manifest.parent is not None:
        check_identity(manifest.parent.model_id, config)


def _read_texts(root: Path, names: list[str]) -> dict[str, tuple[bytes, FileEntry]]:
    """The files that are looked into here; what is parsed is what was hashed."""
    limits = {name: _MAX_CONFIG_BYTES for name in names if name.endswith("config.json")}
    limits |= {name: MAX_INDEX_BYTES for name in names if name == INDEX}
    return {name: read_whole(root, name, limit=limit) for name, limit in limits.items()}


def _hash_all(root: Path, names: list[str]) -> dict[str, FileEntry]:
    # hashlib lets go of the interpreter's lock, so shards hash side by side.
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: entry_of(root, name), names), strict=True))


def _compare(manifest: Manifest, table: Mapping[str, FileEntry]) -> None:
    for name, entry in table.items():
        listed = manifest.files.get(name)
        if listed is None:
            refuse(name, "is not in the manifest", "remove it, or fetch the snapshot again")
        if entry.sha256 != listed.sha256:
            refuse(name, "does not have the hash that the manifest lists")
        if entry.size_bytes != listed.size_bytes:
            refuse(name, "does not have the size that the manifest lists")
    for name in manifest.files:
        if name not in table:
            refuse(name, "is in the manifest but not in the directory")
    if digest_of(table) != manifest.snapshot_sha256:
        refuse(MANIFEST, "its snapshot_sha256 is not that of its own table of files")


def _check_headers(
    root: Path, shards: tuple[str, ...], table: Mapping[str, FileEntry], index: bytes | None, *, int8: bool
) -> None:
    """Refuse early what loading would refuse; it checks again, on the bytes that it has hashed."""
    layouts = {}
    for shard in shards:
        size = table[shard].size_bytes
        with io.BufferedReader(open_file(root, shard)) as file:
            if os.fstat(file.fileno()).st_size != size:
                refuse(shard, "does not have the size that it should have")
            length = safetensors_header.header_bytes(file.read(LENGTH_BYTES), size, shard=shard)
            header = file.read(length)
        layouts[shard] = safetensors_header.parse(header, size - LENGTH_BYTES - length, shard=shard, int8=int8)
    safetensors_header.check_together(layouts, index)


def read_config(texts: Mapping[str, bytes]) -> dict[str, Any]:
    """``config.json`` out of a snapshot's settings, by their names; none of them may make code run.

    Raises:
        VerificationError: it is missing, one is not a JSON object, or holds a key that can make code run.
    """
    if "config.json" not in texts:
        refuse("config.json", "is missing")
    parsed = {name: _parse_json(name, data) for name, data in texts.items() if name != INDEX}
    for name, value in parsed.items():
        _refuse_code(name, value)
    return parsed["config.json"]


def _parse_json(name: str, data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        refuse(name, "is not a JSON object")
    return found


def _refuse_code(name: str, value: object) -> None:
    """Refuse the keys by which a configuration has made transformers fetch or run code.

    ``_attn_implementation_internal`` did so although remote code was off, in transformers before 5.3.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "auto_map" or key.startswith("_attn"):
                refuse(
                    name,
                    f"holds the key {key}, which can make code run",
                    "remove the key, or use another snapshot",
                )
            _refuse_code(name, inner)
    elif isinstance(value, list):
        for inner in value:
            _refuse_code(name, inner)
