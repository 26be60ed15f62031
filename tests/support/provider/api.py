"""Calls to a Vertex AI control plane, and its operations."""

from __future__ import annotations

import os
import ssl
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

Json = dict[str, Any]
_GOOGLE = "https://{{region}}-aiplatform.googleapis.com/v1/"
_WAIT_S = 120.0


class ApiError(Exception):
    """The service refused, or an operation failed."""

    def __init__(self, said: str, status: int = 0) -> None:
        super().__init__(said)
        self.status = status


@dataclass(slots=True)
class Api:
    """The service at the base URL that the provider was configured with.

    Google's provider waits ten seconds between two polls if ``poll_interval`` does not say otherwise, and two at
    the least; here it is ``pause_s``, so that tests are quick.
    """

    provider: Json
    pause_s: float = 0.05
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set when terraform is interrupted: no operation is waited for any longer."""
    _client: httpx.Client | None = field(default=None, init=False, repr=False)

    @property
    def client(self) -> httpx.Client:
        """Made when it is first needed: most commands call no service."""
        if self._client is None:
            token = self.provider.get("access_token") or os.environ.get("GOOGLE_OAUTH_ACCESS_TOKEN") or ""
            paying = self.provider.get("billing_project") or self.provider.get("project")
            headers = {"User-Agent": "Terraform terraform-provider-google/stand-in"}
            if token:
                headers["Authorization"] = f"Bearer {token}"
            if paying:
                headers["X-Goog-User-Project"] = str(paying)
            trusted = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE"))
            self._client = httpx.Client(headers=headers, verify=trusted, timeout=60, trust_env=False)
        return self._client

    def base(self, region: str) -> str:
        """Ends with the API's version and a slash. A custom base URL wins over everything."""
        custom = self.provider.get("vertex_ai_custom_endpoint") or os.environ.get(
            "GOOGLE_VERTEX_AI_CUSTOM_ENDPOINT"
        )
        return (custom or _GOOGLE).replace("{{region}}", region)

    def call(self, method: str, url: str, body: Json | None = None) -> Json:
        """The service's answer.

        Raises:
            ApiError: it refused, with its own words and the status; or it could not be reached.
        """
        try:
            answer = self.client.request(method, f"{url}{'&' if '?' in url else '?'}alt=json", json=body)
        except httpx.HTTPError as fault:
            raise ApiError(f"{method} {url}: {fault}") from fault
        if answer.is_error:
            raise ApiError(f"googleapi: Error {answer.status_code}: {_reason(answer)}", answer.status_code)
        found: Json = answer.json()
        return found

    def finished(self, base: str, operation: Json) -> Json:
        """An operation's response once it is done. An answer without a name is no operation: it is done.

        Raises:
            ApiError: the operation failed, was not done in two minutes, or terraform was told to stop.
        """
        until = time.monotonic() + _WAIT_S
        while "name" in operation and not operation.get("done"):
            if time.monotonic() > until:
                raise ApiError(f"timeout while waiting for {operation['name']}")
            if self.stopped.wait(self.pause_s):
                raise ApiError(f"error waiting for {operation['name']}: context canceled")
            try:
                operation = self.call("GET", base + operation["name"])
            except ApiError as fault:
                # The service may answer 404 for a moment after it made the operation.
                if fault.status != 404:
                    raise
        if failed := operation.get("error"):
            raise ApiError(f"Error code {failed.get('code', 0)}, message: {failed.get('message', '')}")
        response: Json = operation.get("response", {})
        return response


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.reason_phrase
