"""What must be on the disk before what: a loss of power at any point loses the last step and nothing before it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.snapshots import add

from medport_local.store import Store


class Disk:
    """Remembers what was changed and not yet brought to the disk by ``fsync``."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.unsafe: dict[int, str] = {}
        self.renamed: list[str] = []
        for name in ("write", "fsync", "rename", "link", "mkdir"):
            patch.setattr(os, name, self._watched(getattr(self, f"_{name}"), getattr(os, name)))

    def _watched(self, seen: Callable[..., None], real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            if seen.__name__ == "_rename":
                seen(*arguments)
                return real(*arguments, **options)
            result = real(*arguments, **options)
            seen(*arguments)
            return result

        return watched

    def _write(self, descriptor: int, data: object) -> None:
        self.unsafe[os.fstat(descriptor).st_ino] = "a file"

    def _fsync(self, descriptor: int) -> None:
        self.unsafe.pop(os.fstat(descriptor).st_ino, None)

    def _rename(self, source: Path, target: Path) -> None:
        inside = [source, *source.rglob("*")] if source.is_dir() else [source]
        for path in inside:
            assert path.stat().st_ino not in self.unsafe, f"{path.name} gets its name before it is on the disk"
        if target.parent.name == "snapshots":
            assert (target.parent.parent / "records").stat().st_ino not in self.unsafe, "no record on the disk yet"
        self._name(target)
        self.renamed.append(target.parent.name)

    def _link(self, source: Path, target: Path) -> None:
        assert stat.S_IMODE(source.stat().st_mode) == 0o444
        self._name(target)

    def _mkdir(self, path: Path, mode: int) -> None:
        self._name(path)

    def _name(self, path: Path) -> None:
        if not path.name.startswith("."):  # what is under way may be lost
            self.unsafe[path.parent.stat().st_ino] = f"a name in {path.parent.name}"


def remaining(disk: Disk, store: Store) -> list[str]:
    """What is not on the disk yet, but for what is under way."""
    passing = {path.stat().st_ino for path in [store.root / "partial", *(store.root / "partial").rglob("*")]}
    return [what for inode, what in disk.unsafe.items() if inode not in passing]


def test_pull_brings_each_step_to_the_disk_before_the_next(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "x.json").write_text("{}")
    disk = Disk(monkeypatch)

    add(store, folder)

    assert "snapshots" in disk.renamed
    assert "records" in disk.renamed
    assert remaining(disk, store) == []


def test_second_name_is_on_the_disk_when_the_pull_has_ended(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, folder, revision=None)
    disk = Disk(monkeypatch)

    add(store, folder, revision="b" * 40)

    assert disk.renamed.count("records") == 2
    assert remaining(disk, store) == []


def test_pin_is_on_the_disk_when_it_is_said_to_be_set(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = add(store, folder)
    disk = Disk(monkeypatch)

    store.pin("x", [stored])

    assert disk.renamed == ["pins"]
    assert remaining(disk, store) == []


def test_watch_notices_a_name_that_comes_too_soon(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Disk(monkeypatch)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)

    with pytest.raises(AssertionError, match="before it is on the disk"):
        add(store, folder)
