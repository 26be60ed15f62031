"""Where the hub may send us on to: storage hosts over TLS; nothing inside the network that the hub is not in."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, TypeAlias
from urllib.parse import SplitResult, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from medport.errors import ConfigError, PolicyError, ProtocolError

Resolver: TypeAlias = Callable[..., Iterable[tuple[Any, Any, Any, Any, Any]]]
"""Called like ``socket.getaddrinfo(host, port, type=SOCK_STREAM)``, and answers like it."""
Origin: TypeAlias = tuple[str, str, int]

_PORTS = {"http": 80, "https": 443}
_INSIDE_SUFFIXES = (".local", ".localhost", ".internal", ".lan", ".home.arpa")
# A gateway unpacks the IPv4 address in it, whatever that is.
_NAT64 = IPv6Network("64:ff9b::/96")
_MAX_URL = 8192
_MAX_NAME, _MAX_LABEL = 253, 63
"""Characters of a host's name and of each part of it (RFC 1035, 2.3.4): encoding longer or empty ones fails."""


class Redirects:
    """Judges the targets of redirects for one hub.

    Args:
        endpoint: the hub's address, ``https://HOST`` or, for a mirror, ``http://HOST:PORT``.
        resolve: gives a name's addresses.

    Raises:
        ConfigError: the endpoint is no such address.
    """

    def __init__(self, endpoint: str, *, resolve: Resolver = socket.getaddrinfo) -> None:
        try:
            parts = _split(endpoint)
        except ValueError:
            raise ConfigError(
                "is not the address of a hub", field="endpoint", remedy="give https://HOST, as HF_ENDPOINT has it"
            ) from None
        self.hub: Origin = _origin(parts)
        self._resolve = resolve
        self._hub_is_inside: bool | None = None

    def is_hub(self, url: str) -> bool:
        """Whether an address is the hub's own origin: only there does a token go."""
        return _origin(_split(url)) == self.hub

    def target(self, url: str, location: str) -> str:
        """The address that an answer from ``url`` sends us on to.

        Raises:
            PolicyError: it is not to be asked. Nothing was sent there.
        """
        try:
            target = urljoin(url, location)
            parts = _split(target)
        except ValueError:
            raise _refused("to what is no address of http or https") from None
        scheme, host, _ = origin = _origin(parts)
        if origin == self.hub:
            return target
        if scheme == "http" and self.hub[0] == "https":
            raise _refused("from https to plain http")
        if self._is_link_local(host) or (self._is_inside(host) and not self._hub_lies_inside()):
            raise _refused("to an address inside the network")
        return target

    def _hub_lies_inside(self) -> bool:
        if self._hub_is_inside is None:
            self._hub_is_inside = self._is_inside(self.hub[1])
        return self._hub_is_inside

    def _is_inside(self, host: str) -> bool:
        if _literal(host) is None and (host.endswith(_INSIDE_SUFFIXES) or "." not in host):
            return True
        return not all(_is_public(address) for address in self._addresses(host))

    def _is_link_local(self, host: str) -> bool:
        return any(address.is_link_local for address in self._addresses(host))

    def _addresses(self, host: str) -> list[IPv4Address | IPv6Address]:
        literal = _literal(host)
        if literal is not None:
            return [literal]
        if getproxies().get("https") and not proxy_bypass(host):
            return []  # the proxy resolves it, and here it may have no address at all
        try:
            found = self._resolve(host, 443, type=socket.SOCK_STREAM)
            return [_unpacked(ip_address(str(entry[4][0]).partition("%")[0])) for entry in found]
        except (OSError, ValueError):
            return []  # then it cannot be dialled either


def _split(url: str) -> SplitResult:
    parts = urlsplit(url)
    port = parts.port  # raises ValueError where it is no number
    if (
        len(url) > _MAX_URL
        or parts.scheme not in _PORTS
        or not parts.hostname
        or parts.username is not None
        or port == 0
    ):
        raise ValueError("no address to ask")
    if not url.isprintable() or not url.isascii() or " " in url or not _is_host(parts.hostname):
        raise ValueError("no address to ask")
    return parts


def _is_host(name: str) -> bool:
    if ":" in name:  # of IPv6, which urlsplit has looked at
        return True
    whole = name.removesuffix(".")
    return len(whole) <= _MAX_NAME and all(0 < len(label) <= _MAX_LABEL for label in whole.split("."))


def _origin(parts: SplitResult) -> Origin:
    return parts.scheme, (parts.hostname or "").lower().rstrip("."), parts.port or _PORTS[parts.scheme]


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return _unpacked(ip_address(host))
    except ValueError:
        pass
    try:
        # Resolvers take 0x7f.1 and 2130706433 for addresses, so they are.
        return IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def _unpacked(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    return address.is_global and not address.is_multicast and not address.is_reserved


def _refused(where: str) -> PolicyError:
    return PolicyError(
        f"the hub redirects {where}",
        field="endpoint",
        remedy="check HF_ENDPOINT and whatever stands between this machine and the hub",
    )


def endless() -> ProtocolError:
    """The error for redirects that lead nowhere."""
    return ProtocolError("the hub redirects in a circle", field="endpoint", remedy="check HF_ENDPOINT")


def unusable() -> ProtocolError:
    """The error for an address that looks like one and that no request can be made of."""
    return ProtocolError("no request can be sent to its address", field="endpoint", remedy="check HF_ENDPOINT")
