"""OCI layouts: what is taken as an image, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.site_parts import oci_layout

from medport.errors import ConfigError, VerificationError
from medport_local.bundle import images
from medport_local.bundle.images import read_layout


@pytest.mark.parametrize("platforms", [1, 3])
def test_every_blob_of_an_image_is_found_and_its_digest_is_the_registrys(tmp_path: Path, platforms: int) -> None:
    digest = oci_layout(tmp_path / "image", platforms=platforms)

    image = read_layout(tmp_path / "image")

    assert image.digest == digest
    on_disk = {
        path.relative_to(image.directory).as_posix() for path in image.directory.rglob("*") if path.is_file()
    }
    assert set(image.files) == on_disk


def test_blob_that_the_image_does_not_refer_to_is_no_part_of_it(tmp_path: Path) -> None:
    oci_layout(tmp_path / "image")
    (tmp_path / "image/blobs/sha256" / ("0" * 64)).write_bytes(b"left over")

    assert not any("0" * 64 in name for name in read_layout(tmp_path / "image").files)


def test_changed_blob_is_refused(tmp_path: Path) -> None:
    oci_layout(tmp_path / "image", platforms=2)
    names = sorted(path.name for path in (tmp_path / "image/blobs/sha256").iterdir())

    for name in names:
        blob = tmp_path / "image/blobs/sha256" / name
        whole = blob.read_bytes()
        blob.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        with pytest.raises(VerificationError, match=rf"{name}: (does not have the digest|is not a JSON)"):
            read_layout(tmp_path / "image")
        blob.write_bytes(whole)

    read_layout(tmp_path / "image")


def test_missing_blob_is_refused(tmp_path: Path) -> None:
    oci_layout(tmp_path / "image")
    blob = next((tmp_path / "image/blobs/sha256").iterdir())
    blob.unlink()

    with pytest.raises(VerificationError, match=f"{blob.name}: is missing"):
        read_layout(tmp_path / "image")


def test_link_in_place_of_a_blob_or_of_its_folder_is_refused(tmp_path: Path) -> None:
    oci_layout(tmp_path / "image")
    oci_layout(tmp_path / "other")
    folder = tmp_path / "image/blobs/sha256"
    blob = next(folder.iterdir())
    blob.unlink()
    blob.symlink_to(tmp_path / "other/blobs/sha256" / blob.name)

    with pytest.raises(VerificationError, match="is a link"):
        read_layout(tmp_path / "image")

    blob.unlink()
    for each in folder.iterdir():
        each.unlink()
    folder.rmdir()
    folder.symlink_to(tmp_path / "other/blobs/sha256")
    with pytest.raises(VerificationError, match="lies behind a link"):
        read_layout(tmp_path / "image")


def _two(index: Any) -> None:
    index["manifests"] *= 2


def _none(index: Any) -> None:
    index["manifests"] = []


def _other_size(index: Any) -> None:
    index["manifests"][0]["size"] += 1


def _path(index: Any) -> None:
    index["manifests"][0]["digest"] = "sha256:../../../etc/passwd"


def _sha512(index: Any) -> None:
    index["manifests"][0]["digest"] = "sha512:" + "0" * 128


def _no_descriptor(index: Any) -> None:
    index["manifests"] = ["sha256:" + "0" * 64]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_two, "does not hold one image"),
        (_none, "does not hold one image"),
        (_other_size, "does not have the size"),
        (_path, "other than a sha256 digest"),
        (_sha512, "other than a sha256 digest"),
        (_no_descriptor, "other than a sha256 digest"),
    ],
)
def test_index_that_leads_elsewhere_is_refused(tmp_path: Path, change: Callable[[Any], None], said: str) -> None:
    oci_layout(tmp_path / "image")
    index = json.loads((tmp_path / "image/index.json").read_text())
    change(index)
    (tmp_path / "image/index.json").write_text(json.dumps(index))

    with pytest.raises(VerificationError, match=said):
        read_layout(tmp_path / "image")


def test_directory_that_is_no_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such directory"):
        read_layout(tmp_path / "none")
    with pytest.raises(VerificationError, match="oci-layout: is missing"):
        read_layout(tmp_path)
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    with pytest.raises(VerificationError, match=r"is not of version 1\.0\.0"):
        read_layout(tmp_path)


def put(layout: Path, content: object, kind: str) -> dict[str, Any]:
    """A blob of JSON, and what describes it."""
    data = json.dumps(content).encode()
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return {
        "mediaType": f"application/vnd.oci.image.{kind}.v1+json",
        "digest": f"sha256:{digest}",
        "size": len(data),
    }


def test_blob_that_many_refer_to_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three indexes, each of which names the next one ten times: a thousand ways down."""
    oci_layout(tmp_path)
    described = put(tmp_path, {"config": put(tmp_path, {}, "config"), "layers": []}, "manifest")
    for _ in range(3):
        described = put(tmp_path, {"manifests": [described] * 10}, "index")
    (tmp_path / "index.json").write_text(json.dumps({"manifests": [described]}))
    read: Counter[str] = Counter()

    def counted(root: Path, name: str, **limits: Any) -> Any:
        read[name] += 1
        return whole(root, name, **limits)

    whole = images.read_whole
    monkeypatch.setattr(images, "read_whole", counted)

    image = read_layout(tmp_path)

    assert len(image.files) == 2 + 5
    assert set(read.values()) == {1}


def test_two_sizes_for_one_blob_are_refused(tmp_path: Path) -> None:
    oci_layout(tmp_path)
    config = put(tmp_path, {}, "config")
    described = put(tmp_path, {"config": config, "layers": [config | {"size": 3}]}, "manifest")
    (tmp_path / "index.json").write_text(json.dumps({"manifests": [described]}))

    with pytest.raises(VerificationError, match="does not have the size"):
        read_layout(tmp_path)


def test_media_type_that_is_no_text_is_no_fault_of_the_program(tmp_path: Path) -> None:
    oci_layout(tmp_path)
    described = put(tmp_path, {}, "config") | {"mediaType": ["x"]}
    (tmp_path / "index.json").write_text(json.dumps({"manifests": [described]}))

    assert read_layout(tmp_path).digest == described["digest"]
