"""THE preprocessing policy, the same code before sending and after receiving.

1. Upright 8-bit grey or RGB, as ``load`` gives it.
2. If a side is longer than ``MAX_SIDE_PX``, shrink to it, keeping the proportions (bilinear over the whole
   footprint of each pixel, so nothing aliases). Never enlarge. Where a caller allows longer sides, the square
   still has at most four times the pixels of the image, or the same ``MAX_SIDE_PX`` squared: a line of 40,000
   x 10 pixels would otherwise become 1.6 gigapixels of black.
3. Pad with black to a square, the image in the middle, an odd pixel of padding at the right or the bottom.
4. Hand on a PNG, or the source's own PNG or JPEG bytes if it was like that already; without metadata in any
case.

Preparing what was prepared changes nothing, not a byte. Grey stays one channel: the model's own processor
repeats it, resizes to the model's input (896 or 448) and scales to -1 … 1.

Why: the reference servers pad to a square, the published processors do not, and for images that are not
square the two disagree more than any resampling does. On a square, padding is the identity, so all backends
see the same.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from math import isqrt
from typing import Literal

import numpy as np

from medport.images.image import Image, Limits, Origin, Pixels
from medport.images.load import load

MediaType = Literal["image/png", "image/jpeg"]

# Twice the larger model input. A grey radiograph is then 1-3 MB as PNG, below the 10 MB a dedicated Vertex
# endpoint takes even as base64; for the 1.5 MB of a shared one pass max_side_px=896.
MAX_SIDE_PX = 1792
_MAX_PADDING = 4  # times the pixels of the image
_PNG_LEVEL = 1  # 6 takes five times as long for 15 % fewer bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedImage:
    """A square 8-bit image that a model server takes as it is.

    Attributes:
        pixels: uint8 ``[side, side]`` or ``[side, side, 3]``, read-only.
        origin: where they came from.
    """

    pixels: Pixels = field(repr=False)
    origin: Origin
    encoded: bytes | None = field(default=None, repr=False)
    """The source's own bytes, where they can be handed on; ``data`` is for everyone else."""

    @property
    def side_px(self) -> int:
        return int(self.pixels.shape[0])

    @cached_property
    def data(self) -> bytes:
        """The file to send: PNG, or JPEG if the source was a square JPEG. Encoded at first use, then kept."""
        if self.encoded is not None:
            return self.encoded
        from PIL import Image as pil

        file = BytesIO()
        pil.fromarray(self.pixels).save(file, "PNG", compress_level=_PNG_LEVEL)
        return file.getvalue()

    @property
    def media_type(self) -> MediaType:
        return "image/jpeg" if self.data[:2] == b"\xff\xd8" else "image/png"

    @cached_property
    def sha256(self) -> str:
        """Hex digest of ``data``."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def base64(self) -> str:
        """``data`` in base64, as ``input_bytes`` wants it."""
        import pybase64

        return pybase64.b64encode_as_string(self.data)

    @property
    def data_url(self) -> str:
        """``data:image/png;base64,…`` or ``data:image/jpeg;base64,…``."""
        return f"data:{self.media_type};base64,{self.base64}"

    def to_array(self) -> Pixels:
        """RGB for a model's processor: uint8 ``[side, side, 3]``, C-contiguous; do not write to it."""
        if self.pixels.ndim == 3:
            return self.pixels
        return np.repeat(self.pixels[:, :, np.newaxis], 3, axis=2)


def prepare(image: Image, *, max_side_px: int = MAX_SIDE_PX) -> PreparedImage:
    """Apply the policy of this module to one image.

    Args:
        image: what ``load`` gave.
        max_side_px: shrink to this where the image is larger; at least 1. Images longer than four times their
            width are shrunk to less, but not below ``MAX_SIDE_PX``.
    """
    assert max_side_px >= 1
    pixels, steps = image.pixels, list(image.origin.steps)
    width, height = image.width_px, image.height_px
    side = min(max_side_px, max(MAX_SIDE_PX, isqrt(_MAX_PADDING * width * height)))
    if max(width, height) > side:
        pixels = _shrunk(pixels, side)
        steps.append(f"shrunk to {pixels.shape[1]} x {pixels.shape[0]}")
    if pixels.shape[0] != pixels.shape[1]:
        pixels = _padded(pixels)
        steps.append("padded")
    origin = image.origin
    if len(steps) == len(origin.steps):
        return PreparedImage(pixels=pixels, origin=origin, encoded=image.encoded)
    pixels.flags.writeable = False
    changed = Origin(
        kind=origin.kind,
        width_px=origin.width_px,
        height_px=origin.height_px,
        frame=origin.frame,
        window=origin.window,
        steps=tuple(steps),
    )
    return PreparedImage(pixels=pixels, origin=changed)


def decode(
    data: bytes, *, field: str = "images[0]", limits: Limits | None = None, max_side_px: int = MAX_SIDE_PX
) -> PreparedImage:
    """Load and prepare bytes that came over the wire; changes nothing in what ``prepare`` made."""
    return prepare(load(data, field=field, limits=limits), max_side_px=max_side_px)


def _shrunk(pixels: Pixels, side: int) -> Pixels:
    from PIL import Image as pil

    height, width = pixels.shape[:2]
    scale = side / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.array(pil.fromarray(pixels).resize(size, pil.Resampling.BILINEAR))


def _padded(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    side = max(width, height)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side, *pixels.shape[2:]), dtype=np.uint8)
    square[top : top + height, left : left + width] = pixels
    return square
