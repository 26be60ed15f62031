"""Bearer tokens of service accounts: JWTs that they sign themselves, and access tokens that they get for one.

A JWT is signed with RS256 by a key of the file, named by ``kid``; nothing of it is believed before its signature
was checked. An access token is sealed with a secret of this process: nothing is kept of it, however many there
are, and none outlives the server; its client then asks for another one, as after an hour. Both are good only as
long as the key that they came from is in the file. Belongs to one event loop.

Source: RFC 7519, RFC 7523; Google's "Using OAuth 2.0 for server to server applications", whose words errors use.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from base64 import urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medport.errors import AuthError, Forbidden
from medport_local.serving import accounts
from medport_local.serving.identity import Principal
from medport_local.serving.keys import AccountEntry, digest_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from jwt.types import Options

LIFETIME_S = 3600
"""Of an access token, and the longest that a JWT may be good for."""
SKEW_S = 10
"""By which a caller's clock may be wrong."""
MAX_TOKEN_CHARS = 8192
"""A JWT of Google's client has about 700."""
MAX_VERIFIED = 4096
"""JWTs whose signature is not checked again; another one costs some 0.3 ms."""
CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"
GOOGLE_TOKEN_URI = "https://oauth2.googleapis.com/token"  # noqa: S105
"""What Google's client writes as an assertion's audience, wherever it sends it."""
TOKEN_PATH = "/token"  # noqa: S105

_API = re.compile(r"https://([a-z0-9-]{1,60}-)?aiplatform\.googleapis\.com/?")
_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_ACCESS = re.compile(r"mpt_([A-Za-z0-9._-]{1,128})~([0-9]{1,12})~([A-Za-z0-9_-]{22})~([A-Za-z0-9_-]{43})")
_Time = Annotated[float, Field(strict=True, ge=0, le=2**40, allow_inf_nan=False)]
_Text = Annotated[str, Field(strict=True)]


