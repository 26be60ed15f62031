"""Container images by digest: what a tag means now, asked of its registry.

The digest is computed here from the bytes of the manifest. A header that says another one is an error.
Wire: ``GET /v2/PATH/manifests/REFERENCE``; Bearer and Basic challenges. Source: OCI Distribution Specification
1.1, "Pulling manifests"; OCI Image Specification 1.1; Distribution, "Token Authentication Specification".
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import tenacity

from medport.errors import (
    AuthError,
    ConfigError,
    ConnectionFailed,
    Forbidden,
    MedportError,
    NotFound,
    ProtocolError,
    QuotaExceeded,
    ServerError,
    Unsupported,
    VerificationError,
    class_for,
)
from medport_deploy.lock.registry_auth import Credentials, Tokens, nobody
from medport_deploy.lock.registry_http import LOOPBACK, exchange
from medport_deploy.spec.values import image_parts

PLATFORM = ("linux", "amd64")
"""What Vertex's machines run."""
_INDEXES = frozenset((
    "application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json",
))  # fmt: skip
_MANIFESTS = frozenset((
    "application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json",
))  # fmt: skip
_ACCEPT = ", ".join(sorted((*_INDEXES, *_MANIFESTS)))
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ATTEMPTS = 4
_LONGEST_WAIT_S = 60.0
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """What an image reference means."""

    repository: str
    """``HOST/PATH``"""
    digest: str
    """``sha256:…`` of what the reference names: an image, or an index of images for several platforms."""
    platform_digest: str
    """Of the image for ``linux/amd64``: the same, where there is no index."""
    tag: str | None = None
    size_bytes: int = 0
    """Of the layers that are fetched, packed."""


class Registry:
    """Asks registries.

    Args:
        transport: of httpx; its own if none.
        credentials: gives user and password for a registry's host; nobody's if none.
        plain: whether registries on other machines may be asked over plain http. Those on this one always are.
        sleep: waits between attempts.
    """

    def __init__(
        self,
        *,
        transport: httpx.BaseTransport | None = None,
        credentials: Credentials = nobody,
        plain: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        # Redirects are not followed: a manifest's bytes come from whom they were asked of.
        self._client = httpx.Client(
            transport=transport, timeout=_TIMEOUT, follow_redirects=False, headers={"user-agent": "medport"}
        )
        self._tokens = Tokens(self._client, credentials)
        self._plain = plain
        self._sleep = sleep

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def resolve(self, image: str, *, field: str = "image") -> ResolvedImage:
        """Ask what an image is.

        Args:
            image: ``HOST/PATH[:TAG][@sha256:…]``. With both, the tag counts for nothing.
            field: what to call it in errors.

        Raises:
            NotFound: the registry has no such image.
            AuthError: it does not let us read it.
            Unsupported: it is of no kind that runs here, or not for ``linux/amd64``.
            VerificationError: the bytes do not have the digest that was asked for, or that the registry states.
            ConfigError: neither a tag nor a digest is given.
            MedportError: the registry cannot be reached, or answers with something else than a manifest.
        """
        host, path, tag, digest = image_parts(image)
        if tag is None and digest is None:
            raise ConfigError(
                f"{image} names neither tag nor digest", field=field, remedy="add :TAG, or @sha256:… to pin it"
            )
        body, kind = self._manifest(host, path, digest or str(tag), field=field)
        found = digest_of(body)
        said = _object(body, field=field)
        platform, own = found, said
        if kind in _INDEXES:
            platform = _platform_digest(said, image, field=field)
            body, kind = self._manifest(host, path, platform, field=field)
            own = _object(body, field=field)
        if kind not in _MANIFESTS:
            raise Unsupported(
                f"{image} is of the kind {kind:.80}", field=field, remedy="push it again, in OCI form"
            )
        return ResolvedImage(f"{host}/{path}", found, platform, tag, _size_of(own))

    def _manifest(self, host: str, path: str, reference: str, *, field: str) -> tuple[bytes, str]:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_pass),
            stop=tenacity.stop_after_attempt(_ATTEMPTS),
            wait=_wait,
            sleep=self._sleep,
            reraise=True,
        )
        body, headers = retrying(self._get, host, path, reference, field)
        found = digest_of(body)
        for said, where in ((reference, "was asked for"), (headers.get("docker-content-digest"), "it states")):
            if said and _DIGEST.fullmatch(said) and said != found:
                raise VerificationError(
                    f"the registry's bytes have the digest {found}, and {said} {where}",
                    field=field,
                    remedy="do not use this registry until it is known why",
                )
        return body, _kind_of(headers.get("content-type", ""), _object(body, field=field), field=field)

    def _get(self, host: str, path: str, reference: str, field: str) -> tuple[bytes, Mapping[str, str]]:
        schemes = ["http"] if host.partition(":")[0] in LOOPBACK else ["https", *(["http"] if self._plain else [])]
        for scheme in schemes[:-1]:
            try:
                return self._ask(scheme, host, path, reference, field)
            except ConnectionFailed:
                continue
        return self._ask(schemes[-1], host, path, reference, field)

    def _ask(
        self, scheme: str, host: str, path: str, reference: str, field: str
    ) -> tuple[bytes, Mapping[str, str]]:
        url, scope = f"{scheme}://{host}/v2/{path}/manifests/{reference}", f"repository:{path}:pull"
        # A token that came over TLS is not sent in clear.
        secure = scheme == "https" or host.partition(":")[0] in LOOPBACK
        status, body, headers = self._exchange(url, self._tokens.held(host, scope) if secure else None)
        if status == 401:
            challenge = headers.get("www-authenticate", "")
            if (answer := self._tokens.asked(host, scope, challenge, secure=secure)) is not None:
                status, body, headers = self._exchange(url, answer)
        if status == 200:
            return body, headers
        raise _refused(status, headers, f"{host}/{path}", field=field)

    def _exchange(self, url: str, authorization: str | None) -> tuple[int, bytes, Mapping[str, str]]:
        headers = {"accept": _ACCEPT} | ({"authorization": authorization} if authorization else {})
        return exchange(self._client, url, headers)


