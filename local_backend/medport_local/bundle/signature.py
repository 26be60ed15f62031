"""``manifest.sig``: the parts of a model signature that decide, read before the library reads them.

Source: https://docs.sigstore.dev/about/bundle/ (version 0.3); https://github.com/secure-systems-lab/dsse (the
envelope); https://github.com/sigstore/model-transparency (the predicate).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, Field, ValidationError

from medport.errors import VerificationError
from medport_local.bundle.manifest import MANIFEST, SIGNATURE

MAX_SIGNATURE_BYTES = 2**20


class _PublicKey(BaseModel):
    hint: str


class _Certificate(BaseModel):
    raw_bytes: Annotated[str, Field(alias="rawBytes")]


class _Chain(BaseModel):
    certificates: Annotated[list[_Certificate], Field(min_length=1, max_length=10)]


class _Material(BaseModel):
    key: Annotated[_PublicKey | None, Field(alias="publicKey")] = None
    chain: Annotated[_Chain | None, Field(alias="x509CertificateChain")] = None


class _Envelope(BaseModel):
    payload: str
    signatures: Annotated[list[dict[str, str]], Field(min_length=1, max_length=1)]


class Signature(BaseModel):
    """The parts of a sigstore bundle that decide, read before the library reads it."""

    material: Annotated[_Material, Field(alias="verificationMaterial")]
    envelope: Annotated[_Envelope, Field(alias="dsseEnvelope")]

    @classmethod
    def read(cls, data: bytes) -> Signature:
        """Read ``manifest.sig``.

        Raises:
            VerificationError: it has not these parts.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError:
            refuse("is not a model signature with a key or certificates")

    def require_only(self, manifest: bytes) -> None:
        """Refuse a signature that is over more, or over less, than this manifest's bytes.

        Less: a signed list of paths to ignore makes the library leave them out, on both sides.

        Raises:
            VerificationError: it is.
        """
        expected = [
            {"name": MANIFEST, "algorithm": "sha256", "digest": hashlib.sha256(manifest).hexdigest()},
        ]
        predicate = _predicate(decoded(self.envelope.payload))
        if predicate.get("resources") != expected:
            refuse("is not over the manifest alone")


class _Statement(BaseModel):
    predicate: dict[str, Any]


def _predicate(payload: bytes) -> Mapping[str, Any]:
    try:
        return _Statement.model_validate_json(payload).predicate
    except ValidationError:
        refuse("is not over a list of files")


def decoded(text: str) -> bytes:
    """The bytes of a base64 text.

    Raises:
        VerificationError: it is none.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        refuse("holds what is not base64")


def refuse(fault: str, remedy: str = "get the bundle again from who made it") -> NoReturn:
    """Raise the VerificationError that names the signature."""
    raise VerificationError(f"{SIGNATURE}: {fault}", field=SIGNATURE, remedy=remedy)
