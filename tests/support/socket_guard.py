"""Writes down every address that this interpreter looks up, connects to, sends to or listens on.

Copied into a virtual environment beside a ``.pth`` file that imports it, so it is there in every process of it
from the start. Standard library only. Calls that a C extension makes by itself are not seen; a capture of packets
sees them (``netns``).

Source: Python, "Audit events table".
"""

import json
import os
import sys

LOG = "SOCKET_GUARD_LOG"
"""Names the file that lines are added to; nothing is watched without it."""
_LOOK_UPS = frozenset({"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"})
_USES = frozenset({"socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"})


def _watch(path):
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def hook(event, arguments):
        if event in _LOOK_UPS:
            family, address = None, arguments[0]
        elif event in _USES:
            family, address = int(arguments[0].family), arguments[1]
        else:
            return
        line = {"event": event, "family": family, "address": _plain(address), "program": sys.argv[:2]}
        os.write(descriptor, json.dumps(line).encode() + b"\n")

    sys.addaudithook(hook)


def _plain(address):
    if isinstance(address, bytes):
        return address.decode(errors="replace")
    if isinstance(address, tuple):
        return [_plain(part) for part in address]
    return address if isinstance(address, (str, int, type(None))) else repr(address)


if path := os.environ.get(LOG):
    _watch(path)
