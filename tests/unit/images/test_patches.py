"""Patches against slices of numpy arrays, and what a padded square may cost."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as pil

from medport.errors import ImageError, row_of
from medport.images import MAX_DICOM_DOWNSAMPLING, MAX_SIDE_PX, CodedImageError, Image, cut, load, prepare, resized
from medport.images.patches import MAX_PATCH_PIXELS

GREY = np.random.default_rng(0).integers(1, 256, (60, 90), np.uint8)
COLOUR = np.random.default_rng(1).integers(1, 256, (60, 90, 3), np.uint8)
OUTSIDE = "PATCH_OUTSIDE_OF_IMAGE_DIMENSIONS_ERROR"


class Far:
    """A plane that notes what is asked of it, as a level of a slide would be asked."""

    def __init__(self, pixels: np.ndarray[Any, Any]) -> None:
        self.height_px, self.width_px = pixels.shape[:2]
        self.asked: list[tuple[int, int, int, int]] = []
        self._image = load(pixels)

    def crop(self, x: int, y: int, width: int, height: int) -> Image:
        assert x >= 0
        assert y >= 0
        assert x + width <= self.width_px
        assert y + height <= self.height_px
        self.asked.append((x, y, width, height))
        return cut(self._image, x, y, width, height)


def code_of(work: Callable[[], Any]) -> str:
    with pytest.raises(CodedImageError) as caught:
        work()
    assert caught.value.remedy
    return caught.value.code


@pytest.mark.parametrize("pixels", [GREY, COLOUR])
@pytest.mark.parametrize("place", [(0, 0, 90, 60), (3, 5, 20, 10), (89, 59, 1, 1)])
def test_a_patch_is_a_slice(pixels, place):
    x, y, width, height = place

    patch = cut(load(pixels), *place)

    assert np.array_equal(patch.pixels, pixels[y : y + height, x : x + width])
    assert patch.origin.steps == (f"patch of {width} x {height}",)


@given(x=st.integers(-50, 140), y=st.integers(-50, 110), width=st.integers(1, 120), height=st.integers(1, 120))
def test_a_patch_partly_outside_is_black_there(x, y, width, height):
    padded = np.pad(GREY, 300)
    touches = x < 90 and y < 60 and x + width > 0 and y + height > 0
    inside = x >= 0 and y >= 0 and x + width <= 90 and y + height <= 60

    if touches:
        for source in (load(GREY), Far(GREY)):
            patch = cut(source, x, y, width, height, require_inside=False)
            assert np.array_equal(patch.pixels, padded[y + 300 : y + 300 + height, x + 300 : x + 300 + width])
    else:
        assert code_of(lambda: cut(load(GREY), x, y, width, height, require_inside=False)) == OUTSIDE
    if not inside:
        assert code_of(lambda: cut(load(GREY), x, y, width, height)) == OUTSIDE


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_an_empty_patch_is_refused(size):
    assert code_of(lambda: cut(load(GREY), 0, 0, *size, require_inside=False)) == OUTSIDE


@pytest.mark.parametrize("side", [2**31, 2**62, 5000])
def test_black_outside_is_not_allocated_without_end(side):
    assert side * side > MAX_PATCH_PIXELS

    assert code_of(lambda: cut(load(GREY), 0, 0, side, side, require_inside=False)) == "IMAGE_DIMENSION_ERROR"


def test_a_patch_does_not_hold_its_image():
    image = load(np.zeros((2000, 2000), np.uint8))

    patch = cut(image, 0, 0, 10, 10)

    assert patch.pixels.base is None or patch.pixels.base.size == 100


def test_an_error_names_the_field_and_travels_as_an_image_error():
    with pytest.raises(CodedImageError, match=r"patches\[3\]") as caught:
        cut(load(GREY), 80, 0, 20, 20, field="patches[3]")

    assert isinstance(caught.value, ImageError)
    assert row_of(caught.value).http == 400
    assert row_of(caught.value).reason == "IMAGE_ERROR"


def test_a_square_patch_is_prepared_without_any_change():
    patch = cut(load(COLOUR), 10, 10, 40, 40)

    assert np.array_equal(prepare(patch).pixels, patch.pixels)


# --- image_dimensions


def test_an_image_at_another_size_is_its_mean():
    half = resized(load(GREY), 45, 30)

    assert isinstance(half, Image)
    mean = GREY.reshape(30, 2, 45, 2).astype(np.float64).mean(axis=(1, 3))
    assert np.abs(half.pixels - mean).max() <= 0.5
    assert half.origin.steps == ("resized to 45 x 30",)


@given(width=st.integers(1, 90), height=st.integers(1, 60), data=st.data())
def test_a_patch_of_a_resized_plane_is_a_patch_of_the_resized_image(width, height, data):
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    across, down = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))

    far = cut(resized(Far(COLOUR), width, height), x, y, across, down).pixels
    near = cut(resized(load(COLOUR), width, height), x, y, across, down).pixels

    assert np.abs(far.astype(int) - near).max() <= 1  # halves, by the last bit of a float


def test_only_the_footprint_of_a_patch_is_read():
    far = Far(COLOUR)

    cut(resized(far, 45, 30), 10, 10, 5, 5)

    assert far.asked == [(20, 20, 10, 10)]


def test_sizes_that_cannot_be_had():
    image = load(GREY)

    for size in ((91, 60), (90, 61), (0, 10), (10, -1)):
        assert code_of(lambda size=size: resized(image, *size)) == "IMAGE_DIMENSION_ERROR"
    assert resized(image, 90, 60) is image
    code = code_of(lambda: resized(Far(GREY), 11, 60, largest_factor=MAX_DICOM_DOWNSAMPLING))
    assert code == "DICOM_IMAGE_DOWNSAMPLING_TOO_LARGE_ERROR"
    resized(Far(GREY), 12, 60, largest_factor=MAX_DICOM_DOWNSAMPLING)


def test_a_small_patch_of_a_small_view_cannot_read_a_whole_slide():
    class Huge:
        width_px = height_px = 10**6

        def crop(self, x: int, y: int, width: int, height: int) -> Image:
            raise AssertionError

    assert code_of(lambda: cut(resized(Huge(), 100, 100), 0, 0, 10, 10)) == "IMAGE_DIMENSION_ERROR"


# --- the padded square of a server that does not shrink


def png(width: int, height: int) -> bytes:
    file = BytesIO()
    pil.fromarray(np.full((height, width), 7, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("size", [(40_000, 10), (10, 40_000), (6144, 1), (100_000, 100)])
def test_an_extreme_strip_costs_no_more_than_a_hundred_times_its_pixels(size):
    data = png(*size)
    gc.collect()
    tracemalloc.start()
    try:
        prepared = prepare(load(data), max_side_px=6144)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < max(100 * size[0] * size[1], 8 * 2**20)
    assert peak < 16 * 2**20 + 8 * size[0] * size[1]
    assert prepared.side_px <= max(MAX_SIDE_PX, (4 * size[0] * size[1]) ** 0.5)
    assert prepared.pixels.max() == 7


@pytest.mark.parametrize("size", [(6144, 6144), (4000, 3000), (4000, 1000), (1000, 3999)])
def test_ordinary_shapes_are_not_shrunk_where_longer_sides_are_allowed(size):
    image = load(np.zeros((size[1], size[0]), np.uint8))

    prepared = prepare(image, max_side_px=6144)

    assert prepared.side_px == max(size)
    assert not any(step.startswith("shrunk") for step in prepared.origin.steps)


@pytest.mark.parametrize("side", [300, 1792, 6144])
def test_preparing_a_strip_twice_is_preparing_it_once(side):
    once = prepare(load(np.full((11, 9000), 200, np.uint8)), max_side_px=side)

    assert np.array_equal(prepare(load(once.data), max_side_px=side).pixels, once.pixels)
