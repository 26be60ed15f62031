"""Models in a bucket of Cloud Storage: each object in the generation that was listed, compared with its crc32c."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from medport._extras import load
from medport.errors import AuthError, ConfigError, ConnectionFailed, NotFound, Timeout, VerificationError
from medport_local.quiet import quiet
from medport_local.snapshot import MANIFEST
from medport_local.sources.manifests import parsed
from medport_local.sources.source import Changed, Offer, Offered
from medport_local.sources.wanted import choose

_URI = re.compile(r"gs://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(?:/(.*))?")
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
_EMULATOR = "STORAGE_EMULATOR_HOST"
_TIMEOUT_S = 60.0
_PATIENCE_S = 300.0
"""For one request with all its retries."""
_CHUNK_BYTES = 8 * 2**20
_MAX_MANIFEST_BYTES = 4 * 2**20
_MAX_OBJECTS = 10_000


class BucketSource:
    """The objects below a prefix.

    Application default credentials read it, with the scope to read and no other; an emulator that
    ``STORAGE_EMULATOR_HOST`` names is asked without any.

    Args:
        uri: ``gs://BUCKET/PREFIX``.
        client: of google-cloud-storage; a new one if none.
        field: what to call the place in errors.

    Raises:
        ConfigError: it is no such address.
    """

    def __init__(self, uri: str, *, client: Any = None, field: str = "source") -> None:
        named = _URI.fullmatch(uri)
        if named is None or not (named[2] or "").isprintable():
            raise ConfigError("is not gs://BUCKET/PREFIX", field=field, remedy="write it as gs://bucket/folder")
        self._bucket = named[1]
        prefix = (named[2] or "").strip("/")
        self._uri = f"gs://{self._bucket}/{prefix}".rstrip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._given_client = client
        self._own_client: Any = None
        self._generations: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self._field = field

    def offer(self) -> Offer:
        """List the objects below the prefix.

        Raises:
            NotFound: there is no such bucket.
            AuthError: it may not be read, or there are no credentials.
            ConnectionFailed: it cannot be reached.
            ConfigError: it holds no safetensors weights, or google-cloud-storage is not installed.
            VerificationError: its ``manifest.json`` cannot be read as one.
        """
        with self._faults():
            options = {"timeout": _TIMEOUT_S, "retry": self._retry(), "max_results": _MAX_OBJECTS}
            found = list(self._client().list_blobs(self._bucket, prefix=self._prefix or None, **options))
        if len(found) == _MAX_OBJECTS:
            raise ConfigError(
                f"holds {_MAX_OBJECTS} objects or more", field=self._field, remedy="name the folder of one model"
            )
        # A name that ends with a slash is a folder that some tool wrote down.
        blobs = {blob.name.removeprefix(self._prefix): blob for blob in found if not blob.name.endswith("/")}
        chosen = choose(blobs, field=self._field)
        files = {name: self._offered(name, blobs[name]) for name in chosen.wanted}
        manifest = None
        if MANIFEST in blobs:
            self._offered(MANIFEST, blobs[MANIFEST])
            manifest = parsed(self._whole(MANIFEST))
        return Offer(
            identity=f"bucket {self._uri}",
            source="bucket",
            model_id=manifest.repo_id if manifest else None,
            requested=self._uri,
            revision=manifest.revision if manifest else None,
            said=chosen.said,
            files=files,
            manifest=manifest,
        )

    def read(self, name: str, offset: int) -> Iterator[bytes]:
        """See ``Source.read``."""
        blob = self._client().bucket(self._bucket).blob(self._prefix + name, generation=self._generations[name])
        position = offset
        while position < self._sizes[name]:
            with self._faults(name):
                data = self._part(blob, position)
            if not data:
                return
            yield data
            position += len(data)

    def close(self) -> None:
        """Close the connections, if they are its own."""
        if self._own_client is not None:
            self._own_client.close()
            self._own_client = None

    def _part(self, blob: Any, position: int) -> bytes:
        unsatisfiable = load("google.api_core.exceptions", extra="fetch").RequestRangeNotSatisfiable
        try:
            data: bytes = blob.download_as_bytes(
                start=position,
                end=position + _CHUNK_BYTES - 1,
                # As stored: it would unpack what is marked as packed, and hash that.
                raw_download=True,
                checksum=None,  # Cloud Storage knows only the whole object's
                retry=self._retry(),
                timeout=_TIMEOUT_S,
            )
        except unsatisfiable:
            return b""
        return data

    def _whole(self, name: str) -> bytes:
        data = b""
        for piece in self.read(name, 0):
            data += piece
            if len(data) > _MAX_MANIFEST_BYTES:
                raise VerificationError(
                    f"{name}: is larger than {_MAX_MANIFEST_BYTES / 2**20:.0f} MiB",
                    field=name,
                    remedy="replace it",
                )
        return data

    def _offered(self, name: str, blob: Any) -> Offered:
        if blob.content_encoding not in (None, "", "identity"):
            raise VerificationError(
                f"{name}: is stored packed ({blob.content_encoding!s:.20})", field=name, remedy="store it as it is"
            )
        self._generations[name], self._sizes[name] = int(blob.generation), int(blob.size)
        return Offered(
            name=name,
            size_bytes=int(blob.size),
            version=f"generation {blob.generation}",
            crc32c=blob.crc32c or None,
        )

    def _client(self) -> Any:
        if self._given_client is not None:
            return self._given_client
        if self._own_client is None:
            storage = load("google.cloud.storage", extra="fetch")
            auth = load("google.auth", extra="fetch")
            if os.environ.get(_EMULATOR):
                credentials = load("google.auth.credentials", extra="fetch").AnonymousCredentials()
            else:
                credentials, _ = auth.default(scopes=[_SCOPE])
            self._own_client = storage.Client(project="medport", credentials=credentials)
            # It would ask, in a thread of its own, where the bucket lies, for traces that nobody takes.
            self._own_client._bucket_metadata_cache = None
        return self._own_client

    def _retry(self) -> Any:
        return load("google.cloud.storage.retry", extra="fetch").DEFAULT_RETRY.with_timeout(_PATIENCE_S)

    @contextmanager
    def _faults(self, name: str | None = None) -> Iterator[None]:
        """The library's faults as ours; its own messages hold addresses and, at times, answers."""
        core = load("google.api_core.exceptions", extra="fetch")
        auth = load("google.auth.exceptions", extra="fetch")
        requests = load("requests", extra="fetch")
        checks = load("google.cloud.storage.exceptions", extra="fetch")
        field = self._field
        try:
            with quiet():
                yield
        except (core.Forbidden, core.Unauthorized, auth.GoogleAuthError):
            raise AuthError(
                f"the bucket {self._bucket} may not be read",
                field=field,
                remedy="grant the service account, or who is logged in, roles/storage.objectViewer on it",
            ) from None
        except core.NotFound:
            if name is not None:
                # The generation that was listed is gone: another was written over it meanwhile.
                raise Changed(name) from None
            raise NotFound(f"there is no bucket {self._bucket}", field=field, remedy="check the name") from None
        except (core.RetryError, requests.Timeout):
            raise Timeout(
                f"the bucket {self._bucket} does not answer in time",
                field=field,
                remedy="run the same again later",
            ) from None
        except (core.GoogleAPIError, checks.InvalidResponse, requests.RequestException) as fault:
            raise ConnectionFailed(
                f"the bucket {self._bucket} cannot be read ({type(fault).__name__})",
                field=field,
                remedy="run the same again",
            ) from None
