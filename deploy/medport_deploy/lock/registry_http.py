"""One bounded exchange with a registry or its token server, its faults as typed errors."""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from medport.errors import ConnectionFailed, ProtocolError, Timeout

MAX_BYTES = 4 * 2**20
"""What registries must take as a manifest at least, by the specification; more is refused."""
LOOPBACK = ("localhost", "127.0.0.1")


def exchange(client: httpx.Client, url: str, headers: Mapping[str, str]) -> tuple[int, bytes, Mapping[str, str]]:
    """Status, body and headers (names in lower case) of a GET.

    Raises:
        Timeout: no answer in time.
        ConnectionFailed: the connection could not be made, or broke.
        ProtocolError: the body is larger than 4 MiB, or packed although that was not asked for.
    """
    host = httpx.URL(url).host
    try:
        with client.stream("GET", url, headers={"accept-encoding": "identity", **headers}) as answer:
            if answer.headers.get("content-encoding", "identity").lower() != "identity":
                raise ProtocolError(f"{host} packs its answers, although that was not asked for", field="registry")
            body = bytearray()
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > MAX_BYTES:
                    raise ProtocolError(f"{host} sends more than {MAX_BYTES // 2**20} MiB", field="registry")
            return answer.status_code, bytes(body), {k.lower(): v for k, v in answer.headers.items()}
    except httpx.TimeoutException as fault:
        raise Timeout(f"{host} does not answer in time", field="registry", remedy="run the same again") from fault
    except (httpx.TransportError, httpx.InvalidURL) as fault:
        raise ConnectionFailed(
            f"{host} cannot be asked ({type(fault).__name__})",
            field="registry",
            remedy="let this machine reach it (HTTPS_PROXY, SSL_CERT_FILE), or write the image as NAME@sha256:… "
            "and lock with --offline",
        ) from fault
