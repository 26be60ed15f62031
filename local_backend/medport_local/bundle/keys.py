"""Elliptic-curve keys that sign bundles, in PEM."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from medport.errors import ConfigError

_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_KIND = "an elliptic-curve key on P-256, P-384 or P-521"


def make(private: Path, public: Path, *, password: bytes | None = None) -> str:
    """Write a key pair on P-256: the private key readable by its owner only, in PKCS #8.

    Returns:
        The fingerprint of the public key.

    Raises:
        ConfigError: a file is there already, or cannot be written.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    data = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    if public.exists() or public.is_symlink():
        raise ConfigError(f"{public} is there already", field="public", remedy="give another name")
    _write(private, data, 0o600)
    _write(public, public_pem(key.public_key()), 0o644)
    return fingerprint(key.public_key())


def read_private(file: Path, password: bytes | None) -> ec.EllipticCurvePrivateKey:
    """Read a private key.

    Raises:
        ConfigError: the file cannot be read, its password is missing or wrong, or it is of another kind.
    """
    data = _read(file, field="sign")
    try:
        key = serialization.load_pem_private_key(data, password)
    except TypeError as fault:
        said = "has a password" if password is None else "has no password, and one is given"
        raise ConfigError(
            f"the key {said}", field="sign", remedy="name the variable that holds it: --password-env"
        ) from fault
    except (ValueError, UnsupportedAlgorithm) as fault:
        raise ConfigError(
            "is no private key in PEM, or its password is wrong", field="sign", remedy=f"give {_KIND}"
        ) from fault
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise ConfigError("the key is of another kind", field="sign", remedy=f"give {_KIND}")
    return key


def read_public(file: Path) -> ec.EllipticCurvePublicKey:
    """Read a public key.

    Raises:
        ConfigError: the file cannot be read, or is no public key of a kind that signs bundles.
    """
    data = _read(file, field="key")
    if b"PRIVATE KEY" in data:
        raise ConfigError(
            "is a private key, which a site must never hold", field="key", remedy="give the public one"
        )
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as fault:
        raise ConfigError("is no public key in PEM", field="key", remedy=f"give {_KIND}") from fault
    return require_curve(key, field="key")


def require_curve(key: object, *, field: str) -> ec.EllipticCurvePublicKey:
    """The key, if it is of a kind that signs bundles.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise ConfigError("the key is of another kind", field=field, remedy=f"give {_KIND}")
    return key


def public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """The key as ``openssl ec -pubout`` writes it."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """sha256 of the public key's PEM in hex, as model signatures name keys."""
    return hashlib.sha256(public_pem(key)).hexdigest()


@contextmanager
def without_password(file: Path, key: ec.EllipticCurvePrivateKey, password: bytes | None) -> Iterator[Path]:
    """A path at which the key can be read without a password; never on a disk.

    Raises:
        ConfigError: the key has a password, and this system has no files in memory.
    """
    if password is None:
        yield file
        return
    if not hasattr(os, "memfd_create"):
        raise ConfigError(
            "a key with a password signs for a certificate on Linux only", field="sign", remedy="sign there"
        )
    descriptor = os.memfd_create("medport-key", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as memory:
            memory.write(
                key.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                )
            )
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _read(file: Path, *, field: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as fault:
        raise ConfigError(f"the file cannot be read ({os.strerror(fault.errno or 0)})", field=field) from fault


def _write(file: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
    except FileExistsError as fault:
        raise ConfigError(f"{file} is there already", field="key", remedy="give another name") from fault
    except OSError as fault:
        raise ConfigError(
            f"the key cannot be written ({os.strerror(fault.errno or 0)})",
            field="key",
            remedy="give another place",
        ) from fault
