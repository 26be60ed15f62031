"""Who may sign a bundle, and how the signature of anybody else is refused."""

from __future__ import annotations

import base64
import json
import random
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from model_signing import hashing, signing
from support.bundles import META, NOW, Certifier, Keys, entry, forged, manifest_of, member, write_key

from medport.errors import ConfigError, VerificationError
from medport_local.bundle import certificates, keys
from medport_local.bundle.archive import Bundle, Item, write_bundle
from medport_local.bundle.signing import Signer, Verifier

DATA = b'{"a":1}'
DAY = timedelta(days=1)


def clock() -> datetime:
    return NOW


def refused(verifier: Verifier, signature: bytes, match: str, data: bytes = DATA) -> None:
    with pytest.raises(VerificationError, match=match):
        verifier.verify(data, signature)


def test_a_key_verifies_what_its_private_half_signed(trusted: Keys) -> None:
    signed = trusted.verifier.verify(DATA, trusted.signer.sign(DATA))

    assert signed.how == "key"
    assert signed.names == trusted.signer.names
    assert signed.valid_until is None


def test_the_fingerprint_is_what_sha256sum_says_of_the_public_key(trusted: Keys) -> None:
    said = subprocess.run(["sha256sum", trusted.public], capture_output=True, text=True, check=True).stdout

    assert trusted.signer.names == (f"key sha256:{said.split()[0]}",)


def test_openssl_reads_the_private_key_and_derives_the_public_one(trusted: Keys) -> None:
    derived = subprocess.run(["openssl", "ec", "-in", trusted.private, "-pubout"], capture_output=True, check=True)

    assert derived.stdout == trusted.public.read_bytes()


def test_a_private_key_is_readable_by_its_owner_only(trusted: Keys) -> None:
    assert trusted.private.stat().st_mode & 0o777 == 0o600