class BadToken(AuthError):
    """A token or assertion that is not taken; ``code`` is OAuth's name for why."""

    def __init__(self, message: str, *, code: str = "invalid_grant", remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.code = code


class _Claims(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    iss: _Text
    sub: _Text | None = None
    aud: _Text | tuple[_Text, ...] = ()
    scope: _Text = ""
    iat: _Time
    exp: _Time
    nbf: _Time = 0

    @property
    def audiences(self) -> tuple[str, ...]:
        return (self.aud,) if isinstance(self.aud, str) else self.aud


@dataclass(frozen=True, slots=True)
class _Key:
    """A public key, and whose it is."""

    pem: str
    public: RSAPublicKey = field(repr=False)
    email: str
    principal: Principal
    expires: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class _Verified:
    """A JWT that was checked: it counts as long as its key is the same."""

    key_id: str
    pem: str
    until: float
    """Seconds since the epoch."""


class Tokens:
    """Tells whose token it is, and gives access tokens.

    Args:
        hosts: ``host:port`` by which clients know this server: its own URL may be a JWT's audience too. Never what
            a request says, for that is the word of whoever might have got hold of a token for another server.
    """

    def __init__(self, hosts: Iterable[str] = ()) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._keys: Mapping[str, _Key] = {}
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()
        self._secret = secrets.token_bytes(32)

    def replace(self, entries: Iterable[AccountEntry]) -> None:
        """Have these accounts in force and no others."""
        self._keys = {
            key.id: _Key(key.pem, accounts.public_key(key.pem), entry.email, entry.principal, entry.expires_s)
            for entry in entries
            for key in entry.public_keys
        }

    def identify(self, token: str, now: float) -> Principal | None:
        """Whose token it is; ``None`` if it has the form of neither kind.

        Args:
            now: seconds since the epoch.

        Raises:
            AuthError: it has, and is not good, or not good any more.
            Forbidden: it is good, and its scopes are for something else.
        """
        if len(token) > MAX_TOKEN_CHARS:
            return None
        if access := _ACCESS.fullmatch(token):
            key = self._opened(access, now)
        elif _JWT.fullmatch(token):
            key = self._signed(token, now)
        else:
            return None
        if now >= key.expires:
            raise BadToken("the service account has expired", remedy="ask for a new one")
        return key.principal

    def grant(self, assertion: str, now: float) -> str:
        """An access token for a JWT that says who wants it, good for ``LIFETIME_S``.

        Raises:
            BadToken: the assertion is not good, or asks for what is not given here.
        """
        if len(assertion) > MAX_TOKEN_CHARS or not _JWT.fullmatch(assertion):
            raise BadToken("Invalid JWT: it cannot be read.", code="invalid_grant")
        key_id, key, claims = self._read(assertion, now)
        if claims.sub not in (None, claims.iss):
            raise BadToken(
                "Client is unauthorized to retrieve access tokens using this method.",
                code="unauthorized_client",
                remedy="leave the subject out: an account acts for itself",
            )
        if not any(aud == GOOGLE_TOKEN_URI or self._is_own(aud, TOKEN_PATH) for aud in claims.audiences):
            raise BadToken(f"Invalid JWT: Failed audience check. The right audience is {GOOGLE_TOKEN_URI}")
        if CLOUD_PLATFORM not in claims.scope.split():
            raise BadToken(
                "Invalid OAuth scope or ID token audience provided.",
                code="invalid_scope",
                remedy=f"ask for the scope {CLOUD_PLATFORM}",
            )
        if now >= key.expires:
            raise BadToken("Invalid grant: account not found", remedy="it has expired; ask for a new one")
        said = f"mpt_{key_id}~{int(now) + LIFETIME_S}~{secrets.token_urlsafe(16)}"
        return f"{said}~{self._seal(said, key.pem)}"

    def _opened(self, access: re.Match[str], now: float) -> _Key:
        key = self._keys.get(access[1])
        said, _, seal = access[0].rpartition("~")
        # Sealed even if nobody has that key, so that the time does not tell which keys there are.
        good = hmac.compare_digest(self._seal(said, key.pem if key else ""), seal)
        if key is None or not good or now >= int(access[2]):
            raise BadToken("the access token is not good, or not any more", remedy="get another one")
        return key

    def _seal(self, said: str, pem: str) -> str:
        digest = hmac.digest(self._secret, f"{said}\n{pem}".encode(), hashlib.sha256)
        return urlsafe_b64encode(digest).decode().rstrip("=")

    def _signed(self, token: str, now: float) -> _Key:
        """The key of a JWT that is meant for the API."""
        digest = digest_of(token)
        known = self._verified.get(digest)
        if known is not None:
            key = self._keys.get(known.key_id)
            if key is not None and key.pem == known.pem and now < known.until:
                self._verified.move_to_end(digest)
                return key
            del self._verified[digest]
        key_id, key, claims = self._read(token, now)
        if claims.sub != claims.iss:
            raise BadToken("Invalid JWT: iss and sub differ", remedy="both are the account's e-mail address")
        if claims.audiences:
            if not any(_API.fullmatch(aud) or self._is_own(aud) for aud in claims.audiences):
                raise BadToken("the token is for another service", remedy="sign one for aiplatform.googleapis.com")
        elif not claims.scope:
            raise BadToken(
                "the token has neither an audience nor a scope", remedy=f"give the scope {CLOUD_PLATFORM}"
            )
        elif CLOUD_PLATFORM not in claims.scope.split():
            raise Forbidden(
                "Request had insufficient authentication scopes.", remedy=f"give the scope {CLOUD_PLATFORM}"
            )
        self._verified[digest] = _Verified(key_id, key.pem, claims.exp + SKEW_S)
        if len(self._verified) > MAX_VERIFIED:
            self._verified.popitem(last=False)
        return key

    def _read(self, token: str, now: float) -> tuple[str, _Key, _Claims]:
        """What a JWT says, once it is sure who says so."""
        import jwt

        try:
            key_id = jwt.get_unverified_header(token).get("kid")
            key = self._keys.get(key_id) if isinstance(key_id, str) else None
            if key is None or not isinstance(key_id, str):
                raise _bad_signature()
            # Times and names are checked below, by this server's clock and in Google's words.
            content = jwt.decode(token, key.public, algorithms=["RS256"], options=_SIGNATURE_ONLY)
            claims = _Claims.model_validate(content)
        except ValidationError as fault:
            place = ".".join(
                str(part) for part in fault.errors(include_url=False, include_input=False)[0]["loc"][:1]
            )
            raise BadToken(f"Invalid JWT: {place} is missing or has another form") from None
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise _bad_signature() from None
        if claims.iss != key.email:
            raise _bad_signature()
        if not _in_time(claims, now):
            raise BadToken(
                "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. "
                "Check your iat and exp values in the JWT claim.",
                remedy="set the clock of the caller or of the server",
            )
        return key_id, key, claims

    def _is_own(self, audience: str, path: str | None = None) -> bool:
        try:
            parts = urlsplit(audience)
        except ValueError:
            return False
        here = parts.scheme in ("https", "http") and parts.netloc.lower() in self._hosts
        return here and (path is None or parts.path == path)


_SIGNATURE_ONLY: Options = {
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_iss": False,
    "verify_sub": False,
    "verify_jti": False,
}


def _bad_signature() -> BadToken:
    # One answer for an unknown account, another's key and a forged signature.
    return BadToken(
        "Invalid JWT Signature.", remedy="sign it with RS256 and a key of medport keys add-service-account"
    )


def _in_time(claims: _Claims, now: float) -> bool:
    return (
        max(claims.iat, claims.nbf) <= now + SKEW_S
        and now < claims.exp + SKEW_S
        and claims.iat < claims.exp <= claims.iat + LIFETIME_S + SKEW_S
    )
