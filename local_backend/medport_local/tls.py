"""A private certificate authority and a server certificate for sites that have none."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from medport.errors import ConfigError
from medport_local.app import Tls

_CA_LIFE = timedelta(days=3650)
_LEAF_LIFE = timedelta(days=397)  # what Apple's clients accept at most
_RENEW_BEFORE = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class SelfSigned:
    """Where the files are; ``ca`` is what clients are given to trust."""

    ca: Path
    tls: Tls


def self_signed(directory: Path, host: str) -> SelfSigned:
    """Make, or use again while they are valid, an authority and a certificate for ``host`` and this machine.

    The certificate names ``host``, the machine's name, localhost, 127.0.0.1 and ::1. Keys are readable by their
    owner only. A certificate near its end is renewed under the same authority, so clients need no new file.

    Raises:
        ConfigError: the directory cannot be written.
    """
    files = SelfSigned(directory / "ca.pem", Tls(directory / "server.pem", directory / "server-key.pem"))
    names = _names([host, socket.gethostname(), "localhost", "127.0.0.1", "::1"])
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        ca_key_file = directory / "ca-key.pem"
        ca = _load(files.ca, ca_key_file)
        if ca is None:
            ca = _make_ca()
            _write(files.ca, ca_key_file, ca)
        leaf = _load(files.tls.certificate, files.tls.key)
        if leaf is None or not _covers(leaf[0], ca[0], names):
            leaf = _make_leaf(ca, names)
            _write(files.tls.certificate, files.tls.key, leaf)
    except OSError as fault:
        raise ConfigError(
            f"the certificate directory cannot be used ({type(fault).__name__})",
            field="tls-self-signed",
            remedy="give a directory that you may write",
        ) from fault
    return files


_Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def _names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            if host.isascii() and host:
                names.append(x509.DNSName(host))
        else:
            if not address.is_unspecified:
                names.append(x509.IPAddress(address))
    return names


def _make_ca() -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"medport local CA {os.urandom(4).hex()}")])
    builder = (
        _builder(name, name, key.public_key(), _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return builder.sign(key, hashes.SHA256()), key


def _make_leaf(ca: _Pair, names: list[x509.GeneralName]) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "medport local server")])
    builder = (
        _builder(subject, ca[0].subject, key.public_key(), _LEAF_LIFE)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca[1].public_key()), critical=False)
    )
    return builder.sign(ca[1], hashes.SHA256()), key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks in a hospital differ
        .not_valid_after(now + life)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=ca, crl_sign=ca, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _load(certificate: Path, key: Path) -> _Pair | None:
    """A pair from its files; ``None`` if it is absent, broken, mismatched or near its end."""
    try:
        cert = x509.load_pem_x509_certificate(certificate.read_bytes())
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != cert.public_key():
        return None
    return (cert, private) if datetime.now(UTC) + _RENEW_BEFORE < cert.not_valid_after_utc else None


def _covers(leaf: x509.Certificate, ca: x509.Certificate, names: list[x509.GeneralName]) -> bool:
    try:
        leaf.verify_directly_issued_by(ca)
        held = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:  # the library raises several kinds; whatever it is, the certificate is made anew
        return False
    return set(names) <= set(held)


def _write(certificate: Path, key: Path, pair: _Pair) -> None:
    pem = pair[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _replace(key, pem, 0o600)
    _replace(certificate, pair[0].public_bytes(serialization.Encoding.PEM), 0o644)


def _replace(path: Path, data: bytes, mode: int) -> None:
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)
    os.replace(fresh, path)
