"""Wheels as files: a directory of them as it is, and what each says about itself.

Source: Python Packaging User Guide, "Binary distribution format" (names, ``METADATA``, ``RECORD``), PEP 639
(licences).
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.metadata import RawMetadata, parse_email
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from medport.errors import ConfigError, VerificationError
from medport_local.bundle.zip_faults import UNREADABLE

_MAX_TEXT_BYTES = 64 * 2**20
"""Of ``METADATA`` or ``RECORD``, unpacked; the longest RECORD seen has 2 MB."""
_MAX_LICENCE = 200
"""Characters; a longer ``License`` field holds a text and no name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """One wheel in a directory."""

    path: Path
    name: str
    """Normalised: lower case, with hyphens."""
    version: str
    licence: str | None
    """As the wheel states it: an SPDX expression, or the name of one."""
    requires: tuple[str, ...]
    """``Requires-Dist``, each a PEP 508 line."""
    extras: tuple[str, ...]


def read_directory(directory: Path) -> tuple[Wheel, ...]:
    """The wheels of a directory, in the order of their names.

    Raises:
        ConfigError: there is no such directory, it has none, or it holds something else: of a source archive,
            installing would run code, and look for what builds it on the network.
        VerificationError: a file is no wheel, is not what its name says, or a distribution is there twice.
    """
    found: dict[str, Wheel] = {}
    for path in _listed(directory):
        wheel = read_wheel(path)
        if (twin := found.get(wheel.name)) is not None:
            raise VerificationError(
                f"{path.name}: {wheel.name} is there twice, also as {twin.path.name}",
                field="wheels",
                remedy="keep one of them",
            )
        found[wheel.name] = wheel
    if not found:
        raise ConfigError("the directory holds no wheels", field="wheels", remedy="fill it by pip download")
    return tuple(found[name] for name in sorted(found))


def read_wheel(path: Path) -> Wheel:
    """What one wheel says about itself.

    Raises:
        VerificationError: it is no wheel, or its metadata is of another distribution than its name.
    """
    name, version = _named(path)
    metadata = _metadata(_text(path, "METADATA"))
    said_name, said_version = metadata.get("name", ""), metadata.get("version", "")
    try:
        same = canonicalize_name(said_name) == name and Version(said_version) == version
    except InvalidVersion:
        same = False
    if not same:
        raise VerificationError(
            f"{path.name}: its metadata is of another distribution or version",
            field="wheels",
            remedy="fetch the wheel again",
        )
    return Wheel(
        path=path,
        name=name,
        version=str(version),
        licence=_licence(metadata),
        requires=tuple(metadata.get("requires_dist", ())),
        extras=tuple(metadata.get("provides_extra", ())),
    )


def record_of(path: Path) -> Mapping[str, str]:
    """What a wheel says its files hold: sha256 as 64 hex digits, by the path that each is installed at.

    Files that an installer changes or puts elsewhere are left out: ``RECORD`` itself and scripts.

    Raises:
        VerificationError: it is no wheel, or its ``RECORD`` cannot be read.
    """
    found: dict[str, str] = {}
    rows = csv.reader(io.StringIO(_text(path, "RECORD")))
    try:
        for row in rows:
            name, said = row[0], row[1]
            # NAME-1.0.data/purelib/… is installed at its place in site-packages.
            head, _, rest = name.partition(".data/")
            if rest and "/" not in head:
                scheme, _, name = rest.partition("/")
                if scheme not in ("purelib", "platlib"):
                    continue
            if said:
                found[name] = hex_of(said)
    except (csv.Error, IndexError, ValueError) as fault:
        raise _broken(path, "its RECORD cannot be read") from fault
    return found


def hex_of(said: str) -> str:
    """``sha256=`` and URL-safe base64, as ``RECORD`` has it, in hex.

    Raises:
        ValueError: it has another form.
    """
    kind, _, value = said.partition("=")
    if kind != "sha256":
        raise ValueError("not sha256")
    try:
        digest = base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)
    except binascii.Error as fault:
        raise ValueError("not base64") from fault
    if len(digest) != 32:
        raise ValueError("not a sha256")
    return digest.hex()


def _listed(directory: Path) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError as fault:
        raise ConfigError(
            f"the directory cannot be read ({os.strerror(fault.errno or 0)})",
            field="wheels",
            remedy="give a directory of wheels",
        ) from fault
    for entry in entries:
        if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            raise ConfigError(
                f"{entry.name} is no regular file", field="wheels", remedy="copy the wheels themselves there"
            )
        if not entry.name.endswith(".whl"):
            raise ConfigError(
                f"{entry.name} is no wheel", field="wheels", remedy="keep nothing but *.whl in the directory"
            )
        yield Path(entry.path)


def _named(path: Path) -> tuple[str, Version]:
    try:
        name, version, _, _ = parse_wheel_filename(path.name)
    except InvalidWheelFilename as fault:
        raise _broken(path, "is not named as a wheel") from fault
    return name, version


def _text(path: Path, name: str) -> str:
    """A file of the wheel's ``*.dist-info``."""
    try:
        with zipfile.ZipFile(path) as archive:
            places = [each for each in archive.infolist() if _is_about(each.filename, name)]
            if len(places) != 1:
                raise _broken(path, f"it has {len(places) or 'no'} {name}")
            if places[0].file_size > _MAX_TEXT_BYTES:
                raise _broken(path, f"its {name} is too large")
            with archive.open(places[0]) as file:
                # The size that the archive states may be wrong.
                return file.read(_MAX_TEXT_BYTES).decode()
    except UNREADABLE as fault:
        raise _broken(path, f"is no wheel that can be read ({type(fault).__name__})") from fault


def _is_about(path: str, name: str) -> bool:
    folder, slash, rest = path.partition("/")
    return bool(slash) and folder.endswith(".dist-info") and rest == name


def _metadata(text: str) -> RawMetadata:
    return parse_email(text)[0]


def _licence(metadata: RawMetadata) -> str | None:
    if expression := metadata.get("license_expression"):
        return expression
    prefix = "License :: "
    classified = [each for each in metadata.get("classifiers", ()) if each.startswith(prefix)]
    free = (metadata.get("license") or "").strip()
    if free and len(free) <= _MAX_LICENCE and "\n" not in free:
        return free
    return " AND ".join(each.rpartition(" :: ")[2] for each in classified) or None


def _broken(path: Path, fault: str) -> VerificationError:
    return VerificationError(f"{path.name}: {fault}", field="wheels", remedy="fetch the wheel again")
