"""One DICOM whole-slide instance (VL Whole Slide Microscopy) → regions of its one level.

Read by pydicom and the frame decoder that every other DICOM object goes through, not by OpenSlide: given one
file, OpenSlide opens all the files beside it, to collect the levels. Beside a memory file (see ``slides.py``)
lie the open files of the whole process, those of other callers' slides among them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from medport.errors import DicomError
from medport.images import dicom
from medport.images.codes import Code, CodedImageError
from medport.images.frame import decode_frame
from medport.images.image import Limits, Pixels

if TYPE_CHECKING:
    from pydicom import Dataset

Result = TypeVar("Result")
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_CACHE_BYTES = 32 * 2**20
_CACHED_TILES = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TiledDicom:
    """The tiles of one instance, row by row (TILED_FULL: PS3.3 C.7.6.17.3), first plane, first optical path."""

    ds: Dataset
    name: str
    """The argument to name in errors."""
    width_px: int
    height_px: int
    tile_width: int
    tile_height: int
    icc_profile: bytes | None
    _tiles: OrderedDict[int, Pixels] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, x: int, y: int, width: int, height: int) -> Pixels:
        """uint8 ``[height, width, 3]`` of a region that lies inside.

        Raises:
            CodedImageError: DICOM_ERROR, a tile is damaged or cannot be decoded here.
        """
        region = np.empty((height, width, 3), dtype=np.uint8)
        across = -(-self.width_px // self.tile_width)
        for row in range(y // self.tile_height, (y + height - 1) // self.tile_height + 1):
            for column in range(x // self.tile_width, (x + width - 1) // self.tile_width + 1):
                tile = self._tile(row * across + column)
                top, left = row * self.tile_height, column * self.tile_width
                first_y, first_x = max(y, top), max(x, left)
                last_y, last_x = min(y + height, top + self.tile_height), min(x + width, left + self.tile_width)
                region[first_y - y : last_y - y, first_x - x : last_x - x] = tile[
                    first_y - top : last_y - top, first_x - left : last_x - left
                ]
        return region

    def _tile(self, index: int) -> Pixels:
        # One at a time: pydicom turns raw elements into values at their first use, in the data set itself.
        with self._lock:
            tile = self._tiles.get(index)
            if tile is None:
                tile = _coded(lambda: _decode(self.ds, index, self.name), field=self.name)
                self._tiles[index] = tile
                while len(self._tiles) > max(1, min(_CACHED_TILES, _CACHE_BYTES // tile.nbytes)):
                    self._tiles.popitem(last=False)
            self._tiles.move_to_end(index)
            return tile


def open_tiled(data: bytes, *, field: str, limits: Limits) -> TiledDicom:
    """Read the attributes of a whole-slide instance.

    ``limits.max_frames`` is not asked: a slide has tens of thousands, and each is looked up in the bytes that
    are there. ``limits.max_pixels`` bounds a tile.

    Raises:
        CodedImageError: DICOM_TILED_FULL_ERROR, its tiles are not stored row by row; DICOM_ERROR, else.
        ConfigError: pydicom is not installed.
    """

    def work() -> TiledDicom:
        ds = dicom.parsed(data, field, limits)
        if str(ds.get("SOPClassUID") or "") != WHOLE_SLIDE:
            raise _error("is no VL Whole Slide Microscopy object", field, "send it as an ordinary image")
        dicom.check_image(ds, field, limits)
        width, height = int(ds.get("TotalPixelMatrixColumns") or 0), int(ds.get("TotalPixelMatrixRows") or 0)
        frames = int(ds.get("NumberOfFrames") or 1)
        if width < 1 or height < 1:
            raise _error("TotalPixelMatrixColumns or -Rows is missing", field, "fetch it again")
        tiles = -(-width // int(ds.Columns)) * -(-height // int(ds.Rows))
        full = str(ds.get("DimensionOrganizationType") or "").strip() == "TILED_FULL"
        if not full and not tiles == frames == 1:
            raise _error(
                "its tiles are not stored as TILED_FULL",
                field,
                "convert it to TILED_FULL",
                "DICOM_TILED_FULL_ERROR",
            )
        if frames < tiles:
            raise _error("has fewer tiles than its size asks for", field, "send instances that are not split up")
        if int(ds.SamplesPerPixel) != 3 or int(ds.BitsAllocated) != 8:
            raise _error("is not 8-bit colour", field, "convert it to 8-bit RGB or YBR")
        paths = ds.get("OpticalPathSequence")
        profile = paths[0].get("ICCProfile") if paths else None
        return TiledDicom(
            ds=ds,
            name=field,
            width_px=width,
            height_px=height,
            tile_width=int(ds.Columns),
            tile_height=int(ds.Rows),
            icc_profile=bytes(profile) if profile else None,
        )

    return _coded(work, field=field)


def _coded(work: Callable[[], Result], *, field: str) -> Result:
    """``dicom.guarded``, with the public container's code on what it raises."""
    try:
        return dicom.guarded(work, field=field)
    except DicomError as error:
        message, remedy = error.message, error.remedy or "fetch it again"
    raise _error(message, field, remedy)


def _decode(ds: Dataset, index: int, field: str) -> Pixels:
    stored, photometric = decode_frame(ds, index, field)
    if photometric != "RGB" or stored.ndim != 3 or stored.dtype != np.uint8:
        raise _error("its colour space is not supported", field, "convert it to RGB or YBR_FULL_422")
    return stored


def _error(message: str, field: str, remedy: str, code: Code = "DICOM_ERROR") -> CodedImageError:
    return CodedImageError(message, code=code, field=field, remedy=remedy)
