"""Certificates, their private keys and files of API keys: whether they can be read and are in force."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from medport.errors import ConfigError
from medport_local.serving import keys

RENEW_BEFORE = timedelta(days=30)


def certificate(file: Path, field: str, now: datetime) -> str:
    """Say until when every certificate of a PEM file is valid.

    Raises:
        ConfigError: it cannot be read, holds none, or one is not valid now. Names ``field``.
    """
    found = _certificates(file, field)
    for each in found:
        if now >= each.not_valid_after_utc:
            raise ConfigError(
                f"{file.name} expired on {each.not_valid_after_utc:%Y-%m-%d}",
                field=field,
                remedy="renew the certificate",
            )
        if now < each.not_valid_before_utc:
            raise ConfigError(
                f"{file.name} is not valid before {each.not_valid_before_utc:%Y-%m-%d}",
                field=field,
                remedy="set the clock, or wait",
            )
    end = min(each.not_valid_after_utc for each in found)
    soon = ", renew it soon" if end - now < RENEW_BEFORE else ""
    return f"{file.name} valid until {end:%Y-%m-%d}{soon}"


def private_key(file: Path, leaf: Path | None) -> str:
    """Say that a private key can be used by the server and by nobody else.

    Args:
        leaf: the certificate that it must belong to.

    Raises:
        ConfigError: it cannot be read, has a password, can be read by others, or belongs to another certificate.
    """
    data = _read(file, "tls-key")
    _refuse_shared(file, "tls-key")
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(
            f"{file.name} holds no key without a password", field="tls-key", remedy="give a PEM file"
        ) from None
    if leaf is not None and _certificates(leaf, "tls-cert")[0].public_key() != key.public_key():
        raise ConfigError(
            f"{file.name} is not the key of {leaf.name}",
            field="tls-key",
            remedy="give the key that the certificate was made for",
        )
    return f"{file.name} belongs to its certificate" if leaf is not None else f"{file.name} can be read"


def api_keys(file: Path, now: datetime) -> str:
    """Say how many keys and service accounts of a file of ``medport serve --keys`` are in force.

    Raises:
        ConfigError: it cannot be read, can be read by others, or none is in force.
    """
    found = keys.load(file).everybody
    _refuse_shared(file, "keys")
    count = sum(each.expires_s > now.timestamp() for each in found)
    if not count:
        raise ConfigError(
            f"{file.name} holds no key in force", field="keys", remedy=f"medport keys add NAME --keys {file}"
        )
    return f"{count} of {len(found)} API keys in force"


def _certificates(file: Path, field: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(file, field))
    except ValueError:
        raise ConfigError(f"{file.name} holds no certificate", field=field, remedy="give a PEM file") from None


def _read(file: Path, field: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as fault:
        raise ConfigError(
            f"{file} cannot be read ({os.strerror(fault.errno or 0)})", field=field, remedy="let this user read it"
        ) from fault


def _refuse_shared(file: Path, field: str) -> None:
    if os.name == "posix" and file.stat().st_mode & 0o077:
        raise ConfigError(f"{file.name} can be read by others", field=field, remedy=f"chmod 600 {file}")
