"""Wheels as files: which are taken, and what each says about itself."""

from __future__ import annotations

import hashlib
import random
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from support.site_parts import build_wheel

from medport.errors import ConfigError, VerificationError
from medport_local.bundle.wheels import read_directory, read_wheel, record_of


def test_directory_is_read_in_the_order_of_normalised_names(tmp_path: Path) -> None:
    build_wheel(tmp_path, "Zeta.Tools", "2.0", file_name="Zeta.Tools-2.0-py3-none-any.whl")
    build_wheel(tmp_path, "alpha", requires=["zeta-tools>=1"], extras=["x"], licence="MIT")

    alpha, zeta = read_directory(tmp_path)

    assert (alpha.name, alpha.version, alpha.licence) == ("alpha", "1.0", "MIT")
    assert (alpha.requires, alpha.extras) == (("zeta-tools>=1",), ("x",))
    assert (zeta.name, zeta.version, zeta.licence) == ("zeta-tools", "2.0", None)


def test_record_gives_the_hash_of_each_file_at_the_place_where_it_is_installed(tmp_path: Path) -> None:
    files = {
        "demo.py": b"x = 1\n",
        "demo-1.0.data/purelib/more.py": b"y = 2\n",
        "demo-1.0.data/scripts/run": b"#!python\n",
    }

    record = record_of(build_wheel(tmp_path, "demo", files=files))

    assert record["demo.py"] == hashlib.sha256(b"x = 1\n").hexdigest()
    assert record["more.py"] == hashlib.sha256(b"y = 2\n").hexdigest()
    assert not any("scripts" in path or path.endswith("/RECORD") for path in record)


def test_same_distribution_in_two_versions_is_refused(tmp_path: Path) -> None:
    build_wheel(tmp_path, "demo", "1.0")
    build_wheel(tmp_path, "demo", "1.1")

    with pytest.raises(VerificationError, match=r"demo-1\.1.*is there twice, also as demo-1\.0"):
        read_directory(tmp_path)


@pytest.mark.parametrize("name", ["demo-1.0.tar.gz", "notes.txt", "demo.whl.part"])
def test_anything_but_a_wheel_in_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    build_wheel(tmp_path, "demo")
    (tmp_path / name).write_bytes(b"x")

    with pytest.raises(ConfigError, match="is no wheel"):
        read_directory(tmp_path)


def test_link_to_a_wheel_is_refused(tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "wheels"
    elsewhere.mkdir()
    folder.mkdir()
    wheel = build_wheel(elsewhere, "demo")
    (folder / wheel.name).symlink_to(wheel)

    with pytest.raises(ConfigError, match="is no regular file"):
        read_directory(folder)


def test_directory_without_wheels_or_that_is_none_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no wheels"):
        read_directory(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_directory(tmp_path / "none")


def test_wheel_whose_metadata_is_of_another_distribution_is_refused(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, "demo", metadata_name="other")

    with pytest.raises(VerificationError, match="of another distribution or version"):
        read_wheel(wheel)


@pytest.mark.parametrize(
    "name", ["demo.whl", "demo-1.0.whl", "demo-one-py3-none-any.whl", "-1.0-py3-none-any.whl"]
)
def test_file_that_is_not_named_as_a_wheel_is_refused(tmp_path: Path, name: str) -> None:
    wheel = build_wheel(tmp_path, "demo", file_name=name)

    with pytest.raises(VerificationError, match="is not named as a wheel"):
        read_wheel(wheel)


def test_bytes_that_are_no_wheel_are_refused(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, "demo")
    whole = wheel.read_bytes()

    for broken in (b"", b"PK\x03\x04 no zip", whole[: len(whole) // 2], whole[:-1], b"\x00" * 100):
        wheel.write_bytes(broken)
        with pytest.raises(VerificationError, match=wheel.name):
            read_wheel(wheel)


def test_wheel_with_two_descriptions_of_itself_is_refused(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, "demo")
    with zipfile.ZipFile(wheel, "a") as file:
        file.writestr("other-1.0.dist-info/METADATA", b"Name: demo\nVersion: 1.0\n")

    with pytest.raises(VerificationError, match="it has 2 METADATA"):
        read_wheel(wheel)


@pytest.mark.parametrize(
    "packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_damaged_wheel_is_refused_whatever_its_packing(tmp_path: Path, packing: int) -> None:
    path = tmp_path / "demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", packing) as file:
        file.writestr("demo-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n" * 20)
    whole, chance = path.read_bytes(), random.Random(packing)

    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 2, 8))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data)
        with suppress(VerificationError):  # anything else is a fault of ours
            read_wheel(path)
