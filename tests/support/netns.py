"""A network namespace of a test's own: loopback, and a link that leads nowhere and is listened to.

``run`` starts this file as a program inside the namespace; it makes the link, listens, runs the command and writes
a report. Needs root, or user namespaces; and ``ip`` and AF_PACKET for the capture.

Source: network_namespaces(7), packet(7), unshare(1), ip-link(8).
"""

from __future__ import annotations

import functools
import ipaddress
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Addresses of documentation (RFC 5737, RFC 3849): no machine has them.
OUTSIDE, OUTSIDE6 = "198.51.100.7", "2001:db8:1::7"
_OWN, _GATEWAY = "192.0.2.1", "192.0.2.254"
_OWN6, _GATEWAY6 = "2001:db8::1", "2001:db8::fe"
_LINK = "out0"
_KINDS = (["type", "dummy"], ["type", "veth", "peer", "name", "out1"], ["type", "ifb"])
_SETTLE_S = 0.5
_ALL, _IPV4, _IPV6, _ARP = 0x0003, 0x0800, 0x86DD, 0x0806
_TCP, _UDP, _ICMPV6 = 6, 17, 58
# What a kernel sends by itself when a link comes up: router solicitation and advertisement, neighbour discovery,
# multicast listener reports (RFC 4861, RFC 2710, RFC 3810).
_KERNEL_TYPES = frozenset({130, 131, 132, 133, 134, 135, 136, 143})
_DNS = 53
_STATISTICS = 6  # PACKET_STATISTICS of linux/if_packet.h


@dataclass(frozen=True)
class Report:
    """What came of a command in a namespace."""

    exit_code: int
    capture: str | None
    """The kind of link that was listened to; ``None`` where none could be made. There is no route at all then."""
    packets: list[str]
    """Each that left by the link, and each name look-up that was sent to loopback."""
    dropped: int
    """Packets that the capture was too slow for."""


@functools.cache
def entering() -> list[str] | None:
    """The command that enters a new network namespace; ``None`` where this user cannot make a usable one."""
    for prefix in (["unshare", "-n"], ["unshare", "-rn"]):
        probe = [*prefix, sys.executable, __file__, "probe"]
        if shutil.which(prefix[0]) and subprocess.run(probe, capture_output=True).returncode == 0:
            return prefix
    return None


def run(
    command: Sequence[str], report: Path, *, env: Mapping[str, str], timeout_s: float, listen: bool = True
) -> Report:
    """Run a command in a new namespace.

    Args:
        report: the file that the program inside writes.
        listen: make the link, and a default route over it; else there is no route.
    """
    prefix = entering()
    assert prefix is not None
    inside = [sys.executable, __file__, str(report), "listen" if listen else "alone", *command]
    process = subprocess.Popen([*prefix, *inside], env=dict(env), start_new_session=True)
    try:
        code = process.wait(timeout_s)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # with whatever it has started
        process.wait()
        raise
    return Report(exit_code=code, **json.loads(report.read_text()))


class Capture:
    """Listens on one interface until it is closed."""

    def __init__(self, interface: str) -> None:
        # SOCK_DGRAM: without the link's own header, which differs by kind.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * 2**20)
        self._socket.bind((interface, _ALL))
        self._socket.settimeout(0.1)
        self._ended = threading.Event()
        self.found: list[str] = []
        self._loopback = interface == "lo"
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> int:
        """Stop; how many packets were lost."""
        self._ended.set()
        self._thread.join()
        # struct tpacket_stats: packets, drops.
        statistics = self._socket.getsockopt(263, _STATISTICS, 8)
        self._socket.close()
        return int(struct.unpack("II", statistics)[1])

    def _listen(self) -> None:
        while not self._ended.is_set():
            try:
                data, address = self._socket.recvfrom(65536)
            except TimeoutError:
                continue
            said = describe(address[1], data)
            if said is not None and (not self._loopback or f" port {_DNS}" in said):
                self.found.append(f"{address[0]}: {said}")


def describe(protocol: int, data: bytes) -> str | None:
    """One line about a packet; ``None`` for what the kernel sends by itself when a link comes up."""
    if protocol == _IPV4 and len(data) >= 20:
        return _transport(data[9], ipaddress.ip_address(data[16:20]), data[(data[0] & 15) * 4 :])
    if protocol == _IPV6 and len(data) >= 40:
        following, rest = data[6], data[40:]
        if following == 0 and len(rest) >= 2:  # hop-by-hop options, which multicast reports carry
            following, rest = rest[0], rest[(rest[1] + 1) * 8 :]
        if following == _ICMPV6 and rest[:1] and rest[0] in _KERNEL_TYPES:
            return None
        return _transport(following, ipaddress.ip_address(data[24:40]), rest)
    return "ARP" if protocol == _ARP else f"protocol 0x{protocol:04x}"


def _transport(protocol: int, target: object, rest: bytes) -> str:
    name = {_TCP: "TCP", _UDP: "UDP"}.get(protocol, f"protocol {protocol}")
    port = f" port {struct.unpack('!H', rest[2:4])[0]}" if protocol in (_TCP, _UDP) and len(rest) >= 4 else ""
    return f"{name} to {target}{port}"


def _ip(*arguments: str) -> bool:
    return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode == 0


def _loopback_up() -> None:
    # SIOCGIFFLAGS and SIOCSIFFLAGS with IFF_UP (netdevice(7)), so that no program is needed for it.
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(any_socket, 0x8913, request))[1]
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", flags | 1))


def _link() -> str | None:
    """Make a link that leads nowhere, with the default routes over it; its kind."""
    if shutil.which("ip") is None:
        return None
    for kind in _KINDS:
        if _ip("link", "add", _LINK, *kind):
            break
    else:
        return None
    _ip("link", "set", _LINK, "up")
    _ip("link", "set", "out1", "up")  # a veth carries only while both of its ends are up
    ready = _ip("addr", "add", f"{_OWN}/24", "dev", _LINK)
    ready &= _ip("neigh", "add", _GATEWAY, "lladdr", "02:00:00:00:00:01", "dev", _LINK, "nud", "permanent")
    ready &= _ip("route", "add", "default", "via", _GATEWAY)
    # A kernel may be without IPv6.
    _ip("-6", "addr", "add", f"{_OWN6}/64", "dev", _LINK, "nodad")
    _ip("-6", "neigh", "add", _GATEWAY6, "lladdr", "02:00:00:00:00:01", "dev", _LINK, "nud", "permanent")
    _ip("-6", "route", "add", "default", "via", _GATEWAY6)
    return kind[1] if ready else None


def main(report: Path, mode: str, command: Sequence[str]) -> int:
    """Run inside the namespace."""
    _loopback_up()
    kind, captures = None, []
    if mode == "listen":
        try:
            captures = [Capture("lo")]
            kind = _link()
        except PermissionError:
            captures = []
        if kind is not None:
            captures.append(Capture(_LINK))
    code = subprocess.run(command, check=False).returncode
    time.sleep(_SETTLE_S)
    dropped = sum(capture.close() for capture in captures)
    packets = [said for capture in captures for said in capture.found]
    found: dict[str, Any] = {"capture": kind, "packets": packets, "dropped": dropped}
    report.write_text(json.dumps(found))
    return code


if __name__ == "__main__":
    if sys.argv[1:] == ["probe"]:
        sys.exit(_loopback_up())
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
