"""How we show the control plane who we are. Whatever it is, google-auth keeps it fresh.

A key of the local server is a bearer token like any other, so both targets are called alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from medport import _extras
from medport.errors import AuthError, ConfigError

_SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
_READ_AGAIN = timedelta(hours=1)


def application_default() -> Any:
    """What Google's tools use on this machine. Raises ``AuthError`` if there is none."""
    auth = _extras.load("google.auth", extra="deploy")
    problems = _extras.load("google.auth.exceptions", extra="deploy")
    try:
        found, _ = auth.default(scopes=_SCOPES)
    except problems.DefaultCredentialsError as none:
        raise AuthError(
            "there are no Application Default Credentials",
            field="target.auth",
            remedy="gcloud auth application-default login",
        ) from none
    return found


def service_account(file: Path) -> Any:
    """A service account's key file. Raises ``ConfigError`` if it is none."""
    library = _extras.load("google.oauth2.service_account", extra="deploy")
    try:
        return library.Credentials.from_service_account_file(str(file), scopes=_SCOPES)
    except (OSError, ValueError) as fault:
        # The fault may quote the file, which holds a private key.
        raise ConfigError(
            f"{file.name} is not a service account's key", field="target.auth", remedy="give its JSON file"
        ) from (fault if isinstance(fault, OSError) else None)


def bearer(read: Callable[[], str]) -> Any:
    """A key or a token that somebody else renews: it is read again when the server knows it no more.

    Args:
        read: gives the present one, such as from a file.
    """
    library = _extras.load("google.oauth2.credentials", extra="deploy")

    def again(request: object, scopes: object) -> tuple[str, datetime]:
        # google-auth compares with a time in UTC that does not say so.
        return read(), datetime.now(UTC).replace(tzinfo=None) + _READ_AGAIN

    return library.Credentials(read(), refresh_handler=again)


def from_variable(name: str) -> Callable[[], str]:
    """Reads a key from an environment variable; for ``bearer``."""

    def read() -> str:
        if not (key := os.environ.get(name, "").strip()):
            raise ConfigError(f"{name} is not set", field="target.auth", remedy=f"put the API key into {name}")
        if not key.isprintable() or " " in key:
            # No header takes it, and what refuses it would quote it.
            raise ConfigError(
                f"{name} holds no API key", field="target.auth", remedy=f"put the API key into {name}"
            )
        return key

    return read


class Auth(Protocol):
    """Where a credential is; a spec's ``target.auth`` is one."""

    @property
    def api_key_env(self) -> str | None: ...
    @property
    def credentials_file(self) -> str | None: ...


def renewal(auth: Auth) -> str:
    """How the credential that a spec names is renewed, in the words of a remedy."""
    if auth.api_key_env:
        return f"put a key that is good into {auth.api_key_env}"
    if auth.credentials_file:
        return f"replace the key in {Path(auth.credentials_file).name}"
    return "log in again (gcloud auth application-default login)"


def of(auth: Auth) -> Any:
    """google-auth's credentials that a spec names. Raises ``ConfigError`` or ``AuthError`` if there are none."""
    if auth.api_key_env:
        return bearer(from_variable(auth.api_key_env))
    if auth.credentials_file:
        return service_account(Path(auth.credentials_file))
    return application_default()
