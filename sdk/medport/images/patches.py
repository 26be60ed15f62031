"""Patches: rectangles of an image or of a level of a slide, in its own resolution.

Nothing is shrunk or padded to a square before a patch is cut; ``prepare`` is for the patch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from medport.images.codes import CodedImageError
from medport.images.image import Image, Pixels

MAX_PATCH_PIXELS = 2**24
"""Width times height of one patch: 4096 x 4096. What lies outside an image costs the sender nothing."""

MAX_DICOM_DOWNSAMPLING = 8.0
"""How many times smaller a DICOM slide may be asked for, as by the public container."""

_ROWS_AT_ONCE = 64  # as float64; a whole picture would be eight times its bytes


class Plane(Protocol):
    """What patches are cut from and is too large to be there as pixels: a level of a slide."""

    @property
    def width_px(self) -> int: ...
    @property
    def height_px(self) -> int: ...
    def crop(self, x: int, y: int, width: int, height: int) -> Image:
        """A rectangle that lies inside."""
        ...


def cut(
    source: Image | Plane,
    x: int,
    y: int,
    width: int,
    height: int,
    *,
    require_inside: bool = True,
    field: str = "patch_coordinates_list[0]",
) -> Image:
    """One patch.

    Args:
        source: an image as ``load`` gives it, or a level of a slide.
        x, y: its left upper corner, in pixels of the source.
        width, height: in pixels of the source. The input side of the model is a caller's default.
        require_inside: refuse a patch that is partly outside; else what is outside is black.
        field: the argument to name in errors.

    Returns:
        uint8 ``[height, width]`` or ``[height, width, 3]``, as the source.

    Raises:
        CodedImageError: PATCH_OUTSIDE_OF_IMAGE_DIMENSIONS_ERROR, it is empty, wholly outside, or partly where
            it may not be; IMAGE_DIMENSION_ERROR, it has more than ``MAX_PATCH_PIXELS``. For slides also the
            errors of ``Slide.read``.
    """
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, source.width_px), min(y + height, source.height_px)
    whole = (left, top, right, bottom) == (x, y, x + width, y + height)
    if width < 1 or height < 1 or right <= left or bottom <= top or (require_inside and not whole):
        raise CodedImageError(
            f"the patch is not inside the image of {source.width_px} x {source.height_px} pixels",
            code="PATCH_OUTSIDE_OF_IMAGE_DIMENSIONS_ERROR",
            field=field,
            remedy="move it, or set require_patches_fully_in_source_image to false for one that is partly outside",
        )
    if width * height > MAX_PATCH_PIXELS:
        raise CodedImageError(
            f"the patch has more than {MAX_PATCH_PIXELS} pixels",
            code="IMAGE_DIMENSION_ERROR",
            field=field,
            remedy="send smaller patches",
        )
    inside = _crop(source, left, top, right - left, bottom - top)
    steps = (*inside.origin.steps, f"patch of {width} x {height}")
    pixels = inside.pixels
    if not whole:
        pixels = np.zeros((height, width, *inside.pixels.shape[2:]), dtype=np.uint8)
        pixels[top - y : bottom - y, left - x : right - x] = inside.pixels
        steps = (*steps, "outside black")
    return Image(pixels=pixels, origin=replace(inside.origin, steps=steps))


def resized(
    source: Image | Plane,
    width: int,
    height: int,
    *,
    largest_factor: float | None = None,
    field: str = "extensions.image_dimensions",
) -> Image | Plane:
    """The source at another size, from which patches are then cut: the mean over each new pixel's footprint.

    An image is resized at once, a level of a slide patch by patch.

    Args:
        width, height: at least 1, at most the source's own; proportions may change, as at the reference.
        largest_factor: how many times smaller it may be; ``MAX_DICOM_DOWNSAMPLING`` for DICOM slides.

    Raises:
        CodedImageError: IMAGE_DIMENSION_ERROR, that is larger than the source, or nothing;
            DICOM_IMAGE_DOWNSAMPLING_TOO_LARGE_ERROR, it is smaller than the factor allows.
    """
    if not (1 <= width <= source.width_px and 1 <= height <= source.height_px):
        raise CodedImageError(
            f"the size is not between 1 x 1 and the source's {source.width_px} x {source.height_px} pixels",
            code="IMAGE_DIMENSION_ERROR",
            field=field,
            remedy="ask for a smaller size",
        )
    factor = max(source.width_px / width, source.height_px / height)
    if largest_factor is not None and factor > largest_factor:
        raise CodedImageError(
            f"is more than {largest_factor:g} times smaller than the source",
            code="DICOM_IMAGE_DOWNSAMPLING_TOO_LARGE_ERROR",
            field=field,
            remedy="send a smaller level of the slide",
        )
    if (width, height) == (source.width_px, source.height_px):
        return source
    if isinstance(source, Image):
        steps = (*source.origin.steps, f"resized to {width} x {height}")
        box = (0.0, 0.0, float(source.width_px), float(source.height_px))
        return Image(pixels=_mean(source.pixels, width, height, box), origin=replace(source.origin, steps=steps))
    return _Resized(source=source, width_px=width, height_px=height, field=field)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Resized:
    """A plane seen smaller."""

    source: Plane
    width_px: int
    height_px: int
    field: str

    def crop(self, x: int, y: int, width: int, height: int) -> Image:
        across, down = self.source.width_px / self.width_px, self.source.height_px / self.height_px
        left, top = math.floor(x * across), math.floor(y * down)
        right = min(math.ceil((x + width) * across), self.source.width_px)
        bottom = min(math.ceil((y + height) * down), self.source.height_px)
        if (right - left) * (bottom - top) > MAX_PATCH_PIXELS:
            raise CodedImageError(
                f"a patch takes more than {MAX_PATCH_PIXELS} pixels of the source",
                code="IMAGE_DIMENSION_ERROR",
                field=self.field,
                remedy="choose a smaller level of the slide, or a larger size",
            )
        region = self.source.crop(left, top, right - left, bottom - top)
        box = (
            x * across - left,
            y * down - top,
            min((x + width) * across - left, float(right - left)),
            min((y + height) * down - top, float(bottom - top)),
        )
        steps = (*region.origin.steps, f"resized to {self.width_px} x {self.height_px}")
        return Image(pixels=_mean(region.pixels, width, height, box), origin=replace(region.origin, steps=steps))


def _crop(source: Image | Plane, x: int, y: int, width: int, height: int) -> Image:
    if isinstance(source, Image):
        part = source.pixels[y : y + height, x : x + width]
        # A copy, so that a patch which is kept does not keep the whole image.
        return Image(pixels=np.array(part), origin=source.origin)
    return source.crop(x, y, width, height)


def _mean(pixels: Pixels, width: int, height: int, box: tuple[float, float, float, float]) -> Pixels:
    """Shrink what lies in ``box`` (left, top, right, bottom): each new pixel is the mean over its area.

    A source pixel on the border of two counts for both by its share, so a part of a picture gives the same as
    the whole. Pillow's box filter gives such a pixel to one of them, by a rounding error.
    """
    rows, columns = pixels.shape[:2]
    flat = pixels.reshape(rows, columns, -1)
    shrunk = np.empty((height, width, flat.shape[2]), dtype=np.uint8)
    edges = np.linspace(box[0], box[2], width + 1)
    whole = np.minimum(edges.astype(np.intp), columns - 1)
    part = (edges - whole)[:, np.newaxis]
    for row, (top, bottom) in enumerate(pairwise(np.linspace(box[1], box[3], height + 1))):
        line = _rows_mean(flat, float(top), float(bottom))
        sums = np.concatenate([np.zeros((1, flat.shape[2])), np.cumsum(line, axis=0)])
        means = np.diff(sums[whole] + part * line[whole], axis=0) * (width / (box[2] - box[0]))
        shrunk[row] = np.clip(np.floor(means + 0.5), 0, 255)
    return shrunk.reshape(height, width, *pixels.shape[2:])


def _rows_mean(flat: Pixels, top: float, bottom: float) -> npt.NDArray[np.float64]:
    """float64 ``[columns, channels]``: the mean of the rows from ``top`` to ``bottom``, ends by their share."""
    first, last = math.floor(top), min(math.ceil(bottom), len(flat))
    total = np.zeros(flat.shape[1] * flat.shape[2])
    for start in range(first, last, _ROWS_AT_ONCE):
        at = np.arange(start, min(start + _ROWS_AT_ONCE, last))
        shares = np.minimum(at + 1, bottom) - np.maximum(at, top)
        total += shares @ flat[at[0] : at[-1] + 1].reshape(len(at), -1)
    return total.reshape(flat.shape[1:]) / (bottom - top)
