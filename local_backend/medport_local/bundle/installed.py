"""Whether what is installed here is what wheels hold, file by file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import Distribution

from medport_local.bundle.wheels import Wheel, record_of


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
    differences: tuple[Difference, ...]


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
    return Comparison(
        same=tuple(name for name, fault in faults.items() if fault is None),
        absent=tuple(wheel.name for wheel in wheels if wheel.name not in installed),
        differences=tuple(Difference(name, fault) for name, fault in faults.items() if fault is not None),
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
        if path not in listed and path.endswith((".py", ".pth", ".so")) and not path.startswith("../"):
            yield path


def _digest(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
