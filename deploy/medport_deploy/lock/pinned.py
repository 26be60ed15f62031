"""Which files may be part of a locked model, and whether a directory holds exactly those bytes."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import time
import unicodedata
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from medport.errors import ConfigError, VerificationError
from medport.lock import LockedFile, LockedModel

MANIFEST = "manifest.json"
WEIGHTS = ".safetensors"
_ALLOWED = (WEIGHTS, ".json", ".jinja", ".model")
_CAN_RUN_CODE = frozenset({
    ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".h5", ".msgpack", ".joblib", ".npy", ".npz", ".so",
})  # fmt: skip
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_THREADS = 8


def is_allowed(name: str) -> bool:
    """Whether a file of this name may be part of a model: weights, settings, tokenizer, no folders.

    The rule is that of ``medport snapshot pull``, so that both make the same snapshot of one commit.
    """
    return name != MANIFEST and bool(_PLAIN.fullmatch(name)) and name.endswith(_ALLOWED)


def chosen(names: Iterable[str], *, field: str) -> tuple[str, ...]:
    """The names of a place that are a model's files, sorted.

    Raises:
        VerificationError: the weights are pickles, or two names are one file on some disks.
        ConfigError: there are no weights at all.
    """
    every = sorted(set(names))
    found = tuple(name for name in every if is_allowed(name))
    if not any(name.endswith(WEIGHTS) for name in found):
        pickles = [name for name in every if can_run_code(name)]
        if pickles:
            raise VerificationError(
                f"its weights are {pickles[0][:60]!a}, which can run code, and no *.safetensors",
                field=field,
                remedy="name a revision that holds *.safetensors",
            )
        raise ConfigError("holds no *.safetensors", field=field, remedy="check the model's name and revision")
    seen: dict[str, str] = {}
    for name in found:
        other = seen.setdefault(unicodedata.normalize("NFKC", name).casefold(), name)
        if other != name:
            raise VerificationError(f"{name} and {other} are one file on some disks", field=field)
    return found


def can_run_code(name: str) -> bool:
    """Whether loading a file of this name can run what is in it."""
    return Path(name).suffix.lower() in _CAN_RUN_CODE


@dataclass(frozen=True, slots=True)
class Verified:
    """What was hashed."""

    files: int
    size_bytes: int
    seconds: float

    @property
    def bytes_per_s(self) -> float:
        """Over all threads together."""
        return self.size_bytes / self.seconds if self.seconds > 0 else 0.0


def verify_files(model: LockedModel, directory: str | os.PathLike[str], *, field: str = "model") -> Verified:
    """Hash every locked file where it lies. Files are hashed side by side; hashing lets other threads run.

    Args:
        directory: holds the files by their names.
        field: what to call the model in errors.

    Raises:
        ConfigError: there is no such directory.
        VerificationError: a file is missing, is a link, or holds other bytes; or there is one beside them that is
            not locked and would be loaded, or could run code.
    """
    root = Path(directory)
    if not root.is_dir():
        raise ConfigError(f"there is no directory {root.name}", field=field, remedy="name where the files lie")
    _check_beside(model, root, field)
    started = time.perf_counter()
    # The largest first: else the last thread may begin with the largest when the others are done.
    order = sorted(model.files.items(), key=lambda each: -each[1].size_bytes)
    with ThreadPoolExecutor(min(_THREADS, len(order))) as pool:
        for done in [pool.submit(_verify, root, name, file, field) for name, file in order]:
            done.result()
    size = sum(file.size_bytes for file in model.files.values())
    return Verified(len(order), size, time.perf_counter() - started)


def _verify(root: Path, name: str, locked: LockedFile, field: str) -> None:
    with _opened(root / name, name, field) as file:
        size = os.fstat(file.fileno()).st_size
        if size != locked.size_bytes:
            raise _other(name, f"has {size} bytes, and {locked.size_bytes} are locked", field)
        try:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as fault:
            raise _other(name, f"cannot be read ({os.strerror(fault.errno or 0)})", field) from fault
    if found != locked.sha256:
        raise _other(name, f"has the sha256 {found}, and {locked.sha256} is locked", field)


def _opened(path: Path, name: str, field: str) -> io.FileIO:
    try:
        # A pipe would block here without O_NONBLOCK; a link may lead anywhere.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _other(name, "is missing", field) from None
    except OSError as fault:
        raise _other(name, f"cannot be opened ({os.strerror(fault.errno or 0)})", field) from fault
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _other(name, "is no regular file", field)
    return io.FileIO(handle)


def _check_beside(model: LockedModel, root: Path, field: str) -> None:
    for path in sorted(root.iterdir()):
        if path.name in model.files:
            continue
        if can_run_code(path.name):
            raise _other(path.name, "can run code, and is not locked", field)
        if is_allowed(path.name):
            raise _other(path.name, "is not locked, and would be loaded", field)


def _other(name: str, fault: str, field: str) -> VerificationError:
    return VerificationError(f"{name} {fault}", field=field, remedy="fetch the model again: medport snapshot pull")
