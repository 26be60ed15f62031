"""The values of a specification: each with the rule by which a server would refuse it, only later."""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

_IMAGE = re.compile(
    r"(?P<host>(?:localhost|[a-z0-9-]+(?:\.[a-z0-9-]+)+|localhost)(?::[0-9]{1,5})?)"
    r"/(?P<path>[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,28}[a-z0-9])?")
_ENDPOINT = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?|[1-9][0-9]{0,9}")
_PROJECT = re.compile(r"(?:[a-z][a-z0-9.-]{0,61}:)?[a-z][a-z0-9-]{2,28}[a-z0-9]|[1-9][0-9]{5,17}")
_LOCATION = re.compile(r"[a-z][a-z0-9-]{0,30}[a-z0-9]")
_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
_ACCOUNT = re.compile(
    r"[a-z0-9-]{6,30}@[a-z0-9.-]+\.gserviceaccount\.com|[0-9]+-compute@developer\.gserviceaccount\.com"
)
_KEY = re.compile(
    r"projects/[^/]+/locations/[a-z0-9-]+/keyRings/[A-Za-z0-9_-]{1,63}/cryptoKeys/[A-Za-z0-9_-]{1,63}"
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_SECRET = re.compile(
    r"(?i)(?:.*_)?(?:token|secret|password|passwd|passphrase|credentials?|(?:api|access|private|secret)_?key)"
)
_ROUTE = re.compile(r"/[A-Za-z0-9._~:@/-]*")
_OURS = re.compile(
    r"AIP_.*|MEDPORT_(?:REVISION|SNAPSHOT_SHA256|PARENT|LOCK|IMAGE_DIGEST|STORE|STORE_OWNER)|MODEL_ID"
)
_OUR_ARGUMENTS = re.compile(
    r"--?(?:model|revision|tokenizer-revision|code-revision|tokenizer|trust-remote-code|api-key|hf-token|load-format)"
    r"(?:=.*)?",
    re.DOTALL,
)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_RESERVED_LABELS = ("goog-", "medport-")
MAX_LABELS = 56
"""A resource takes 64; four are medport's, and terraform and Google add their own."""


def _matching(form: re.Pattern[str], said: str) -> AfterValidator:
    def check(value: str) -> str:
        if not form.fullmatch(value):
            raise ValueError(said)
        return value

    return AfterValidator(check)


def _digits(value: Any) -> Any:
    # Ids of endpoints and numbers of projects are written without quotes.
    return str(value) if type(value) is int else value


def _labels(value: dict[str, str]) -> dict[str, str]:
    if len(value) > MAX_LABELS:
        raise ValueError(f"holds more than {MAX_LABELS} labels")
    for key, text in value.items():
        if key.startswith(_RESERVED_LABELS):
            raise ValueError(f"{key:.63} begins with {' or '.join(_RESERVED_LABELS)}, which others write")
        if not _LABEL_KEY.fullmatch(key):
            raise ValueError(f"{key!a:.70} is no label key: a to z first, then a-z 0-9 _ -, 63 characters at most")
        if not _LABEL_VALUE.fullmatch(text):
            raise ValueError(f"the value of {key} is none of a-z 0-9 _ -, or longer than 63 characters")
    return value


def _environment(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"{name!a:.70} is no name of a variable")
        if _OURS.fullmatch(name):
            raise ValueError(f"{name:.70} is written from the lock, or by Vertex itself")
        if _SECRET.fullmatch(name):
            raise ValueError(f"{name:.70} looks like a secret, and who reads the model version reads it")
    return value


def _arguments(value: list[str]) -> list[str]:
    for each in value:
        if _OUR_ARGUMENTS.fullmatch(each):
            name = each.partition("=")[0]
            raise ValueError(f"{name} is written from the lock, is a secret, or lets a model run code")
        name = each.partition("=")[0]
        if ("=" in each or each.startswith("-")) and _SECRET.fullmatch(name.lstrip("-").replace("-", "_")):
            raise ValueError(f"{name:.70} looks like a secret, and who reads the model version reads it")
    return value


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValueError("is no URL") from None
    host = parts.hostname
    if parts.scheme not in ("http", "https") or not host or port == 0 or re.search(r"[\s\x00-\x1f\\]", value):
        raise ValueError("is not https://HOST[:PORT]")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError("holds more than scheme, host, port and path; credentials go under auth")
    if parts.scheme == "http" and host not in _LOOPBACK:
        raise ValueError("is plain http to another machine: the key would be readable")
    plain = value.rstrip("/")
    if re.search(r"/(ui|v1(beta1)?)$", plain):
        raise ValueError("ends with a version of the API; leave that out")
    return plain


Name = Annotated[
    str, _matching(_NAME, "is not up to 30 of a-z 0-9 -, beginning with a letter and not ending with -")
]
"""Of the deployment or of a model in it; names in the cloud are made of it."""
ModelId = Annotated[str, _matching(_MODEL, "is not OWNER/NAME, such as google/medgemma-4b-it")]
Revision = Annotated[str, _matching(_REVISION, "is no commit, branch or tag")]
Image = Annotated[
    str,
    _matching(_IMAGE, "is not HOST/PATH[:TAG][@sha256:…]; the registry's host must be named, in small letters"),
]
EndpointId = Annotated[
    str,
    BeforeValidator(_digits),
    _matching(
        _ENDPOINT, "is neither up to 10 digits without a leading 0, nor up to 63 of a-z 0-9 - from a letter"
    ),
]
ProjectId = Annotated[
    str, BeforeValidator(_digits), _matching(_PROJECT, "is neither a project's id nor its number")
]
Location = Annotated[str, _matching(_LOCATION, "is no location, such as europe-west4")]
Labels = Annotated[dict[str, str], AfterValidator(_labels)]
ServiceAccount = Annotated[str, _matching(_ACCOUNT, "is not NAME@PROJECT.iam.gserviceaccount.com")]
KmsKeyName = Annotated[str, _matching(_KEY, "is not projects/…/locations/…/keyRings/…/cryptoKeys/…")]
Environment = Annotated[dict[str, str], AfterValidator(_environment)]
Arguments = Annotated[list[Annotated[str, Field(max_length=4096)]], AfterValidator(_arguments)]
Url = Annotated[str, AfterValidator(_url)]
Route = Annotated[str, _matching(_ROUTE, "is not an absolute path such as /predict")]
VariableName = Annotated[str, _matching(_VARIABLE, "is no name of a variable")]


def image_parts(image: str) -> tuple[str, str, str | None, str | None]:
    """Host, path, tag and digest (``sha256:…``) of an image that is an ``Image``."""
    found = _IMAGE.fullmatch(image)
    assert found is not None
    return found["host"], found["path"], found["tag"], found["digest"]


def is_googles(url: str) -> bool:
    """Whether a URL is one that a Google credential may be sent to: Google's APIs, or this machine."""
    host = urlsplit(url).hostname or ""
    return host.endswith(".googleapis.com") or host in _LOOPBACK


def is_numeric(endpoint: str) -> bool:
    """Whether an endpoint's id is of the kind that Terraform's provider takes."""
    return endpoint.isdecimal()
