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
        direct: go through no proxy, whatever the environment says.
    """

    def __init__(
        self, location: str, url: str | None, ca_file: Any, credentials: Any, *, direct: bool = False
    ) -> None:
        self._address = (url or f"https://{location}-aiplatform.googleapis.com").rstrip("/")
        self._ca_file = None if ca_file is None else str(ca_file)
        self._credentials = credentials
        self._direct = direct
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
            options: dict[str, Any] = {"proxies": {}} if self._direct else {}
            if self._ca_file is not None:
                options["verify"] = self._ca_file
            if options:
                # There is no option for it, but the session is one of requests.
                for scheme in ("https://", "http://"):
                    client.transport._session.mount(scheme, _sending(options))
            # Else requests puts a ~/.netrc's password in the place of our token, and sends it to the target.
            client.transport._session.auth = lambda request: request
            self._made[service, api] = client
        return self._made[service, api]


def _sending(always: dict[str, Any]) -> Any:
    """An adapter with settings of ours, as a session's own yield to the environment's."""
    adapters = _extras.load("requests.adapters", extra="deploy")

    class Sending(adapters.HTTPAdapter):  # type: ignore[misc, name-defined]
        def send(self, request: Any, *arguments: Any, **options: Any) -> Any:
            return super().send(request, *arguments, **{**options, **always})

    return Sending()
