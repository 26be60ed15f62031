"""Snapshots: directories in Hugging Face layout, checked byte by byte before anything in them is loaded.

With a ``manifest.json`` every file must be listed and have the listed hash. Without one (the real model, as it is
downloaded) everything is hashed and the result is what provenance reports. Either way nothing that can run code
comes in: no pickles, no Python, no ``auto_map``.

This module reads files only; it needs neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medport.errors import ConfigError, VerificationError

Family = Literal["medgemma", "medsiglip"]

MANIFEST = "manifest.json"
_REFUSED = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".h5", ".msgpack"})
# What a download leaves beside the model; nothing reads them.
_BYSTANDERS = re.compile(r"(?i)(readme\.md|license[^/]*|notice[^/]*|\.gitattributes|\.gitignore|\.cache/.*)\Z")
_NO_LINKS = "copy the files themselves, as hf download --local-dir does"
_CHUNK_BYTES = 4 * 2**20
_MAX_CONFIG_BYTES = 4 * 2**20
_MAX_HEADER_BYTES = 100 * 2**20


class FileEntry(BaseModel):
    """One file of a manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Field(ge=0)]


class Manifest(BaseModel):
    """``manifest.json``: what the snapshot is, and every file in it. Other keys, such as scores, are not read."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    repo_id: str
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    family: Family
    files: dict[str, FileEntry]
    snapshot_sha256: str
    notice: str | None = None


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
    takes_images: bool = True
    max_context: int = 8192
    """Tokens of prompt and answer together; of a text for MedSigLIP."""
    stamps: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    """Inode, size and times of each file when it was hashed."""

    def still_same(self) -> None:
        """Check, after loading, that no file was exchanged since it was hashed.

        Raises:
            VerificationError: one was; the loaded model must not be used.
        """
        for name, stamp in self.stamps.items():
            if _stamp(os.lstat(self.directory / name)) != stamp:
                _refuse(name, "changed while the model was being loaded", "stop whatever writes there")


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A published model and the shape by which its configuration gives it away."""

    model_id: str
    model_type: str
    hidden: int
    layers: int
    image_px: int | None = None


KNOWN_MODELS = (
    KnownModel("google/medgemma-4b-it", "gemma3", 2560, 34),
    KnownModel("google/medgemma-1.5-4b-it", "gemma3", 2560, 34),
    KnownModel("google/medgemma-27b-it", "gemma3", 5376, 62),
    KnownModel("google/medgemma-27b-text-it", "gemma3_text", 5376, 62),
    KnownModel("google/medsiglip-448", "siglip", 1152, 27, 448),
)


@dataclass(frozen=True, slots=True)
class _Kind:
    family: Family
    takes_images: bool
    architecture: str


_KINDS: Mapping[str, _Kind] = {
    "gemma3": _Kind("medgemma", True, "Gemma3ForConditionalGeneration"),
    "gemma3_text": _Kind("medgemma", False, "Gemma3ForCausalLM"),
    "siglip": _Kind("medsiglip", True, "SiglipModel"),
}


