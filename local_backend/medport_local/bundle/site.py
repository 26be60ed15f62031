"""The directory into which bundles are installed: it holds one installation, and is exchanged as a whole.

    DIR/wheels, images, providers, lock, sbom, documents   as in the bundle
    DIR/signed/manifest.json, DIR/manifest.sig             what was signed
    DIR/receipt.json                                       which bundle it is, and when it came
    DIR.previous/                                          the installation before it

What is under way lies beside it:

    .DIR.staging/          the new installation; after the exchange, the one that it replaced
    .DIR.leaving           the receipt of the one that is about to be replaced, which tells these two apart
    .DIR.older/            what was DIR.previous until then

A kill at any point leaves DIR as it was, or the new one, and the one before it: whoever installs next finishes or
takes back what was under way.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from medport.errors import ConfigError, NotReady
from medport_local.bundle.manifest import MANIFEST, SIGNATURE
from medport_local.store import disk
from medport_local.store.locks import Busy, locked

RECEIPT = "receipt.json"
SIGNED = "signed"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
# What a system or a file system answers that cannot exchange two directories.
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV}


class Receipt(BaseModel):
    """``receipt.json``: which bundle is installed."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    manifest_sha256: str
    """Of the bundle's manifest, which names it."""
    created_at: AwareDatetime
    installed_at: AwareDatetime
    medport: str
    lock_id: str | None
    signed_by: tuple[str, ...]
    key_sha256: str
    snapshots: tuple[str, ...]
    """The ``snapshot_sha256`` of each."""


