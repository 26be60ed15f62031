"""The signature over a bundle's manifest, and whom a site trusts to make one.

Signatures are OpenSSF model signatures (https://github.com/sigstore/model-transparency) over a folder that holds
``manifest.json`` alone, so the ``model_signing`` command checks them as well. What that library leaves open is
decided here: which kind of signature is taken, that it is over this one file, and that every certificate is valid
at the time that counts (the library looks at the moment from which the certificate was valid, so to it none has
ever expired). Nothing here asks the network.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from medport._extras import load
from medport.errors import ConfigError
from medport_local.bundle import certificates, keys
from medport_local.bundle.manifest import MANIFEST, SIGNATURE
from medport_local.bundle.signature import Signature, decoded, refuse

EXTRA = "bundle"

# The signature names the signed folder; its place on disk is nobody's business.
_FOLDER = "medport-bundle"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedBy:
    """Who signed, once that was checked."""

    names: tuple[str, ...]
    """A certificate's subject in RFC 4514 form; ``key sha256:…`` for a bare key."""
    how: Literal["key", "certificate"]
    key_sha256: str
    """Of the public key in PEM: what ``sha256sum`` says about the file that ``openssl ec -pubout`` writes."""
    valid_from: datetime | None = None
    """Of the certificate and every one above it; ``None`` for a bare key, which does not expire."""
    valid_until: datetime | None = None

    def require_valid_at(self, when: datetime, said: str) -> None:
        """Refuse a time at which a certificate was not valid.

        Args:
            said: what happened at that time, for the error.

        Raises:
            VerificationError: the certificate was not yet valid, or had expired.
        """
        if self.valid_from is not None and when < self.valid_from:
            refuse(
                f"{said} at {_day(when)}, when the signer's certificate was not yet valid "
                f"({_day(self.valid_from)})",
                "check this machine's clock",
            )
        if self.valid_until is not None and when > self.valid_until:
            refuse(
                f"{said} at {_day(when)}, when the signer's certificate had expired ({_day(self.valid_until)})",
                "have the bundle signed again under a valid certificate",
            )