def digest_of(manifest: bytes) -> str:
    """``sha256:…`` of a manifest's bytes."""
    return f"sha256:{hashlib.sha256(manifest).hexdigest()}"


def _object(body: bytes, *, field: str) -> Mapping[str, Any]:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise ProtocolError("the registry's answer is no manifest", field=field, remedy="check the image's name")
    return said


def _kind_of(content_type: str, said: Mapping[str, Any], *, field: str) -> str:
    """The media type. Header, body and form must agree: else two readers take one digest for two things.

    Source: OCI Image Specification 1.1, "mediaType"; GHSA-77vh-xpmg-72qh.
    """
    kind = content_type.partition(";")[0].strip() or str(said.get("mediaType", "unknown"))
    if said.get("mediaType", kind) != kind or ("manifests" in said and "layers" in said):
        raise ProtocolError(
            "the registry's manifest is of two kinds at once", field=field, remedy="push the image again"
        )
    return kind


def _platform_digest(index: Mapping[str, Any], image: str, *, field: str) -> str:
    listed = index.get("manifests")
    for each in listed if isinstance(listed, list) else []:
        platform = each.get("platform") if isinstance(each, dict) else None
        if not isinstance(platform, dict) or (platform.get("os"), platform.get("architecture")) != PLATFORM:
            continue
        if _DIGEST.fullmatch(digest := str(each.get("digest"))):
            return digest
    raise Unsupported(
        f"{image} is not made for {'/'.join(PLATFORM)}", field=field, remedy="build it for that platform too"
    )


def _size_of(manifest: Mapping[str, Any]) -> int:
    layers = manifest.get("layers")
    sizes = [each.get("size") for each in layers if isinstance(each, dict)] if isinstance(layers, list) else []
    return sum(size for size in sizes if type(size) is int and size > 0)


def _refused(status: int, headers: Mapping[str, str], repository: str, *, field: str) -> MedportError:
    if status == 404:
        return NotFound(
            f"there is no such image of {repository}", field=field, remedy="check its name and tag; push it first"
        )
    if status in (401, 403):
        return (AuthError if status == 401 else Forbidden)(
            f"{repository} may not be read (HTTP {status})",
            field=field,
            remedy="log in to the registry, or ask for the role that reads it (Artifact Registry Reader)",
        )
    if 300 <= status < 400:
        return ProtocolError(f"{repository} is kept elsewhere", field=field, remedy="name it where it is now")
    kind = QuotaExceeded if status == 429 else ServerError if status >= 500 else class_for(status)
    error = kind(f"the registry refuses {repository} (HTTP {status})", field=field, remedy="try again later")
    after = headers.get("retry-after", "")
    error.retry_after_s = float(after) if after.isdecimal() and len(after) < 6 else None
    return error


def _may_pass(fault: BaseException) -> bool:
    if isinstance(fault, MedportError):
        return fault.retryable and (fault.retry_after_s or 0) <= _LONGEST_WAIT_S
    return False


def _wait(state: tenacity.RetryCallState) -> float:
    fault = state.outcome.exception() if state.outcome else None
    asked = fault.retry_after_s if isinstance(fault, MedportError) else None
    return max(tenacity.wait_exponential_jitter(0.5, 8.0, jitter=0.5)(state), asked or 0.0)
