"""Signed reports: what was signed is what is read, by the key that is asked for, and by no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from medport.errors import ConfigError, InputError, VerificationError
from medport_deploy.verify import report
from medport_deploy.verify.result import Report, compared, drift
from medport_local.bundle import keys

REPORT = Report(
    deployment="chest",
    target="projects/p/locations/l at HOST",
    made_at="2026-11-27T08:00:00Z",
    medport="0.1.0",
    lock_id="a" * 64,
    spec_sha256="b" * 64,
    checks=(
        compared("traffic.sum", "reader", 100, 100),
        drift("version.args", "reader", ["--x"], ["--y", "Größe"]),
    ),
)


def pems(key: Any, password: bytes | None = None) -> tuple[bytes, bytes]:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private, public


PRIVATE, PUBLIC = pems(ed25519.Ed25519PrivateKey.generate())
SIGNED = report.sign(REPORT, PRIVATE)


def changed(**more: Any) -> bytes:
    whole = json.loads(SIGNED)
    whole["report"] |= more
    return json.dumps(whole).encode()


def test_report_comes_back_as_it_was_signed() -> None:
    assert report.check(SIGNED, PUBLIC) == REPORT.as_dict()
    assert json.loads(SIGNED)["signature"]["algorithm"] == "ed25519"


def test_layout_of_the_file_does_not_count() -> None:
    whole = json.loads(SIGNED)

    assert report.check(json.dumps(whole, sort_keys=True).encode(), PUBLIC) == REPORT.as_dict()


@pytest.mark.parametrize(
    "change",
    [{"clean": True}, {"findings": []}, {"lock_id": "c" * 64}, {"made_at": "2026-11-28T08:00:00Z"}, {"more": 1}],
)
def test_report_that_was_changed_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(VerificationError, match="was changed after it was signed"):
        report.check(changed(**change), PUBLIC)


def test_report_that_another_key_signed_is_refused_also_when_it_claims_to_be_of_this_one() -> None:
    other, _ = pems(ed25519.Ed25519PrivateKey.generate())
    theirs = json.loads(report.sign(REPORT, other))

    with pytest.raises(VerificationError, match="is signed by the key"):
        report.check(json.dumps(theirs).encode(), PUBLIC)
    theirs["signature"]["key_sha256"] = report.key_id(PUBLIC)
    with pytest.raises(VerificationError, match="was changed after it was signed"):
        report.check(json.dumps(theirs).encode(), PUBLIC)


def test_signature_of_the_bare_report_without_its_type_does_not_count() -> None:
    key = serialization.load_pem_private_key(PRIVATE, None)
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    whole = json.loads(SIGNED)
    import base64

    whole["signature"]["value"] = base64.b64encode(key.sign(report.canonical(whole["report"]))).decode()

    with pytest.raises(VerificationError):
        report.check(json.dumps(whole).encode(), PUBLIC)


def test_keys_that_bundles_are_signed_with_sign_reports(tmp_path: Path) -> None:
    private, public = tmp_path / "key.pem", tmp_path / "pub.pem"
    fingerprint = keys.make(private, public)

    signed = report.sign(REPORT, private.read_bytes())

    assert report.check(signed, public.read_bytes()) == REPORT.as_dict()
    assert json.loads(signed)["signature"]["key_sha256"] == fingerprint


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP384R1()),
    ],
    ids=["rsa", "p384"],
)
def test_key_of_another_kind_is_refused(key: Any) -> None:
    private, public = pems(key)

    with pytest.raises(ConfigError, match="of another kind"):
        report.sign(REPORT, private)
    with pytest.raises(ConfigError, match="of another kind"):
        report.check(SIGNED, public)


def test_what_is_no_key_is_refused_and_nothing_of_it_is_said() -> None:
    locked, _ = pems(ed25519.Ed25519PrivateKey.generate(), b"word")

    for data in (b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n", locked, b""):
        with pytest.raises(ConfigError, match="is no private key in PEM") as refused:
            report.sign(REPORT, data)
        assert "c2VjcmV0" not in str(refused.value)
    with pytest.raises(ConfigError, match="is a private key"):
        report.check(SIGNED, PRIVATE)
    with pytest.raises(ConfigError, match="is no public key"):
        report.check(SIGNED, b"hello")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"report": {}, "signature": {}}',
        b'{"report": 1, "signature": 2}',
        SIGNED.replace(b'"report": {', b'"report": {}, "report": {'),
        b"[" * 100_000,
    ],
)
def test_what_is_no_signed_report_is_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        report.check(data, PUBLIC)


@pytest.mark.parametrize("place", ["file", "signature"])
def test_file_with_more_in_it_than_was_signed_is_refused(place: str) -> None:
    whole = json.loads(SIGNED)
    (whole if place == "file" else whole["signature"])["clean"] = True

    with pytest.raises(InputError):
        report.check(json.dumps(whole).encode(), PUBLIC)


def test_other_algorithm_than_that_of_the_key_is_refused() -> None:
    whole = json.loads(SIGNED)
    whole["signature"]["algorithm"] = "none"

    with pytest.raises(VerificationError, match="another algorithm than that of the key, ed25519"):
        report.check(json.dumps(whole).encode(), PUBLIC)


def test_signature_that_is_no_base64_is_refused() -> None:
    whole = json.loads(SIGNED)
    whole["signature"]["value"] = "ä"

    with pytest.raises(InputError, match="base64"):
        report.check(json.dumps(whole).encode(), PUBLIC)


def test_private_key_that_others_can_read_is_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(PRIVATE)

    file.chmod(0o640)
    assert report.read_key(file) == (PRIVATE, "key.pem can be read by others than its owner: chmod 600")
    file.chmod(0o600)
    assert report.read_key(file) == (PRIVATE, None)
    file.write_bytes(PUBLIC)
    file.chmod(0o644)
    assert report.read_key(file) == (PUBLIC, None)
    with pytest.raises(ConfigError, match="cannot be read"):
        report.read_key(tmp_path / "none")
