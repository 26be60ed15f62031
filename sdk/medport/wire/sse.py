"""Server-sent events, as chat streams use them: ``data: {json}`` lines, a blank line, ``data: [DONE]``.

Source: WHATWG HTML, section 9.2 (event stream interpretation); OpenAI API reference, Streaming.
"""

from __future__ import annotations

from collections.abc import Iterator

from medport.errors import ProtocolError

DONE = b"[DONE]"
MAX_EVENT_BYTES = 4 * 1024 * 1024
"""An event longer than this is refused: an endless line must not fill the caller's memory."""


def encode(data: bytes) -> bytes:
    """One event that carries ``data``."""
    return b"".join(b"data: " + line + b"\n" for line in data.split(b"\n")) + b"\n"


class Decoder:
    """Turn bytes, cut anywhere, into the data of each event. Fields other than ``data`` are dropped."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size_bytes = 0
        self._after_cr = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of each event that ``chunk`` completes.

        Raises:
            ProtocolError: an event grew past ``MAX_EVENT_BYTES``.
        """
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        if chunk:
            self._after_cr = chunk.endswith(b"\r")
        text = self._rest + chunk
        lines = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line:
                self._take(line)
            elif self._data:
                yield b"\n".join(self._data)
                self._data, self._size_bytes = [], 0
        if self._size_bytes + len(self._rest) > MAX_EVENT_BYTES:
            raise ProtocolError("a stream event is longer than 4 MiB", remedy="check what the URL serves")

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size_bytes += len(value)
