"""Looking whether everything in the store is what it is called.

Every blob is hashed, and every file of a snapshot that is not a link to one. Snapshots are held meanwhile. What a
pull or a repair is just changing may look wrong: so what was found, hashes apart, is looked for again under the
store's lock.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medport.errors import VerificationError
from medport_local.snapshot import MANIFEST, Manifest, digest_of
from medport_local.snapshot_names import check_names
from medport_local.store import entries
from medport_local.store.hashing import hash_files, size_of
from medport_local.store.layout import SHA256, Layout
from medport_local.store.locks import locked
from medport_local.store.records import Entry

Kind = Literal["damaged", "stranger", "mode", "snapshot", "lost", "note"]
"""``damaged`` bytes and a ``stranger`` are taken out, a ``mode`` is set, of a ``snapshot`` the whole directory is
taken out, what is ``lost`` is put back if there is a blob of it; a ``note`` is for people."""

PULL = "pull it again"
REPAIR = "medport snapshot verify --repair"
_FOLDER = re.compile(r"[0-9a-f]{2}")
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_WRITABLE = stat.S_IWUSR | _WRITABLE_BY_OTHERS


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    path: str
    """Inside the store."""
    fault: str
    remedy: str
    snapshots: tuple[str, ...] = ()
    """References of the snapshots that it makes unusable; none for what only takes room."""
    repaired: bool = False
    """Whether it was taken out or mended just now."""
    kind: Kind = "note"
    """What repairing can do about it."""


def verify(layout: Layout, sha256: str | None, *, told: Callable[[int, int], None] | None) -> list[Finding]:
    """Look at one snapshot, or at everything. See ``Store.verify``."""
    with ExitStack() as stack:
        names = entries.snapshot_names(layout) if sha256 is None else [sha256]
        for name in names:
            _hold(layout, stack, name)
        look = _Look(layout, names, everything=sha256 is None)
        found = look.structure()
        if found:
            with ExitStack() as quiet:
                with suppress(OSError):  # read-only, and the lock's file is not there
                    quiet.enter_context(locked(layout.mutex, shared=True))
                look = _Look(layout, names, everything=sha256 is None)
                found = look.structure()
        return found + look.hashes(told)


def structure(layout: Layout, sha256: str | None) -> list[Finding]:
    """As ``verify``, but nothing is hashed. The caller holds the store's lock."""
    names = entries.snapshot_names(layout) if sha256 is None else [sha256]
    return _Look(layout, names, everything=sha256 is None).structure()


def is_damaged(layout: Layout, path: Path) -> bool:
    """Whether a blob, or a snapshot's file, is there and holds other bytes than it must."""
    if path.is_relative_to(layout.snapshots):
        name, *inside = path.relative_to(layout.snapshots).parts
        manifest = entries.read_manifest(layout.snapshot(name))
        entry = manifest.files.get("/".join(inside)) if manifest else None
        sha256 = entry.sha256 if entry else None
    else:
        sha256 = path.name
    found = hash_files([path])[path]
    if isinstance(found, VerificationError):
        return os.path.lexists(path)
    return sha256 is not None and found.sha256 != sha256


def _hold(layout: Layout, stack: ExitStack, name: str) -> None:
    try:
        stack.enter_context(locked(layout.lease(name), shared=True))
    except OSError:  # read-only, and the lock's file is not there
        return


