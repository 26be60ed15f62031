"""Whole slides: pyramids too large to decode at once, read region by region.

TIFF-based slides (Aperio, Hamamatsu NDPI, Leica, Philips, Trestle, Ventana, generic pyramids) go through
OpenSlide; DICOM whole-slide instances through ``dicom_slide.py``, each of them one level.

OpenSlide is C code that parses hostile files, in this process. So, of bytes:

- only those that begin like a TIFF ever reach it, after the sizes their directories declare were checked;
- only formats that lie in one file are taken. An index file (VMS, MIRAX) names other files to be opened;
- they lie in an anonymous file in memory, which no path leads to from outside and which ends with the slide.
  Nothing is written to a disk. Systems without such files (all but Linux) refuse bytes and take paths.

A path is the caller's own: there all of OpenSlide's formats but DICOM's are taken, and the file is not held
in memory.

Where a slide has no pixels (sparse scans) it is white, as OpenSlide's own convention has it. Errors of
OpenSlide, which quote paths and values, never leave this module.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from medport.errors import ImageError, InputError
from medport.images import dicom, tiff_header
from medport.images.codes import Code, CodedImageError
from medport.images.dicom_slide import WHOLE_SLIDE, TiledDicom, open_tiled
from medport.images.frame import media_storage_class
from medport.images.image import Image, Kind, Limits, Origin
from medport.images.openslide_file import MAX_REGION_PIXELS, OpenSlideFile, check_tiff, in_memory, refused

if TYPE_CHECKING:
    from typing import Self


class Level:
    """One resolution of a slide, as a thing to cut patches from.

    Attributes:
        index: 0 is the largest.
        width_px, height_px: its size.
    """

    def __init__(self, slide: Slide, index: int) -> None:
        self._slide = slide
        self.index = index
        self.width_px, self.height_px = slide.levels[index]

    @property
    def field(self) -> str:
        """The argument to name in errors."""
        return self._slide.field

    @property
    def is_dicom(self) -> bool:
        """Whether it is of a DICOM instance."""
        return self._slide.kind == "dicom"

    def crop(self, x: int, y: int, width: int, height: int) -> Image:
        """See ``Slide.read``."""
        return self._slide.read(self.index, x, y, width, height)

    def __repr__(self) -> str:
        return f"Level(index={self.index}, width_px={self.width_px}, height_px={self.height_px})"


class Slide:
    """An open slide; a context manager. Several threads may read at once, and ``close`` waits for them.

    After a region could not be read, OpenSlide refuses all others of the same slide: open it again.

    Attributes:
        kind: ``"tiff"`` or ``"dicom"``.
        levels: width and height of each level, the largest first.
        icc_profile: the colour profile of its pixels, which are not converted; ``None`` without one, empty if it
            is damaged.
        field: the argument to name in errors.
    """

    def __init__(self, source: OpenSlideFile | TiledDicom, *, field: str) -> None:
        self._source: OpenSlideFile | TiledDicom | None = source
        self._readers = 0
        self._idle = threading.Condition()
        self.field = field
        self.kind: Kind = "dicom" if isinstance(source, TiledDicom) else "tiff"
        self.icc_profile = source.icc_profile
        self.levels: tuple[tuple[int, int], ...] = (
            ((source.width_px, source.height_px),) if isinstance(source, TiledDicom) else source.levels
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free it; a second time does nothing."""
        with self._idle:
            source, self._source = self._source, None
            self._idle.wait_for(lambda: self._readers == 0)
        if isinstance(source, OpenSlideFile):
            source.close()

    def level(self, index: int | None = None, *, width: int | None = None, height: int | None = None) -> Level:
        """One level, by index (negative ones count from the smallest) or by exact size.

        Raises:
            CodedImageError: LEVEL_NOT_FOUND_ERROR.
        """
        if (index is None) == (width is None and height is None):
            raise self._error("a level has an index, or a width and a height", "LEVEL_NOT_FOUND_ERROR", "give one")
        if index is not None and -len(self.levels) <= index < len(self.levels):
            return Level(self, index % len(self.levels))
        if index is None and (width, height) in self.levels:
            return Level(self, self.levels.index((width or 0, height or 0)))
        sizes = ", ".join(f"{across} x {down}" for across, down in self.levels)
        raise self._error("has no such level", "LEVEL_NOT_FOUND_ERROR", f"its levels are {sizes}")

    def level_covering(self, width: int, height: int) -> Level:
        """The smallest level that is at least this large both ways; the largest, if none is."""
        fitting = [at for at, size in enumerate(self.levels) if size[0] >= width and size[1] >= height]
        return Level(self, fitting[-1] if fitting else 0)

    def whole(self, side_px: int, *, max_pixels: int = MAX_REGION_PIXELS) -> Image:
        """The slide as one picture: the smallest level whose longer side has at least ``side_px`` pixels.

        Raises:
            CodedImageError: IMAGE_DIMENSION_ERROR, that level has more than ``max_pixels``.
        """
        fitting = [at for at, size in enumerate(self.levels) if max(size) >= side_px]
        index = fitting[-1] if fitting else 0
        width, height = self.levels[index]
        if width * height > max_pixels:
            raise self._error(
                f"its smallest usable level has {width} x {height} pixels, more than {max_pixels}",
                "IMAGE_DIMENSION_ERROR",
                "ask for patches",
            )
        return self._read(index, 0, 0, width, height)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Image:
        """One region.

        Args:
            level: its index, not negative.
            x, y: its corner in pixels of that level. OpenSlide counts in pixels of the largest level: where
                one level is not a whole multiple of the other, what it gives is moved by up to half a pixel
                of the largest.
            width, height: in pixels of that level; the region lies inside it.

        Returns:
            uint8 RGB ``[height, width, 3]``.

        Raises:
            CodedImageError: LEVEL_NOT_FOUND_ERROR, there is no such level;
                PATCH_OUTSIDE_OF_IMAGE_DIMENSIONS_ERROR, the region is not inside; IMAGE_DIMENSION_ERROR, it
                has more than ``MAX_REGION_PIXELS``; DICOM_ERROR or UNHANDLED_GENERIC_BYTES_ERROR, the file
                is damaged there.
        """
        if not 0 <= level < len(self.levels):
            raise self._error("has no such level", "LEVEL_NOT_FOUND_ERROR", f"it has {len(self.levels)}")
        across, down = self.levels[level]
        if min(x, y) < 0 or min(width, height) < 1 or x + width > across or y + height > down:
            raise self._error(
                f"the region is not inside the level of {across} x {down} pixels",
                "PATCH_OUTSIDE_OF_IMAGE_DIMENSIONS_ERROR",
                "move it, or make it smaller",
            )
        if width * height > MAX_REGION_PIXELS:
            raise self._error(
                f"the region has more than {MAX_REGION_PIXELS} pixels", "IMAGE_DIMENSION_ERROR", "read it in parts"
            )
        return self._read(level, x, y, width, height)

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> Image:
        with self._reading() as source:
            if isinstance(source, TiledDicom):
                pixels = source.read(x, y, width, height)
            else:
                pixels = source.read(level, x, y, width, height)
        across, down = self.levels[level]
        return Image(pixels=pixels, origin=Origin(kind=self.kind, width_px=across, height_px=down))

    @contextmanager
    def _reading(self) -> Iterator[OpenSlideFile | TiledDicom]:
        with self._idle:
            source = self._source
            if source is None:
                raise InputError("the slide is closed", field=self.field, remedy="open it again")
            self._readers += 1
        try:
            yield source
        finally:
            with self._idle:
                self._readers -= 1
                self._idle.notify_all()

    def _error(self, message: str, code: Code, remedy: str) -> CodedImageError:
        return CodedImageError(message, code=code, field=self.field, remedy=remedy)


