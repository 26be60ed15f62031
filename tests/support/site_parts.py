"""What a site gets beside snapshots, made by hand: wheels, an OCI layout, a mirror of providers."""

from __future__ import annotations

import base64
import hashlib
import json
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

WHEEL = "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


def build_wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    *,
    files: Mapping[str, bytes] | None = None,
    requires: Sequence[str] = (),
    extras: Sequence[str] = (),
    licence: str | None = None,
    file_name: str | None = None,
    metadata_name: str | None = None,
) -> Path:
    """A real wheel of a pure Python distribution; ``file_name`` and ``metadata_name`` can lie."""
    stem = name.replace("-", "_")
    lines = ["Metadata-Version: 2.4", f"Name: {metadata_name or name}", f"Version: {version}"]
    lines += [f"License-Expression: {licence}"] if licence else []
    lines += [f"Provides-Extra: {extra}" for extra in extras]
    lines += [f"Requires-Dist: {each}" for each in requires]
    content = {
        **(files if files is not None else {f"{stem}.py": b"here = True\n"}),
        f"{stem}-{version}.dist-info/METADATA": ("\n".join(lines) + "\n").encode(),
        f"{stem}-{version}.dist-info/WHEEL": WHEEL.encode(),
    }
    return _pack(
        folder / (file_name or f"{stem}-{version}-py3-none-any.whl"), content, f"{stem}-{version}.dist-info"
    )


def repack(name: str, folder: Path) -> Path:
    """A wheel of what is installed here: a pure Python distribution, or medport from its source tree."""
    there = distribution(name)
    stem = f"{name.replace('-', '_')}-{there.version}"
    about = {
        f"{stem}.dist-info/{each}": text.encode()
        for each in ("METADATA", "WHEEL", "entry_points.txt")
        if (text := there.read_text(each)) is not None
    }
    if (tree := _source_tree(there)) is not None:
        about[f"{stem}.dist-info/METADATA"] = _metadata(tree).encode()
    return _pack(folder / f"{stem}-py3-none-any.whl", {**_content(there), **about}, f"{stem}.dist-info")


def oci_layout(folder: Path, *, platforms: int = 1) -> str:
    """An OCI layout with one small image, or an index of several; the digest that a registry would call it by."""
    (folder / "blobs" / "sha256").mkdir(parents=True)
    manifests = [_image_manifest(folder, number) for number in range(platforms)]
    described = manifests[0]
    if platforms > 1:
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}
        described = _blob(folder, json.dumps(index).encode(), INDEX_TYPE)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
    return str(described["digest"])


def provider_mirror(
    folder: Path, source: str = "registry.example/hashicorp/google", version: str = "7.42.0"
) -> Path:
    """A mirror with one provider for one platform; its zip file."""
    place = folder / source
    place.mkdir(parents=True)
    kind = source.rpartition("/")[2]
    archive = place / f"terraform-provider-{kind}_{version}_linux_amd64.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(f"terraform-provider-{kind}_v{version}", b"#!/bin/sh\n")
        file.writestr("LICENSE", b"MPL-2.0\n")
    (place / "index.json").write_text(json.dumps({"versions": {version: {}}}))
    hashes = ["zh:" + hashlib.sha256(archive.read_bytes()).hexdigest(), h1(archive)]
    listing = {"archives": {"linux_amd64": {"url": archive.name, "hashes": hashes}}}
    (place / f"{version}.json").write_text(json.dumps(listing))
    return archive


def h1(archive: Path) -> str:
    """Go's ``dirhash.Hash1`` over a zip file, from its documentation: one line per file, sorted by name."""
    with zipfile.ZipFile(archive) as file:
        lines = [f"{hashlib.sha256(file.read(name)).hexdigest()}  {name}\n" for name in sorted(file.namelist())]
    return "h1:" + base64.b64encode(hashlib.sha256("".join(lines).encode()).digest()).decode()


def _source_tree(there: Distribution) -> Path | None:
    origin = json.loads(there.read_text("direct_url.json") or "{}")
    return Path(origin["url"].removeprefix("file://")) if origin.get("dir_info", {}).get("editable") else None


def _metadata(tree: Path) -> str:
    """From the source tree: what was installed editable keeps the metadata of that day."""
    project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    lines = ["Metadata-Version: 2.4", f"Name: {project['name']}", f"Version: {project['version']}"]
    lines += [f"Requires-Dist: {each}" for each in project["dependencies"]]
    for extra, needs in project["optional-dependencies"].items():
        lines += [f"Provides-Extra: {extra}", *(f"Requires-Dist: {each}; extra == '{extra}'" for each in needs)]
    return "\n".join(lines) + "\n"


def _content(there: Distribution) -> dict[str, bytes]:
    if (tree := _source_tree(there)) is not None:
        packages = [tree / "sdk/medport", tree / "local_backend/medport_local", tree / "deploy/medport_deploy"]
        return {
            path.relative_to(package.parent).as_posix(): path.read_bytes()
            for package in packages
            for path in sorted(package.rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        }
    assert there.files is not None
    return {
        file.as_posix(): Path(str(there.locate_file(file))).read_bytes()
        for file in there.files
        if ".." not in file.parts and "__pycache__" not in file.parts and ".dist-info" not in file.parts[0]
    }


def _pack(path: Path, content: Mapping[str, bytes], about: str) -> Path:
    rows = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in content.items():
            file.writestr(name, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append(f"{name},sha256={digest},{len(data)}\n")
        file.writestr(f"{about}/RECORD", "".join(rows) + f"{about}/RECORD,,\n")
    return path


def _image_manifest(folder: Path, number: int) -> dict[str, Any]:
    config = _blob(folder, f'{{"architecture": "a{number}"}}'.encode(), "application/vnd.oci.image.config.v1+json")
    layers = [_blob(folder, b"layer of all" * 100, "application/vnd.oci.image.layer.v1.tar")]
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers}
    return _blob(folder, json.dumps(manifest).encode(), MANIFEST_TYPE)


def _blob(folder: Path, data: bytes, media_type: str) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (folder / "blobs" / "sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}
