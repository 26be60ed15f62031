"""Where everything lies in a store, and whether a directory is one.

    format                       "medport-store 1"
    blobs/<aa>/<sha256>          the bytes, one file for each content, read-only
    snapshots/<snapshot_sha256>/ a directory as ``open_snapshot`` takes it: links to blobs, and manifest.json
    records/<snapshot_sha256>.json  where it came from
    pins/<name>.json             what is kept
    partial/<id>/                what is being fetched; ``id`` is a hash of what the source calls itself
    locks/                       empty files that processes lock
    quarantine/                  damaged files that ``verify`` took out

Names that begin with a dot are under way. No text from outside becomes a path here but through a hash or a
pattern.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from medport.errors import ConfigError
from medport_local.store import disk
from medport_local.store.locks import locked

FORMAT = b"medport-store 1\n"
OWNER = "MEDPORT_STORE_OWNER"
"""The environment's variable that names a user, beside root and this one, whose store is believed."""
SHA256 = re.compile(r"[0-9a-f]{64}")
_PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FOLDERS = ("blobs", "snapshots", "records", "pins", "locks")
_PRIVATE_FOLDERS = ("partial", "quarantine")
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def default_root() -> Path:
    """``MEDPORT_STORE``, else the user's data directory.

    Raises:
        ConfigError: it has none.

    Source: XDG Base Directory Specification, ``XDG_DATA_HOME``.
    """
    if named := os.environ.get("MEDPORT_STORE"):
        return Path(named)
    if home := os.environ.get("XDG_DATA_HOME"):
        return Path(home) / "medport" / "store"
    try:
        return Path.home() / ".local" / "share" / "medport" / "store"
    except RuntimeError:
        raise ConfigError(
            "this user has no home directory", field="store", remedy="give --store, or set MEDPORT_STORE"
        ) from None


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one store."""

    root: Path

    def blob(self, sha256: str) -> Path:
        """The file that holds these bytes, if the store has them."""
        assert SHA256.fullmatch(sha256)
        return self.root / "blobs" / sha256[:2] / sha256

    @property
    def snapshots(self) -> Path:
        """The directory of all snapshots."""
        return self.root / "snapshots"

    def snapshot(self, sha256: str) -> Path:
        """The directory of one snapshot."""
        assert SHA256.fullmatch(sha256)
        return self.snapshots / sha256

    def record(self, sha256: str) -> Path:
        """The record of one snapshot."""
        assert SHA256.fullmatch(sha256)
        return self.root / "records" / f"{sha256}.json"

    @property
    def pins(self) -> Path:
        """The directory of pins."""
        return self.root / "pins"

    def pin(self, name: str) -> Path:
        """The file of one pin.

        Raises:
            ConfigError: it cannot be a pin's name.
        """
        if not _PIN.fullmatch(name):
            raise ConfigError(
                "is not a pin's name", field="name", remedy="take up to 100 letters, digits, dots, - and _"
            )
        return self.pins / f"{name}.json"

    @property
    def partials(self) -> Path:
        """The directory of all that is being fetched."""
        return self.root / "partial"

    @property
    def quarantine(self) -> Path:
        """Where damaged files go."""
        return self.root / "quarantine"

    @property
    def mutex(self) -> Path:
        """The lock for short changes of the whole store."""
        return self.root / "locks" / "store.lock"

    def intake_lock(self, name: str) -> Path:
        """The lock of who fetches one identity; ``name`` as ``identity_name`` gives it."""
        return self.root / "locks" / f"intake-{name}.lock"

    def lease(self, sha256: str) -> Path:
        """The lock that readers of a snapshot share."""
        assert SHA256.fullmatch(sha256)
        return self.root / "locks" / f"snapshot-{sha256}.lock"


def _trusted() -> set[int]:
    """The user whose store is believed as if it were one's own, if the operator names one."""
    if not (named := os.environ.get(OWNER)):
        return set()
    try:
        return {int(named) if named.isdecimal() else pwd.getpwnam(named).pw_uid}
    except KeyError:
        raise ConfigError("there is no such user", field=OWNER, remedy="give a user's name or number") from None


def identity_name(identity: str) -> str:
    """The name under which something is fetched, whatever its source calls it."""
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def opened(root: Path, *, create: bool) -> Layout:
    """The store in a directory; made there if it is missing or empty, and ``create``.

    Raises:
        ConfigError: there is none, it is of another format, others may write to it, it belongs to another user
            than root, this one and ``MEDPORT_STORE_OWNER``, or it cannot be made.
    """
    root = root.expanduser().resolve()
    if not _has_format(root):
        if not create:
            raise ConfigError(
                f"there is no store in {root}", field="store", remedy="medport snapshot pull or add makes one"
            )
        with disk.disk_faults():
            _make(root)
    _check(root)
    return Layout(root)


def _has_format(root: Path) -> bool:
    try:
        return (root / "format").is_file()
    except PermissionError as fault:
        raise ConfigError(
            f"the store in {root} may not be read by this user", field="store", remedy="run as its owner"
        ) from fault


def _make(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise ConfigError(f"{root} is not a directory", field="store", remedy="give another --store")
    # What a process that was killed left behind is ours; anything else is not.
    known = {*_FOLDERS, *_PRIVATE_FOLDERS, ".format.new", "format"}  # the last, if another was just sooner
    if root.is_dir() and any(each.name not in known for each in root.iterdir()):
        raise ConfigError(
            f"{root} holds other things and is no store", field="store", remedy="give an empty directory"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    disk.make_directory(root, disk.PRIVATE_DIRECTORY)
    os.chmod(root, disk.PRIVATE_DIRECTORY)  # an empty directory may have been there
    for name in _FOLDERS:
        disk.make_directory(root / name, disk.OPEN_DIRECTORY)
    for name in _PRIVATE_FOLDERS:
        disk.make_directory(root / name, disk.PRIVATE_DIRECTORY)
    with locked(root / "locks" / "store.lock"):
        # Last: a directory with this file is whole.
        if not (root / "format").exists():
            disk.write_file(root / "format", FORMAT)
    disk.sync_directory(root.parent)


def _check(root: Path) -> None:
    try:
        said = (root / "format").read_bytes()
    except OSError as fault:
        raise ConfigError(
            f"the store in {root} cannot be read ({type(fault).__name__})",
            field="store",
            remedy="run as its owner",
        ) from fault
    if said != FORMAT:
        raise ConfigError(
            f"the store in {root} is of another format",
            field="store",
            remedy="use the medport that made it, or give another --store",
        )
    believed = {0, os.geteuid(), *_trusted()}
    for path in (root, *(root / name for name in (*_FOLDERS, *_PRIVATE_FOLDERS))):
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            raise ConfigError(
                f"the store in {root} lacks {path.name}/", field="store", remedy="make it again from its sources"
            ) from None
        if not stat.S_ISDIR(found.st_mode):
            raise ConfigError(f"{path} is not a directory", field="store", remedy="give another --store")
        if found.st_uid not in believed:
            raise ConfigError(
                f"{path} belongs to another user (uid {found.st_uid}), who can change what is served from it",
                field="store",
                remedy=f"chown -R it, or set {OWNER}={found.st_uid} if this user is trusted",
            )
        if found.st_mode & _WRITABLE_BY_OTHERS:
            raise ConfigError(
                f"others may write to {path}",
                field="store",
                remedy=f"chmod go-w {path}, then medport snapshot verify",
            )