def is_slide(data: bytes) -> bool:
    """Whether bytes are a slide rather than a picture: a TIFF pyramid or a DICOM whole-slide object."""
    if dicom.is_dicom(data):
        return media_storage_class(data) == WHOLE_SLIDE
    if not tiff_header.is_tiff(data):
        return False
    try:
        return tiff_header.is_pyramid(tiff_header.directories(BytesIO(data)))
    except tiff_header.Broken:
        return False


def open_slide(
    source: bytes | str | os.PathLike[str], *, field: str = "slide", limits: Limits | None = None
) -> Slide:
    """Open a slide.

    Args:
        source: a file's bytes, or the path of a file that need not fit into memory.
        field: the argument to name in errors.
        limits: ``max_bytes`` bounds what is held in memory, bytes and DICOM files.

    Raises:
        CodedImageError: UNHANDLED_GENERIC_BYTES_ERROR, it is no slide that is read here, or damaged;
            DICOM_TILED_FULL_ERROR, DICOM_ERROR for DICOM; IMAGE_DIMENSION_ERROR, its tiles are too large.
        ImageError: the file cannot be read, is too large, or bytes cannot be given to OpenSlide on this
            system.
        ConfigError: OpenSlide, or pydicom for DICOM, is not installed.
    """
    limits = limits or Limits()
    if not isinstance(source, bytes):
        return _open_path(Path(source), field, limits)
    if not 0 < len(source) <= limits.max_bytes:
        raise ImageError(f"has 0 or more than {limits.max_bytes} bytes", field=field, remedy="give a path instead")
    if dicom.is_dicom(source):
        return Slide(open_tiled(source, field=field, limits=limits), field=field)
    if not tiff_header.is_tiff(source):
        raise refused("is no whole slide", field)
    check_tiff(BytesIO(source), field)
    descriptor = in_memory(source, field)
    opened = OpenSlideFile(f"/proc/self/fd/{descriptor}", field, descriptor=descriptor)
    return Slide(opened, field=field)


def _open_path(path: Path, field: str, limits: Limits) -> Slide:
    fault = None
    try:
        if not path.is_file():  # a named pipe would block for ever
            raise FileNotFoundError
        with path.open("rb") as file:
            head = file.read(132)
            if dicom.is_dicom(head):
                file.seek(0)
                data = file.read(limits.max_bytes + 1)
                return open_slide(data, field=field, limits=limits)
            if tiff_header.is_tiff(head):
                check_tiff(file, field)
    except OSError as error:
        fault = type(error).__name__  # the path stays out of messages: names of files are names of patients
    if fault is not None:
        raise ImageError(f"the file cannot be read ({fault})", field=field, remedy="give the path of one slide")
    return Slide(OpenSlideFile(str(path), field), field=field)
