"""What callers hand in, right and wrong."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pil

from medport.errors import DicomError, ImageError, InputError
from medport.images import Limits, is_remote, load


def test_every_way_to_give_a_file_gives_the_same_pixels(make_file, ramp, tmp_path):
    data = make_file("PNG", ramp)
    path = tmp_path / "image.png"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()

    for source in (path, str(path), data, bytearray(data), memoryview(data), BytesIO(data), url):
        assert np.array_equal(load(source).pixels, ramp), type(source)
    with path.open("rb") as file:
        assert np.array_equal(load(file).pixels, ramp)
    with pil.open(path) as opened:
        assert np.array_equal(load(opened).pixels, ramp)


def test_a_file_is_what_its_bytes_say_whatever_its_name(make_file, make_dicom, ramp, tmp_path):
    (tmp_path / "a.dcm").write_bytes(make_file("PNG", ramp))
    (tmp_path / "b.png").write_bytes(make_dicom(ramp))
    (tmp_path / "c").write_bytes(make_dicom(ramp))

    kinds = [load(tmp_path / name).origin.kind for name in ("a.dcm", "b.png", "c")]

    assert kinds == ["png", "dicom", "dicom"]


def test_pixels_cannot_be_written_and_do_not_follow_the_callers_array(ramp):
    array = ramp.copy()
    image = load(array)

    array[:] = 0

    assert np.array_equal(image.pixels, ramp)
    with pytest.raises(ValueError, match="read-only"):
        image.pixels[0, 0] = 1


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::2, ::3],
        lambda a: a.T,
        lambda a: np.asfortranarray(a),
        lambda a: a[::-1],
        lambda a: a[..., None],
    ],
)
def test_an_array_need_not_be_contiguous(ramp, view):
    expected = np.array(view(ramp)).reshape(view(ramp).shape[:2])

    image = load(view(ramp))

    assert np.array_equal(image.pixels, expected)
    assert image.pixels.flags.c_contiguous


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_arrays_are_scaled_by_the_largest_value_of_the_type(order):
    stored = np.arange(65536, dtype=f"{order}u2").reshape(256, 256)

    pixels = load(stored).pixels

    assert np.array_equal(pixels, np.rint(stored.astype(np.float64) * 255 / 65535))


def test_colour_and_alpha_arrays(colours):
    alpha = np.full((20, 20, 1), 7, np.uint8)

    assert np.array_equal(load(colours).pixels, colours)
    with_alpha = load(np.concatenate([colours, alpha], axis=2))
    assert np.array_equal(with_alpha.pixels, colours)
    assert with_alpha.origin.steps == ("alpha dropped",)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((4, 4), np.float32), "astype"),
        (np.zeros((4, 4), np.float16), "astype"),
        (np.zeros((4, 4), bool), "uint8"),
        (np.zeros((4, 4), np.int16), "uint16"),
        (np.zeros((4, 4), np.uint32), "uint16"),
        (np.zeros((4, 4), complex), "uint16"),
        (np.zeros((4, 4), object), "uint16"),
        (np.zeros(4, np.uint8), "height, width"),
        (np.zeros((3, 8, 8), np.uint8), "height, width"),
        (np.zeros((4, 4, 2), np.uint8), "height, width"),
        (np.zeros((2, 4, 4, 3), np.uint8), "slice by slice"),
        (np.zeros((0, 4), np.uint8), "no pixels"),
    ],
)
def test_an_array_that_is_no_image_says_what_to_do(array, says):
    with pytest.raises(InputError, match=says) as caught:
        load(array, field="images[3]")

    assert caught.value.field == "images[3]"
    assert caught.value.remedy


@pytest.mark.parametrize("nothing", [None, "", "  "])
def test_no_image_is_an_input_error(nothing):
    with pytest.raises(InputError, match="no image"):
        load(nothing)


@pytest.mark.parametrize("empty", [b"", bytearray(), BytesIO(), "data:image/png;base64,"])
def test_zero_bytes_are_an_image_error(empty):
    with pytest.raises(ImageError, match="0 bytes"):
        load(empty)


@pytest.mark.parametrize("thing", [3, 3.5, [b"x"], {"image": 1}, object(), load])
def test_something_else_is_an_input_error_that_names_its_type(thing):
    with pytest.raises(InputError, match=type(thing).__name__):
        load(thing)


def test_a_text_file_object_is_an_input_error():
    with pytest.raises(InputError, match='"rb"'):
        load(StringIO("x"))


def test_a_closed_file_is_an_image_error():
    file = BytesIO(b"x")
    file.close()

    with pytest.raises(ImageError, match="cannot be read"):
        load(file)


def test_missing_files_folders_and_strange_paths_are_image_errors(tmp_path):
    for path in (tmp_path / "no.png", tmp_path, "x" * 5000, "a\0b", tmp_path / "no" / "deeper"):
        with pytest.raises(ImageError):
            load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")

    with pytest.raises(ImageError, match="not a file"):
        load(tmp_path / "pipe.png")


@pytest.mark.parametrize("url", ["http://h/x.png", "https://h/x.png", "gs://b/x.png", "HTTPS://H/x", "  gs://b/o"])
def test_remote_images_are_told_apart_and_never_fetched(url):
    assert is_remote(url)
    with pytest.raises(InputError, match="not fetched") as caught:
        load(url)
    assert url.strip() not in str(caught.value)


@pytest.mark.parametrize("other", ["file:///etc/passwd", "ftp://h/x", "s3://b/k"])
def test_other_urls_are_refused_and_not_passed_on(other):
    assert not is_remote(other)
    with pytest.raises(InputError):
        load(other)


@pytest.mark.parametrize(
    "local", ["a.png", Path("a.png"), b"http://", None, "data:image/png;base64,AA", "http.png"]
)
def test_local_things_are_not_remote(local):
    assert not is_remote(local)


@pytest.mark.parametrize("url", ["data:image/png,abc", "data:,", "data:image/png;base64,%%%", "data:x;base64,A"])
def test_a_broken_data_url_is_an_image_error(url):
    with pytest.raises(ImageError, match=r"base64|0 bytes"):
        load(url)


def test_a_data_url_is_read_whatever_media_type_it_claims(make_file, ramp):
    data = base64.b64encode(make_file("PNG", ramp)).decode()

    assert load(f"DATA:application/x;charset=y;base64,{data}").origin.kind == "png"


def test_bytes_over_the_limit_are_refused_before_they_are_read(make_file, ramp, tmp_path):
    data = make_file("PNG", ramp)
    path = tmp_path / "x.png"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()

    for source in (data, path, BytesIO(data), url):
        with pytest.raises(ImageError, match="more than 100 bytes"):
            load(source, limits=Limits(max_bytes=100))


def test_a_data_set_without_header_needs_the_name_of_a_dicom_file(make_dicom, ramp, tmp_path):
    whole = make_dicom(ramp)
    ds_only = whole[whole.index(b"\x08\x00\x16\x00UI") :]
    named, unnamed = tmp_path / "x.dcm", tmp_path / "x.img"
    named.write_bytes(ds_only)
    unnamed.write_bytes(ds_only)

    assert np.array_equal(load(named).pixels, load(whole).pixels)
    with pytest.raises(ImageError, match="no known image format"):
        load(unnamed)
    with pytest.raises(ImageError, match="no known image format"):
        load(ds_only)


def test_text_named_dcm_is_not_forced_into_dicom(tmp_path):
    (tmp_path / "x.dcm").write_text("not a DICOM object " * 100)

    with pytest.raises(ImageError, match="no known image format") as caught:
        load(tmp_path / "x.dcm")
    assert not isinstance(caught.value, DicomError)


def test_importing_brings_neither_pillow_nor_pydicom():
    program = "import sys, medport.images; print(sorted({'PIL', 'pydicom', 'pybase64'} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
