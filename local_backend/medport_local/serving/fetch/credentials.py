"""What ``access_credential`` stands for: nothing, a bearer token, or the server's own Google credentials."""

from __future__ import annotations

import re
import threading
from functools import partial
from typing import Any

from medport._extras import load
from medport_local.serving.fetch.errand import Errand

APPLICATION_DEFAULT = "application_default"
READ_BUCKETS = "https://www.googleapis.com/auth/devstorage.read_only"
WRITE_BUCKETS = "https://www.googleapis.com/auth/devstorage.read_write"
READ_DICOM = "https://www.googleapis.com/auth/cloud-healthcare"

_TOKEN = re.compile(r"[a-zA-Z0-9_\-.]{1,16384}")
_MAX_REFRESH_S = 20.0


def bearer(credential: str | None, errand: Errand) -> str | None:
    """The token that a request sent along, ``None`` for none.

    Raises:
        FetchError: it is not a token, or it is ``application_default``, which is not for any host.
    """
    if not credential:
        return None
    if credential == APPLICATION_DEFAULT:
        raise errand.unauthorised(
            "the server's own credentials are only for buckets and DICOM stores", "send a token, or none"
        )
    if _TOKEN.fullmatch(credential) is None:
        raise errand.unauthorised("the access_credential is not a token", "send the token alone, without 'Bearer'")
    return credential


class OwnCredentials:
    """Google's application default credentials, by scope, renewed when they are about to end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_scope: dict[str, Any] = {}

    def token(self, credential: str | None, scope: str, errand: Errand) -> str | None:
        """The token for a credential, where the server may also use its own.

        Raises:
            FetchError: the server has none, they cannot be renewed, or the credential is not a token.
            ConfigError: google-auth is not installed.
        """
        if credential != APPLICATION_DEFAULT:
            return bearer(credential, errand)
        google_auth = load("google.auth", extra="fetch")
        transport = load("google.auth.transport.requests", extra="fetch")
        faults = load("google.auth.exceptions", extra="fetch").GoogleAuthError
        patience = min(errand.remaining(), _MAX_REFRESH_S)
        with self._lock:
            try:
                own = self._by_scope.get(scope)
                if own is None:
                    own, _ = google_auth.default(scopes=[scope])
                    self._by_scope[scope] = own
                if own.token_state.name != "FRESH":
                    own.refresh(partial(transport.Request(), timeout=patience))
            except faults as fault:
                raise errand.unauthorised(
                    f"the server's own credentials cannot be had ({type(fault).__name__})",
                    "give the server application default credentials, or send a token",
                ) from None
            return str(own.token)
