"""Picture files: formats, modes, orientation, damage."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image as pil
from PIL import features

from medport.errors import ImageError
from medport.images import Limits, load


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds one IDAT of nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("format", "kind", "options"),
    [
        ("PNG", "png", {}),
        ("BMP", "bmp", {}),
        ("TIFF", "tiff", {}),
        ("TIFF", "tiff", {"compression": "tiff_lzw"}),
        ("WEBP", "webp", {"lossless": True}),
        ("JPEG2000", "jpeg2000", {"irreversible": False}),
    ],
)
def test_lossless_formats_give_the_pixels_back(make_file, colours, format, kind, options):
    if format == "JPEG2000" and not features.check("jpg_2000"):
        pytest.skip("Pillow without JPEG 2000")

    image = load(make_file(format, colours, **options))

    assert np.array_equal(image.pixels, colours)
    assert image.origin.kind == kind


def test_a_jpeg_gives_what_pillow_decodes(make_file, colours):
    data = make_file("JPEG", colours, quality=90)

    pixels = load(data).pixels

    assert np.abs(pixels.astype(int) - colours).max() < 40
    assert pixels.shape == colours.shape


def test_sixteen_bit_grey_png_is_scaled_by_65535(make_file):
    stored = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)

    image = load(make_file("PNG", stored))

    assert np.array_equal(image.pixels, np.rint(stored.astype(float) * 255 / 65535))
    assert image.origin.steps == ("16 to 8 bits",)
    assert image.encoded is None


def test_twelve_bit_values_in_sixteen_bit_png_stay_dark(make_file):
    stored = np.full((8, 8), 4095, np.uint16)

    assert load(make_file("PNG", stored)).pixels.max() == 16


def test_cmyk_jpeg_becomes_rgb(make_file):
    red = pil.new("CMYK", (16, 16), (0, 255, 255, 0))

    image = load(make_file("JPEG", red))

    assert image.origin.steps == ("CMYK to RGB",)
    assert np.abs(image.pixels.astype(int) - (255, 0, 0)).max() < 12
    assert image.encoded is None


def test_what_alpha_hid_is_seen(make_file, colours):
    hidden = np.concatenate([colours, np.zeros((20, 20, 1), np.uint8)], axis=2)

    image = load(make_file("PNG", hidden))

    assert np.array_equal(image.pixels, colours)
    assert image.origin.steps == ("alpha dropped",)


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa", "RGBX", "P", "PA", "1", "YCbCr", "CMYK", "I;16"])
def test_every_mode_with_a_range_becomes_grey_or_rgb(mode):
    source = pil.new("RGBA", (6, 6), (200, 100, 50, 255))
    if mode == "La":
        picture = source.convert("LA").convert("La")
    elif mode == "PA":
        picture = source.convert("P").convert("PA")
    elif mode == "I;16":
        picture = pil.fromarray(np.full((6, 6), 1000, np.uint16))
    else:
        picture = source.convert("LA" if mode == "LA" else "RGBA" if mode in ("RGBA", "RGBa") else "RGB").convert(
            mode
        )
    assert picture.mode == mode

    pixels = load(picture).pixels

    assert pixels.shape in ((6, 6), (6, 6, 3))


@pytest.mark.parametrize("mode", ["F", "I", "LAB", "HSV"])
def test_modes_without_a_fixed_range_are_refused(mode):
    with pytest.raises(ImageError, match="8 or 16 bits"):
        load(pil.new(mode, (4, 4)))


def test_palette_with_transparency_keeps_its_colours(make_file, colours):
    palette = pil.fromarray(colours).quantize(16)
    palette.info["transparency"] = bytes(range(16))
    expected = np.asarray(palette.convert("RGBA"))[..., :3]

    assert np.array_equal(load(make_file("PNG", palette)).pixels, expected)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.T),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].T),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation_is_applied(make_file, format, orientation, upright):
    stored = np.zeros((16, 32), np.uint8)
    stored[:8, :8], stored[8:, :8] = 255, 128
    exif = pil.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}

    pixels = load(make_file(format, stored, exif=exif, **options)).pixels

    grey = pixels if pixels.ndim == 2 else pixels[..., 0]
    assert np.abs(grey.astype(int) - upright(stored)).max() < 30


def test_exif_that_cannot_be_read_leaves_the_picture_as_it_is(make_file, ramp):
    data = make_file("JPEG", ramp, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")

    assert load(data).pixels.shape == ramp.shape


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "JPEG2000"])
def test_a_file_cut_anywhere_is_an_image_error(make_file, kind):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8)
    data = make_file(kind, noise)

    for share in (0.02, 0.3, 0.6, 0.9):
        cut = data[: max(4, int(len(data) * share))]
        with pytest.raises(ImageError):
            load(cut)


def test_one_flipped_bit_in_a_png_is_an_image_error(make_file, ramp):
    data = bytearray(make_file("PNG", ramp))
    data[data.index(b"IDAT") + 20] ^= 1

    with pytest.raises(ImageError, match="damaged"):
        load(bytes(data))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "JPEG2000"])
def test_random_damage_loads_or_is_an_image_error(make_file, attempt, kind):
    random = np.random.default_rng(2)
    data = np.frombuffer(make_file(kind, random.integers(0, 256, (24, 24), np.uint8)), np.uint8)

    for _ in range(60):
        hurt = data.copy()
        at = random.integers(0, len(hurt), 5)
        hurt[at] = random.integers(0, 256, 5)
        result = attempt(hurt.tobytes(), limits=Limits(max_pixels=100_000))
        assert getattr(result, "__context__", None) is None


@pytest.mark.parametrize("size", [(30_000, 30_000), (10_001, 10_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header(size):
    with pytest.raises(ImageError, match="pixels"):
        load(png_header(*size))


def test_the_pixel_limit_is_exact(make_file, ramp):
    data = make_file("PNG", ramp)

    assert load(data, limits=Limits(max_pixels=ramp.size)).pixels.size == ramp.size
    with pytest.raises(ImageError, match="40 x 24"):
        load(data, limits=Limits(max_pixels=ramp.size - 1))


def test_pillows_own_limit_is_left_as_it_was(make_file, ramp):
    before = pil.MAX_IMAGE_PIXELS

    load(make_file("PNG", ramp))

    assert before == pil.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_need_a_choice(make_file, kind):
    frames = [pil.new("L", (9, 9), shade) for shade in (10, 120, 240)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = make_file(kind, frames[0], save_all=True, append_images=frames[1:], **options)

    with pytest.raises(ImageError, match=r"3 frames.*frame=0"):
        load(data)
    with pytest.raises(ImageError, match="no frame 3"):
        load(data, frame=3)
    with pytest.raises(ImageError, match="no frame -1"):
        load(data, frame=-1)
    with pytest.raises(ImageError, match="more than 2 frames"):
        load(data, frame=0, limits=Limits(max_frames=2))
    shades = [int(load(data, frame=n).pixels.max()) for n in range(3)]
    assert shades == [10, 120, 240]
    assert load(data, frame=1).encoded is None


def test_a_still_gif_is_an_image(make_file, ramp):
    pixels = load(make_file("GIF", ramp)).pixels

    assert np.array_equal(pixels, np.repeat(ramp[:, :, None], 3, axis=2))  # a palette, though of greys


def test_an_animated_pil_image_gives_the_frame_it_stands_at(make_file, tmp_path):
    frames = [pil.new("L", (9, 9), shade) for shade in (10, 200)]
    path = tmp_path / "a.gif"
    path.write_bytes(make_file("GIF", frames[0], save_all=True, append_images=frames[1:]))

    with pil.open(path) as opened:
        opened.seek(1)
        assert load(opened).pixels.max() == 200


def test_a_closed_pil_image_is_an_image_error(make_file, ramp, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(make_file("PNG", ramp))
    opened = pil.open(path)
    opened.close()

    with pytest.raises(ImageError, match="PIL image"):
        load(opened)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"%PDF-1.7\n%...", "a PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- x --><svg/>", "SVG"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"PK\x03\x04....", "ZIP"),
        (b"\x1f\x8b\x08....", "gzip"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\x5c\x01\0\0" + bytes(336) + b"n+1\0", "NIfTI"),
        (b"P5 1 1 255 x", "no known"),
        (b"\0" * 2000, "no known"),
        (b"x", "no known"),
    ],
)
def test_other_formats_are_named_and_refused(data, what):
    with pytest.raises(ImageError, match=what) as caught:
        load(data)

    assert "DICOM" in (caught.value.remedy or "")
