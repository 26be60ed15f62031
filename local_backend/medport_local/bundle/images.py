"""Container images as OCI layouts: checked from the index down to the last blob.

Source: OCI Image Layout Specification 1.1 and OCI Image Specification 1.1 (descriptors, manifests, indexes).
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from medport.errors import ConfigError, VerificationError
from medport_local.snapshot_file import FileEntry, entry_of, read_whole

LAYOUT, INDEX = "oci-layout", "index.json"
_MAX_JSON_BYTES = 4 * 2**20
"""What registries take as a manifest."""
_MAX_BLOBS = 10_000
_MAX_DEPTH = 4
"""Index in index; one is usual."""
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_INDEXES = frozenset(
    {
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    }
)
_MANIFESTS = frozenset(
    {
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image in a directory."""

    directory: Path
    digest: str
    """``sha256:…`` of its manifest, or of its index if it is for several platforms: what a registry calls it."""
    files: dict[str, FileEntry]
    """What the image consists of, by the path in the directory. What else lies there is no part of it."""


def read_layout(directory: Path) -> Image:
    """Check an OCI layout that holds one image, all its blobs by digest and size.

    Raises:
        ConfigError: there is no such directory.
        VerificationError: a part is missing, is not what its digest says, or the layout holds several images.
            Names the file.
    """
    if not directory.is_dir():
        raise ConfigError(
            "there is no such directory", field="image", remedy="give an OCI layout: skopeo copy … oci:DIR"
        )
    layout, layout_entry = _json(directory, LAYOUT)
    if layout.get("imageLayoutVersion") != "1.0.0":
        _refuse(LAYOUT, "is not of version 1.0.0")
    index, index_entry = _json(directory, INDEX)
    described = index.get("manifests")
    if not isinstance(described, list) or len(described) != 1:
        _refuse(INDEX, "does not hold one image", "copy one image into a directory of its own")
    walk = _Walk(directory, {LAYOUT: layout_entry, INDEX: index_entry})
    walk.take(described[0], _MAX_DEPTH)
    return Image(directory=directory, digest=_digest(described[0], INDEX), files=walk.files)


class _Walk:
    """Down from the index. A blob that several refer to is read once, and entered once."""

    def __init__(self, root: Path, files: dict[str, FileEntry]) -> None:
        self.files = files
        self._root = root
        self._entered: set[tuple[str, bool]] = set()

    def take(self, descriptor: object, depth: int) -> None:
        """A blob and all that it refers to."""
        if depth < 0:
            _refuse(INDEX, "is nested too deeply")
        digest = _digest(descriptor, INDEX)
        assert isinstance(descriptor, dict)
        name, media_type = _blob(digest), str(descriptor.get("mediaType"))
        found: dict[str, Any] = {}
        is_index = media_type in _INDEXES
        enters = (is_index or media_type in _MANIFESTS) and (name, is_index) not in self._entered
        if enters:
            found, entry = _json(self._root, name)
        else:
            entry = self.files.get(name) or _entry(self._root, name)
        self.files[name] = _checked(name, descriptor, digest, entry)
        if len(self.files) > _MAX_BLOBS:
            _refuse(INDEX, f"has more than {_MAX_BLOBS} parts")
        if not enters:
            return
        self._entered.add((name, is_index))
        if is_index:
            inner = _list(found.get("manifests"), name)
        else:
            inner = [found.get("config"), *_list(found.get("layers"), name)]
        for each in inner:
            self.take(each, depth - 1)


def _checked(name: str, descriptor: dict[str, Any], digest: str, found: FileEntry) -> FileEntry:
    if f"sha256:{found.sha256}" != digest:
        _refuse(name, "does not have the digest that it is named by")
    if found.size_bytes != descriptor.get("size"):
        _refuse(name, "does not have the size that its descriptor states")
    return found


def _digest(descriptor: object, where: str) -> str:
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        _refuse(where, "refers to a part by something other than a sha256 digest")
    return digest


def _blob(digest: str) -> str:
    return "blobs/sha256/" + digest.partition(":")[2]


def _entry(root: Path, name: str) -> FileEntry:
    _refuse_link(root, name)
    return entry_of(root, name)


def _json(root: Path, name: str) -> tuple[dict[str, Any], FileEntry]:
    _refuse_link(root, name)
    data, entry = read_whole(root, name, limit=_MAX_JSON_BYTES)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        _refuse(name, "is not a JSON object")
    return found, entry


def _refuse_link(root: Path, name: str) -> None:
    """A folder on the way; the file itself is opened without following a link."""
    parts = name.split("/")[:-1]
    if any(os.path.islink(root.joinpath(*parts[:count])) for count in range(1, len(parts) + 1)):
        _refuse(name, "lies behind a link", "copy the layout itself")


def _list(value: object, name: str) -> list[object]:
    if not isinstance(value, list):
        _refuse(name, "does not list what it consists of")
    return value


def _refuse(name: str, fault: str, remedy: str = "copy the image again: skopeo copy … oci:DIR") -> NoReturn:
    raise VerificationError(f"{name}: {fault}", field="image", remedy=remedy)
