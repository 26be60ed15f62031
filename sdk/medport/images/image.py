"""An image as the rest of medport sees it: 8-bit pixels and where they came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Kind = Literal["png", "jpeg", "bmp", "tiff", "webp", "gif", "jpeg2000", "dicom", "pil", "array"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one image may cost. All of them are checked before anything of that size is allocated."""

    max_bytes: int = 256 * 2**20
    """Encoded size."""
    max_pixels: int = 100_000_000
    """Width times height of one frame, as declared in the header."""
    max_frames: int = 10_000
    """Frames of one file, of which only one is ever decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where pixels came from and what was done to them. Holds no name, identifier or text of the file."""

    kind: Kind
    width_px: int
    """Width as stored, before any rotation."""
    height_px: int
    frame: int | None = None
    """The frame that was asked for, counted from 0; ``None`` when the file has only one."""
    window: tuple[float, float] | None = None
    """Centre and width of the window that was applied, in the unit of the rescaled values (HU for CT)."""
    steps: tuple[str, ...] = ()
    """What was done, in order, in the words of this package: ``"rotated"``, ``"alpha dropped"``, …"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Image:
    """Upright 8-bit pixels.

    Attributes:
        pixels: uint8 ``[height, width]`` (grey) or ``[height, width, 3]`` (RGB), C-contiguous, read-only.
        origin: where they came from.
        encoded: bytes of a PNG or JPEG that hold exactly these pixels and nothing else, if the source was
            one.
    """

    pixels: Pixels = field(repr=False)
    origin: Origin
    encoded: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        assert self.pixels.dtype == np.uint8
        assert self.pixels.ndim in (2, 3)
        frozen = np.ascontiguousarray(self.pixels).view()
        frozen.flags.writeable = False
        object.__setattr__(self, "pixels", frozen)

    @property
    def width_px(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height_px(self) -> int:
        return int(self.pixels.shape[0])
