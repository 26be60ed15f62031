"""Files that requests point to: http(s), Cloud Storage and DICOMweb, each behind one allow-list.

All three leave through ``web``, which dials judged addresses only. Trust: a URL and all that comes back are
untrusted; the allow-list, ``STORAGE_EMULATOR_HOST`` and the server's own credentials are the operator's.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO

from medport_local.quiet import quiet
from medport_local.serving.fetch.address import Lookup, Resolver
from medport_local.serving.fetch.allow import AllowList
from medport_local.serving.fetch.credentials import OwnCredentials, bearer
from medport_local.serving.fetch.errand import DEFAULT_LIMITS, Errand, FetchLimits
from medport_local.serving.fetch.errors import FetchCode, FetchError

if TYPE_CHECKING:
    from medport_local.serving.fetch.dicomweb import DicomWeb
    from medport_local.serving.fetch.gcs import Buckets
    from medport_local.serving.fetch.web import Web

__all__ = ["AllowList", "FetchCode", "FetchError", "FetchLimits", "Fetcher", "Resolver"]


class Fetcher:
    """Fetches what the allow-list allows. Blocking, and safe to share between threads.

    Args:
        allow: the entries of ``--allow-fetch``; see ``allow.py`` for their forms. Empty: it fetches nothing.
        limits: what one fetch may cost.
        resolve: called like ``socket.getaddrinfo``.
        tls: whom to trust; the system's store (``SSL_CERT_FILE`` included) if ``None``.

    Every fetch takes the request's ``field``, which errors name, an optional ``credential`` (a bearer token, or
    ``application_default`` for the server's own where that is allowed) and an optional ``deadline`` in
    ``time.monotonic()``, and raises ``FetchError``; ``ConfigError`` where the ``fetch`` extra is not installed.

    Raises:
        ConfigError: an entry is none of the forms.
    """

    def __init__(
        self,
        allow: Sequence[str] = (),
        *,
        limits: FetchLimits = DEFAULT_LIMITS,
        resolve: Resolver = socket.getaddrinfo,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allow = AllowList(allow)
        self._limits = limits
        self._lookup = Lookup(resolve)
        self._tls = tls

    @cached_property
    def _ways(self) -> _Ways:
        # What sends requests takes a tenth of a second to import: a server that fetches nothing does without.
        from medport_local.serving.fetch.dicomweb import DicomWeb
        from medport_local.serving.fetch.gcs import Buckets
        from medport_local.serving.fetch.web import Web

        own = OwnCredentials()
        web = Web(self._allow, self._lookup, self._tls or _trust(), max_redirects=self._limits.max_redirects)
        return _Ways(web, Buckets(self._allow, web, own), DicomWeb(self._allow, web, own))

    def http(self, url: str, *, credential: str | None = None, field: str, deadline: float | None = None) -> bytes:
        """The file behind an http(s) URL."""
        errand = self._errand(field, "UNHANDLED_HTTP_FILE_ERROR", deadline)
        with quiet():
            return self._ways.web.read(url, errand, bearer(credential, errand))

    def gcs(self, uri: str, *, credential: str | None = None, field: str, deadline: float | None = None) -> bytes:
        """The object behind ``gs://bucket/name``."""
        errand = self._errand(field, "UNHANDLED_GCS_FILE_ERROR", deadline)
        with quiet():
            return self._ways.buckets.read(uri, credential, errand)

    def gcs_check(self, uri: str, *, field: str) -> None:
        """Refuse what ``gcs_list``, or the others with an object's address, would not allow. Nothing is sent."""
        self._ways.buckets.check(uri, self._errand(field, "UNHANDLED_GCS_FILE_ERROR", None))

    def gcs_write(self, uri: str, data: bytes | BinaryIO, *, field: str, deadline: float | None = None) -> None:
        """Make or replace ``gs://bucket/name``, with the server's own credentials."""
        errand = self._errand(field, "UNHANDLED_GCS_FILE_ERROR", deadline, timeout_s=self._limits.write_timeout_s)
        with quiet():
            self._ways.buckets.write(uri, data, errand)

    def gcs_list(self, prefix_uri: str, *, field: str, deadline: float | None = None) -> list[str]:
        """The ``gs://`` addresses of the allowed objects that begin with the prefix, in order.

        Asked for with the server's own credentials.
        """
        errand = self._errand(field, "UNHANDLED_GCS_FILE_ERROR", deadline)
        with quiet():
            return self._ways.buckets.names(prefix_uri, errand)

    def dicom_instance(
        self, uri: str, *, credential: str | None = None, field: str, deadline: float | None = None
    ) -> bytes:
        """One DICOM object as a Part 10 file, in the transfer syntax it is stored in, with all frames."""
        errand = self._errand(field, "UNAPPROVED_DICOM_STORE_ERROR", deadline)
        with quiet():
            return self._ways.stores.instance(uri, credential, errand)

    def dicom_series(
        self, uri: str, *, credential: str | None = None, field: str, deadline: float | None = None
    ) -> list[bytes]:
        """All objects of a series as Part 10 files, in the store's order, which is not the slices'."""
        errand = self._errand(field, "UNAPPROVED_DICOM_STORE_ERROR", deadline)
        most, size = self._limits.max_instances, self._limits.max_series_bytes
        with quiet():
            return self._ways.stores.series(uri, credential, errand, most=most, max_bytes=size)

    def close(self) -> None:
        self._lookup.close()

    def _errand(
        self, field: str, refusal: FetchCode, deadline: float | None, *, timeout_s: float | None = None
    ) -> Errand:
        own = time.monotonic() + (timeout_s or self._limits.timeout_s)
        errand = Errand(
            field=field,
            refusal=refusal,
            deadline=own if deadline is None else min(own, deadline),
            max_bytes=self._limits.max_bytes,
        )
        if self._allow.is_empty:
            raise errand.refused(
                "this server fetches nothing", "send the image itself, or start the server with --allow-fetch"
            )
        return errand


@dataclass(frozen=True, slots=True)
class _Ways:
    web: Web
    buckets: Buckets
    stores: DicomWeb


def _trust() -> ssl.SSLContext:
    context = ssl.create_default_context()
    if context.get_ca_certs():
        return context
    # A Python built apart from the system's store finds none there.
    import httpx

    return httpx.create_ssl_context()
