"""Name, port and certificate of a host, each by itself, so that a fault can be told from the next."""

from __future__ import annotations

import socket
import ssl
import time
from urllib.parse import urlsplit

from medport._http import tls_context
from medport.errors import ConnectionFailed

CONNECT_TIMEOUT_S = 10.0
RENEW_BEFORE_DAYS = 14
# Numbers of X509_verify_cert(3), OpenSSL.
_EXPIRED, _NOT_YET_VALID, _WRONG_NAME, _WRONG_ADDRESS = 10, 9, 62, 64
_REMEDIES = {
    _EXPIRED: "renew the certificate on the server",
    _NOT_YET_VALID: "set the clocks of both machines",
    _WRONG_NAME: "use a name that stands in the certificate; for a PSC address set server_name",
    _WRONG_ADDRESS: "use a name that stands in the certificate; for a PSC address set server_name",
}


def origin(url: str) -> tuple[str, int, bool]:
    """Host, port, and whether it is https."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    return parts.hostname or "", parts.port or (443 if secure else 80), secure


def addresses(host: str, port: int) -> list[str]:
    """The addresses of ``host``.

    Raises:
        ConnectionFailed: there are none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as fault:
        raise ConnectionFailed(f"{host} has no address", remedy="check its spelling and the resolver") from fault
    return sorted({str(entry[4][0]) for entry in found})


def connect(host: str, port: int) -> socket.socket:
    """An open connection.

    Raises:
        ConnectionFailed: it is refused, or nothing answers.
    """
    try:
        return socket.create_connection((host, port), CONNECT_TIMEOUT_S)
    except ConnectionRefusedError as fault:
        raise ConnectionFailed(
            f"{host} refuses port {port}", remedy="start the server, or correct the port in url"
        ) from fault
    except OSError as fault:
        raise ConnectionFailed(
            f"{host} does not answer on port {port}", remedy="check the firewall between the two machines"
        ) from fault


def handshake(host: str, port: int, name: str, ca_file: str | None) -> str:
    """Protocol and remaining life of the certificate, which must carry ``name``.

    Raises:
        ConnectionFailed: it is not trusted, or the port does not speak TLS.
        ConfigError: ``ca_file`` cannot be read.
    """
    context = tls_context(ca_file)
    try:
        with connect(host, port) as plain, context.wrap_socket(plain, server_hostname=name) as secure:
            certificate, protocol = secure.getpeercert() or {}, secure.version()
    except ssl.SSLCertVerificationError as fault:
        raise ConnectionFailed(
            f"the certificate is not trusted ({fault.verify_message})",
            remedy=_REMEDIES.get(fault.verify_code, "set ca_file to the CA that signed it"),
        ) from fault
    except OSError as fault:  # ssl.SSLError is one
        raise ConnectionFailed(
            f"port {port} of {host} does not speak TLS", remedy="check the port in url"
        ) from fault
    days = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / 86_400
    soon = ", renew it soon" if days < RENEW_BEFORE_DAYS else ""
    return f"{protocol}, certificate valid for {days:.0f} days{soon}"
