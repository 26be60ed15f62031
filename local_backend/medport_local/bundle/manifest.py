"""``manifest.json`` of a bundle: what it holds, in which order, and the hash of each member.

The text is canonical (keys sorted, no blanks, ASCII), so equal contents give equal bytes; only these bytes are
signed. Nothing of it is believed before its signature is checked (``signing``).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medport.errors import VerificationError
from medport_local.bundle import paths

FORMAT: Literal["medport-bundle 1"] = "medport-bundle 1"
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
LOCK = "lock/medport.lock"
MAX_MANIFEST_BYTES = 32 * 2**20
MAX_ENTRIES = 100_000

Kind = Literal["lock", "snapshot", "sbom", "document", "wheel", "image", "provider", "blob"]
"""What a member is for. The members stand in this order, so that what describes comes before what is large."""

_SHA256 = r"[0-9a-f]{64}"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_PLACES: Mapping[Kind, re.Pattern[str]] = {
    "lock": re.compile(re.escape(LOCK)),
    "snapshot": re.compile(rf"snapshots/{_SHA256}/(manifest|record)\.json"),
    "sbom": re.compile(r"sbom/[^/]+\.json"),
    "document": re.compile(r"documents/.+"),
    "wheel": re.compile(r"wheels/[A-Za-z0-9._]+(-[A-Za-z0-9._+!]+){2,5}\.whl"),
    "image": re.compile(rf"images/{_NAME}/.+"),
    "provider": re.compile(r"providers/.+"),
    "blob": re.compile(rf"blobs/{_SHA256}"),
}
_RANK: Mapping[str, int] = {kind: rank for rank, kind in enumerate(_PLACES)}


class Entry(BaseModel):
    """One member of a bundle."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    path: str
    """Inside the bundle, its parts joined by ``/``."""
    kind: Kind
    sha256: Annotated[str, Field(pattern=rf"^{_SHA256}$")]
    size_bytes: Annotated[int, Field(ge=0, lt=2**60)]


class BundleManifest(BaseModel):
    """What a bundle says about itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["medport-bundle 1"] = FORMAT
    created_at: datetime
    """In UTC, to the second."""
    medport: Annotated[str, Field(max_length=100)]
    """The version of medport that wrote it."""
    lock_id: Annotated[str, Field(pattern=rf"^{_SHA256}$")] | None = None
    """Of the lock that it was made from."""
    signed_by: tuple[Annotated[str, Field(max_length=1000)], ...] = ()
    """Who signs: the names of the certificate, or the key's fingerprint; none for an unsigned bundle."""
    entries: tuple[Entry, ...]

    def to_bytes(self) -> bytes:
        """The canonical text."""
        plain = self.model_dump(mode="json")
        plain["created_at"] = f"{self.created_at:%Y-%m-%dT%H:%M:%SZ}"
        return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()

    def of_kind(self, kind: Kind) -> tuple[Entry, ...]:
        """The members of a kind, in order."""
        return tuple(entry for entry in self.entries if entry.kind == kind)

    def entry(self, path: str) -> Entry | None:
        """The member at a path."""
        return next((entry for entry in self.entries if entry.path == path), None)


def read_manifest(data: bytes) -> BundleManifest:
    """Read the text of a manifest whose signature was checked.

    Raises:
        VerificationError: it is not in the canonical form, of another format, or lists what may not be in a
            bundle: a path that is none on every system, two that are one on some, or one that is not of its kind.
    """
    assert len(data) <= MAX_MANIFEST_BYTES
    plain = _object(data)
    if plain.get("format") != FORMAT:
        _refuse(f"its format is not {FORMAT!r}", "install the medport that wrote it")
    entries = plain.get("entries")
    if isinstance(entries, list) and len(entries) > MAX_ENTRIES:
        _refuse(f"lists more than {MAX_ENTRIES} members")
    try:
        manifest = BundleManifest.model_validate(plain | {"entries": tuple(map(_entry, _list(entries)))})
    except ValidationError as fault:
        place = ".".join(str(step) for step in fault.errors(include_url=False, include_input=False)[0]["loc"])
        _refuse(f"cannot be read (at {place or 'its start'})")
    if manifest.created_at.utcoffset() != timedelta(0) or manifest.to_bytes() != data:
        _refuse("is not in its canonical form")
    check_entries(manifest.entries)
    return manifest


def check_entries(entries: tuple[Entry, ...]) -> None:
    """Refuse a list of members that no bundle may have. Names the path.

    Raises:
        VerificationError: as ``read_manifest``; or they are not in order (``in_order``), or one is listed twice.
    """
    if len(entries) > MAX_ENTRIES:
        _refuse(f"lists more than {MAX_ENTRIES} members")
    for entry in entries:
        if fault := paths.fault_of(entry.path):
            _refuse_entry(entry.path, fault)
        if not _PLACES[entry.kind].fullmatch(entry.path):
            _refuse_entry(entry.path, f"is not a path for a {entry.kind}")
        if entry.kind == "blob" and entry.path != f"blobs/{entry.sha256}":
            _refuse_entry(entry.path, "is a blob that is not named by its hash")
    if repeated := [path for path, count in Counter(entry.path for entry in entries).items() if count > 1]:
        _refuse_entry(repeated[0], "is listed twice")
    if same := paths.twins(entry.path for entry in entries):
        _refuse_entry(same[1], f"and {paths.shown(same[0])} are one file on some systems")
    if list(entries) != in_order(entries):
        _refuse("does not list its members in their order")


def in_order(entries: tuple[Entry, ...] | list[Entry]) -> list[Entry]:
    """Members in the order in which they stand in a bundle: by kind, then by path."""
    return sorted(entries, key=lambda entry: (_RANK[entry.kind], entry.path))


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data.decode("ascii"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        _refuse("is not a JSON object in ASCII")
    return found


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        _refuse("has no list of entries")
    return value


def _entry(value: object) -> Entry:
    return Entry.model_validate(value)


def _refuse(fault: str, remedy: str = "get the bundle again from who made it") -> NoReturn:
    raise VerificationError(f"{MANIFEST}: {fault}", field=MANIFEST, remedy=remedy)


def _refuse_entry(path: str, fault: str) -> NoReturn:
    name = paths.shown(path)
    raise VerificationError(f"{name}: {fault}", field=name, remedy="get the bundle again from who made it")
