"""PNG and JPEG bytes with nothing but the picture, taken apart at the byte level: no pixel is encoded again.

Text chunks, EXIF, XMP, comments, thumbnails, profiles and what follows the picture may name the patient; only
what a decoder needs stays. Sources: PNG (ISO/IEC 15948) clause 5; JPEG (ITU-T T.81) annex B; JFIF 1.02.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"

# A marker inside entropy-coded data: 0xFF not followed by a stuffed zero, a restart marker or a fill byte.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # SOF0..15; SOF55 is JPEG-LS
_PICTURE = _FRAME_HEADERS | {0xC4, 0xCC, 0xDA, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF}
_APP0, _APP14, _SOS, _EOI = 0xE0, 0xEE, 0xDA, 0xD9


class Damaged(ValueError):
    """The bytes are not a whole PNG or JPEG. The text says which part; never what is in it."""


def clean_png(data: bytes) -> bytes | None:
    """The PNG with its picture chunks only, or ``None`` if they alone would not show the same picture.

    That is so for palettes, 16-bit and packed samples, and alpha: such files have to be decoded and encoded
    again. The same object comes back when there was nothing to take out.

    Raises:
        Damaged: a chunk is cut off or its checksum is wrong.
    """
    kept = [PNG_MAGIC]
    plain = False
    for name, chunk in _png_chunks(data):
        if name == b"IHDR":
            depth, colour = chunk[16], chunk[17]
            plain = depth == 8 and colour in (0, 2)
        if name in (b"IHDR", b"IDAT", b"IEND"):
            kept.append(chunk)
        elif name == b"acTL":
            plain = False
    if not plain:
        return None
    size = sum(map(len, kept))
    return data if size == len(data) else b"".join(kept)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each chunk's name and its bytes (length, name, body, checksum), up to and with IEND."""
    at, view = len(PNG_MAGIC), memoryview(data)
    while True:
        length = int.from_bytes(view[at : at + 4], "big")
        end = at + 12 + length
        if at + 12 > len(data) or end > len(data):
            raise Damaged("the PNG is cut off")
        name = bytes(view[at + 4 : at + 8])
        if at == len(PNG_MAGIC) and (name != b"IHDR" or length != 13):
            raise Damaged("the PNG does not begin with its header")
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise Damaged("a PNG chunk is damaged (checksum)")
        yield name, bytes(view[at:end])
        if name == b"IEND":
            return
        at = end


def clean_jpeg(data: bytes) -> bytes:
    """The JPEG with its tables and scans only; of the application segments just JFIF's and Adobe's basics.

    Those two tell a decoder the colour space. The same object comes back when there was nothing to take out.

    Raises:
        Damaged: a segment is cut off, or there is no end of image.
    """
    kept = [data[:2]]
    for marker, segment in _jpeg_segments(data):
        if marker == _APP0:
            if segment[4:9] == b"JFIF\0" and len(segment) >= 18:
                kept.append(b"\xff\xe0\x00\x10" + segment[4:16] + b"\0\0")  # no thumbnail
        elif marker == _APP14:
            if segment[4:9] == b"Adobe" and len(segment) >= 16:
                kept.append(b"\xff\xee\x00\x0e" + segment[4:16])
        elif marker in _PICTURE or marker == _EOI:
            kept.append(segment)
    cleaned = b"".join(kept)
    return data if cleaned == data else cleaned


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that the first frame header of a JPEG or JPEG-LS stream declares."""
    try:
        for marker, segment in _jpeg_segments(data):
            if marker in _FRAME_HEADERS and len(segment) >= 9:
                return int.from_bytes(segment[7:9], "big"), int.from_bytes(segment[5:7], "big")
    except Damaged:
        return None
    return None


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Each marker and its bytes, of a scan with its entropy-coded data, up to and with the end of image."""
    at = 2
    while True:
        while data[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        if at + 2 > len(data):
            raise Damaged("the JPEG is cut off")
        if data[at] != 0xFF:
            raise Damaged("the JPEG has bytes where a segment should begin")
        marker = data[at + 1]
        if marker == _EOI:
            yield marker, data[at : at + 2]
            return
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # stand-alone markers have no length
            at += 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if end > len(data) or end < at + 4:
            raise Damaged("the JPEG is cut off")
        if marker == _SOS:
            following = _MARKER.search(data, end)
            if following is None:
                raise Damaged("the JPEG is cut off")
            end = following.start()
        yield marker, data[at:end]
        at = end
