"""The directory into which bundles are installed: it holds one installation, and is exchanged as a whole.

    DIR/wheels, images, providers, lock, sbom, documents   as in the bundle
    DIR/signed/manifest.json, DIR/manifest.sig             what was signed
    DIR/receipt.json                                       which bundle it is, and when it came
    DIR.previous/                                          the installation before it

What is under way lies beside it, in ``.DIR.staging``. A kill at any point leaves DIR as it was, or the new one.
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
        try:
            return Receipt.model_validate_json((self.directory / RECEIPT).read_bytes())
        except (OSError, ValidationError):
            return None

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
        staged = self.directory.with_name(f".{self.directory.name}.staging")
        with self._faults():
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            try:
                with locked(self.directory.with_name(f".{self.directory.name}.lock"), wait_s=0):
                    self._recover()
                    _remove(staged)
                    staged.mkdir(mode=0o700)
                    try:
                        yield staged
                    finally:
                        _remove(staged)
            except Busy:
                raise NotReady(
                    f"another installs into {self.directory}", field="to", remedy="wait for it"
                ) from None

    def publish(self, staged: Path) -> Path | None:
        """Put a filled directory into the place of what is installed, in one step where the system can.

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
        if not _exchange(staged, self.directory):
            # Between these two there is no installation; whoever installs next puts it back.
            _remove(self._previous)
            os.rename(self.directory, self._previous)
            os.rename(staged, self.directory)
        else:
            disk.sync_directory(self.directory.parent)
            _remove(self._previous)
            os.rename(staged, self._previous)
        disk.sync_directory(self.directory.parent)
        return self._previous

    @property
    def _previous(self) -> Path:
        return self.directory.with_name(f"{self.directory.name}.previous")

    def _recover(self) -> None:
        if not os.path.lexists(self.directory) and (self._previous / RECEIPT).is_file():
            os.rename(self._previous, self.directory)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as fault:
            raise _unwritable(self.directory, fault) from fault


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
    return ConfigError(
        f"{directory} cannot be written ({said})", field="to", remedy="check who owns it, and its disk"
    )
