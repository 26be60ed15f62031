"""The one policy: square, 8-bit, small enough, nothing but the picture; and nothing to do the second time."""

from __future__ import annotations

import base64
import hashlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as pil

from medport.images import MAX_SIDE_PX, PreparedImage, decode, load, prepare


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(pil.open(BytesIO(data)))


def same(first: PreparedImage, second: PreparedImage) -> bool:
    return first.data == second.data and np.array_equal(first.pixels, second.pixels)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Files of many formats, modes, sizes and turns."""
    mode = draw(st.sampled_from(["L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16"]))
    able = {
        "PNG": {"L", "RGB", "RGBA", "LA", "P", "1", "I;16"},
        "JPEG": {"L", "RGB", "CMYK"},
        "BMP": {"L", "RGB", "1"},
    }
    able |= {"TIFF": {"L", "RGB", "CMYK", "1", "I;16"}, "WEBP": {"RGB", "RGBA"}, "GIF": {"L", "P"}}
    kind = draw(st.sampled_from([kind for kind in able if mode in able[kind]]))
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    if draw(st.booleans()):
        height = width
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    if mode == "I;16":
        picture = pil.fromarray(random.integers(0, 2**16, (height, width), np.uint16))
    else:
        picture = pil.fromarray(random.integers(0, 256, (height, width, 4), np.uint8), "RGBA")
        picture = picture if mode in ("RGBA", "LA") else picture.convert("RGB")
        picture = picture.convert(mode)
    exif = pil.Exif()
    if kind in ("JPEG", "PNG", "WEBP") and draw(st.booleans()):
        exif[0x0112] = draw(st.integers(1, 8))
        exif[0x010E] = "CANARY"
    file = BytesIO()
    picture.save(file, kind, exif=exif) if exif else picture.save(file, kind)
    return file.getvalue()


@settings(max_examples=300, deadline=None)
@given(data=files(), side=st.integers(1, 50))
def test_preparing_twice_is_preparing_once(data, side):
    once = prepare(load(data), max_side_px=side)

    twice = decode(once.data, max_side_px=side)

    assert same(once, twice)
    assert same(twice, decode(twice.data))


@settings(max_examples=200, deadline=None)
@given(data=files(), side=st.integers(1, 50))
def test_what_is_sent_is_square_eight_bit_and_without_metadata(data, side):
    prepared = prepare(load(data), max_side_px=side)

    sent = pil.open(BytesIO(prepared.data))

    assert sent.mode in ("L", "RGB")
    assert sent.size == (prepared.side_px, prepared.side_px)
    assert prepared.side_px <= side
    assert np.array_equal(np.asarray(sent), prepared.pixels)
    assert b"CANARY" not in prepared.data
    assert not sent.getexif()


@pytest.mark.parametrize(("height", "width"), [(5, 8), (8, 5), (1, 4), (7, 7), (6, 9)])
@pytest.mark.parametrize("channels", [None, 3])
def test_padding_is_black_and_centred_with_the_odd_pixel_after(height, width, channels):
    shape = (height, width) if channels is None else (height, width, channels)
    pixels = np.random.default_rng(0).integers(1, 256, shape, np.uint8)
    side = max(height, width)
    before = [(side - height) // 2, (side - width) // 2]
    after = [side - height - before[0], side - width - before[1]]
    edges = [*zip(before, after, strict=True), (0, 0)][: len(shape)]

    prepared = prepare(load(pixels))

    assert np.array_equal(prepared.pixels, np.pad(pixels, edges))
    assert after[0] - before[0] in (0, 1)
    assert prepared.origin.steps == (("padded",) if height != width else ())


def test_a_square_is_not_touched(ramp):
    square = np.ascontiguousarray(ramp[:, :24])

    assert np.array_equal(prepare(load(square)).pixels, square)


def test_a_large_image_is_shrunk_to_the_documented_side():
    prepared = prepare(load(np.full((2 * MAX_SIDE_PX, MAX_SIDE_PX), 200, np.uint8)))

    assert prepared.side_px == MAX_SIDE_PX
    assert prepared.origin.steps == (f"shrunk to {MAX_SIDE_PX // 2} x {MAX_SIDE_PX}", "padded")
    assert set(np.unique(prepared.pixels)) == {0, 200}
    assert (prepared.origin.width_px, prepared.origin.height_px) == (MAX_SIDE_PX, 2 * MAX_SIDE_PX)


def test_the_largest_side_itself_is_not_shrunk():
    noise = np.random.default_rng(0).integers(0, 256, (MAX_SIDE_PX, MAX_SIDE_PX), np.uint8)

    assert np.array_equal(prepare(load(noise)).pixels, noise)


def test_shrinking_averages_and_does_not_pick():
    stripes = np.tile(np.array([0, 255], np.uint8), (400, 200))

    pixels = prepare(load(stripes), max_side_px=100).pixels

    assert np.abs(pixels[:, 1:-1].astype(int) - 127).max() <= 1


def test_one_row_of_fifty_thousand_pixels_becomes_a_small_square():
    prepared = prepare(load(np.full((1, 50_000), 9, np.uint8)))

    assert prepared.pixels.shape == (MAX_SIDE_PX, MAX_SIDE_PX)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_clean_square_file_goes_through_as_it_is(make_file, colours, kind):
    data = make_file(kind, colours)

    prepared = prepare(load(data))

    assert prepared.data is prepared.encoded
    assert prepared.data == data
    assert prepared.media_type == f"image/{kind.lower()}"


def test_clean_bytes_are_the_very_object(make_file, colours):
    data = make_file("PNG", colours)

    assert prepare(load(data)).data is data


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_that_is_not_square_is_encoded_again_without_loss(make_file, ramp, kind):
    data = make_file(kind, ramp)

    prepared = prepare(load(data))

    assert prepared.media_type == "image/png"
    assert np.array_equal(prepared.pixels[8:32], pillow(data))


def test_the_forms_in_which_it_is_sent(make_file, colours):
    prepared = prepare(load(colours))

    assert prepared.data_url == "data:image/png;base64," + base64.b64encode(prepared.data).decode()
    assert prepared.base64 == base64.b64encode(prepared.data).decode()
    assert prepared.sha256 == hashlib.sha256(prepared.data).hexdigest()
    assert same(prepared, prepare(load(prepared.data_url)))


def test_the_model_gets_three_channels(ramp, colours):
    grey = prepare(load(ramp)).to_array()

    assert grey.shape == (40, 40, 3)
    assert grey.flags.c_contiguous
    assert (grey[..., 0] == grey[..., 2]).all()
    assert np.array_equal(prepare(load(colours)).to_array(), colours)


def test_nothing_is_encoded_where_only_pixels_are_needed(ramp):
    prepared = prepare(load(ramp))

    prepared.to_array()

    assert "data" not in vars(prepared)


def test_repr_shows_neither_pixels_nor_bytes(make_file, colours):
    image = load(make_file("PNG", colours))

    for value in (image, prepare(image)):
        assert len(repr(value)) < 300
        assert "array" not in repr(value)


def test_prepared_pixels_cannot_be_written(ramp, colours):
    for pixels in (ramp, colours):
        with pytest.raises(ValueError, match="read-only"):
            prepare(load(pixels)).pixels[0, 0] = 1
