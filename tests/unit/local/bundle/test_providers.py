"""Mirrors of Terraform providers: what is listed goes in, what does not match is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.site_parts import h1, provider_mirror

from medport.errors import ConfigError, VerificationError
from medport_local.bundle.providers import h1_of, read_mirror

SOURCE = "registry.example/hashicorp/google"


def _listing(mirror: Path) -> Path:
    return mirror / SOURCE / "7.42.0.json"


def _change(file: Path, **fields: Any) -> None:
    content = json.loads(file.read_text())
    content["archives"]["linux_amd64"] |= fields
    file.write_text(json.dumps(content))


def test_mirror_gives_the_listed_files_and_both_hashes_of_each_archive(tmp_path: Path) -> None:
    archive = provider_mirror(tmp_path)
    (tmp_path / SOURCE / "notes.txt").write_text("not listed")

    mirror = read_mirror(tmp_path)

    assert set(mirror.files) == {f"{SOURCE}/index.json", f"{SOURCE}/7.42.0.json", f"{SOURCE}/{archive.name}"}
    (found,) = mirror.archives
    assert (found.source, found.version, found.platform) == (SOURCE, "7.42.0", "linux_amd64")
    assert found.hashes == (h1(archive), f"zh:{found.sha256}")


def test_h1_is_that_of_the_content_whatever_its_order_in_the_archive(tmp_path: Path) -> None:
    import zipfile

    for name, order in (("a.zip", ("x", "y")), ("b.zip", ("y", "x"))):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            for each in order:
                file.writestr(each, each.encode())

    assert h1_of(tmp_path / "a.zip") == h1_of(tmp_path / "b.zip") == h1(tmp_path / "a.zip")


def test_changed_archive_is_refused(tmp_path: Path) -> None:
    archive = provider_mirror(tmp_path)
    data = bytearray(archive.read_bytes())
    data[60] ^= 1
    archive.write_bytes(data)

    with pytest.raises(VerificationError, match=r"google_7\.42\.0_linux_amd64\.zip"):
        read_mirror(tmp_path)


@pytest.mark.parametrize("wrong", ["h1:" + "A" * 43 + "=", "zh:" + "0" * 64])
def test_hash_of_another_archive_is_refused(tmp_path: Path, wrong: str) -> None:
    provider_mirror(tmp_path)
    _change(_listing(tmp_path), hashes=[wrong])

    with pytest.raises(VerificationError, match="does not have the hash that its listing states"):
        read_mirror(tmp_path)


def test_hash_of_a_form_that_is_not_known_is_passed_over(tmp_path: Path) -> None:
    provider_mirror(tmp_path)
    _change(_listing(tmp_path), hashes=["h9:whatever"])

    assert len(read_mirror(tmp_path).archives) == 1


@pytest.mark.parametrize(
    "url",
    [
        "https://registry.example/x.zip", "../x.zip", "/etc/x.zip", "sub/x.zip", "x.tar", "..", "", None, 3,
        "x\\y.zip", "a:b.zip",
    ],
)  # fmt: skip
def test_archive_that_does_not_lie_beside_its_listing_is_refused(tmp_path: Path, url: object) -> None:
    provider_mirror(tmp_path)
    _change(_listing(tmp_path), url=url)

    with pytest.raises(VerificationError, match="does not name a zip file beside it"):
        read_mirror(tmp_path)


def test_missing_archive_and_a_link_to_one_are_refused(tmp_path: Path) -> None:
    archive = provider_mirror(tmp_path / "mirror")
    moved = tmp_path / "moved.zip"
    archive.rename(moved)

    with pytest.raises(VerificationError, match="is missing"):
        read_mirror(tmp_path / "mirror")
    archive.symlink_to(moved)
    with pytest.raises(VerificationError, match="is a link"):
        read_mirror(tmp_path / "mirror")


def test_listing_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    provider_mirror(tmp_path)

    for content in (b"", b"[]", b'{"archives": []}', b"\xff", b"[" * 100_000):
        _listing(tmp_path).write_bytes(content)
        with pytest.raises(VerificationError, match=r"7\.42\.0\.json"):
            read_mirror(tmp_path)


def test_version_that_is_a_path_is_refused(tmp_path: Path) -> None:
    provider_mirror(tmp_path)
    (tmp_path / SOURCE / "index.json").write_text('{"versions": {"../../../x": {}}}')

    with pytest.raises(VerificationError, match="names a version that is none"):
        read_mirror(tmp_path)


def test_directory_without_a_provider_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no provider"):
        read_mirror(tmp_path)
    with pytest.raises(ConfigError, match="no such directory"):
        read_mirror(tmp_path / "none")


def test_archive_whose_packing_is_damaged_is_refused(tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("x", b"provider" * 100)
    data = bytearray(path.read_bytes())
    start = 30 + len("x")
    data[start + 6 : start + 20] = bytes(0xFF ^ each for each in data[start + 6 : start + 20])
    path.write_bytes(data)

    with pytest.raises(VerificationError, match=r"a\.zip"):
        h1_of(path)
