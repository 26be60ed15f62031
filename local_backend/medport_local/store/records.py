"""What the store writes down about a snapshot: where it came from, on which terms, and who wants it kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Terms(BaseModel):
    """The terms on which a model was given, and who accepted them."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    url: str | None = None
    gated: bool = False
    accepted_by: str | None = None
    accepted_at: str | None = None
    """ISO 8601, UTC."""
    licence_sha256: str | None = None
    """Of the licence's text, where it came with the files."""


class Record(BaseModel):
    """Where a snapshot came from. Nothing is decided by it: what the bytes are, the manifest says."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    source: str
    """``hub``, ``bucket``, ``directory`` or ``bundle``."""
    requested: str
    """As it was asked for: a branch, a commit, a URI, a directory."""
    revision: str | None = None
    """The commit that ``requested`` was resolved to, 40 hex digits."""
    added_at: AwareDatetime
    by: str
    """Name of the system's user who brought it in."""
    terms: Terms | None = None
    notes: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    """Other references, ``MODEL_ID@REVISION``, that turned out to be the same bytes."""


class Entry(BaseModel):
    """``records/<snapshot_sha256>.json``."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    version: Literal[1] = 1
    manifest_sha256: tuple[Digest, ...]
    """Of the ``manifest.json`` that belongs to it; two while one replaces the other."""
    record: Record


class Pin(BaseModel):
    """``pins/<name>.json``: snapshots that are kept."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    snapshots: tuple[Digest, ...]
    pinned_at: AwareDatetime
    why: str = ""


class PartNote(BaseModel):
    """What a file under way is, so that a later process goes on only with the same one."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    version: str
    size_bytes: int | None
    sha256: Digest | None
    boot: str = ""
    """Names the start of the machine in which the file was begun."""


class DoneNote(PartNote):
    """A file that arrived whole."""

    found_sha256: Digest
    found_bytes: int
