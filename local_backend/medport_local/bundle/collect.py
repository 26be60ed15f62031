"""The wheels of exactly the distributions that this environment runs, for a site that has no index to ask.

From medport's own wheel its requirements are followed through what is installed: medport's extras that are whole
here, and all that they need. Each is fetched by ``pip download`` in the version that is installed, from where
pip's own configuration says, and compared with what is installed, file by file. Last, ``pip install --dry-run`` is
asked whether the directory suffices by itself: else the site would find out.

The wheels are for this Python and this platform.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from medport.errors import ConfigError, ServerError, VerificationError
from medport_local.bundle.wheels import Wheel, hex_of, read_directory, read_wheel, record_of

ROOT = "medport"
NOT_FOR_SITES = frozenset({"dev", "bench", "gemma270m"})
"""Extras that serve developers. The last one carries weights, which go into a bundle as a pinned snapshot only."""
_PIP_TIMEOUT_S = 3600.0
_UNSATISFIED = re.compile(r"satisfies the requirement (\S+)|No matching distribution found for (\S+)")


def collect(
    directory: Path,
    *,
    told: Callable[[str], None],
    root: str = ROOT,
    installed: Mapping[str, Distribution] | None = None,
) -> tuple[Wheel, ...]:
    """Fill an empty directory with the wheels of what is installed here; in the order of their names.

    Args:
        told: is called with lines for people.
        root: the distribution from which requirements are followed.
        installed: what is installed, by normalised name; by default what this interpreter finds.

    Raises:
        ConfigError: there is no pip, something that is needed is not installed, or has no wheel where pip looks.
        VerificationError: a wheel holds other files than those that are installed, a source tree is of another
            version, or the wheels do not suffice.
        ServerError: pip failed otherwise.
    """
    found = installed_here() if installed is None else installed
    there = _of(found, root)
    own = _own_wheel(directory, there, told)
    extras = whole_extras(own, found)
    needed = closure(own, extras, found)
    told(f"{root} {own.version} with {', '.join(sorted(extras)) or 'no extras'}: {len(needed) + 1} distributions")
    lines = [_pinned(each) for each in needed]
    if lines:
        _run_pip(["download", "--no-deps", "--only-binary=:all:", "--dest", str(directory), *lines], "fetch")
    wheels = read_directory(directory)
    # What is installed editable is its source tree, which has no list of files to compare with.
    is_editable = bool(_origin(there).get("dir_info", {}).get("editable"))
    _compare(wheels, needed if is_editable else [there, *needed])
    check_sufficient(directory, own, extras)
    told(f"wheels are for {sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}, {sys.platform}")
    return wheels


def installed_here(path: Sequence[str] | None = None) -> dict[str, Distribution]:
    """What is installed, by normalised name; of a name that is there twice, what would be imported."""
    found: dict[str, Distribution] = {}
    for each in distributions() if path is None else distributions(path=list(path)):
        if name := each.metadata["Name"]:
            found.setdefault(canonicalize_name(name), each)
    return found


def whole_extras(wheel: Wheel, installed: Mapping[str, Distribution]) -> frozenset[str]:
    """The extras whose every requirement is installed here; none of those for developers."""

    def is_whole(extra: str) -> bool:
        wanted = [each for each in _needs(wheel.requires, {extra}) if each not in _needs(wheel.requires, ())]
        return bool(wanted) and all(_is_met(each, installed) for each in wanted)

    return frozenset(extra for extra in wheel.extras if extra not in NOT_FOR_SITES and is_whole(extra))


def closure(wheel: Wheel, extras: Collection[str], installed: Mapping[str, Distribution]) -> list[Distribution]:
    """All that ``wheel`` with ``extras`` needs, and what that needs, by name; without the wheel itself.

    Raises:
        ConfigError: something of it is not installed, or in a version that does not fit.
    """
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    # (who, extra of it): the requirements of "" are those without an extra.
    open_ends: list[tuple[str, str]] = [(wheel.name, extra) for extra in ("", *sorted(extras))]
    while open_ends:
        name, extra = open_ends.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        lines = wheel.requires if name == wheel.name else tuple(installed[name].requires or ())
        for need in _needs(lines, {extra} if extra else ()):
            target = canonicalize_name(need.name)
            if not _is_met(need, installed):
                raise ConfigError(
                    f"{name} needs {need.name}{need.specifier}, which is not installed here",
                    field="wheels",
                    remedy="mend this environment (pip check), or give a directory of wheels",
                )
            if target != wheel.name:
                found[target] = installed[target]
            open_ends += [(target, inner) for inner in ("", *sorted(need.extras))]
    return [found[name] for name in sorted(found)]


def check_sufficient(directory: Path, wheel: Wheel, extras: Collection[str]) -> None:
    """Ask pip whether ``wheel`` with ``extras`` can be installed from the directory and nothing else.

    Raises:
        VerificationError: it cannot. Names what is missing.
    """
    wanted = f"{wheel.name}[{','.join(sorted(extras))}]=={wheel.version}"
    arguments = [
        "install", "--dry-run", "--ignore-installed", "--quiet", "--no-index",
        "--find-links", str(directory), wanted,
    ]  # fmt: skip
    done = _pip(arguments, alone=True)
    if done.returncode:
        missing = _unsatisfied(done.stderr)
        raise VerificationError(
            f"the wheels do not suffice to install {wheel.name}: {missing or 'pip finds no solution'}",
            field="wheels",
            remedy="mend this environment (pip check), and export again",
        )


def _needs(lines: Sequence[str], extras: Collection[str]) -> Iterator[Requirement]:
    """The requirements among ``lines`` that hold on this machine, with ``extras``."""
    for line in lines:
        try:
            need = Requirement(line)
        except InvalidRequirement:
            # Old metadata; pip passes over it too.
            continue
        environments: list[dict[str, str]] = [{"extra": extra} for extra in ("", *extras)]
        if need.marker is None or any(need.marker.evaluate(each) for each in environments):
            yield need


def _is_met(need: Requirement, installed: Mapping[str, Distribution]) -> bool:
    there = installed.get(canonicalize_name(need.name))
    return there is not None and need.specifier.contains(there.version, prereleases=True)


def _of(installed: Mapping[str, Distribution], name: str) -> Distribution:
    if (there := installed.get(canonicalize_name(name))) is None:
        raise ConfigError(f"{name} is not installed here", field="wheels", remedy="give a directory of wheels")
    return there


def _own_wheel(directory: Path, there: Distribution, told: Callable[[str], None]) -> Wheel:
    """Build it from the source tree that it is installed from, or fetch it as the others."""
    origin = _origin(there)
    source = _source_tree(origin)
    if source is not None:
        told(f"building {there.metadata['Name']} from its source tree")
        _run_pip(["wheel", "--no-deps", "--wheel-dir", str(directory), str(source)], "build")
    else:
        line = _pinned(there)
        _run_pip(["download", "--no-deps", "--only-binary=:all:", "--dest", str(directory), line], "fetch")
    made = sorted(directory.glob("*.whl"))
    assert len(made) == 1
    wheel = read_wheel(made[0])
    if wheel.version != there.version:
        raise VerificationError(
            f"{there.metadata['Name']} {there.version} is installed, but its source tree is of {wheel.version}",
            field="wheels",
            remedy="install it again",
        )
    return wheel


def _origin(there: Distribution) -> dict[str, Any]:
    """``direct_url.json``; empty for what came from an index.

    Source: Python Packaging User Guide, "Recording the Direct URL Origin of installed distributions".
    """
    text = there.read_text("direct_url.json")
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


def _source_tree(origin: Mapping[str, Any]) -> Path | None:
    if "dir_info" not in origin:
        return None
    tree = _local_path(origin)
    if tree is None or not tree.is_dir():
        raise ConfigError("the source tree is gone", field="wheels", remedy="give a directory of wheels")
    return tree


def _local_path(origin: Mapping[str, Any]) -> Path | None:
    parts = urlsplit(str(origin.get("url", "")))
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def _pinned(there: Distribution) -> str:
    """How pip is asked for it: by its exact version, or by the wheel that it was installed from."""
    name, origin = there.metadata["Name"], _origin(there)
    if "vcs_info" in origin or "dir_info" in origin:
        raise ConfigError(
            f"{name} was installed from a source tree, and is not made into a wheel here",
            field="wheels",
            remedy="build its wheel (pip wheel), and give a directory of wheels",
        )
    file = _local_path(origin)
    if file is not None and file.suffix == ".whl" and file.is_file():
        return f"{name} @ {file.as_uri()}"
    return f"{name}=={there.version}"


def _compare(wheels: Sequence[Wheel], needed: Sequence[Distribution]) -> None:
    """Refuse a wheel that holds other files than those that are installed here."""
    by_name = {wheel.name: wheel for wheel in wheels}
    for there in needed:
        name = canonicalize_name(there.metadata["Name"])
        if name not in by_name:
            raise VerificationError(f"pip brought no wheel of {name}", field="wheels", remedy="export again")
        installed = _recorded(there)
        listed = record_of(by_name[name].path)
        if installed and any(installed.get(path) != digest for path, digest in listed.items()):
            raise VerificationError(
                f"{by_name[name].path.name} is not the wheel that is installed here",
                field="wheels",
                remedy="install it again from where it was fetched, or give a directory of wheels",
            )


def _recorded(there: Distribution) -> dict[str, str]:
    found = {}
    for file in there.files or ():
        # A file in NAME.dist-info that pip writes itself, such as REQUESTED, is in no wheel.
        if file.hash is not None and file.hash.mode == "sha256":
            found[file.as_posix()] = hex_of(f"sha256={file.hash.value}")
    return found


def _run_pip(arguments: Sequence[str], verb: str) -> None:
    done = _pip(arguments)
    if done.returncode == 0:
        return
    # pip's own words may hold the address of an index and its password.
    if missing := _unsatisfied(done.stderr):
        raise ConfigError(
            f"pip finds no wheel of {missing} for this Python and platform",
            field="wheels",
            remedy="build it (pip wheel), and give a directory of wheels",
        )
    if "No module named pip" in done.stderr:
        raise ConfigError("this environment has no pip", field="wheels", remedy="python -m ensurepip")
    raise ServerError(
        f"pip could not {verb} the wheels",
        field="wheels",
        remedy=f"see what this says: {Path(sys.executable).name} -m pip {arguments[0]}",
    )


def _pip(arguments: Sequence[str], *, alone: bool = False) -> subprocess.CompletedProcess[str]:
    """Run pip; ``alone`` without its configuration, so that nothing but the arguments counts."""
    environment = {key: value for key, value in os.environ.items() if not (alone and key.startswith("PIP_"))}
    if alone:
        environment["PIP_CONFIG_FILE"] = os.devnull
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    return subprocess.run(  # noqa: S603  no shell, and the program is this interpreter
        command, env=environment, capture_output=True, text=True, check=False, timeout=_PIP_TIMEOUT_S
    )


def _unsatisfied(said: str) -> str | None:
    found = _UNSATISFIED.search(said)
    return (found[1] or found[2]) if found else None
