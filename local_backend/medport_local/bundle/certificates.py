"""X.509 certificates of those who sign bundles.

OpenSSL builds and checks the path from the signer to a trusted root; here it is said by name what is wrong.
Source: RFC 5280, 4.2.1.3 and 4.2.1.12 (key usage), 6.1 (paths).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from medport._extras import load
from medport.errors import ConfigError
from medport_local.bundle import keys
from medport_local.bundle.signature import refuse

# X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL's x509_vfy.h.
_NOT_YET_VALID = 9
_EXPIRED = 10
_MALFORMED = (
    ValueError, TypeError, OverflowError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)  # fmt: skip
"""What cryptography raises on a certificate that breaks RFC 5280; some of it only when a part is asked for."""


_CODE_SIGNING = "have it signed under a certificate for code signing"


def read(file: Path, *, field: str) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM file, in order.

    Raises:
        ConfigError: it cannot be read, or holds none, or one that breaks the standard.
    """
    try:
        found = tuple(x509.load_pem_x509_certificates(file.read_bytes()))
        for each in found:
            _require_readable(each)
    except OSError as fault:
        raise ConfigError(f"the file cannot be read ({os.strerror(fault.errno or 0)})", field=field) from fault
    except _MALFORMED as fault:
        raise ConfigError(
            "holds no certificates in PEM that can be read", field=field, remedy="give a PEM file"
        ) from fault
    return found


def pem(certificates: Sequence[x509.Certificate]) -> bytes:
    """Certificates as one PEM text."""
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def name_of(certificate: x509.Certificate) -> str:
    """The subject in RFC 4514 form, cut to what a manifest takes."""
    return certificate.subject.rfc4514_string()[:1000]


def usage_fault(leaf: x509.Certificate) -> str | None:
    """Why a certificate may not sign bundles; ``None`` if it may.

    A certificate that is for something else by its extended usage, such as a web server's, may not: many in a site
    hold one of those.
    """
    try:
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        usage = None
    try:
        extended = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        extended = None
    if usage is not None and not usage.digital_signature:
        return "the certificate's key usage does not allow signatures"
    if extended is not None and ExtendedKeyUsageOID.CODE_SIGNING not in extended:
        return "the certificate is for other uses than signing code"
    if usage is None and extended is None:
        return "the certificate does not say that it may sign"
    return None


def path_to(
    roots: Sequence[x509.Certificate], presented: Sequence[bytes], *, now: datetime
) -> tuple[x509.Certificate, ...]:
    """The path from the signer's certificate to a trusted root, all of it valid now.

    Args:
        roots: what is trusted.
        presented: DER of the signer's certificate, then of others that came with the signature.

    Raises:
        VerificationError: a certificate cannot be read, is of a kind of key that does not sign, has expired or is
            not yet valid, may not sign, or may not certify who does; or there is no such path.
    """
    crypto = load("OpenSSL.crypto", extra="bundle")
    try:
        leaf, *above = (x509.load_der_x509_certificate(each) for each in presented)
        key_of(leaf)
        for each in (leaf, *above):
            _require_readable(each)
        fault = usage_fault(leaf)
        stack = [crypto.X509.from_cryptography(each) for each in (leaf, *above)]
    except (*_MALFORMED, ConfigError, crypto.Error):
        refuse("is by a certificate that cannot be read, or whose key is of another kind")
    if fault:
        refuse(f"{fault}: {name_of(leaf)!a:.200}", _CODE_SIGNING)
    store = crypto.X509Store()
    for root in roots:
        store.add_cert(crypto.X509.from_cryptography(root))
    store.set_time(now)
    try:
        found = crypto.X509StoreContext(store, stack[0], stack[1:]).get_verified_chain()
    except crypto.X509StoreContextError as error:
        _refuse_path(leaf, error.certificate.to_cryptography(), error.errors[0])
    except crypto.Error as error:
        refuse(f"is by {name_of(leaf)!a:.200}, whose certificate OpenSSL does not take ({type(error).__name__})")
    path = tuple(each.to_cryptography() for each in found)
    # OpenSSL is told of no purpose, and then looks at none; what is trusted was chosen for this one.
    for each in path[1:-1]:
        if not _may_certify_signers(each):
            refuse(
                f"the authority {name_of(each)!a:.200} is for other uses than to certify who signs code",
                _CODE_SIGNING,
            )
    return path


def key_of(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The certificate's key, if it is of a kind that signs bundles.

    Raises:
        ConfigError: it is not.
    """
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as fault:
        raise ConfigError(
            "the certificate's key cannot be read", field="certificate", remedy="have it issued for a key on P-256"
        ) from fault
    return keys.require_curve(key, field="certificate")


def _may_certify_signers(authority: x509.Certificate) -> bool:
    """Whether an authority's extended usage, which holds for all below it, lets code be signed."""
    try:
        usage = authority.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return ExtendedKeyUsageOID.CODE_SIGNING in usage or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage


def _require_readable(certificate: x509.Certificate) -> None:
    """Ask for the parts that are used later, as cryptography reads a certificate piece by piece."""
    for part in ("extensions", "subject", "not_valid_before_utc", "not_valid_after_utc"):
        getattr(certificate, part)
    name_of(certificate)


def _refuse_path(leaf: x509.Certificate, guilty: x509.Certificate, code: int) -> NoReturn:
    if code == _EXPIRED:
        refuse(
            f"the certificate of {name_of(guilty)!a:.200} has expired "
            f"({guilty.not_valid_after_utc:%Y-%m-%d %H:%M}Z)",
            "have the bundle signed again under a valid certificate",
        )
    if code == _NOT_YET_VALID:
        refuse(
            f"the certificate of {name_of(guilty)!a:.200} is not yet valid "
            f"({guilty.not_valid_before_utc:%Y-%m-%d %H:%M}Z)",
            "check this machine's clock",
        )
    refuse(f"is by {name_of(leaf)!a:.200}, whom no trusted authority certifies (OpenSSL {code})", "check --ca")
