"""The sizes that the directories of a TIFF declare, read before a C library does.

A walk over the directory chain that reads a few numbers of each and allocates nothing of a declared size.
Sources: TIFF 6.0 section 2; BigTIFF's design note (64-bit offsets, magic 43).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

_MAGIC = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}
_WIDTH, _HEIGHT, _SAMPLES, _TILE_WIDTH, _TILE_HEIGHT, _NDPI = 256, 257, 277, 322, 323, 65420
_WANTED = frozenset({_WIDTH, _HEIGHT, _SAMPLES, _TILE_WIDTH, _TILE_HEIGHT})
# Bytes of each integer type: the signed ones and BYTE are wrong here, but libtiff takes them.
_SIZES = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4, 16: 8, 17: 8}
_MAX_DIRECTORIES = 1000
_MAX_ENTRIES = 4096


class Broken(ValueError):
    """The chain of directories is cut off, endless or absurd. Its text quotes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """One picture of a TIFF, as declared."""

    width: int
    height: int
    tile_width: int
    """0 if the picture is in strips."""
    tile_height: int
    samples: int
    """Per pixel; 1 if it does not say."""
    hamamatsu: bool
    """It has the tag that marks NDPI, whose pictures are not tiled but restart at intervals."""


def is_tiff(data: bytes) -> bool:
    """Whether bytes begin like a TIFF or BigTIFF."""
    return data[:4] in _MAGIC


def directories(file: BinaryIO) -> list[Directory]:
    """Every picture of a TIFF.

    Raises:
        Broken: the directories cannot be walked to their end.
    """
    try:
        return list(_walk(file))
    except struct.error:
        raise Broken("the TIFF directories are cut off") from None


def is_pyramid(pictures: list[Directory]) -> bool:
    """Whether it looks like a slide: a tiled picture and a smaller tiled one after it, or NDPI.

    Several tiled pages of one size are a document or a stack, and one tiled picture is a picture.
    """
    if any(picture.hamamatsu for picture in pictures):
        return True
    tiled = [picture for picture in pictures if picture.tile_width]
    return any(later.width * later.height < first.width * first.height for first, later in pairwise(tiled))


def _walk(file: BinaryIO) -> Iterator[Directory]:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(16)
    order = _MAGIC[head[:4]]
    big = head[2:4] in (b"+\0", b"\0+")
    at = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)[0]
    seen: set[int] = set()
    while at:
        if at in seen or at >= size or len(seen) >= _MAX_DIRECTORIES:
            raise Broken("the TIFF directories are endless or cut off")
        seen.add(at)
        picture, at = _directory(file, at, order, big)
        yield picture


def _directory(file: BinaryIO, at: int, order: str, big: bool) -> tuple[Directory, int]:
    """The picture that a directory declares, and where the next directory is; 0 at the end."""
    count_form, entry_bytes, link = ("Q", 20, "Q") if big else ("H", 12, "I")
    file.seek(at)
    count = struct.unpack(order + count_form, file.read(struct.calcsize(count_form)))[0]
    if count > _MAX_ENTRIES:
        raise Broken("a TIFF directory has too many entries")
    body = file.read(count * entry_bytes)
    following = struct.unpack(order + link, file.read(struct.calcsize(link)))[0]
    values = dict.fromkeys(_WANTED, 0)
    hamamatsu = False
    for start in range(0, len(body), entry_bytes):
        tag, kind = struct.unpack_from(order + "HH", body, start)
        hamamatsu = hamamatsu or tag == _NDPI
        if tag in _WANTED:
            inline = body[start + (12 if big else 8) : start + entry_bytes][: _SIZES.get(kind, 0)]
            values[tag] = max(values[tag], int.from_bytes(inline, "little" if order == "<" else "big"))
    picture = Directory(
        width=values[_WIDTH],
        height=values[_HEIGHT],
        tile_width=values[_TILE_WIDTH],
        tile_height=values[_TILE_HEIGHT],
        samples=max(1, values[_SAMPLES]),
        hamamatsu=hamamatsu,
    )
    return picture, following
