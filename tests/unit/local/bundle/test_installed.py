"""Whether what is installed is what the wheels hold."""

from __future__ import annotations

import py_compile
import zipfile
from pathlib import Path
from py_compile import PycInvalidationMode

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
    assert (found.others, found.strays) == ((), ())


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


@pytest.mark.parametrize(
    "path", ["evil.pth", "sitecustomize.py", "demo/plugin.so", "demo/more.py", "demo/old.pyc", "evil/__init__.py"]
)
def test_what_can_run_and_nobody_brought_is_named(site: Path, path: str) -> None:
    file = site / "site" / path
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"")

    assert _compared(site).strays == (path,)


def test_folder_elsewhere_that_is_linked_into_the_packages_is_named(site: Path) -> None:
    (site / "elsewhere").mkdir()
    (site / "site/linked").symlink_to(site / "elsewhere")

    assert _compared(site).strays == ("linked",)


def test_what_another_distribution_brought_is_no_stray_and_it_is_counted(site: Path) -> None:
    wheel = build_wheel(site, "beside", files={"demo/beside.py": b"", "beside.pth": b""})
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site / "site")

    found = _compared(site)

    assert (found.same, found.others, found.strays) == (("demo",), ("beside",), ())


@pytest.mark.parametrize(
    ("mode", "is_named"),
    [
        (PycInvalidationMode.UNCHECKED_HASH, True),
        (PycInvalidationMode.CHECKED_HASH, False),
        (PycInvalidationMode.TIMESTAMP, False),
    ],
)
def test_compiled_file_that_python_uses_without_a_look_at_its_source_is_named(
    site: Path, mode: PycInvalidationMode, is_named: bool
) -> None:
    made = py_compile.compile(str(site / "site/demo/__init__.py"), invalidation_mode=mode)

    assert made is not None
    assert _compared(site).strays == ((str(Path(made).relative_to(site / "site")),) if is_named else ())
