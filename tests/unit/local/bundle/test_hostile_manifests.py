"""Manifests that nobody may install, even from whom a site trusts: each is truly signed."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.bundles import META, Keys, entry, forged, info, manifest_of, member, raw

from medport.errors import VerificationError
from medport_local.bundle import manifest as manifests
from medport_local.bundle.archive import Bundle, Item, write_bundle
from medport_local.bundle.manifest import LOCK, Entry
from medport_local.bundle.tar_header import END, header, padding

LETTER = entry("documents/letter", b"hello")
GOOD = member("documents/letter", b"hello")


def refused(file: Path, keys: Keys, match: str) -> VerificationError:
    with pytest.raises(VerificationError, match=match) as caught:
        Bundle.open(file, keys.verifier)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()
    return caught.value


SHA = "0" * 64
LISTED = {
    "/etc/passwd": "absolute",
    "documents/../x": "climbs out",
    "documents/a\\b": "backslash",
    "documents/a:b": "drive or a stream",
    "documents/a\n": "control character",
    "documents/\u200bb": "control character",
    "documents/" + "n" * 256: "longer than 255",
    "documents/" + "n/" * 520: "longer than 1024",
    "documents/con": "device of Windows",
    "documents/LPT1.txt": "device of Windows",
    "documents/trailing.": "ends with a dot",
    "documents/ blank": "blank",
    "documents/a*": "holds one of",
    "documents/u\u0308": "composed form",
    "documents/": "empty part",
    "documents": "not a path for a document",
    "wheels/x.whl": "not a path for a document",
    "manifest.json": "not a path for a document",
    "": "is empty",
}


@pytest.mark.parametrize("path", LISTED, ids=lambda path: ascii(path)[:40])
def test_a_signed_manifest_with_a_path_that_is_none_is_refused(tmp_path: Path, trusted: Keys, path: str) -> None:
    manifest = manifest_of([entry(path, b"")], trusted.signer)
    body = member(path, b"") if path.isprintable() else b""

    refused(forged(tmp_path / "b.mpb", manifest, body, trusted.signer), trusted, LISTED[path])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("documents/letter", "documents/Letter"),
        ("documents/a/x", "documents/A/y"),
        ("documents/straße", "documents/STRASSE"),
        ("documents/ﬁle", "documents/file"),
        ("documents/K", "documents/\u212a"),
        ("documents/a", "documents/a/b"),
        ("documents/A", "documents/a/b"),
    ],
)
def test_two_paths_that_some_system_takes_for_one_are_refused(
    tmp_path: Path, trusted: Keys, one: str, other: str
) -> None:
    manifest = manifest_of([entry(one, b""), entry(other, b"")], trusted.signer)
    body = b"".join(member(each.path, b"") for each in manifest.entries)

    refused(
        forged(tmp_path / "b.mpb", manifest, body, trusted.signer), trusted, "one file on some systems|composed"
    )


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (f"blobs/{SHA}", "blob"),
        ("blobs/../x", "blob"),
        (f"snapshots/{SHA}/config.json", "snapshot"),
        (f"snapshots/{SHA}/x/manifest.json", "snapshot"),
        ("wheels/setup.py", "wheel"),
        ("wheels/sub/a-1-py3-none-any.whl", "wheel"),
        ("images/oci-layout", "image"),
        ("lock/other.lock", "lock"),
        ("sbom/x.xml", "sbom"),
        ("documents/x", "wheel"),
    ],
)
def test_a_member_outside_the_place_of_its_kind_is_refused(
    tmp_path: Path, trusted: Keys, path: str, kind: str
) -> None:
    manifest = manifest_of([entry(path, b"x", kind)], trusted.signer)

    refused(
        forged(tmp_path / "b.mpb", manifest, member(path, b"x"), trusted.signer),
        trusted,
        "not a path for a|named by its hash|climbs out",
    )


def test_a_path_that_is_listed_twice_is_refused(tmp_path: Path, trusted: Keys) -> None:
    file = forged(tmp_path / "b.mpb", manifest_of([LETTER, LETTER], trusted.signer), GOOD + GOOD, trusted.signer)

    refused(file, trusted, "listed twice")


@pytest.mark.parametrize("kinds", [("document", "document"), ("wheel", "lock")])
def test_a_manifest_that_lists_its_members_in_another_order_is_refused(
    tmp_path: Path, trusted: Keys, kinds: tuple[str, str]
) -> None:
    paths = ("documents/b", "documents/a") if kinds[0] == "document" else ("wheels/a-1-py3-none-any.whl", LOCK)
    entries = tuple(entry(path, b"", kind) for path, kind in zip(paths, kinds, strict=True))
    manifest = manifest_of([], trusted.signer).model_copy(update={"entries": entries})
    body = b"".join(member(path, b"") for path in paths)

    refused(forged(tmp_path / "b.mpb", manifest, body, trusted.signer), trusted, "in their order")


Change = Callable[[dict[str, Any]], object]
WRONG: dict[str, tuple[Change, str]] = {
    "another format": (lambda plain: plain.update(format="medport-bundle 2"), "format"),
    "an unknown key": (lambda plain: plain.update(script="x"), "script"),
    "no entries": (lambda plain: plain.pop("entries"), "no list of entries"),
    "entries that are none": (lambda plain: plain.update(entries={"a": 1}), "no list of entries"),
    "an entry that is none": (lambda plain: plain.update(entries=[1]), "cannot be read"),
    "an unknown kind": (lambda plain: plain["entries"][0].update(kind="hook"), "kind"),
    "a negative size": (lambda plain: plain["entries"][0].update(size_bytes=-1), "size_bytes"),
    "a huge size": (lambda plain: plain["entries"][0].update(size_bytes=2**63), "size_bytes"),
    "a size in words": (lambda plain: plain["entries"][0].update(size_bytes="5"), "size_bytes"),
    "a hash that is none": (lambda plain: plain["entries"][0].update(sha256="x"), "sha256"),
    "a mode": (lambda plain: plain["entries"][0].update(mode=0o4755), "mode"),
    "a time without a zone": (lambda plain: plain.update(created_at="2026-11-26T12:00:00"), "canonical"),
    "a time in another zone": (lambda plain: plain.update(created_at="2026-11-26T12:00:00+01:00"), "canonical"),
    "no time": (lambda plain: plain.update(created_at="yesterday"), "created_at"),
}


@pytest.mark.parametrize("attack", WRONG)
def test_a_signed_manifest_of_another_form_is_refused(tmp_path: Path, trusted: Keys, attack: str) -> None:
    change, said = WRONG[attack]
    plain = json.loads(manifest_of([LETTER], trusted.signer).to_bytes())
    change(plain)
    data = json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()

    refused(forged(tmp_path / "b.mpb", data, GOOD, trusted.signer), trusted, said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b"\xff", "not a JSON object"),
        (b"[" * 100_000, "not a JSON object"),
        (b'{"format":"medport-bundle 1","entries":[' + b"{}," * 100_000 + b"{}]}", "more than 100000 members"),
    ],
    ids=["empty", "list", "binary", "deep", "many"],
)
def test_a_signed_manifest_that_is_no_manifest_is_refused(
    tmp_path: Path, trusted: Keys, text: bytes, said: str
) -> None:
    refused(forged(tmp_path / "b.mpb", text, b"", trusted.signer), trusted, said)


def test_a_key_that_stands_twice_in_the_manifest_is_refused(tmp_path: Path, trusted: Keys) -> None:
    data = manifest_of([LETTER], trusted.signer).to_bytes()
    twice = data.replace(b'{"created_at"', b'{"lock_id":null,"created_at"')

    refused(forged(tmp_path / "b.mpb", twice, GOOD, trusted.signer), trusted, "canonical")


def test_a_manifest_without_end_is_refused_before_it_is_read(tmp_path: Path, trusted: Keys) -> None:
    file = tmp_path / "b.mpb"
    with open(file, "wb") as out:
        out.write(header("manifest.json", 100 * 2**20))
        out.truncate(101 * 2**20)

    refused(file, trusted, "larger than 32 MiB")


def test_a_signature_without_end_is_refused_before_it_is_read(tmp_path: Path, trusted: Keys) -> None:
    file = tmp_path / "b.mpb"
    file.write_bytes(member("manifest.json", b"{}") + header("manifest.sig", 2**30) + bytes(2**20))

    refused(file, trusted, "larger than 1 MiB")


def test_the_manifest_is_not_parsed_before_its_signature_is_checked(
    tmp_path: Path, trusted: Keys, stranger: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = forged(tmp_path / "b.mpb", manifest_of([LETTER], stranger.signer), GOOD, stranger.signer)
    parsed: list[bytes] = []
    monkeypatch.setattr("medport_local.bundle.archive.read_manifest", parsed.append)

    refused(file, trusted, "another key")
    assert parsed == []


@pytest.mark.parametrize("kind", ["link", "device"])
def test_a_manifest_that_is_a_link_or_device_is_refused(tmp_path: Path, trusted: Keys, kind: str) -> None:
    fields = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"} if kind == "link" else {"type": tarfile.CHRTYPE}
    file = tmp_path / "b.mpb"
    file.write_bytes(raw(info("manifest.json", **fields)) + END)

    refused(file, trusted, kind)


def test_a_bundle_with_more_members_than_the_limit_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "MAX_ENTRIES", 1)
    items = [Item(f"documents/{name}", "document", b"") for name in "ab"]

    with pytest.raises(VerificationError, match="more than 1 members"):
        write_bundle(tmp_path / "b.mpb", items, meta=META, signer=None)


def test_opening_an_endless_list_takes_bounded_time_and_memory(tmp_path: Path, trusted: Keys) -> None:
    """100,000 members are allowed; their list is read and checked in seconds, in a process of its own."""
    entries = [
        Entry(path=f"documents/{number}", kind="document", sha256=SHA, size_bytes=0) for number in range(30_000)
    ]
    manifest = manifest_of(entries, trusted.signer)
    body = b"".join(header(each.path, 0) for each in manifest.entries)
    file = forged(tmp_path / "b.mpb", manifest, body + padding(0), trusted.signer)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from medport_local.bundle.archive import Bundle; from medport_local.bundle.signing import Verifier\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
        "print(len(Bundle.open(Path(sys.argv[1]), Verifier(key=Path(sys.argv[2]))).manifest.entries))\n"
    )

    done = subprocess.run([sys.executable, "-c", code, file, trusted.public], capture_output=True, text=True)

    assert done.stdout == "30000\n", done.stderr
