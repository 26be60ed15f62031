"""Whether what is installed here is what wheels hold, file by file, and what else lies there that can run.

What Python compiles from the files of a wheel is made here, and no wheel says what it must be. Only what Python
would run without a look at the source (PEP 552, "unchecked") or without a source at all is told from it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import Distribution
from importlib.util import MAGIC_NUMBER

from medport_local.bundle.wheels import Wheel, record_of

_RUNS = (".py", ".pth", ".pyc", *EXTENSION_SUFFIXES)
"""What Python takes for a module, or reads at its start."""
_CACHE = "__pycache__"
_FLAGS = slice(len(MAGIC_NUMBER), len(MAGIC_NUMBER) + 4)
_UNCHECKED_HASH = 1
"""The flags of a compiled file that is used whatever its source holds (PEP 552)."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One distribution that is not what its wheel holds."""

    name: str
    fault: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What came of comparing."""

    same: tuple[str, ...]
    """Names of distributions whose every file is the wheel's."""
    absent: tuple[str, ...]
    """Not installed here, which is no fault: nobody needs every extra."""
    others: tuple[str, ...]
    """Installed here, and in none of the wheels; not looked into."""
    differences: tuple[Difference, ...]
    strays: tuple[str, ...]
    """What can run where those distributions lie, and belongs to none that is installed."""


def compare(wheels: Sequence[Wheel], installed: Mapping[str, Distribution]) -> Comparison:
    """Hash every installed file that a wheel lists; as long as the disk and sha256 take.

    Args:
        installed: by normalised name, as ``collect.installed_here`` gives it.

    Raises:
        VerificationError: a wheel cannot be read.
    """
    there = [wheel for wheel in wheels if wheel.name in installed]
    # hashlib lets go of the interpreter's lock, so files hash side by side.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="medport-hash") as pool:
        faults = {wheel.name: _fault(wheel, installed[wheel.name], pool) for wheel in there}
    names = {wheel.name for wheel in wheels}
    return Comparison(
        same=tuple(name for name, fault in faults.items() if fault is None),
        absent=tuple(wheel.name for wheel in wheels if wheel.name not in installed),
        others=tuple(sorted(installed.keys() - names)),
        differences=tuple(Difference(name, fault) for name, fault in faults.items() if fault is not None),
        strays=tuple(_strays([installed[wheel.name] for wheel in there], installed.values())),
    )


def _fault(wheel: Wheel, there: Distribution, pool: ThreadPoolExecutor) -> str | None:
    if there.version != wheel.version:
        return f"{there.version} is installed, the wheel is {wheel.version}"
    listed = record_of(wheel.path)
    files = {path: str(there.locate_file(path)) for path in listed}
    for path, digest in zip(files, pool.map(_digest, files.values()), strict=True):
        if digest is None:
            return f"{path} is missing, or is not installed from a wheel"
        if digest != listed[path]:
            return f"{path} is not the file of the wheel"
    more = next(_more_code(listed, there), None)
    return f"{more} is in no wheel" if more else None


def _more_code(listed: Mapping[str, str], there: Distribution) -> Iterator[str]:
    """Recorded as part of the distribution, able to run, and not in the wheel."""
    for file in there.files or ():
        path = file.as_posix()
        # Scripts, and what is compiled from the wheel's own files, are made by the installer.
        if path not in listed and path.endswith(_RUNS) and not path.startswith("../") and _CACHE not in file.parts:
            yield path


def _strays(compared: Sequence[Distribution], every: Iterable[Distribution]) -> Iterator[str]:
    """What can run in the directories where some distributions lie, and is recorded by none that is installed."""
    recorded: set[str] = set()
    for each in every:
        root = _root(each)
        recorded.update(os.path.normpath(os.path.join(root, file.as_posix())) for file in each.files or ())
    for root in sorted(set(map(_root, compared))):
        for path in _able_to_run(root):
            inside = os.path.join(path, "")
            if path not in recorded and not (os.path.isdir(path) and any(x.startswith(inside) for x in recorded)):
                yield os.path.relpath(path, root)


def _able_to_run(root: str) -> Iterator[str]:
    """Modules, what Python reads at its start, and compiled files that it uses whatever their source holds."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        # A link to a folder is not walked into here, but is imported from.
        yield from (path for name in folders if os.path.islink(path := os.path.join(folder, name)))
        is_cache = os.path.basename(folder) == _CACHE
        for name in sorted(files):
            path = os.path.join(folder, name)
            if name.endswith(_RUNS) and not (is_cache and name.endswith(".pyc") and _is_looked_after(path)):
                yield path


def _is_looked_after(path: str) -> bool:
    """Whether Python looks at the source before it uses a compiled file."""
    try:
        with open(path, "rb") as file:
            flags = file.read(_FLAGS.stop)[_FLAGS]
    except OSError:
        return False
    return int.from_bytes(flags, "little") != _UNCHECKED_HASH


def _root(there: Distribution) -> str:
    """The directory of packages that a distribution lies in, by its one true name."""
    return os.path.realpath(str(there.locate_file("")))


def _digest(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
