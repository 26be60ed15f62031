"""Google's generated clients, made when they are needed, all at one address."""

from __future__ import annotations

from typing import Any

from medport import _extras

_CLASSES = {"models": "ModelServiceClient", "endpoints": "EndpointServiceClient"}


class Clients:
    """One client for each service and version of the API.

    Args:
        url: base address; ``None``: Google's host of the location.
        ca_file: PEM file; ``None``: the public authorities.
        credentials: of google-auth.
    """

    def __init__(self, location: str, url: str | None, ca_file: Any, credentials: Any) -> None:
        self._address = (url or f"https://{location}-aiplatform.googleapis.com").rstrip("/")
        self._ca_file = None if ca_file is None else str(ca_file)
        self._credentials = credentials
        self._made: dict[tuple[str, str], Any] = {}

    def call(self, service: str, method: str, request: Any, *, timeout_s: float, api: str = "v1") -> Any:
        """Send one call, once. Raises what Google's client raises."""
        return getattr(self._client(service, api), method)(request, timeout=timeout_s, retry=None)

    def close(self) -> None:
        """Close all connections."""
        for client in self._made.values():
            client.transport.close()
        self._made.clear()

    def _client(self, service: str, api: str) -> Any:
        if (service, api) not in self._made:
            library = _extras.load(f"google.cloud.aiplatform_{api}", extra="deploy")
            client = getattr(library, _CLASSES[service])(
                credentials=self._credentials, transport="rest", client_options={"api_endpoint": self._address}
            )
            if self._ca_file is not None:
                # There is no option for it, but the session is one of requests.
                client.transport._session.mount("https://", _trusting(self._ca_file))
            self._made[service, api] = client
        return self._made[service, api]


def _trusting(ca_file: str) -> Any:
    """An adapter that trusts one authority; a session's own ``verify`` yields to the environment's."""
    adapters = _extras.load("requests.adapters", extra="deploy")

    class Trusting(adapters.HTTPAdapter):  # type: ignore[misc, name-defined]
        def send(self, request: Any, *arguments: Any, **options: Any) -> Any:
            return super().send(request, *arguments, **{**options, "verify": ca_file})

    return Trusting()