def test_a_key_is_never_written_over_another(trusted: Keys, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there already"):
        keys.make(trusted.private, tmp_path / "pub.pem")
    with pytest.raises(ConfigError, match="there already"):
        keys.make(tmp_path / "key.pem", trusted.public)

    assert not (tmp_path / "key.pem").exists()


def test_the_command_of_model_signing_checks_our_signature(trusted: Keys, small: Path, tmp_path: Path) -> None:
    folder, signature = tmp_path / "folder", tmp_path / "manifest.sig"
    folder.mkdir()
    with Bundle.open(small, None) as bundle:
        assert bundle.signature_bytes is not None
        (folder / "manifest.json").write_bytes(bundle.manifest_bytes)
        signature.write_bytes(bundle.signature_bytes)
    command = [sys.executable, "-m", "model_signing", "verify", "key", folder, "--signature", signature]

    good = subprocess.run([*command, "--public_key", trusted.public], capture_output=True, text=True)
    (folder / "manifest.json").write_bytes(b"{}")
    bad = subprocess.run([*command, "--public_key", trusted.public], capture_output=True, text=True)

    assert (good.returncode, "succeeded" in good.stdout) == (0, True), good.stderr
    assert bad.returncode != 0


def test_another_key_is_refused(trusted: Keys, stranger: Keys) -> None:
    refused(trusted.verifier, stranger.signer.sign(DATA), "is by another key")


def test_another_key_that_claims_to_be_the_trusted_one_is_refused(trusted: Keys, stranger: Keys) -> None:
    forgery = json.loads(stranger.signer.sign(DATA))
    forgery["verificationMaterial"]["publicKey"]["hint"] = keys.fingerprint(keys.read_public(trusted.public))

    refused(trusted.verifier, json.dumps(forgery).encode(), "not made by that key")


def test_a_signature_without_a_hint_of_its_key_is_refused(
    trusted: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    forgery = json.loads(trusted.signer.sign(DATA))
    forgery["verificationMaterial"]["publicKey"] = {}

    refused(trusted.verifier, json.dumps(forgery).encode(), "not a model signature")
    assert capsys.readouterr().out == ""


def test_a_signature_of_another_manifest_is_refused(trusted: Keys) -> None:
    refused(trusted.verifier, trusted.signer.sign(b"{}"), "another manifest")


def test_a_signature_of_a_folder_that_ignores_the_manifest_is_refused(trusted: Keys, tmp_path: Path) -> None:
    """The library leaves out, on both sides, what the signed list says to ignore."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(b"anything")
    config = signing.Config().use_elliptic_key_signer(private_key=trusted.private)
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=["manifest.json"]))
    config.sign(folder, tmp_path / "model.sig")

    refused(trusted.verifier, (tmp_path / "model.sig").read_bytes(), "manifest")


def test_a_signature_of_more_files_than_the_manifest_is_refused(trusted: Keys, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(DATA)
    (folder / "other").write_bytes(b"")
    signing.Config().use_elliptic_key_signer(private_key=trusted.private).sign(folder, tmp_path / "model.sig")

    refused(trusted.verifier, (tmp_path / "model.sig").read_bytes(), "another manifest")


@pytest.mark.parametrize(
    "broken",
    [
        b"", b"{}", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"verificationMaterial":{},"dsseEnvelope":{}}',
    ],
)  # fmt: skip
def test_what_is_no_signature_is_refused(trusted: Keys, broken: bytes) -> None:
    refused(trusted.verifier, broken, "manifest.sig")


def change(signature: bytes, **fields: Any) -> bytes:
    value = json.loads(signature)
    value["dsseEnvelope"] |= fields
    return json.dumps(value).encode()


def test_a_changed_payload_or_signature_is_refused(trusted: Keys) -> None:
    good = trusted.signer.sign(DATA)
    payload = base64.b64decode(json.loads(good)["dsseEnvelope"]["payload"])

    refused(trusted.verifier, change(good, payload=base64.b64encode(payload + b" ").decode()), "changed")
    refused(trusted.verifier, change(good, payload="%%%"), "manifest.sig")
    refused(trusted.verifier, change(good, signatures=[]), "not a model signature")
    refused(trusted.verifier, change(good, signatures=[{"sig": "AAAA", "keyid": ""}]), "changed")


def test_a_password_opens_the_key_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    keys.make(tmp_path / "key.pem", tmp_path / "pub.pem", password=b"secret")

    signature = Signer(tmp_path / "key.pem", password=b"secret").sign(DATA)

    assert Verifier(key=tmp_path / "pub.pem").verify(DATA, signature).how == "key"
    with pytest.raises(ConfigError, match="password is wrong"):
        Signer(tmp_path / "key.pem", password=b"guess")
    with pytest.raises(ConfigError, match="has a password"):
        Signer(tmp_path / "key.pem")


def test_keys_of_another_kind_are_refused(tmp_path: Path) -> None:
    curve = write_key(tmp_path / "k1.pem", ec.generate_private_key(ec.SECP256K1()))
    made = rsa.generate_private_key(65537, 2048)
    (tmp_path / "rsa.pem").write_bytes(
        made.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )

    for file in (curve, tmp_path / "rsa.pem"):
        with pytest.raises(ConfigError, match="another kind"):
            Signer(file)


def test_a_private_key_is_not_taken_where_a_public_one_belongs(trusted: Keys) -> None:
    with pytest.raises(ConfigError, match="private key"):
        Verifier(key=trusted.private)


def test_a_verifier_trusts_a_key_or_authorities_and_never_nobody(trusted: Keys) -> None:
    with pytest.raises(ConfigError, match="public key"):
        Verifier()
    with pytest.raises(ConfigError, match="public key"):
        Verifier(key=trusted.public, authorities=[trusted.public])


@pytest.fixture
def root(tmp_path: Path) -> Certifier:
    return Certifier(tmp_path)


def by(pair: tuple[Path, Path], password: bytes | None = None) -> Signer:
    return Signer(pair[0], password=password, certificate=pair[1], clock=clock)


def test_a_certificate_under_a_trusted_root_verifies_and_names_its_subject(root: Certifier) -> None:
    signed = Verifier(authorities=[root.file], clock=clock).verify(DATA, by(root.certify("Release")).sign(DATA))

    assert (signed.how, signed.names) == ("certificate", ("CN=Release",))
    assert signed.valid_until == NOW + 365 * DAY


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_a_chain_through_an_authority_in_between_verifies(
    root: Certifier, tmp_path: Path, curve: ec.EllipticCurve
) -> None:
    between = Certifier(tmp_path, name="Between", above=root, valid=(NOW - 500 * DAY, NOW + 5 * DAY))

    signed = Verifier(authorities=[root.file], clock=clock).verify(
        DATA, by(between.certify("Release", curve=curve)).sign(DATA)
    )

    assert signed.valid_until == NOW + 5 * DAY


def test_a_key_with_a_password_signs_for_a_certificate(root: Certifier) -> None:
    signature = by(root.certify("Release", password=b"secret"), b"secret").sign(DATA)

    assert Verifier(authorities=[root.file], clock=clock).verify(DATA, signature).names == ("CN=Release",)


def test_the_model_signing_command_checks_a_certificate_too(root: Certifier, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(DATA)
    (tmp_path / "sig").write_bytes(by(root.certify("Release")).sign(DATA))

    done = subprocess.run(
        [sys.executable, "-m", "model_signing", "verify", "certificate", folder,
         "--signature", tmp_path / "sig", "--certificate_chain", root.file],
        capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr


def test_an_expired_certificate_is_refused_though_the_library_takes_it(root: Certifier) -> None:
    signature = by(root.certify("Release")).sign(DATA)
    later = Verifier(authorities=[root.file], clock=lambda: NOW + 366 * DAY)

    refused(later, signature, "certificate of 'CN=Release' has expired")


def test_a_certificate_that_is_not_yet_valid_is_refused(root: Certifier) -> None:
    signature = by(root.certify("Release")).sign(DATA)

    refused(Verifier(authorities=[root.file], clock=lambda: NOW - 366 * DAY), signature, "not yet valid")


def test_an_expired_authority_in_between_or_above_is_refused_by_name(root: Certifier, tmp_path: Path) -> None:
    between = Certifier(tmp_path, name="Between", above=root, valid=(NOW - 500 * DAY, NOW + 5 * DAY))
    short = Certifier(tmp_path, name="Short", valid=(NOW - 500 * DAY, NOW + 5 * DAY))

    refused(
        Verifier(authorities=[root.file], clock=lambda: NOW + 6 * DAY),
        by(between.certify("Release")).sign(DATA),
        "certificate of 'CN=Between' has expired",
    )
    refused(
        Verifier(authorities=[short.file], clock=lambda: NOW + 6 * DAY),
        by(short.certify("Other")).sign(DATA),
        "certificate of 'CN=Short' has expired",
    )


def test_another_authority_of_the_same_name_is_refused(root: Certifier, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    twin = Certifier(tmp_path / "other")

    refused(
        Verifier(authorities=[root.file], clock=clock), by(twin.certify("Release")).sign(DATA), "no trusted author"
    )


def test_a_certificate_that_was_certified_by_another_signer_is_refused(root: Certifier, tmp_path: Path) -> None:
    """Whoever may sign bundles may not therefore certify others."""
    _, chain = root.certify("Release")
    (tmp_path / "evil").mkdir()
    evil = Certifier(tmp_path / "evil", name="Release")
    pair = evil.certify("Evil")
    pair[1].write_bytes(pair[1].read_bytes() + chain.read_bytes())

    refused(Verifier(authorities=[root.file], clock=clock), by(pair).sign(DATA), "no trusted authority")


@pytest.mark.parametrize(
    ("usage", "said"),
    [
        ({"signature": False}, "does not allow signatures"),
        ({"extended": ExtendedKeyUsageOID.SERVER_AUTH}, "other uses"),
        ({"signature": None, "extended": None}, "does not say that it may sign"),
    ],
    ids=["encipherment", "web server", "nothing"],
)
def test_a_certificate_for_other_uses_neither_signs_nor_verifies(
    root: Certifier, monkeypatch: pytest.MonkeyPatch, usage: dict[str, Any], said: str
) -> None:
    pair = root.certify("Web", **usage)

    with pytest.raises(ConfigError, match=said):
        by(pair)
    with monkeypatch.context() as patch:
        patch.setattr("medport_local.bundle.certificates.usage_fault", lambda leaf: None)
        signature = by(pair).sign(DATA)
    refused(Verifier(authorities=[root.file], clock=clock), signature, said)


def test_only_the_expected_signer_of_an_authority_is_taken(root: Certifier) -> None:
    verifier = Verifier(authorities=[root.file], signer="CN=Release", clock=clock)

    assert verifier.verify(DATA, by(root.certify("Release")).sign(DATA)).names == ("CN=Release",)
    refused(verifier, by(root.certify("Canteen")).sign(DATA), "not the expected signer")


def test_a_key_is_not_taken_for_a_certificate_nor_the_other_way(root: Certifier, trusted: Keys) -> None:
    refused(Verifier(authorities=[root.file], clock=clock), trusted.signer.sign(DATA), "give --key")
    refused(trusted.verifier, by(root.certify("Release")).sign(DATA), "give --ca")


def test_a_certificate_of_another_key_or_out_of_date_does_not_sign(root: Certifier) -> None:
    first, second = root.certify("Release"), root.certify("Other")

    with pytest.raises(ConfigError, match="not the key's"):
        by((first[0], second[1]))
    with pytest.raises(ConfigError, match="not valid today"):
        Signer(first[0], certificate=first[1], clock=lambda: NOW + 366 * DAY)


@pytest.mark.parametrize(("made", "said"), [(NOW - 400 * DAY, "not yet valid"), (NOW + 400 * DAY, "had expired")])
def test_a_bundle_that_says_it_was_made_while_its_certificate_was_not_valid_is_refused(
    root: Certifier, tmp_path: Path, made: datetime, said: str
) -> None:
    signer = by(root.certify("Release"))
    manifest = manifest_of([], signer).model_copy(update={"created_at": made})
    file = forged(tmp_path / "b.mpb", manifest, b"", signer)

    with pytest.raises(VerificationError, match=said):
        Bundle.open(file, Verifier(authorities=[root.file], clock=clock))


def test_an_unsigned_bundle_opens_for_nobody_who_asks_for_a_signature(trusted: Keys, tmp_path: Path) -> None:
    write_bundle(tmp_path / "u.mpb", [Item("documents/a", "document", b"a")], meta=META, signer=None)

    with pytest.raises(VerificationError, match="not signed"):
        Bundle.open(tmp_path / "u.mpb", trusted.verifier)
    with Bundle.open(tmp_path / "u.mpb", None) as bundle:
        assert bundle.signed_by is None


def test_a_signature_that_was_taken_out_is_missed_even_by_who_asks_for_none(trusted: Keys, tmp_path: Path) -> None:
    manifest = manifest_of([entry("documents/a", b"a")], trusted.signer)
    file = forged(tmp_path / "b.mpb", manifest, member("documents/a", b"a"), None)

    with pytest.raises(VerificationError, match="taken out"):
        Bundle.open(file, None)


def test_a_manifest_that_names_another_signer_is_refused(trusted: Keys, stranger: Keys, tmp_path: Path) -> None:
    file = forged(tmp_path / "b.mpb", manifest_of([], stranger.signer), b"", trusted.signer)

    with pytest.raises(VerificationError, match="another signer"):
        Bundle.open(file, trusted.verifier)


@pytest.mark.parametrize(
    ("uses", "taken"),
    [
        ([ExtendedKeyUsageOID.SERVER_AUTH], False),
        ([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CODE_SIGNING], True),
        ([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE], True),
    ],
    ids=["servers", "servers and code", "any"],
)
def test_an_authority_in_between_certifies_signers_only_if_it_is_for_code(
    root: Certifier, tmp_path: Path, uses: list[x509.ObjectIdentifier], taken: bool
) -> None:
    between = Certifier(tmp_path, name="Between", above=root, extended=uses)
    signature = by(between.certify("Release")).sign(DATA)
    verifier = Verifier(authorities=[root.file], clock=clock)

    if taken:
        assert verifier.verify(DATA, signature).names == ("CN=Release",)
    else:
        refused(verifier, signature, "authority 'CN=Between' is for other uses")


VERSION_5 = (bytes.fromhex("a003020102"), bytes.fromhex("a003020104"))
TWIN_EXTENSION = (bytes.fromhex("0603551d0e"), bytes.fromhex("0603551d0f"))
"""The subject's key identifier becomes a second key usage."""


@pytest.mark.parametrize("change", [VERSION_5, TWIN_EXTENSION], ids=["version 5", "twin extension"])
def test_a_certificate_that_breaks_the_standard_is_refused(
    root: Certifier, tmp_path: Path, change: tuple[bytes, bytes]
) -> None:
    key, chain = root.certify("Release")
    forgery = json.loads(by((key, chain)).sign(DATA))
    certificate = forgery["verificationMaterial"]["x509CertificateChain"]["certificates"][0]
    broken = base64.b64decode(certificate["rawBytes"]).replace(*change, 1)
    certificate["rawBytes"] = base64.b64encode(broken).decode()

    refused(Verifier(authorities=[root.file], clock=clock), json.dumps(forgery).encode(), "cannot be read")
    text = base64.encodebytes(broken).decode()
    chain.write_text(f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n")
    with pytest.raises(ConfigError, match="holds no certificates"):
        by((key, chain))
    with pytest.raises(ConfigError, match="holds no certificates"):
        Verifier(authorities=[chain], clock=clock)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_a_damaged_certificate_is_refused_wherever_it_is_damaged(root: Certifier) -> None:
    _, chain = root.certify("Release")
    whole = x509.load_pem_x509_certificate(chain.read_bytes()).public_bytes(serialization.Encoding.DER)
    chance = random.Random(1)

    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with suppress(VerificationError):  # anything else is a fault of ours
            certificates.path_to([root.certificate], [bytes(data)], now=NOW)