def open_snapshot(directory: str | os.PathLike[str]) -> Snapshot:
    """Verify a model directory and say what it is.

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
    manifest = _read_manifest(root)
    names = list(_files(root, strict=manifest is not None))
    hashed = _hash_all(root, names)
    table = {name: entry for name, (entry, _) in hashed.items()}
    if manifest is not None:
        _compare(manifest, table)
    _check_weights(root, names)
    config = _read_config(root, names)
    kind = _kind_of(config)
    if manifest is not None and manifest.family != kind.family:
        _refuse(MANIFEST, f"says {manifest.family}, but config.json describes a {kind.family}")
    return Snapshot(
        directory=root,
        family=kind.family,
        model_id=manifest.repo_id if manifest else _identify(config, kind, root),
        revision=manifest.revision if manifest else None,
        snapshot_sha256=digest_of(table),
        notice=manifest.notice if manifest else None,
        takes_images=kind.takes_images,
        max_context=_max_context(config, kind),
        stamps={name: stamp for name, (_, stamp) in hashed.items()},
    )


def digest_of(table: Mapping[str, FileEntry]) -> str:
    """The sha256 over a table of files: canonical JSON, keys sorted, no blanks."""
    plain = {name: entry.model_dump() for name, entry in table.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _refuse(name: str, fault: str, remedy: str = "fetch the snapshot again") -> NoReturn:
    raise VerificationError(f"{name}: {fault}", field=name, remedy=remedy)


def _read_manifest(root: Path) -> Manifest | None:
    path = root / MANIFEST
    if not path.is_symlink() and not path.exists():
        return None
    if path.is_symlink() or not path.is_file():
        _refuse(MANIFEST, "is a link or not a regular file")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as fault:
        place = ".".join(str(step) for step in fault.errors(include_url=False, include_input=False)[0]["loc"])
        _refuse(MANIFEST, f"cannot be read as a manifest (at {place or 'its start'})")


def _files(root: Path, *, strict: bool) -> Iterator[str]:
    """Every file but the manifest by its path inside the directory; refuses what must not be there."""
    for folder, folders, files in os.walk(root):
        inside = Path(folder).relative_to(root)
        for name in sorted(folders):
            path = (inside / name).as_posix()
            if (Path(folder) / name).is_symlink():
                _refuse(path, "is a link", _NO_LINKS)
        for name in sorted(files):
            path = (inside / name).as_posix()
            mode = os.lstat(Path(folder) / name).st_mode
            if stat.S_ISLNK(mode):
                _refuse(path, "is a link", _NO_LINKS)
            if not stat.S_ISREG(mode):
                _refuse(path, "is not a regular file", "remove it")
            if path == MANIFEST or (not strict and _BYSTANDERS.match(path)):
                continue
            if Path(name).suffix.lower() in _REFUSED:
                _refuse(path, "can hold code, and is never loaded", "remove it; weights come as *.safetensors")
            yield path


def _hash_all(root: Path, names: list[str]) -> dict[str, tuple[FileEntry, tuple[int, ...]]]:
    # hashlib lets go of the interpreter's lock, so shards hash side by side.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: _hash_one(root / name), names), strict=True))


def _hash_one(path: Path) -> tuple[FileEntry, tuple[int, ...]]:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    size = 0
    with open(path, "rb", buffering=0) as file:
        stamp = _stamp(os.fstat(file.fileno()))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return FileEntry(sha256=digest.hexdigest(), size_bytes=size), stamp


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    # The change time cannot be set back by whoever exchanges a file, as its modification time can.
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _compare(manifest: Manifest, table: Mapping[str, FileEntry]) -> None:
    for name, entry in table.items():
        listed = manifest.files.get(name)
        if listed is None:
            _refuse(name, "is not in the manifest", "remove it, or fetch the snapshot again")
        if entry.sha256 != listed.sha256:
            _refuse(name, "does not have the hash that the manifest lists")
        if entry.size_bytes != listed.size_bytes:
            _refuse(name, "does not have the size that the manifest lists")
    for name in manifest.files:
        if name not in table:
            _refuse(name, "is in the manifest but not in the directory")
    if digest_of(table) != manifest.snapshot_sha256:
        _refuse(MANIFEST, "its snapshot_sha256 is not that of its own table of files")


def _check_weights(root: Path, names: list[str]) -> None:
    shards = [name for name in names if name.endswith(".safetensors")]
    if not shards:
        _refuse("model.safetensors", "is missing; only safetensors weights are loaded")
    for name in shards:
        with open(root / name, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > min(_MAX_HEADER_BYTES, (root / name).stat().st_size - 8):
            _refuse(name, "is not a safetensors file: its header is longer than the file or than 100 MiB")
    index = "model.safetensors.index.json"
    if index in names:
        named = _read_json(root, index, limit=64 * 2**20).get("weight_map")
        for shard in set(named.values()) if isinstance(named, dict) else {None}:
            if shard not in shards:
                _refuse(index, f"names a shard that is not there: {shard}")


def _read_config(root: Path, names: list[str]) -> dict[str, Any]:
    if "config.json" not in names:
        _refuse("config.json", "is missing")
    for name in names:
        if name.endswith("config.json"):
            _refuse_code(name, _read_json(root, name))
    return _read_json(root, "config.json")


def _read_json(root: Path, name: str, *, limit: int = _MAX_CONFIG_BYTES) -> dict[str, Any]:
    data = (root / name).read_bytes() if (root / name).stat().st_size <= limit else b""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        _refuse(name, "is not a JSON object of reasonable size")
    return found


def _refuse_code(name: str, value: object) -> None:
    """Refuse the keys by which a configuration has made transformers fetch or run code.

    ``_attn_implementation_internal`` did so although remote code was off, in transformers before 5.3.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "auto_map" or key.startswith("_attn"):
                _refuse(
                    name,
                    f"holds the key {key}, which can make code run",
                    "remove the key, or use another snapshot",
                )
            _refuse_code(name, inner)
    elif isinstance(value, list):
        for inner in value:
            _refuse_code(name, inner)


def _kind_of(config: Mapping[str, Any]) -> _Kind:
    kind = _KINDS.get(str(config.get("model_type")))
    architectures = config.get("architectures")
    if kind is None or architectures not in (None, [kind.architecture]):
        _refuse(
            "config.json",
            f"describes a model of type {config.get('model_type')!s:.40}, which this server does not load",
            f"give a MedGemma or MedSigLIP snapshot (model_type {', '.join(_KINDS)})",
        )
    return kind


def _max_context(config: Mapping[str, Any], kind: _Kind) -> int:
    text = config if config.get("model_type") == "gemma3_text" else config.get("text_config") or {}
    # The published configurations leave out what equals the library's default.
    value = text.get("max_position_embeddings", 64 if kind.family == "medsiglip" else 131_072)
    if not isinstance(value, int) or not 1 <= value <= 2**24:
        _refuse("config.json", "its max_position_embeddings is not a sensible number")
    return value


def _identify(config: Mapping[str, Any], kind: _Kind, root: Path) -> str:
    """The model's published name by the shape of its configuration, or by names it carries where shapes agree."""
    model_type = str(config.get("model_type"))
    part = config if model_type == "gemma3_text" else config.get("text_config") or {}
    vision = config.get("vision_config") or {}
    if model_type == "siglip":
        part = vision
    shape = (part.get("hidden_size"), part.get("num_hidden_layers"))
    candidates = [
        known.model_id
        for known in KNOWN_MODELS
        if known.model_type == model_type
        and (known.hidden, known.layers) == shape
        and known.image_px in (None, vision.get("image_size"))
    ]
    if len(candidates) == 1:
        return candidates[0]
    hints = (str(config.get("_name_or_path") or ""), root.resolve().name)
    for hint in hints:
        for candidate in candidates:
            if candidate.partition("/")[2] in hint:
                return candidate
    return "medgemma-4b (unidentified)" if candidates else f"{kind.family} (unidentified)"
