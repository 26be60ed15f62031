"""Key pairs of service accounts: made, read, and written in the form of Google's service-account files.

``cryptography`` is imported where it is needed: most commands and servers know no service account.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from medport.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

MIN_BITS = 2048
MAX_BITS = 4096
"""A check of a signature takes four times as long with twice the bits, and who sends them need not be known."""
_EXPONENT = 65537


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A new RSA key."""

    id: str
    public_pem: str
    private_pem: str = field(repr=False)


def key_pair() -> KeyPair:
    """A new key of 2048 bits, as Google makes them; takes some 0.1 s."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    private = rsa.generate_private_key(public_exponent=_EXPONENT, key_size=MIN_BITS)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    public = _pem(private.public_key())
    return KeyPair(id_of(public), public, pem)


def id_of(pem: str) -> str:
    """A key's id, made from the key: 40 hex digits, as Google's are."""
    return hashlib.sha256(pem.encode()).hexdigest()[:40]


def public_key(pem: str) -> RSAPublicKey:
    """The key in a PEM text: a public key, or a certificate, as Google gives those of its service accounts.

    Raises:
        ConfigError: it is no RSA key, or one that must not be trusted with a signature.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    if "PRIVATE KEY" in pem:
        raise ConfigError("this is a private key", field="public-key", remedy="give the public one")
    try:
        data = pem.encode()
        if "BEGIN CERTIFICATE" in pem:
            key: object = x509.load_pem_x509_certificate(data).public_key()
        else:
            key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(
            "this is no public key", field="public-key", remedy="give a PEM file with BEGIN PUBLIC KEY"
        ) from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise ConfigError("is no RSA key", field="public-key", remedy="tokens are signed with RS256")
    if not MIN_BITS <= key.key_size <= MAX_BITS or key.public_numbers().e != _EXPONENT:
        raise ConfigError(
            f"is no RSA key of {MIN_BITS} to {MAX_BITS} bits with the exponent {_EXPONENT}", field="public-key"
        )
    return key


def public_pem(pem: str) -> str:
    """The key in a PEM text, as a public key. Raises as ``public_key`` does."""
    return _pem(public_key(pem))


def read_pem(file: Path) -> str:
    """The text of a PEM file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return file.read_text("ascii")
    except OSError as fault:
        said = os.strerror(fault.errno or 0)
        raise ConfigError(f"the file cannot be read ({said})", field="public-key") from fault
    except UnicodeDecodeError:
        raise ConfigError("this is no PEM file", field="public-key") from None


def write_credentials(out: Path, *, project: str, email: str, token_uri: str, pair: KeyPair) -> None:
    """Write a service-account file that Google's clients take as a credential. Only its owner can read it.

    Raises:
        ConfigError: there is such a file already, or it cannot be written.
    """
    content = {
        "type": "service_account",
        "project_id": project,
        "private_key_id": pair.id,
        "private_key": pair.private_pem,
        "client_email": email,
        "client_id": str(int(pair.id, 16))[:21],
        "token_uri": token_uri,
        "universe_domain": "googleapis.com",
    }
    try:
        handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError("there is such a file already", field="out", remedy="give another name") from None
    except OSError as fault:
        raise ConfigError(f"the file cannot be written ({os.strerror(fault.errno or 0)})", field="out") from fault
    with open(handle, "wb") as file:
        file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")


def _pem(key: RSAPublicKey) -> str:
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
