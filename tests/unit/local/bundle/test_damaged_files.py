"""Files that are no bundle, or no longer the bundle that was signed."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.bundles import Keys, entry, forged, manifest_of, member, tar_of

from medport.errors import ConfigError, VerificationError
from medport_local.bundle.archive import Bundle
from medport_local.bundle.manifest import Entry
from medport_local.bundle.tar_header import header

LETTER = entry("documents/letter", b"hello")
GOOD = member("documents/letter", b"hello")


def refused(file: Path, keys: Keys, match: str) -> VerificationError:
    with pytest.raises(VerificationError, match=match) as caught:
        Bundle.open(file, keys.verifier)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()
    return caught.value


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("manifest.json", "{}")
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (zipped(), "is a zip file"),
        (gzip.compress(tar_of(["manifest.json"])), "gzip"),
        (lzma.compress(tar_of(["manifest.json"])), "xz"),
        (tar_of(["a"]), "is not a bundle"),
        (tar_of(["documents/a", "manifest.json"]), "is not a bundle"),
        (b"", "is not a bundle"),
        (b"x" * 100, "is not a bundle"),
        (bytes(4096), "is not a bundle"),
        (b"\xff" * 4096, "is not a bundle"),
    ],
    ids=["zip", "gzip", "xz", "tar", "other order", "empty", "short", "zeros", "noise"],
)
def test_another_kind_of_file_is_named(tmp_path: Path, trusted: Keys, data: bytes, said: str) -> None:
    (tmp_path / "b.mpb").write_bytes(data)

    refused(tmp_path / "b.mpb", trusted, said)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file_is_a_setting_at_fault(tmp_path: Path, trusted: Keys, kind: str) -> None:
    file = tmp_path / "b.mpb"
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)

    with pytest.raises(ConfigError, match="bundle"):
        Bundle.open(file, trusted.verifier)


def test_a_bundle_that_is_cut_anywhere_is_refused(small: Path, trusted: Keys) -> None:
    whole = small.read_bytes()
    edges = {cut + near for cut in range(0, len(whole), 512) for near in (-1, 0, 1)}

    for cut in sorted(cut for cut in edges if 0 <= cut < len(whole)):
        small.write_bytes(whole[:cut])
        with pytest.raises(VerificationError):
            Bundle.open(small, trusted.verifier)


@pytest.mark.parametrize("size", [1024, 2**59])
def test_the_member_that_is_cut_is_named(tmp_path: Path, trusted: Keys, size: int) -> None:
    entries = [Entry(path=f"documents/{name}", kind="document", sha256="0" * 64, size_bytes=size) for name in "ab"]
    manifest = manifest_of(entries, trusted.signer)
    file = forged(tmp_path / "b.mpb", manifest, header("documents/a", size), trusted.signer, end=b"")

    assert refused(file, trusted, "cut short").field == "documents/a"


def open_and_verify(file: Path, keys: Keys) -> None:
    with Bundle.open(file, keys.verifier) as bundle:
        bundle.verify()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit_is_refused(small: Path, trusted: Keys, data: st.DataObject) -> None:
    """But for text of the signature's envelope that says nothing, such as a blank."""
    whole = small.with_suffix(".whole")
    if not whole.exists():
        whole.write_bytes(small.read_bytes())
    good = bytearray(whole.read_bytes())
    with Bundle.open(whole, None) as bundle:
        signature = bytes(good).index(bundle.signature_bytes or b"?")
        envelope = range(signature, signature + len(bundle.signature_bytes or b""))
    place = data.draw(st.integers(0, len(good) - 1))
    good[place] ^= 1 << data.draw(st.integers(0, 7))
    small.write_bytes(good)

    if place in envelope:
        try:
            open_and_verify(small, trusted)
        except VerificationError:
            return
    else:
        with pytest.raises(VerificationError):
            open_and_verify(small, trusted)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=3000))
def test_noise_is_refused_and_nothing_else_is_raised(tmp_path: Path, trusted: Keys, noise: bytes) -> None:
    manifest = manifest_of([LETTER], trusted.signer)
    file = forged(tmp_path / "b.mpb", manifest, noise, trusted.signer)

    with pytest.raises(VerificationError):
        open_and_verify(file, trusted)