@dataclass(frozen=True, slots=True)
class Site:
    """One such directory."""

    directory: Path

    def receipt(self) -> Receipt | None:
        """Of what is installed; ``None`` if there is nothing, or nothing that can be read."""
        return _receipt_in(self.directory)

    def replaced(self) -> Receipt | None:
        """Of the installation before it, in ``DIR.previous``; ``None`` as ``receipt``."""
        return _receipt_in(self._previous)

    def standing(self) -> Receipt | None:
        """Of what a new installation would replace: what is there, or what a killed one left aside.

        Raises:
            ConfigError: there is an installation, and its receipt cannot be read.
        """
        place = self.directory if os.path.lexists(self.directory) else self._previous
        found = _receipt_in(place)
        if found is None and os.path.lexists(place / RECEIPT):
            raise ConfigError(
                f"{place / RECEIPT} cannot be read, so it is not known which bundle is installed",
                field="to",
                remedy="medport doctor --offline says what is left; then give another --to, or move it away",
            )
        return found

    def check(self) -> None:
        """Refuse a directory that holds other things than an installation.

        Raises:
            ConfigError: it does, or is no directory.
        """
        if not os.path.lexists(self.directory):
            return
        if self.directory.is_symlink() or not self.directory.is_dir():
            raise ConfigError(f"{self.directory} is not a directory", field="to", remedy="give another --to")
        try:
            held = any(self.directory.iterdir())
        except OSError as fault:
            raise _unwritable(self.directory, fault) from fault
        if held and not (self.directory / RECEIPT).is_file():
            raise ConfigError(
                f"{self.directory} holds other things than an installed bundle",
                field="to",
                remedy="give a directory that is empty or not there",
            )

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty directory beside it, to be filled and then published; removed at the end if it was not.

        Raises:
            NotReady: another installs there.
            ConfigError: it cannot be written there.
        """
        staged = self._staged
        with self._faults():
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            try:
                with locked(self._beside("lock"), wait_s=0):
                    self._settle()
                    _remove(staged)
                    staged.mkdir(mode=0o700)
                    try:
                        yield staged
                    finally:
                        if not self._was_replaced(staged):
                            _remove(staged)
            except Busy:
                raise NotReady(
                    f"another installs into {self.directory}", field="to", remedy="wait for it"
                ) from None

    def publish(self, staged: Path) -> Path | None:
        """Put a filled directory into the place of what is installed, in one step where the system can.

        What cannot be tidied up after that step is left, and the next installation says so.

        Args:
            staged: what ``staging`` gave, with a receipt.

        Returns:
            Where the earlier installation is.

        Raises:
            OSError: the disk; what was installed still is.
        """
        for folder, _, _ in os.walk(staged):
            os.chmod(folder, disk.OPEN_DIRECTORY)
            disk.sync_directory(Path(folder))
        if not os.path.lexists(self.directory) or not any(self.directory.iterdir()):
            os.rename(staged, self.directory)
            disk.sync_directory(self.directory.parent)
            return None
        try:
            disk.write_file(self._leaving, (self.directory / RECEIPT).read_bytes())
            if os.path.lexists(self._previous):
                os.rename(self._previous, self._older)
            if not _exchange(staged, self.directory):
                # Between these two there is no installation; whoever installs next puts it back.
                os.rename(self.directory, self._previous)
                os.rename(staged, self.directory)
        except OSError:
            self._settle()
            raise
        with suppress(OSError):
            disk.sync_directory(self.directory.parent)
            self._settle()
        return staged if self._was_replaced(staged) else self._previous

    @property
    def _previous(self) -> Path:
        return self.directory.with_name(f"{self.directory.name}.previous")

    @property
    def _staged(self) -> Path:
        return self._beside("staging")

    @property
    def _leaving(self) -> Path:
        return self._beside("leaving")

    @property
    def _older(self) -> Path:
        return self._beside("older")

    def _beside(self, what: str) -> Path:
        return self.directory.with_name(f".{self.directory.name}.{what}")

    def _was_replaced(self, staged: Path) -> bool:
        """Whether a directory is not the new installation, but the one that changed places with it."""
        try:
            return (staged / RECEIPT).read_bytes() == self._leaving.read_bytes()
        except OSError:
            return False

    def _settle(self) -> None:
        """Finish a replacement whose exchange was done, or take it back; leave nothing of it under way."""
        if self._was_replaced(self._staged) and not os.path.lexists(self._previous):
            os.rename(self._staged, self._previous)
        elif not os.path.lexists(self.directory) and (self._previous / RECEIPT).is_file():
            os.rename(self._previous, self.directory)
        if os.path.lexists(self._older) and not os.path.lexists(self._previous):
            os.rename(self._older, self._previous)
        disk.sync_directory(self.directory.parent)
        self._leaving.unlink(missing_ok=True)
        _remove(self._older)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as fault:
            raise _unwritable(self.directory, fault) from fault


def _receipt_in(place: Path) -> Receipt | None:
    try:
        return Receipt.model_validate_json((place / RECEIPT).read_bytes())
    except (OSError, ValidationError):
        return None


def write_member(root: Path, path: str, slices: Iterable[bytes]) -> None:
    """Write a file that is not there, mode 0644, and bring it to the disk.

    Args:
        path: one that ``paths.fault_of`` has let through.
    """
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        os.fchmod(descriptor, 0o644)
        for data in slices:
            disk.write_all(descriptor, data)
        os.fsync(file.fileno())


def write_signed(root: Path, manifest: bytes, signature: bytes, receipt: Receipt) -> None:
    """Write the receipt, and what was signed so that ``model_signing verify`` takes ``signed/`` as it is."""
    write_member(root, f"{SIGNED}/{MANIFEST}", [manifest])
    write_member(root, SIGNATURE, [signature])
    write_member(root, RECEIPT, [receipt.model_dump_json(indent=1).encode() + b"\n"])


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    with suppress(FileNotFoundError):
        shutil.rmtree(path)


def _exchange(one: Path, other: Path) -> bool:
    """Let two directories change places, in one step; false where that cannot be.

    Source: renameat2(2), which Python does not offer.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    done = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    if done == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number))


def _unwritable(directory: Path, fault: OSError) -> ConfigError:
    said = os.strerror(fault.errno) if fault.errno else type(fault).__name__
    place = fault.filename if isinstance(fault.filename, str) else directory
    return ConfigError(
        f"{place} cannot be written or removed ({said})", field="to", remedy="check who owns it, and its disk"
    )
