"""A verification's report as a signed file, which says so later, elsewhere, and without this machine.

A JSON object: ``report`` is for people and tools, ``signature`` says by which key. What is signed is the report's
canonical form (keys sorted, no blanks, UTF-8) behind its type, so that a signature of something else never counts
here. Keys are those of ``medport bundle keygen`` (ECDSA on P-256), or Ed25519 (``openssl genpkey -algorithm
ed25519``); which one is decided by the key and never by the file.

Source: DSSE, "Pre-Authentication Encoding" (secure-systems-lab/dsse); RFC 8032; FIPS 186-5.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from medport import _extras
from medport.errors import ConfigError, InputError, VerificationError
from medport_deploy.verify.result import FORM, Report

Json = dict[str, Any]
TYPE = "application/vnd.medport.verify+json"
MAX_BYTES = 16 * 2**20
_KINDS = "give an Ed25519 key, or one on P-256 as medport bundle keygen makes it; in PEM, without a password"


def canonical(said: object) -> bytes:
    """The one form of a JSON value: keys sorted, no blanks, UTF-8.

    Raises:
        InputError: it holds a number that JSON has not, or something else that is no JSON.
    """
    try:
        return json.dumps(
            said, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()
    except (TypeError, ValueError, RecursionError):
        raise InputError("holds what JSON has no form for", field="report") from None


def sign(report: Report, key_pem: bytes) -> bytes:
    """A report as a signed file.

    Args:
        key_pem: a private key; nothing of it is in what is given back, nor in an error.

    Raises:
        ConfigError: it is no key of a kind that signs.
    """
    said = report.as_dict()
    private = _private(key_pem)
    value = _signed(private, _encoded(canonical(said)))
    public = private.public_key()
    signature = {
        "algorithm": _algorithm(public),
        "key_sha256": key_id(_pem(public)),
        "value": base64.b64encode(value).decode(),
    }
    whole = {"report": said, "signature": signature}
    return json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def require_signing(key_pem: bytes) -> None:
    """Refuse what ``sign`` cannot sign with, before there is anything to sign.

    Raises:
        ConfigError: it is no key of a kind that signs.
    """
    _private(key_pem)


def check(data: bytes, public_pem: bytes) -> Json:
    """The report in a signed file, if that key signed it as it is.

    What it says may be old: see its ``made_at``, ``lock_id`` and ``clean``.

    Args:
        data: the file.
        public_pem: of whom it must be.

    Raises:
        VerificationError: somebody else signed it, or it was changed.
        InputError: it is no signed report.
        ConfigError: the key is no public key of a kind that signs.
    """
    public = _public(public_pem)
    whole = _parsed(data)
    said, signature = whole.get("report"), whole.get("signature")
    if set(whole) != {"report", "signature"}:
        # Nobody signed the rest, and a reader could take it for part of the report.
        raise InputError("holds more or less than a report and its signature", field="report")
    if not isinstance(said, dict) or not isinstance(signature, dict) or said.get("form") != FORM:
        raise InputError("is no signed report of medport deploy verify", field="report")
    if set(signature) != {"algorithm", "key_sha256", "value"}:
        raise InputError("has a signature of another form", field="report")
    try:
        value = base64.b64decode(str(signature.get("value")), validate=True)
    except ValueError:
        raise InputError("has a signature that is no base64", field="report") from None
    if signature.get("key_sha256") != (ours := key_id(_pem(public))):
        told = str(signature.get("key_sha256"))[:12]
        raise VerificationError(
            f"is signed by the key {told!a}, not by {ours[:12]}",
            field="report",
            remedy="give the key of whoever signed it",
        )
    if signature["algorithm"] != _algorithm(public):
        raise VerificationError(
            f"names another algorithm than that of the key, {_algorithm(public)}",
            field="report",
            remedy="ask for it anew",
        )
    _extras.load("cryptography", extra="deploy")
    from cryptography.exceptions import InvalidSignature

    try:
        _require(public, value, _encoded(canonical(said)))
    except InvalidSignature:
        raise VerificationError(
            "the signature is not that of this report: it was changed after it was signed",
            field="report",
            remedy="ask for it anew",
        ) from None
    return said


def read_key(path: Path) -> tuple[bytes, str | None]:
    """A key's file, and a warning if others than its owner can read it and it is a private one.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            data, mode = file.read(64 * 1024), os.fstat(file.fileno()).st_mode
    except OSError as fault:
        raise ConfigError(
            f"the key's file cannot be read ({os.strerror(fault.errno or 0)})", field="key"
        ) from fault
    if b"PRIVATE KEY" in data and mode & 0o077:
        return data, f"{path.name} can be read by others than its owner: chmod 600"
    return data, None


def key_id(public_pem: bytes) -> str:
    """The sha256 of a public key's PEM in hex, as bundles name keys."""
    return hashlib.sha256(public_pem).hexdigest()


def _encoded(body: bytes) -> bytes:
    return b"DSSEv1 %d %s %d %s" % (len(TYPE), TYPE.encode(), len(body), body)


def _parsed(data: bytes) -> Json:
    try:
        whole = json.loads(data, object_pairs_hook=_once) if len(data) <= MAX_BYTES else None
    except (ValueError, RecursionError):
        whole = None
    if not isinstance(whole, dict):
        raise InputError("is no JSON object", field="report")
    return whole


def _once(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        # Two readers would see two reports.
        raise ValueError("a key stands twice")
    return found


def _private(pem: bytes) -> Any:
    _extras.load("cryptography", extra="deploy")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_pem_private_key(pem, None)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        raise ConfigError("is no private key in PEM, or has a password", field="key", remedy=_KINDS) from None
    _algorithm(key.public_key())
    return key


def _public(pem: bytes) -> Any:
    _extras.load("cryptography", extra="deploy")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    if b"PRIVATE KEY" in pem:
        raise ConfigError("is a private key", field="key", remedy="give the public one: it is enough to check")
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError("is no public key in PEM", field="key", remedy=_KINDS) from None
    _algorithm(key)
    return key


def _algorithm(public: Any) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    if isinstance(public, ed25519.Ed25519PublicKey):
        return "ed25519"
    if isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name == "secp256r1":
        return "ecdsa-p256-sha256"
    raise ConfigError("the key is of another kind", field="key", remedy=_KINDS)


def _pem(public: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization

    made: bytes = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return made


def _signed(private: Any, message: bytes) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    if isinstance(private, ec.EllipticCurvePrivateKey):
        return private.sign(message, ec.ECDSA(hashes.SHA256()))
    signature: bytes = private.sign(message)
    return signature


def _require(public: Any, signature: bytes, message: bytes) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    if isinstance(public, ec.EllipticCurvePublicKey):
        public.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    else:
        public.verify(signature, message)
