"""Whether what is installed is what the wheels hold."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from support.site_parts import build_wheel

from medport_local.bundle.collect import installed_here
from medport_local.bundle.installed import Comparison, compare
from medport_local.bundle.wheels import read_directory


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """An environment in which ``demo`` is installed, and ``wheels`` beside it with ``demo`` and ``other``."""
    (tmp_path / "wheels").mkdir()
    wheel = build_wheel(tmp_path / "wheels", "demo", files={"demo/__init__.py": b"", "demo/data.txt": b"text\n"})
    build_wheel(tmp_path / "wheels", "other")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    return tmp_path


def _compared(site: Path) -> Comparison:
    return compare(read_directory(site / "wheels"), installed_here([str(site / "site")]))


def test_untouched_installation_is_the_same_and_what_is_absent_is_said(site: Path) -> None:
    found = _compared(site)

    assert (found.same, found.absent, found.differences) == (("demo",), ("other",), ())


@pytest.mark.parametrize("name", ["demo/__init__.py", "demo/data.txt", "demo-1.0.dist-info/METADATA"])
def test_changed_file_is_named(site: Path, name: str) -> None:
    file = site / "site" / name
    file.write_bytes(file.read_bytes() + b"\n")

    (difference,) = _compared(site).differences

    assert (difference.name, difference.fault) == ("demo", f"{name} is not the file of the wheel")


def test_missing_file_is_named(site: Path) -> None:
    (site / "site/demo/data.txt").unlink()

    (difference,) = _compared(site).differences

    assert difference.fault.startswith("demo/data.txt is missing")


def test_other_version_is_named(site: Path) -> None:
    (site / "wheels/demo-1.0-py3-none-any.whl").unlink()
    build_wheel(site / "wheels", "demo", "1.1")

    (difference,) = _compared(site).differences

    assert difference.fault == "1.0 is installed, the wheel is 1.1"


def test_module_that_the_wheel_does_not_bring_is_named(site: Path) -> None:
    (site / "site/demo/more.py").write_text("import os\n")
    record = site / "site/demo-1.0.dist-info/RECORD"
    record.write_text(record.read_text() + "demo/more.py,,\n")

    (difference,) = _compared(site).differences

    assert difference.fault == "demo/more.py is in no wheel"
