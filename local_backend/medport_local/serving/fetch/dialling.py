"""Connections that dial judged addresses and no others.

A name is resolved once, all of its addresses are judged, and a judged address is what the socket connects to:
there is no second look-up that could answer differently. TLS still verifies the name.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

import httpcore

from medport_local.serving.fetch.address import Lookup, Permit
from medport_local.serving.fetch.errand import Errand
from medport_local.serving.fetch.target import Address

_MAX_DIALLED = 4
_OVERHEAD_BYTES = 1024 * 1024


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
