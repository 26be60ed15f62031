"""Objects of allowed buckets, through google-cloud-storage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from medport._extras import load
from medport.errors import ConfigError
from medport_local.serving.fetch.address import Permit
from medport_local.serving.fetch.allow import BUCKET, AllowList, has_dots
from medport_local.serving.fetch.credentials import (
    APPLICATION_DEFAULT,
    READ_BUCKETS,
    WRITE_BUCKETS,
    OwnCredentials,
    bearer,
)
from medport_local.serving.fetch.errand import Errand
from medport_local.serving.fetch.target import Target, parse
from medport_local.serving.fetch.web import Web

_SERVICE = "https://storage.googleapis.com"
_EMULATOR = "STORAGE_EMULATOR_HOST"
_MAX_LISTED = 100_000
_FORM = "give gs://BUCKET/OBJECT"


class Buckets:
    """Reads, lists and writes objects.

    Requests go to Cloud Storage, or to what the operator named in ``STORAGE_EMULATOR_HOST``; never elsewhere.
    """

    def __init__(self, allow: AllowList, web: Web, own: OwnCredentials) -> None:
        self._allow = allow
        self._web = web
        self._own = own

    def read(self, uri: str, credential: str | None, errand: Errand) -> bytes:
        """One object, in the generation that it had when the read began.

        Raises:
            FetchError: its bucket is not allowed, it is not there, is packed or too large, or cannot be had.
            ConfigError: google-cloud-storage is not installed.
        """
        bucket, name = self._object(uri, errand)
        with self._client(credential, READ_BUCKETS, errand) as (client, retry):
            about = client.bucket(bucket).get_blob(name, retry=retry, timeout=errand.remaining())
            if about is None:
                raise errand.refused("there is no such object, or it may not be read", "check the name")
            if about.content_encoding not in (None, "", "identity"):
                raise errand.refused("the object is stored packed", "store it as it is")
            if about.size is None or about.size > errand.max_bytes:
                raise errand.too_large()
            # A blob made anew, for the one that was looked up has a download address of the server's choice.
            blob = client.bucket(bucket).blob(name, generation=about.generation)
            data: bytes = blob.download_as_bytes(raw_download=True, retry=retry, timeout=errand.remaining())
            return data

    def write(self, uri: str, data: bytes | BinaryIO, errand: Errand) -> None:
        """Make or replace an object, as the server itself."""
        bucket, name = self._object(uri, errand)
        with self._client(APPLICATION_DEFAULT, WRITE_BUCKETS, errand) as (client, retry):
            blob = client.bucket(bucket).blob(name)
            options = {"content_type": "application/octet-stream", "retry": retry, "timeout": errand.remaining()}
            if isinstance(data, bytes):
                blob.upload_from_string(data, **options)
            else:
                blob.upload_from_file(data, **options)

    def names(self, prefix: str, errand: Errand) -> list[str]:
        """The ``gs://`` addresses of all objects whose name begins with the prefix, in order."""
        bucket, start = self.check(prefix, errand)
        with self._client(APPLICATION_DEFAULT, READ_BUCKETS, errand) as (client, retry):
            found = []
            for blob in client.list_blobs(bucket, prefix=start or None, retry=retry, timeout=errand.remaining()):
                if not self._allow.bucket(bucket, blob.name):
                    continue
                found.append(f"gs://{bucket}/{blob.name}")
                if len(found) > _MAX_LISTED:
                    raise errand.refused(f"there are more than {_MAX_LISTED} objects", "give a longer prefix")
            return found

    def check(self, uri: str, errand: Errand) -> tuple[str, str]:
        """The bucket, and the object or the beginning of one, of an address that is allowed."""
        bucket, name = self._split(uri, errand)
        if not self._allow.bucket(bucket, name):
            raise self._not_allowed(bucket, errand)
        return bucket, name

    def _object(self, uri: str, errand: Errand) -> tuple[str, str]:
        if not self._split(uri, errand)[1]:
            raise errand.refused("the address has no object in it", _FORM)
        return self.check(uri, errand)

    def _split(self, uri: str, errand: Errand) -> tuple[str, str]:
        if uri[:5].lower() != "gs://":
            raise errand.refused("not a gs:// address", _FORM)
        bucket, _, name = uri[5:].partition("/")
        if BUCKET.fullmatch(bucket) is None:
            raise errand.refused("the address has no valid bucket in it", _FORM)
        if len(name) > 1024 or has_dots(name) or not name.isprintable():
            raise errand.refused("the address has no valid object in it", _FORM)
        return bucket, name

    def _not_allowed(self, bucket: str, errand: Errand) -> Exception:
        return errand.refused(
            f"the bucket {bucket}, or this part of it, is not on this server's allow-list",
            f"start the server with --allow-fetch gs://{bucket}",
        )

    @contextmanager
    def _client(self, credential: str | None, scope: str, errand: Errand) -> Iterator[tuple[Any, Any]]:
        """A client of google-cloud-storage over the guarded way out, and how it may retry; its faults as ours."""
        storage = load("google.cloud.storage", extra="fetch")
        anonymous = load("google.auth.credentials", extra="fetch").AnonymousCredentials
        session = load("medport_local.serving.fetch.session", extra="fetch").session
        retry = load("google.cloud.storage.retry", extra="fetch").DEFAULT_RETRY.with_timeout(errand.remaining())
        service, permit = self._service()
        headers = {"user-agent": "medport"}
        if service.keeps_secrets and os.environ.get(_EMULATOR) is None:
            token = self._own.token(credential, scope, errand)
        else:  # an emulator: nothing of the server's own is for it
            token = None if credential == APPLICATION_DEFAULT else bearer(credential, errand)
            if token is not None and not service.keeps_secrets:
                raise errand.unauthorised("a credential is not sent over plain http", "use https, or send none")
        if token is not None:
            headers["authorization"] = f"Bearer {token}"

        def admits(to: Target) -> Permit | None:
            return permit if to.origin == service.origin else None

        with session(self._web, errand, admits, headers) as guarded:
            # Our own session carries the token; the client is told that it needs none.
            client = storage.Client(
                project="medport",
                credentials=anonymous(),
                _http=guarded,
                client_options={"api_endpoint": f"{service.scheme}://{service.netloc}"},
            )
            # It would ask, in a thread of its own, where the bucket lies, for traces that nobody takes.
            client._bucket_metadata_cache = None
            with _faults_of(errand):
                yield client, retry

    def _service(self) -> tuple[Target, Permit]:
        emulator = os.environ.get(_EMULATOR)
        if emulator is None:
            service = parse(_SERVICE)
            return service, self._allow.service(service)
        try:
            return parse(emulator), Permit(anything=True)
        except ValueError as fault:
            raise ConfigError(str(fault), field=_EMULATOR, remedy="give http://HOST:PORT") from None


@contextmanager
def _faults_of(errand: Errand) -> Iterator[None]:
    import requests
    from google.api_core.exceptions import GoogleAPICallError, RetryError

    storage = load("google.cloud.storage.exceptions", extra="fetch")
    try:
        yield
    except (RetryError, requests.Timeout):
        raise errand.late() from None
    except GoogleAPICallError as fault:
        if fault.code == 404:
            raise errand.refused("there is no such object or bucket", "check the name") from None
        raise errand.refused_status("Cloud Storage", int(fault.code or 0)) from None
    except storage.InvalidResponse as fault:
        raise errand.refused_status("Cloud Storage", int(fault.response.status_code)) from None
    except (storage.DataCorruption, requests.RequestException, ValueError, KeyError) as fault:
        raise errand.failed(f"Cloud Storage cannot be read from ({type(fault).__name__})") from None