class Signer:
    """Signs manifests with an elliptic-curve key, in the name of a certificate if there is one."""

    def __init__(
        self, key: Path, *, password: bytes | None = None, certificate: Path | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:  # fmt: skip
        """Read the key.

        Args:
            key: PEM of a private key on P-256, P-384 or P-521.
            password: if the key is encrypted.
            certificate: PEM of the signer's certificate, then of those above it, without the root.

        Raises:
            ConfigError: a file cannot be read, the key is of another kind, or the certificate is not the key's,
                may not sign, or is not valid today.
        """
        self._key = keys.read_private(key, password)
        self._password = password
        self._path = key
        self._chain = certificates.read(certificate, field="certificate") if certificate else ()
        self.names: tuple[str, ...] = (f"key sha256:{keys.fingerprint(self._key.public_key())}",)
        """Of the signer, as the manifest states them."""
        if self._chain:
            leaf = self._chain[0]
            if certificates.key_of(leaf) != self._key.public_key():
                raise ConfigError(
                    "the first certificate is not the key's", field="certificate", remedy="give the signer's first"
                )
            if fault := certificates.usage_fault(leaf):
                raise ConfigError(fault, field="certificate", remedy="have a certificate issued for code signing")
            now = clock()
            if not all(each.not_valid_before_utc <= now <= each.not_valid_after_utc for each in self._chain):
                raise ConfigError(
                    "a certificate is not valid today", field="certificate", remedy="renew it, or check the clock"
                )
            self.names = (certificates.name_of(leaf),)

    def sign(self, manifest: bytes) -> bytes:
        """The content of ``manifest.sig`` for a manifest; another one at each call."""
        signing = load("model_signing.signing", extra=EXTRA)
        with tempfile.TemporaryDirectory(prefix="medport-sign-") as made:  # 0700 by contract
            folder, signature = _lay_out(Path(made), manifest)
            config = signing.Config()
            if self._chain:
                leaf, above = Path(made, "leaf.pem"), Path(made, "above.pem")
                leaf.write_bytes(certificates.pem(self._chain[:1]))
                above.write_bytes(certificates.pem(self._chain[1:]))
                with keys.without_password(self._path, self._key, self._password) as plain:
                    config.use_certificate_signer(
                        private_key=plain, signing_certificate=leaf,
                        certificate_chain=[above] if len(self._chain) > 1 else [leaf],
                    )  # fmt: skip
            else:
                # The library says str, and hands it to a function that takes bytes.
                config.use_elliptic_key_signer(private_key=self._path, password=self._password)
            config.sign(folder, signature)
            return signature.read_bytes()


class Verifier:
    """Checks signatures against what a site trusts: one public key, or authorities."""

    def __init__(
        self, *, key: Path | None = None, authorities: Sequence[Path] = (), signer: str | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:  # fmt: skip
        """Read what is trusted.

        Args:
            key: PEM of a public key; exactly this key must have signed.
            authorities: PEM files of root certificates; whom they certify may sign.
            signer: of those, only the one with this subject (RFC 4514, such as ``CN=Release,O=Vendor``).
            clock: the time now, with its zone.

        Raises:
            ConfigError: neither or both are given, a signer is named beside a key, or a file is not what it should
                be.
        """
        if (key is None) == (not authorities):
            raise ConfigError(
                "give the public key of who may sign, or the authority that certifies signers",
                field="key",
                remedy="give --key or --ca; trust comes on another way than the bundle",
            )
        if key is not None and signer is not None:
            raise ConfigError(
                "a public key is trusted here, and it carries no name that could be compared",
                field="signer",
                remedy="leave --signer out, or give --ca in place of the key",
            )
        self._key = keys.read_public(key) if key else None
        self._roots = tuple(root for file in authorities for root in certificates.read(file, field="ca"))
        self._signer = signer
        self._clock = clock

    def verify(self, manifest: bytes, signature: bytes) -> SignedBy:
        """Who signed the manifest.

        Raises:
            VerificationError: the signature is by another key or signer, of another manifest, no such signature
                at all, or by a certificate that is not valid now, may not sign, or is not certified by the
                authorities.
        """
        envelope = Signature.read(signature)
        with tempfile.TemporaryDirectory(prefix="medport-verify-") as made:
            if self._key is not None:
                signed_by = self._by_key(envelope)
                trusted = Path(made, "key.pem")
                trusted.write_bytes(keys.public_pem(self._key))
            else:
                signed_by = self._by_certificate(envelope)
                trusted = Path(made, "roots.pem")
                trusted.write_bytes(certificates.pem(self._roots))
            folder, file = _lay_out(Path(made), manifest)
            file.write_bytes(signature)
            self._ask_library(folder, file, trusted)
        envelope.require_only(manifest)
        return signed_by

    def _by_key(self, envelope: Signature) -> SignedBy:
        assert self._key is not None
        fingerprint = keys.fingerprint(self._key)
        material = envelope.material
        if material.chain is not None:
            refuse("is by a certificate, and a key is trusted here", "give --ca instead of --key")
        if material.key is None or material.key.hint != fingerprint:
            refuse("is by another key", "check which key the sender uses; if it is this one, do not install")
        return SignedBy(names=(f"key sha256:{fingerprint}",), how="key", key_sha256=fingerprint)

    def _by_certificate(self, envelope: Signature) -> SignedBy:
        material = envelope.material
        if material.chain is None:
            refuse("is by a bare key, and certificates are trusted here", "give --key instead of --ca")
        presented = [decoded(each.raw_bytes) for each in material.chain.certificates]
        path = certificates.path_to(self._roots, presented, now=self._clock())
        name = certificates.name_of(path[0])
        if self._signer is not None and name != self._signer:
            refuse(f"is by {name!a:.200}, who is not the expected signer", "check --signer")
        return SignedBy(
            names=(name,),
            how="certificate",
            key_sha256=keys.fingerprint(certificates.key_of(path[0])),
            valid_from=max(each.not_valid_before_utc for each in path),
            valid_until=min(each.not_valid_after_utc for each in path),
        )

    def _ask_library(self, folder: Path, signature: Path, trusted: Path) -> None:
        verifying = load("model_signing.verifying", extra=EXTRA)
        crypto = load("OpenSSL.crypto", extra=EXTRA)
        invalid: type[Exception] = load("cryptography.exceptions", extra=EXTRA).InvalidSignature
        config = verifying.Config()
        if self._key is not None:
            config.use_elliptic_key_verifier(public_key=trusted)
        else:
            config.use_certificate_verifier(certificate_chain=[trusted])
        try:
            config.verify(folder, signature)
        except invalid:
            refuse("was not made by that key: it, or what it signs, was changed")
        except crypto.X509StoreContextError as fault:
            refuse(f"is by a certificate that is not trusted ({str(fault)[:100]})", "check --ca")
        except (
            ValueError,
            KeyError,
            IndexError,
            TypeError,
            AttributeError,
            RecursionError,
            crypto.Error,
        ) as fault:
            if str(fault).startswith("Signature mismatch"):
                refuse("is of another manifest")
            refuse(f"cannot be read ({type(fault).__name__})")


def _lay_out(made: Path, manifest: bytes) -> tuple[Path, Path]:
    folder = made / _FOLDER
    folder.mkdir()
    (folder / MANIFEST).write_bytes(manifest)
    return folder, made / SIGNATURE


def _day(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M}Z"
