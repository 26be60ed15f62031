"""The ids of resources: which a caller may choose, and those that the server makes."""

from __future__ import annotations

import re
import secrets

from medport.errors import InputError

_MODEL = re.compile(r"[a-z_][a-z0-9_-]{0,62}")
_ENDPOINT = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?|[1-9][0-9]{0,9}")
_MADE = re.compile(r"[1-9][0-9]{18}")
_ALIAS = re.compile(r"[a-z][a-zA-Z0-9-]{0,126}[a-z0-9]")


def made() -> str:
    """A new id of 19 digits, as Vertex makes them."""
    return str(10**18 + secrets.randbelow(9 * 10**18))


def check_model(given: str) -> None:
    """Raise ``InputError`` unless a model may have this id.

    Source: UploadModelRequest.model_id.
    """
    if not (_MODEL.fullmatch(given) or _MADE.fullmatch(given)):
        raise InputError(
            f"{given[:80]!r} is not the id of a model",
            field="model_id",
            remedy="write at most 63 of a-z, 0-9, _ and -, and begin with a letter or _",
        )


def check_endpoint(given: str) -> None:
    """Raise ``InputError`` unless an endpoint may have this id.

    Vertex documents at most 9 digits; Terraform's provider lets 10 pass, and so does this.

    Source: CreateEndpointRequest.endpoint_id.
    """
    if not (_ENDPOINT.fullmatch(given) or _MADE.fullmatch(given)):
        raise InputError(
            f"{given[:80]!r} is not the id of an endpoint",
            field="endpoint_id",
            remedy="begin with a letter, then a-z, 0-9 and -, at most 63 and no - at the end; or 1 to 9 digits"
            " that do not begin with 0",
        )


def check_alias(given: str) -> None:
    """Raise ``InputError`` unless a model version may have this alias.

    Source: Model.version_aliases.
    """
    if not _ALIAS.fullmatch(given):
        raise InputError(
            f"{given[:80]!r} is not an alias of a version",
            field="version_aliases",
            remedy="write 2 to 128 of a-z, A-Z, 0-9 and -, begin with a-z and end with a-z or 0-9",
        )
