"""A mirror of Terraform providers, as ``terraform providers mirror`` writes it: checked and listed.

``HOST/NAMESPACE/TYPE/index.json`` names versions, ``VERSION.json`` beside it the archives of each platform with
their hashes. What neither names is no part of the mirror and does not go into a bundle.

Source: HashiCorp, "Provider Network Mirror Protocol" (the JSON files) and "Dependency Lock File" (``zh:`` and
``h1:``); ``golang.org/x/mod/sumdb/dirhash`` for the form of ``h1:``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from medport.errors import ConfigError, VerificationError
from medport_local.bundle.zip_faults import UNREADABLE
from medport_local.snapshot_file import FileEntry, entry_of, read_whole

INDEX = "index.json"
_MAX_JSON_BYTES = 2**20
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+([-+][0-9A-Za-z.+-]{1,64})?")
_PLATFORM = re.compile(r"[a-z0-9]{1,32}_[a-z0-9]{1,32}")
_SLICE_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """One provider for one platform."""

    source: str
    """``HOST/NAMESPACE/TYPE``."""
    version: str
    platform: str
    """Such as ``linux_amd64``."""
    path: str
    """Of the zip file, inside the mirror."""
    sha256: str
    hashes: tuple[str, ...]
    """``h1:`` and ``zh:``, both computed here; as a dependency lock file lists them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """The providers of a directory."""

    directory: Path
    archives: tuple[Archive, ...]
    files: dict[str, FileEntry]
    """The archives and the JSON files that lead to them, by the path in the directory."""


def read_mirror(directory: Path) -> Mirror:
    """Check a mirror: each archive has the hashes that its listing states.

    Raises:
        ConfigError: there is no such directory, or no provider in it.
        VerificationError: a listing cannot be read or leads out of its folder, or an archive is missing or is
            another. Names the file.
    """
    if not directory.is_dir():
        raise ConfigError(
            "there is no such directory", field="providers", remedy="make it: terraform providers mirror DIR"
        )
    archives: list[Archive] = []
    files: dict[str, FileEntry] = {}
    for index in sorted(directory.glob(f"*/*/*/{INDEX}")):
        folder = index.parent.relative_to(directory)
        _refuse_links(directory, folder)
        for archive, entries in _provider(directory, folder.as_posix()):
            archives.append(archive)
            files |= entries
    if not archives:
        raise ConfigError(
            "the directory holds no provider", field="providers", remedy="fill it: terraform providers mirror DIR"
        )
    return Mirror(directory=directory, archives=tuple(archives), files=dict(sorted(files.items())))


def h1_of(path: Path) -> str:
    """The hash of what a zip file holds, whatever its compression: ``h1:`` and base64.

    Raises:
        VerificationError: it is no zip file.
    """
    total = hashlib.sha256()
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(each.filename for each in archive.infolist() if not each.is_dir()):
                digest = hashlib.sha256()
                with archive.open(name) as file:
                    while piece := file.read(_SLICE_BYTES):
                        digest.update(piece)
                total.update(f"{digest.hexdigest()}  {name}\n".encode())
    except UNREADABLE as fault:
        raise _refusal(path.name, f"is no zip file that can be read ({type(fault).__name__})") from fault
    return "h1:" + base64.b64encode(total.digest()).decode()


def _provider(root: Path, folder: str) -> Iterator[tuple[Archive, dict[str, FileEntry]]]:
    if not all(_PART.fullmatch(part) for part in folder.split("/")):
        _refuse(folder, "is not HOST/NAMESPACE/TYPE")
    index, index_entry = _json(root, f"{folder}/{INDEX}")
    for version in _keys(index, "versions", f"{folder}/{INDEX}"):
        if not _VERSION.fullmatch(version):
            _refuse(f"{folder}/{INDEX}", "names a version that is none")
        listing = f"{folder}/{version}.json"
        found, listing_entry = _json(root, listing)
        for platform in _keys(found, "archives", listing):
            archive, entry = _archive(root, folder, version, platform, found["archives"][platform])
            yield archive, {f"{folder}/{INDEX}": index_entry, listing: listing_entry, archive.path: entry}


def _archive(root: Path, folder: str, version: str, platform: str, said: object) -> tuple[Archive, FileEntry]:
    listing = f"{folder}/{version}.json"
    if not _PLATFORM.fullmatch(platform):
        _refuse(listing, "names a platform that is none")
    url = said.get("url") if isinstance(said, dict) else None
    # The protocol allows any address; a mirror for a site has its archives beside the listing.
    if not isinstance(url, str) or not _PART.fullmatch(url) or not url.endswith(".zip"):
        _refuse(listing, f"does not name a zip file beside it for {platform}")
    path = f"{folder}/{url}"
    entry = entry_of(root, path)
    computed = (h1_of(root / path), f"zh:{entry.sha256}")
    assert isinstance(said, dict)
    # Those of other forms, which may be added one day, cannot be checked.
    stated = {each for each in _hashes(said, listing) if each.startswith(("h1:", "zh:"))}
    if not stated <= set(computed):
        _refuse(path, "does not have the hash that its listing states")
    archive = Archive(
        source=folder, version=version, platform=platform, path=path, sha256=entry.sha256, hashes=computed
    )
    return archive, entry


def _hashes(said: dict[str, Any], listing: str) -> list[str]:
    found = said.get("hashes", [])
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        _refuse(listing, "states hashes that cannot be read")
    return found


def _json(root: Path, name: str) -> tuple[dict[str, Any], FileEntry]:
    data, entry = read_whole(root, name, limit=_MAX_JSON_BYTES)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        _refuse(name, "is not a JSON object")
    return found, entry


def _keys(found: dict[str, Any], key: str, name: str) -> list[str]:
    inner = found.get(key)
    if not isinstance(inner, dict):
        _refuse(name, f"has no {key}")
    return sorted(inner)


def _refuse_links(root: Path, folder: Path) -> None:
    for count in range(1, len(folder.parts) + 1):
        if root.joinpath(*folder.parts[:count]).is_symlink():
            _refuse(folder.as_posix(), "lies behind a link")


def _refuse(name: str, fault: str) -> NoReturn:
    raise _refusal(name, fault)


def _refusal(name: str, fault: str) -> VerificationError:
    return VerificationError(
        f"{name}: {fault}", field="providers", remedy="make the mirror again: terraform providers mirror DIR"
    )