class _Look:
    def __init__(self, layout: Layout, names: list[str], *, everything: bool) -> None:
        self._layout = layout
        # Some may just have been collected.
        self._names = [name for name in names if layout.snapshot(name).is_dir()]
        self._everything = everything
        self._users: dict[str, list[str]] = {}
        """References of snapshots by the blobs that they need."""
        self._expected: dict[Path, tuple[str, tuple[str, ...]]] = {}
        """What must come out for each file that is hashed, and which snapshots need it."""

    def structure(self) -> list[Finding]:
        """What is wrong whatever the bytes are; and note what is to be hashed."""
        found = [finding for name in self._names for finding in self._snapshot(name)]
        if self._everything:
            found += [*self._beside(), *self._blobs(), *self._pins()]
        return found

    def _snapshot(self, name: str) -> Iterator[Finding]:
        directory = self._layout.snapshot(name)
        manifest, digest, known = entries.read_together(self._layout, name)
        manifest, fault = _judged(name, manifest, digest, known)
        if manifest is None:
            place = f"snapshots/{name}/{MANIFEST}"
            yield Finding(place, fault, f"{REPAIR}, then {PULL}", (f"sha256:{name[:12]}",), kind="snapshot")
            return
        reference = entries.reference(manifest.repo_id, manifest.revision)
        record = f"records/{name}.json"
        if known is None:
            yield Finding(record, "is missing or cannot be read", PULL, (reference,))
        elif _mode(self._layout.record(name)) & _WRITABLE_BY_OTHERS:
            yield _loose(record)
        for entry in manifest.files.values():
            self._users.setdefault(entry.sha256, []).append(reference)
        yield from self._tree(name, directory, manifest, reference)

    def _tree(self, name: str, directory: Path, manifest: Manifest, reference: str) -> Iterator[Finding]:
        missing = dict(manifest.files)
        folders = {folder.as_posix() for file in manifest.files for folder in Path(file).parents}
        for folder, inner, files in os.walk(directory):
            inside = Path(folder).relative_to(directory)
            if _mode(Path(folder)) & _WRITABLE:
                yield _loose(f"snapshots/{name}/{inside}".removesuffix("/."))
            strangers = [each for each in inner if (inside / each).as_posix() not in folders]
            inner[:] = [each for each in inner if each not in strangers]
            for each in [*strangers, *files]:
                file, path = (inside / each).as_posix(), Path(folder) / each
                place, mode = f"snapshots/{name}/{file}", _mode(path)
                regular = stat.S_ISREG(mode)
                if mode == 0:
                    continue  # taken out just now
                if regular and file == MANIFEST:
                    if mode & _WRITABLE:
                        yield _loose(place)
                elif missing.pop(file, None) is None or not regular:
                    yield _stranger(place, reference)
                else:
                    yield from self._file(place, path, manifest.files[file].sha256, reference)
        for file in missing:
            place = f"snapshots/{name}/{file}"
            yield Finding(place, "is missing", f"{REPAIR}, or {PULL}", (reference,), kind="lost")

    def _file(self, place: str, path: Path, sha256: str, reference: str) -> Iterator[Finding]:
        blob = self._layout.blob(sha256)
        linked = _is_same(path, blob)
        target = blob if linked else path
        _, users = self._expected.get(target, ("", ()))
        self._expected[target] = (sha256, (*users, reference))
        if _mode(path) & _WRITABLE and not (linked and self._everything):  # else it is said of the blob
            yield _loose(place)

    def _beside(self) -> Iterator[Finding]:
        """What lies between the snapshots; what begins with a dot is under way."""
        for path in sorted(self._layout.snapshots.iterdir()):
            if not path.name.startswith(".") and not entries.is_snapshot(path) and _mode(path):
                yield _stranger(f"snapshots/{path.name}")

    def _blobs(self) -> Iterator[Finding]:
        root = self._layout.root
        for folder in sorted((root / "blobs").iterdir()):
            if not _FOLDER.fullmatch(folder.name) or not stat.S_ISDIR(_mode(folder)):
                if _mode(folder):
                    yield _stranger(folder.relative_to(root).as_posix())
                continue
            for path in sorted(folder.iterdir()):
                place, mode = path.relative_to(root).as_posix(), _mode(path)
                if mode == 0:
                    continue  # collected meanwhile
                right = SHA256.fullmatch(path.name) and self._layout.blob(path.name) == path
                if not right or not stat.S_ISREG(mode):
                    yield _stranger(place)
                    continue
                self._expected[path] = (path.name, tuple(self._users.get(path.name, ())))
                if mode & _WRITABLE:
                    yield _loose(place)

    def _pins(self) -> Iterator[Finding]:
        for name in entries.pin_names(self._layout):
            try:
                pin = entries.read_pin(self._layout, name)
            except VerificationError as fault:
                yield Finding(f"pins/{name}.json", "cannot be read", fault.remedy or "")
                continue
            if pin is None:
                continue  # unpinned meanwhile
            if _mode(self._layout.pin(name)) & _WRITABLE_BY_OTHERS:
                yield _loose(f"pins/{name}.json")
            for sha256 in pin.snapshots:
                if not self._layout.snapshot(sha256).is_dir():
                    said = f"keeps sha256:{sha256[:12]}, which is not there"
                    yield Finding(f"pins/{name}.json", said, f"{PULL}, or medport snapshot unpin {name}")

    def hashes(self, told: Callable[[int, int], None] | None) -> list[Finding]:
        """Whose bytes are others than they must be."""
        found = hash_files(self._expected, _progress(self._expected, told))
        findings = []
        for path, (sha256, users) in sorted(self._expected.items()):
            outcome = found[path]
            place = path.relative_to(self._layout.root).as_posix()
            if isinstance(outcome, VerificationError):
                if isinstance(outcome.__context__, FileNotFoundError):
                    # Collected meanwhile, and perhaps there again; or another repair took it out.
                    if users:
                        findings.append(Finding(place, "is missing", PULL, tuple(sorted(set(users))), kind="lost"))
                    continue
                fault = outcome.message.partition(": ")[2]
            elif outcome.sha256 == sha256:
                continue
            else:
                fault = "does not hold the bytes that its name says" if "blobs/" in place else "is damaged"
            findings.append(
                Finding(place, fault, f"{REPAIR}, then {PULL}", tuple(sorted(set(users))), kind="damaged")
            )
        return findings


def _judged(
    name: str, manifest: Manifest | None, digest: str | None, known: Entry | None
) -> tuple[Manifest | None, str]:
    """A snapshot's manifest, or what is wrong with it."""
    if manifest is None:
        return None, "is missing or cannot be read"
    if manifest.snapshot_sha256 != name or digest_of(manifest.files) != name:
        return None, "is not that of this snapshot"
    if known is not None and digest not in known.manifest_sha256:
        return None, "is not the one that was stored"
    try:
        check_names(manifest.files)
    except VerificationError as bad:
        return None, f"names a file that cannot be: {bad.message}"
    return manifest, ""


def _loose(place: str) -> Finding:
    return Finding(place, "may be written", REPAIR, kind="mode")


def _stranger(place: str, *references: str) -> Finding:
    return Finding(place, "does not belong there", REPAIR, references, kind="stranger")


def _is_same(path: Path, blob: Path) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.lstat(blob))
    except FileNotFoundError:
        return False


def _mode(path: Path) -> int:
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return 0


def _progress(
    paths: dict[Path, tuple[str, tuple[str, ...]]], told: Callable[[int, int], None] | None
) -> Callable[[int], None] | None:
    if told is None:
        return None
    total = sum(map(size_of, paths))
    lock, done = threading.Lock(), [0]

    def read(count: int) -> None:
        with lock:
            done[0] += count
            told(done[0], total)

    return read
