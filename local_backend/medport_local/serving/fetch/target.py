"""A URL read strictly: what is left over after parsing is exactly what will be dialled and sent.

Every doubt is a refusal. Two parsers that read one URL differently are how a check is got round, so nothing is
mended here: no user part, no backslash, no trailing dot, no number that a C library would read as an address,
no letter outside ASCII in a host name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Literal, TypeAlias, cast
from urllib.parse import quote, urljoin

Address: TypeAlias = IPv4Address | IPv6Address
Scheme = Literal["http", "https"]
PORTS: dict[Scheme, int] = {"http": 80, "https": 443}

_MAX_CHARS = 8192
_URL = re.compile(r"(?P<scheme>[a-zA-Z]+)://(?P<authority>[^/?#\\]*)(?P<rest>[^#]*)(?:#.*)?", re.DOTALL)
_AUTHORITY = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]{1,5}))?")
_NAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F))


@dataclass(frozen=True, slots=True)
class Target:
    """Where an http(s) URL points."""

    scheme: Scheme
    host: str
    """Lower case; an IPv6 address without brackets, in its shortest form."""
    port: int
    path: str
    """From the first slash, query included, without fragment; ASCII."""
    address: Address | None
    """The host, where it is an address."""
    port_given: bool

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    @property
    def netloc(self) -> str:
        """As it stands in a Host header."""
        host = f"[{self.host}]" if isinstance(self.address, IPv6Address) else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def keeps_secrets(self) -> bool:
        """Whether a credential may be sent there: encrypted, or never leaving this machine."""
        return self.scheme == "https" or self.host == "localhost" or _is_loopback(self.address)


def parse(url: str) -> Target:
    """Read an absolute http or https URL.

    Raises:
        ValueError: says why it is not one, without quoting it.
    """
    if len(url) > _MAX_CHARS:
        raise ValueError(f"the URL has more than {_MAX_CHARS} characters")
    if any(ord(c) <= 0x20 or ord(c) == 0x7F for c in url):
        raise ValueError("the URL has blanks or control characters in it")
    parts = _URL.fullmatch(url)
    if parts is None:
        raise ValueError("not an absolute http or https URL")
    scheme = parts["scheme"].lower()
    if scheme not in PORTS:
        raise ValueError("not an http or https URL")
    rest = parts["rest"]
    if rest and rest[0] not in "/?":
        raise ValueError("the URL has no valid host")
    host, port, address = split_authority(parts["authority"])
    known = cast(Scheme, scheme)
    return Target(
        scheme=known,
        host=host,
        port=PORTS[known] if port is None else port,
        path=_ascii(rest if rest.startswith("/") else f"/{rest}"),
        address=address,
        port_given=port is not None,
    )


def follow(target: Target, location: str) -> Target:
    """Where a redirect from ``target`` leads; the same rules.

    Raises:
        ValueError: the location is not an http(s) URL.
    """
    return parse(urljoin(f"{target.scheme}://{target.netloc}{target.path}", location))


def split_authority(text: str) -> tuple[str, int | None, Address | None]:
    """Host, port and, where the host is one, address of ``host[:port]``.

    Raises:
        ValueError: the host or the port is not valid.
    """
    if "@" in text:
        raise ValueError("the URL has a user name in it; use access_credential")
    parts = _AUTHORITY.fullmatch(text)
    if parts is None:
        raise ValueError("the URL has no valid host")
    port = None if parts["port"] is None else int(parts["port"])
    if port is not None and not 0 < port < 65536:
        raise ValueError("the URL has no valid port")
    host = parts["host"]
    if host.startswith("["):
        address: Address | None = _ipv6(host[1:-1])
        return str(address), port, address
    name, address = _name(host)
    return name, port, address


def _name(text: str) -> tuple[str, Address | None]:
    if not text.isascii():
        raise ValueError("the host has letters outside ASCII; write it in punycode (xn--…)")
    name = text.lower()
    if _NAME.fullmatch(name) is None or len(name) > 253:
        raise ValueError("the URL has no valid host")
    if _NUMBER.fullmatch(name.rpartition(".")[2]) is None:
        return name, None
    # inet_aton reads 127.1, 0x7f.1, 0177.0.0.1 and 2130706433 as addresses: only the plain form is one here.
    try:
        address = IPv4Address(name)
    except AddressValueError:
        raise ValueError("the host is a number, but not an address in plain form") from None
    return str(address), address


def _ipv6(text: str) -> IPv6Address:
    if "%" in text:
        raise ValueError("the host is an address with a zone")
    try:
        return IPv6Address(text)
    except AddressValueError:
        raise ValueError("the host is not a valid IPv6 address") from None


def _ascii(path: str) -> str:
    try:
        return quote(path, safe=_PRINTABLE)
    except UnicodeEncodeError:
        raise ValueError("the URL is not valid Unicode") from None


def _is_loopback(address: Address | None) -> bool:
    return address is not None and address.is_loopback
