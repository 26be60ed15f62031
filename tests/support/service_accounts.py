"""Service accounts of the test's own, and the tokens that they sign."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Unpack

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from medport_local.serving import accounts, keys
from medport_local.serving.accounts import KeyPair
from medport_local.serving.keys import Grants

API = "https://aiplatform.googleapis.com/"
GOOGLE_TOKENS = "https://oauth2.googleapis.com/token"
CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"


@cache
def pair(which: int) -> KeyPair:
    """Made once: it takes a tenth of a second."""
    return accounts.key_pair()


def encoded(part: object) -> str:
    """JSON as a part of a token."""
    return _base64(json.dumps(part).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@cache
def _private(pem: str) -> RSAPrivateKey:
    key = serialization.load_pem_private_key(pem.encode(), None)
    assert isinstance(key, RSAPrivateKey)
    return key


@dataclass(frozen=True)
class ServiceAccount:
    """One that has its private key."""

    email: str
    now: float
    pair: KeyPair = field(default_factory=lambda: pair(0))

    def token(self, *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """What Google's client sends to the API; a claim that is ``None`` is left out."""
        said = {
            "iss": self.email, "sub": self.email, "aud": API, "iat": int(self.now), "exp": int(self.now) + 3600,
        } | claims  # fmt: skip
        said = {name: value for name, value in said.items() if value is not None}
        head = {"alg": "RS256", "typ": "JWT", "kid": self.pair.id} | (headers or {})
        return self.signed(f"{encoded(head)}.{encoded(said)}")

    def signed(self, text: str) -> str:
        """``text`` and its RS256 signature, by other code than the server's: it signs what no library would."""
        key = _private(self.pair.private_pem)
        signature = key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{text}.{_base64(signature)}"

    def assertion(self, **claims: Any) -> str:
        """What Google's client sends to a ``token_uri``."""
        return self.token(**{"sub": None, "aud": GOOGLE_TOKENS, "scope": CLOUD_PLATFORM, **claims})


def registered(
    file: Path, name: str = "ci", *, now: float, which: int = 0, **grants: Unpack[Grants]
) -> ServiceAccount:
    """An account that is written into a file of keys."""
    account = ServiceAccount(f"{name}@local.iam.gserviceaccount.com", now, pair(which))
    keys.add_account(
        file, name, email=account.email, key_id=account.pair.id, pem=account.pair.public_pem, **grants
    )
    return account
