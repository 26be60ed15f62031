"""Names and addresses: what a name resolves to, and which addresses may be dialled."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from typing import Any, TypeAlias

from medport_local.serving.fetch.errand import Errand
from medport_local.serving.fetch.target import Address

Network: TypeAlias = IPv4Network | IPv6Network
Resolver: TypeAlias = Callable[..., Iterable[tuple[Any, Any, Any, Any, Any]]]
"""Called like ``socket.getaddrinfo(host, port, type=SOCK_STREAM)``, and answers like it."""

METADATA_ADDRESSES: frozenset[Address] = frozenset(
    ip_address(text)
    for text in (
        "169.254.169.254",  # Google, AWS, Azure, most others
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google
        "169.254.170.2",  # AWS, credentials of a task
        "169.254.170.23",  # AWS, identity of a pod
        "fd00:ec2::23",
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure's wire server: a public address that is answered inside
        "192.0.0.192",  # Oracle
    )
)
"""Where clouds hand out credentials to whoever asks. Only an entry with exactly this address opens one."""

_GLOBAL_V6 = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_TRANSLATED = (IPv6Network("2001::/32"), IPv6Network("2002::/16"))  # Teredo, 6to4: an IPv4 address inside
_LOOKUP_THREADS = 8


@dataclass(frozen=True, slots=True)
class Permit:
    """Which addresses a host may have."""

    networks: tuple[Network, ...] = ()
    public: bool = True
    anything: bool = False
    """The operator named the host as an address to use, as with ``STORAGE_EMULATOR_HOST``."""

    def admits(self, address: Address) -> bool:
        if self.anything:
            return True
        if address in METADATA_ADDRESSES or embedded_ipv4(address) in METADATA_ADDRESSES:
            return any(network.num_addresses == 1 and address in network for network in self.networks)
        return (self.public and is_public(address)) or any(address in network for network in self.networks)


def is_public(address: Address) -> bool:
    """Whether it is a host of the public internet: not private, shared, link-local, loopback, multicast, reserved.

    An IPv6 address that carries an IPv4 one is judged as that one where a NAT64 gateway will unpack it, and is
    never public otherwise.
    """
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast and not address.is_reserved
    if address in _NAT64:
        inner = embedded_ipv4(address)
        return inner is not None and is_public(inner)
    if any(address in network for network in _TRANSLATED):
        return False
    return address in _GLOBAL_V6 and address.is_global and not address.is_multicast


def embedded_ipv4(address: Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address carries: mapped, NAT64, 6to4 or Teredo."""
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)


class Lookup:
    """Resolves names in threads of its own, since ``getaddrinfo`` knows no deadline."""

    def __init__(self, resolve: Resolver) -> None:
        self._resolve = resolve
        self._threads = ThreadPoolExecutor(_LOOKUP_THREADS, thread_name_prefix="medport-dns")

    def addresses(self, host: str, port: int, errand: Errand) -> list[Address]:
        """All addresses of a name.

        Raises:
            FetchError: it has none, or they took too long.
        """
        asked = self._threads.submit(self._resolve, host, port, type=socket.SOCK_STREAM)
        try:
            found = list(asked.result(errand.remaining()))
            unique = dict.fromkeys(_without_zone(entry[4][0]) for entry in found)
        except TimeoutError:
            asked.cancel()
            raise errand.late() from None
        except (OSError, ValueError):  # unknown name, a label that IDNA refuses, an address with a zone
            raise errand.failed(f"{host} does not resolve") from None
        if not unique:
            raise errand.failed(f"{host} does not resolve")
        return list(unique)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _without_zone(text: str) -> Address:
    if "%" in text:  # link-local; and it would compare unequal to the same address elsewhere
        raise ValueError("an address with a zone")
    return ip_address(text)
