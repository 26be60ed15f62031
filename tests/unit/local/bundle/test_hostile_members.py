"""Tars as an attacker would make them, behind a manifest that is truly signed."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
from support.bundles import Keys, entry, forged, info, manifest_of, member, raw, tar_of

from medport.errors import VerificationError
from medport_local.bundle.archive import Bundle
from medport_local.bundle.tar_header import END, header

LETTER = entry("documents/letter", b"hello")
GOOD = member("documents/letter", b"hello")


def refused(file: Path, keys: Keys, match: str) -> VerificationError:
    with pytest.raises(VerificationError, match=match) as caught:
        Bundle.open(file, keys.verifier)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()
    return caught.value


def test_the_bundle_that_the_attacks_start_from_is_good(tmp_path: Path, trusted: Keys) -> None:
    file = forged(tmp_path / "b.mpb", manifest_of([LETTER], trusted.signer), GOOD, trusted.signer)

    with Bundle.open(file, trusted.verifier) as bundle:
        bundle.verify()


LINKS: dict[str, tuple[dict[str, Any], str]] = {
    "symbolic link": ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "symbolic link"),
    "hard link": ({"type": tarfile.LNKTYPE, "linkname": "manifest.json"}, "hard link"),
    "character device": ({"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, "device"),
    "block device": ({"type": tarfile.BLKTYPE, "devmajor": 8}, "device"),
    "pipe": ({"type": tarfile.FIFOTYPE}, "pipe"),
    "folder": ({"type": tarfile.DIRTYPE}, "folder"),
    "sparse file": ({"type": tarfile.GNUTYPE_SPARSE}, "sparse"),
    "contiguous file": ({"type": tarfile.CONTTYPE}, "not a regular file"),
    "old regular file": ({"type": tarfile.AREGTYPE}, "header that differs"),
    "unknown type": ({"type": b"Z"}, "header that differs"),
    "set-user-id": ({"mode": 0o4755}, "header that differs"),
    "owner": ({"uid": 1000}, "header that differs"),
    "owner's name": ({"uname": "mallory"}, "header that differs"),
    "time": ({"mtime": 1}, "header that differs"),
}


@pytest.mark.parametrize("attack", LINKS)
def test_only_a_plain_regular_file_may_stand_at_a_listed_path(tmp_path: Path, trusted: Keys, attack: str) -> None:
    fields, said = LINKS[attack]
    body = raw(info("documents/letter", 5, **fields), b"hello")
    file = forged(tmp_path / "b.mpb", manifest_of([LETTER], trusted.signer), body, trusted.signer)

    assert refused(file, trusted, said).field == "documents/letter"


NAMES = {
    "/etc/passwd": "absolute",
    "../../etc/passwd": r"climbs out",
    "documents/../../x": r"climbs out",
    "documents/./letter": "part .",
    "documents//letter": "empty part",
    "documents\\letter": "backslash",
    "C:/letter": "drive or a stream",
    "documents/letter:stream": "drive or a stream",
    "documents/\x1b[2Jletter": "control character",
    "documents/letter\u202e": "control character",
    "documents/other": "not in the manifest",
    "documents/" + "n" * 300: "longer than 255",
    "documents/" + "n/" * 600 + "n": "longer than 1024",
}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:40])
def test_a_member_of_another_name_than_the_listed_one_is_refused(tmp_path: Path, trusted: Keys, name: str) -> None:
    file = forged(
        tmp_path / "b.mpb", manifest_of([LETTER], trusted.signer), raw(info(name, 5), b"hello"), trusted.signer
    )

    refused(file, trusted, NAMES[name])


PAX: dict[str, tuple[dict[str, str], str]] = {
    "path": ({"path": "documents/../../x"}, "climbs out"),
    "another path": ({"path": "documents/letters"}, "names another path"),
    "size": ({"size": "4096"}, "another size"),
    "linkpath": ({"linkpath": "/etc/passwd"}, "makes it a link"),
    "sparse": ({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, "sparse"),
    "extended attribute": ({"SCHILY.xattr.security.capability": "x"}, "SCHILY"),
    "comment": ({"comment": "hidden"}, "comment"),
}


@pytest.mark.parametrize("attack", PAX)
def test_a_pax_header_that_says_otherwise_than_the_manifest_is_refused(
    tmp_path: Path, trusted: Keys, attack: str
) -> None:
    records, said = PAX[attack]
    body = raw(info("documents/letter", 5, pax_headers=records), b"hello")
    file = forged(tmp_path / "b.mpb", manifest_of([LETTER], trusted.signer), body, trusted.signer)

    refused(file, trusted, said)


def pax(records: bytes) -> bytes:
    return raw(info("x", len(records), type=tarfile.XHDTYPE), records) + GOOD


@pytest.mark.parametrize(
    "records",
    [b"", b"999999 path=x\n", b"-1 path=x\n", b"0 path=x\n", b"x" * 5000, b"\xff" * 20, b"9" * 5000 + b" a=b"],
)
def test_a_broken_pax_header_is_refused(tmp_path: Path, trusted: Keys, records: bytes) -> None:
    file = forged(tmp_path / "b.mpb", manifest_of([LETTER], trusted.signer), pax(records), trusted.signer)

    refused(file, trusted, "pax header|size")


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (raw(info("pax", 0, type=tarfile.XGLTYPE)), "global pax header"),
        (raw(info("documents/" + "n" * 200, 5), b"hello", tarfile.GNU_FORMAT), "GNU name"),
        (raw(info("a", 0, type=tarfile.SYMTYPE, linkname="n" * 200), b"", tarfile.GNU_FORMAT), "GNU link"),
        (b"\xff" * 512, "damaged"),
    ],
    ids=["global", "long name", "long link", "noise"],
)
def test_other_extensions_of_tar_are_refused(tmp_path: Path, trusted: Keys, before: bytes, said: str) -> None:
    file = forged(tmp_path / "b.mpb", manifest_of([LETTER], trusted.signer), before + GOOD, trusted.signer)

    refused(file, trusted, said)


def test_a_member_that_is_not_listed_is_refused_wherever_it_stands(tmp_path: Path, trusted: Keys) -> None:
    manifest, extra = manifest_of([LETTER], trusted.signer), member("documents/more", b"more")

    for body in (extra + GOOD, GOOD + extra):
        error = refused(forged(tmp_path / "b.mpb", manifest, body, trusted.signer), trusted, "not in the manifest")
        assert error.field == "documents/more"


def test_a_listed_member_that_is_missing_is_refused(tmp_path: Path, trusted: Keys) -> None:
    entries = [entry("documents/a", b"a"), entry("documents/b", b"b")]
    manifest = manifest_of(entries, trusted.signer)

    for body, missing in (
        (member("documents/a", b"a"), "documents/b"),
        (member("documents/b", b"b"), "documents/a"),
        (b"", "documents/a"),
    ):
        error = refused(forged(tmp_path / "b.mpb", manifest, body, trusted.signer), trusted, "is listed, and")
        assert error.field == missing


def test_a_second_member_of_a_name_is_refused(tmp_path: Path, trusted: Keys) -> None:
    entries = [entry("documents/a", b"a"), entry("documents/b", b"b")]
    manifest = manifest_of(entries, trusted.signer)
    first, second = member("documents/a", b"a"), member("documents/b", b"b")

    for body in (first + first + second, first + second + first):
        error = refused(forged(tmp_path / "b.mpb", manifest, body, trusted.signer), trusted, "second time")
        assert error.field == "documents/a"


def test_members_in_another_order_are_refused(tmp_path: Path, trusted: Keys) -> None:
    entries = [entry("documents/a", b"a"), entry("documents/b", b"b")]
    body = member("documents/b", b"b") + member("documents/a", b"a")

    refused(
        forged(tmp_path / "b.mpb", manifest_of(entries, trusted.signer), body, trusted.signer),
        trusted,
        "in its place",
    )


@pytest.mark.parametrize("size", [4, 6, 600, 0])
def test_a_size_other_than_the_listed_one_is_refused(tmp_path: Path, trusted: Keys, size: int) -> None:
    data = b"h" * size
    body = raw(info("documents/letter", size), data)
    file = forged(tmp_path / "b.mpb", manifest_of([LETTER], trusted.signer), body, trusted.signer)

    refused(file, trusted, "size that the manifest lists")


def test_a_negative_size_in_the_header_is_refused(tmp_path: Path, trusted: Keys) -> None:
    """GNU's binary sizes have a sign."""
    block = bytearray(header("documents/letter", 5))
    block[124:136] = b"\xff" * 12
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    file = forged(tmp_path / "b.mpb", manifest_of([LETTER], trusted.signer), bytes(block), trusted.signer)

    refused(file, trusted, "size that the manifest lists|damaged|cut short")


