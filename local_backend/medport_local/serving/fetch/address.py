"""Which addresses may be dialled, and connections that dial no others.

A name is resolved once, all of its addresses are judged, and a judged address is what the socket connects to:
there is no second look-up that could answer differently. TLS still verifies the name.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from typing import Any, TypeAlias

import httpcore

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
_MAX_DIALLED = 4
_LOOKUP_THREADS = 8
_OVERHEAD_BYTES = 1024 * 1024


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


class PinnedBackend(httpcore.NetworkBackend):
    """Connects to judged addresses only, and bounds every read and write by the errand's deadline."""

    def __init__(self, permit: Permit, errand: Errand, lookup: Lookup) -> None:
        self._permit = permit
        self._errand = errand
        self._lookup = lookup
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Dial the host's addresses in turn.

        Raises:
            FetchError: one of the addresses is not admitted. One bad address refuses the name: whoever mixes them
                may hope that the other is taken.
            httpcore.ConnectError: none of them answers.
        """
        addresses = self._judged(host.strip("[]"), port)
        fault: Exception = httpcore.ConnectError("no address")
        for address in addresses[:_MAX_DIALLED]:
            try:
                stream = self._plain.connect_tcp(
                    str(address), port, timeout=self._errand.remaining(), socket_options=socket_options or ()
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as missed:
                fault = missed
                continue
            return _BoundedStream(stream, self._errand, self._errand.max_bytes + _OVERHEAD_BYTES)
        raise fault

    def _judged(self, host: str, port: int) -> list[Address]:
        try:
            addresses = [ip_address(host)]
        except ValueError:
            addresses = self._lookup.addresses(host, port, self._errand)
        if not all(self._permit.admits(address) for address in addresses):
            raise self._errand.refused(
                f"{host} has an address that this server does not dial (private, loopback, reserved, …)",
                f"if that is meant, start the server with --allow-fetch {host}=ADDRESSES",
            )
        return addresses


class _BoundedStream(httpcore.NetworkStream):
    """A socket with one deadline for all it does, however slowly the bytes drip, and a bound on what it reads.

    The bound is on the wire: a body's own limit is lower, but chunks of one byte each cost six to send.
    """

    def __init__(self, stream: httpcore.NetworkStream, errand: Errand, bytes_left: int) -> None:
        self._stream = stream
        self._errand = errand
        self._bytes_left = bytes_left

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._stream.read(max_bytes, timeout=self._errand.remaining())
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            raise self._errand.too_large()
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        piece = 65536
        for start in range(0, len(buffer), piece):
            self._stream.write(buffer[start : start + piece], timeout=self._errand.remaining())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        secured = self._stream.start_tls(ssl_context, server_hostname, timeout=self._errand.remaining())
        return _BoundedStream(secured, self._errand, self._bytes_left)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
