"""A forward proxy that plays a host of another name: for clients whose host names cannot be changed."""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .certificates import Authority


@contextmanager
def playing(authority: Authority, host: str, target: str, trusted: ssl.SSLContext) -> Iterator[str]:
    """Serve CONNECT to ``host:443`` with a certificate for it, and pass on what is said to ``target``.

    Args:
        authority: who signs the certificate.
        host: the only host it plays; others are refused.
        target: ``host:port`` of the server behind it, which speaks TLS.
        trusted: whom to trust there.

    Gives the proxy's URL, as ``HTTPS_PROXY`` wants it.
    """
    context = authority.issue(host).context()
    closing = threading.Event()
    threads: list[threading.Thread] = []

    def serve(client: socket.socket) -> None:
        with client, suppress(OSError):
            client.settimeout(60)
            head = b""
            while b"\r\n\r\n" not in head:
                received = client.recv(4096)
                if not received:
                    return
                head += received
            if head.split(b" ", 2)[:2] != [b"CONNECT", f"{host}:443".encode()]:
                client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                return
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            name, _, port = target.rpartition(":")
            with (
                context.wrap_socket(client, server_side=True) as outer,
                socket.create_connection((name, int(port))) as plain,
                trusted.wrap_socket(plain, server_hostname=name) as inner,
            ):
                _relay(outer, inner, closing)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threads.append(threading.Thread(target=serve, args=(client,), daemon=True))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads.append(threading.Thread(target=accept, daemon=True))
        threads[0].start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            closing.set()
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(10)


def _relay(one: ssl.SSLSocket, other: ssl.SSLSocket, closing: threading.Event) -> None:
    """Until either ends. One thread for both ways, because OpenSSL's connections are not to be shared."""
    with selectors.DefaultSelector() as waiting:
        waiting.register(one, selectors.EVENT_READ, other)
        waiting.register(other, selectors.EVENT_READ, one)
        while not closing.is_set():
            for key, _ in waiting.select(0.1):
                source, sink = key.fileobj, key.data
                assert isinstance(source, ssl.SSLSocket)
                for data in _arrived(source):
                    if not data:
                        return
                    sink.sendall(data)


def _arrived(source: ssl.SSLSocket) -> Iterator[bytes]:
    """What can be read at once; empty at the end. What arrived may be a session ticket and no data at all."""
    while True:
        source.setblocking(False)
        try:
            data = source.recv(65536)
        except ssl.SSLWantReadError:
            return
        finally:
            source.setblocking(True)
        yield data
