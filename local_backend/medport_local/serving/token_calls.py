"""Where service accounts get their access tokens: ``POST /token``, the ``token_uri`` of their file.

Source: RFC 6749, 5.2; RFC 7523, 2.1; Google's "Using OAuth 2.0 for server to server applications".
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qs

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from medport.errors import AuthError, InputError, MedportError, row_of
from medport_local.serving import guard as guards
from medport_local.serving.exchange import JSON, Exchange
from medport_local.serving.keyring import KeyRing
from medport_local.serving.routes import Route
from medport_local.serving.tokens import LIFETIME_S, TOKEN_PATH, BadToken

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:jwt-bearer"
MAX_BODY_BYTES = 32 * 1024
_FORM = "application/x-www-form-urlencoded"
_MAX_FIELDS = 16


class TokenRequest(BaseModel):
    """What is posted, as a form or as JSON; other fields are passed over, as RFC 6749 wants it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    grant_type: Annotated[str, Field(strict=True)] = ""
    assertion: Annotated[str, Field(strict=True)] = ""


class TokenCalls:
    """The handler, over the service accounts of one server."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    def table(self) -> tuple[Route, ...]:
        """Its row of the route table."""
        return (Route("POST", TOKEN_PATH, self.token, None, ""),)

    async def token(self, exchange: Exchange) -> Response:
        """An access token for an assertion. The assertion is the credential: no key is asked for."""
        exchange.render_error = _refused
        exchange.answer_headers["Cache-Control"] = "no-store"
        exchange.lifecycle.check()
        asked = _read(exchange, await exchange.body(limit=MAX_BODY_BYTES))
        if not asked.grant_type:
            raise BadToken("Required parameter is missing: grant_type", code="invalid_request")
        if asked.grant_type != GRANT_TYPE:
            raise BadToken(
                "Invalid grant_type",
                code="unsupported_grant_type",
                remedy=f"the one that is taken is {GRANT_TYPE}",
            )
        if not asked.assertion:
            raise BadToken("Required parameter is missing: assertion", code="invalid_request")
        token = self._keys.grant(asked.assertion)
        return JSON({"access_token": token, "expires_in": LIFETIME_S, "token_type": "Bearer"})


def _read(exchange: Exchange, data: bytes) -> TokenRequest:
    kind = exchange.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        fields: dict[str, object] = guards.parse_json(data)
    elif kind == _FORM:
        try:
            found = parse_qs(data.decode("ascii"), strict_parsing=bool(data), max_num_fields=_MAX_FIELDS)
        except ValueError:
            raise InputError("the body is no form", field="body", remedy=f"send {_FORM}") from None
        if any(len(values) > 1 for values in found.values()):
            raise InputError("a parameter is given twice", field="body")
        fields = {name: values[0] for name, values in found.items()}
    else:
        raise InputError("is no form", field="Content-Type", remedy=f"send {_FORM}")
    try:
        return TokenRequest.model_validate(fields)
    except ValidationError:
        raise InputError("grant_type and assertion are texts", field="body") from None


def _refused(error: MedportError) -> Response:
    """An error as OAuth's clients read it."""
    row = row_of(error)
    if isinstance(error, BadToken):
        code, http = error.code, 400
    elif isinstance(error, AuthError):
        code, http = "invalid_grant", 400
    elif isinstance(error, InputError):
        code, http = "invalid_request", row.http
    elif row.http == 503:
        code, http = "temporarily_unavailable", 503
    else:
        code, http = "server_error", row.http
    return JSON({"error": code, "error_description": str(error)}, status_code=http)
