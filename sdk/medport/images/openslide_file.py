"""A slide opened by OpenSlide: what reaches the library is checked before, its errors are translated.

``slides.py`` says what is taken from whom, and why.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

import numpy as np

from medport import _extras
from medport.errors import ImageError
from medport.images import tiff_header
from medport.images.codes import CodedImageError
from medport.images.image import Pixels
from medport.images.quiet import quiet

MAX_REGION_PIXELS = 2**24
"""Width times height of one region, and of one tile of the file: 4096 x 4096."""

# OpenSlide's names of the formats that lie in one TIFF.
_ONE_FILE = frozenset(
    {"aperio", "argos", "generic-tiff", "hamamatsu", "huron", "leica", "philips", "trestle", "ventana"}
)
_TAKEN = "send a tiled TIFF pyramid (SVS, NDPI, SCN, BIF, …) or a DICOM whole-slide instance"
_MAX_PROFILE_BYTES = 4 * 2**20

Result = TypeVar("Result")


class OpenSlideFile:
    """An open file; several threads may read it at once, but none while it is closed.

    Attributes:
        levels: width and height of each level, the largest first.
        icc_profile: the colour profile of its pixels; ``None`` without one, empty if it is damaged.
    """

    def __init__(self, path: str, field: str, *, descriptor: int | None = None) -> None:
        """Open it.

        Args:
            descriptor: of the file in memory that the path leads to; it is closed with the slide, also if it
                cannot be opened. Without one the path is a caller's own, and may lead to further files.

        Raises:
            CodedImageError: UNHANDLED_GENERIC_BYTES_ERROR or IMAGE_DIMENSION_ERROR.
            ConfigError: OpenSlide is not installed.
        """
        self._field, self._descriptor = field, descriptor
        self._slide: Any = None
        try:
            self._library: Any = _extras.load("openslide", extra="slides")
            vendor = self._call(lambda: self._library.OpenSlide.detect_format(path))
            # A file may be TIFF and DICOM at once (PS3.10 7.1 allows for it); "synthetic" is OpenSlide's test.
            unwanted = vendor in (None, "dicom", "synthetic")
            if unwanted or (descriptor is not None and vendor not in _ONE_FILE):
                raise refused("is no whole slide that is read here", field)
            self._slide = self._call(lambda: self._library.OpenSlide(path))
            self.levels: tuple[tuple[int, int], ...] = self._call(lambda: self._slide.level_dimensions)
            self._scales: tuple[float, ...] = self._call(lambda: self._slide.level_downsamples)
            self._check_tiles()
            self.icc_profile = self._profile()
        except BaseException:
            self.close()
            raise

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """uint8 ``[height, width, 3]`` of a region, in pixels of its level; white where there is nothing."""
        from PIL import Image as pil

        scale = self._scales[level]
        corner = (round(x * scale), round(y * scale))
        region = self._call(lambda: self._slide.read_region(corner, level, (width, height)))
        if region.getextrema()[3] != (255, 255):
            white = pil.new("RGBA", region.size, (255, 255, 255, 255))
            region = pil.alpha_composite(white, region)
        return np.asarray(region.convert("RGB"))

    def close(self) -> None:
        """Free it, and the file in memory."""
        if self._slide is not None:
            self._slide.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _profile(self) -> bytes | None:
        if self._number("openslide.icc-size") > _MAX_PROFILE_BYTES:
            raise refused("its colour profile is too large", self._field)
        from PIL.ImageCms import PyCMSError

        try:
            profile = self._slide.color_profile
        except PyCMSError:  # LittleCMS does not know it: of no use, which matters only to those who ask for it
            return b""
        return None if profile is None else bytes(profile.tobytes())

    def _check_tiles(self) -> None:
        for level in range(len(self.levels)):
            width, height = (self._number(f"openslide.level[{level}].tile-{side}") for side in ("width", "height"))
            if width * height > MAX_REGION_PIXELS:
                raise _tiles_too_large(self._field)

    def _number(self, name: str) -> int:
        """A numeric property, 0 without it. The others, among them the label's text, are never read."""
        return self._call(lambda: int(self._slide.properties.get(name) or 0))

    def _call(self, work: Callable[[], Result]) -> Result:
        try:
            with quiet():
                return work()
        # A parser of hostile bytes fails in every way there is (its own errors, Key, Unicode, …), with texts that
        # quote paths and values: only the class is kept.
        except Exception as error:
            kind = type(error).__name__
        raise refused(f"the slide is damaged or not supported ({kind})", self._field)


def check_tiff(file: BinaryIO, field: str) -> None:
    """Refuse a TIFF whose tiles would be allocated by the gigabyte, before OpenSlide sees it.

    Raises:
        CodedImageError: UNHANDLED_GENERIC_BYTES_ERROR or IMAGE_DIMENSION_ERROR.
    """
    fault = None
    try:
        pictures = tiff_header.directories(file)
    except tiff_header.Broken as broken:
        pictures, fault = [], str(broken)
    if fault is not None:
        raise refused(fault, field)
    if any(one.tile_width * one.tile_height * one.samples > 4 * MAX_REGION_PIXELS for one in pictures):
        raise _tiles_too_large(field)


def in_memory(data: bytes, field: str) -> int:
    """The descriptor of an anonymous file in memory that holds the bytes.

    Raises:
        ImageError: this system has none.
    """
    if not hasattr(os, "memfd_create") or not os.path.isdir("/proc/self/fd"):
        raise ImageError(
            "a slide in memory can be opened on Linux only", field=field, remedy="give the path of the file"
        )
    descriptor = os.memfd_create("slide", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def refused(message: str, field: str) -> CodedImageError:
    return CodedImageError(message, code="UNHANDLED_GENERIC_BYTES_ERROR", field=field, remedy=_TAKEN)


def _tiles_too_large(field: str) -> CodedImageError:
    return CodedImageError(
        f"has tiles of more than {MAX_REGION_PIXELS} pixels",
        code="IMAGE_DIMENSION_ERROR",
        field=field,
        remedy="write it again with smaller tiles",
    )