def test_other_content_of_the_right_size_is_refused_when_it_is_read(tmp_path: Path, trusted: Keys) -> None:
    body = member("documents/letter", b"jello")
    file = forged(tmp_path / "b.mpb", manifest_of([LETTER], trusted.signer), body, trusted.signer)

    with Bundle.open(file, trusted.verifier) as bundle:
        with pytest.raises(VerificationError, match="does not have the hash"):
            bundle.verify()
        with pytest.raises(VerificationError, match="does not have the hash"):
            list(bundle.read(bundle.manifest.entries[0]))


def test_something_hidden_in_the_padding_is_refused(tmp_path: Path, trusted: Keys) -> None:
    body = bytearray(GOOD)
    body[512 + 5 + 100] = 1
    file = forged(tmp_path / "b.mpb", manifest_of([LETTER], trusted.signer), bytes(body), trusted.signer)

    refused(file, trusted, "not followed by zeros")


@pytest.mark.parametrize("more", [b"\0", b"x", bytes(512), bytes(8192), b"x" * 512, tar_of(["a"])])
def test_bytes_after_the_end_are_refused(tmp_path: Path, trusted: Keys, more: bytes) -> None:
    file = forged(tmp_path / "b.mpb", manifest_of([LETTER], trusted.signer), GOOD, trusted.signer, end=END + more)

    refused(file, trusted, "after its end")
