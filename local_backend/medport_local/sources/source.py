"""What a place offers that a model can be fetched from, and how its files are read.

A source only says and reads. What is fetched, in which order, and what must be true of it is ``pull``'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from medport_local.snapshot import Manifest
from medport_local.store import Terms

SourceKind = Literal["hub", "bucket", "directory", "bundle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """One file, as far as its source says what it is."""

    name: str
    size_bytes: int | None = None
    sha256: str | None = None
    """64 hex digits, where the source knows it."""
    version: str = ""
    """Changes whenever the bytes do: a blob id, a generation, a digest. Empty: the source cannot tell."""
    git_blob_sha1: str | None = None
    """40 hex digits: git's id of a blob, over its length and its bytes."""
    crc32c: str | None = None
    """Base64 of the four bytes, most significant first, as Cloud Storage gives it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A model that can be fetched: one commit, one listing of a bucket, one directory."""

    identity: str
    """The same for the same offer in every process: what was fetched before is gone on with by it."""
    source: SourceKind
    model_id: str | None
    """``None`` where the place does not say; the configuration is asked then."""
    requested: str
    revision: str | None
    """40 hex digits of a commit."""
    said: tuple[str, ...] = ()
    """Lines for people, such as which commit a branch is."""
    terms: Terms | None = None
    files: Mapping[str, Offered] = field(default_factory=dict, repr=False)
    """What may be fetched. Whatever else the place holds is left there."""
    manifest: Manifest | None = None
    """What the place itself says that the files must be."""


class Source(Protocol):
    """A place that a model can be fetched from."""

    def offer(self) -> Offer:
        """Look at what is there. Asked once, before anything is read."""
        ...

    def read(self, name: str, offset: int) -> Iterator[bytes]:
        """The bytes of an offered file from ``offset`` on.

        Raises:
            Changed: the file became another one while it was read.
            MedportError: it cannot be had, or is not what was offered.
        """
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


@runtime_checkable
class Pinned(Protocol):
    """A source that can say which snapshot it means without looking anywhere."""

    @property
    def reference(self) -> str | None:
        """``MODEL_ID@COMMIT``; ``None`` where a look-up has to say what a name stands for."""
        ...


class Changed(Exception):
    """A file became another one while it was read: what has arrived of it is worth nothing."""


Tell = Callable[[str], None]
"""Takes one line for people."""
