"""Whole slides against the pixels they were made from: TIFF pyramids through OpenSlide, DICOM through pydicom."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as pil
from PIL import ImageCms

from medport import _extras
from medport.errors import ConfigError, ImageError, InputError
from medport.images import CodedImageError, Limits, cut, is_slide, load, open_slide, resized, to_icc_profile
from medport.images.tiff_header import directories, is_pyramid

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("openslide")
pydicom = pytest.importorskip("pydicom")
from support.slides import BASE, CANARY, pyramid, whole_slide  # noqa: E402

LINUX = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no files in memory")


@pytest.fixture(scope="module")
def slide_bytes() -> bytes:
    return pyramid()


def code_of(work: Callable[[], Any]) -> str:
    with pytest.raises(CodedImageError) as caught:
        work()
    assert caught.value.remedy
    assert caught.value.__context__ is None
    return caught.value.code


def memory_files() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return [target for target in found if "memfd:slide" in target]


# --- TIFF pyramids


@LINUX
@pytest.mark.parametrize(
    "options",
    [{}, {"compression": None}, {"bigtiff": True}, {"compression": "zlib", "predictor": True}],
    ids=["deflate", "plain", "big", "predictor"],
)
def test_levels_and_pixels_of_a_tiff(options):
    with open_slide(pyramid(**options)) as slide:
        assert slide.levels == ((1600, 1200), (400, 300), (200, 150))
        assert slide.kind == "tiff"
        first = slide.read(0, 37, 91, 448, 448)
        second = slide.read(1, 10, 20, 100, 90)

    assert np.array_equal(first.pixels, BASE[91 : 91 + 448, 37 : 37 + 448])
    assert np.array_equal(second.pixels, BASE[::4, ::4][20:110, 10:110])


def test_a_path_is_read_where_it_lies(tmp_path, slide_bytes):
    path = tmp_path / "slide.tif"
    path.write_bytes(slide_bytes)

    with open_slide(path, limits=Limits(max_bytes=1000)) as slide:
        assert np.array_equal(slide.read(2, 0, 0, 200, 150).pixels, BASE[::8, ::8])


@LINUX
def test_a_region_at_the_very_edge(slide_bytes):
    with open_slide(slide_bytes) as slide:
        assert np.array_equal(slide.read(0, 1590, 1195, 10, 5).pixels, BASE[1195:, 1590:])
        for x, y, width, height in (
            (-1, 0, 5, 5),
            (0, -1, 5, 5),
            (1590, 0, 11, 5),
            (0, 0, 0, 5),
            (2**40, 0, 1, 1),
        ):
            code = code_of(lambda r=(x, y, width, height): slide.read(0, *r))
            assert code == "PATCH_OUTSIDE_OF_IMAGE_DIMENSIONS_ERROR"


@LINUX
def test_levels_by_index_and_by_size(slide_bytes):
    with open_slide(slide_bytes, field="image") as slide:
        assert slide.level(0).width_px == 1600
        assert slide.level(-1).width_px == 200
        assert slide.level(-3).index == 0
        assert slide.level(width=400, height=300).index == 1
        for bad in ({"index": 3}, {"index": -4}, {"width": 400, "height": 301}, {"width": 400}, {}):
            assert code_of(lambda bad=bad: slide.level(**bad)) == "LEVEL_NOT_FOUND_ERROR"
        assert code_of(lambda: slide.read(3, 0, 0, 1, 1)) == "LEVEL_NOT_FOUND_ERROR"


@LINUX
def test_an_aperio_slide_whose_description_is_no_text_still_has_its_pixels():
    description = b"Aperio Image Library v1\n512x512 |AppMag = 20|\xff\xfe = \xfd"

    with open_slide(pyramid(BASE[:512, :512], description=description)) as slide:
        assert np.array_equal(slide.read(0, 0, 0, 512, 512).pixels, BASE[:512, :512])


@LINUX
def test_the_whole_is_the_smallest_level_that_fills_the_model(slide_bytes):
    with open_slide(slide_bytes) as slide:
        assert slide.whole(448).width_px == 1600
        assert slide.whole(400).width_px == 400
        assert slide.whole(100).width_px == 200
        assert slide.whole(9000).width_px == 1600
        assert code_of(lambda: slide.whole(448, max_pixels=1_000_000)) == "IMAGE_DIMENSION_ERROR"


@LINUX
def test_places_without_pixels_are_white(slide_bytes):
    sparse = without_first_tile(slide_bytes)

    with open_slide(sparse) as slide:
        pixels = slide.read(0, 200, 0, 100, 10).pixels

    assert (pixels[:, :56] == 255).all()
    assert np.array_equal(pixels[:, 56:], BASE[:10, 256:300])


def without_first_tile(data: bytes) -> bytes:
    """The slide with the offset and the size of its first tile set to 0, which says: not scanned."""
    with tifffile.TiffFile(BytesIO(data)) as file:
        tags = file.pages[0].tags
        places = [(tags[name].valueoffset, {3: 2, 4: 4}[int(tags[name].dtype)]) for name in (324, 325)]
    changed = bytearray(data)
    for at, width in places:
        changed[at : at + width] = bytes(width)
    return bytes(changed)


@LINUX
def test_patches_are_cut_from_a_level(slide_bytes):
    with open_slide(slide_bytes) as slide:
        level = slide.level(1)
        inside = cut(level, 7, 9, 64, 64)
        partly = cut(level, 380, 290, 64, 64, require_inside=False)

    small = BASE[::4, ::4]
    assert np.array_equal(inside.pixels, small[9:73, 7:71])
    assert np.array_equal(partly.pixels[:10, :20], small[290:, 380:])
    assert not partly.pixels[10:].any()
    assert not partly.pixels[:, 20:].any()


@LINUX
def test_a_level_may_be_asked_for_at_another_size(slide_bytes):
    with open_slide(slide_bytes) as slide:
        level = slide.level_covering(500, 375)
        assert level.index == 0
        assert slide.level_covering(300, 200).index == 1
        assert slide.level_covering(5000, 200).index == 0
        smaller = resized(level, 400, 300)
        patch = cut(smaller, 100, 50, 64, 32)

    mean = BASE.reshape(300, 4, 400, 4, 3).astype(np.float64).mean(axis=(1, 3))
    assert np.abs(patch.pixels - mean[50:82, 100:164]).max() <= 0.5


@LINUX
def test_nothing_is_left_behind(slide_bytes, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = memory_files()

    with open_slide(slide_bytes) as slide:
        slide.read(0, 0, 0, 100, 100)
        assert len(memory_files()) == len(before) + 1
    slide.close()
    for bad in (slide_bytes[:1000], pyramid(BASE[:300, :300], steps=())[:-20000], b"II*\0" + bytes(2000)):
        try:
            open_slide(bad).close()
        except ImageError:
            continue

    assert memory_files() == before
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="closed"):
        slide.read(0, 0, 0, 1, 1)


@LINUX
def test_close_waits_for_those_who_read(slide_bytes):
    slide = open_slide(slide_bytes)
    wrong: list[object] = []

    def read(seed: int) -> None:
        random = np.random.default_rng(seed)
        while True:
            x, y = int(random.integers(0, 1500)), int(random.integers(0, 1100))
            try:
                pixels = slide.read(0, x, y, 100, 100).pixels
            except InputError:
                return
            if not np.array_equal(pixels, BASE[y : y + 100, x : x + 100]):
                wrong.append((x, y))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    threading.Event().wait(0.2)
    slide.close()
    for thread in threads:
        thread.join(10)

    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)


@LINUX
def test_memory_follows_the_region_and_not_the_slide():
    data = pyramid(np.zeros((6000, 6000, 3), np.uint8))
    gc.collect()
    tracemalloc.start()
    try:
        with open_slide(data) as slide:
            slide.read(0, 3000, 3000, 448, 448)
            _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 8 * 448 * 448 * 4


# --- DICOM whole slides


@pytest.mark.parametrize("tile", [64, 256, 300])
def test_pixels_of_a_dicom_slide(tile):
    pixels = BASE[:700, :900]

    with open_slide(whole_slide(pixels, tile=tile)) as slide:
        assert slide.levels == ((900, 700),)
        assert slide.kind == "dicom"
        assert slide.level(0).is_dicom
        for x, y, width, height in ((0, 0, 900, 700), (37, 91, 448, 448), (899, 699, 1, 1), (255, 255, 2, 2)):
            region = slide.read(0, x, y, width, height).pixels
            assert np.array_equal(region, pixels[y : y + height, x : x + width])


def test_a_jpeg_dicom_slide():
    smooth = np.asarray(pil.fromarray(BASE[:100, :100]).resize((600, 600), pil.Resampling.BICUBIC))

    with open_slide(whole_slide(smooth, jpeg=True)) as slide:
        region = slide.read(0, 100, 200, 300, 300).pixels

    assert np.abs(region.astype(int) - smooth[200:500, 100:400]).mean() < 4


def test_a_dicom_slide_from_a_path(tmp_path):
    path = tmp_path / "slide.dcm"
    path.write_bytes(whole_slide(BASE))
    (tmp_path / "other.dcm").write_bytes(whole_slide(BASE[::4, ::4], SOPInstanceUID="1.2.3.5"))

    with open_slide(path) as slide:
        assert slide.levels == ((1600, 1200),)


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"DimensionOrganizationType": "TILED_SPARSE"}, "DICOM_TILED_FULL_ERROR"),
        ({"DimensionOrganizationType": None}, "DICOM_TILED_FULL_ERROR"),
        ({"TotalPixelMatrixColumns": None}, "DICOM_ERROR"),
        ({"TotalPixelMatrixColumns": 2**31}, "DICOM_ERROR"),
        ({"NumberOfFrames": 3}, "DICOM_ERROR"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "DICOM_ERROR"),
        ({"Rows": None}, "DICOM_ERROR"),
        ({"Rows": 0}, "DICOM_ERROR"),
        ({"PixelData": None}, "DICOM_ERROR"),
        ({"BitsAllocated": 16}, "DICOM_ERROR"),
    ],
)
def test_dicom_slides_that_are_refused(attributes, code):
    data = whole_slide(BASE[:600, :600], **attributes)

    assert code_of(lambda: open_slide(data)) == code


def test_a_cut_off_dicom_slide_fails_at_its_tiles():
    data = whole_slide(BASE[:600, :600])[:-100_000]

    with open_slide(data) as slide:
        assert code_of(lambda: slide.read(0, 0, 0, 600, 600)) == "DICOM_ERROR"


def test_one_tile_needs_no_organisation():
    data = whole_slide(BASE[:200, :200], tile=200, DimensionOrganizationType=None)

    with open_slide(data) as slide:
        assert np.array_equal(slide.whole(448).pixels, BASE[:200, :200])


def test_slides_are_more_than_ten_thousand_tiles():
    data = whole_slide(np.zeros((1024, 1024, 3), np.uint8), tile=8)

    with open_slide(data, limits=Limits(max_frames=10)) as slide:
        assert not slide.read(0, 500, 500, 448, 448).pixels.any()


def test_a_dicom_slide_does_not_reach_the_slides_of_others():
    """OpenSlide, given a DICOM file, opens every file beside it; beside a file in memory lie all open files."""
    with open_slide(whole_slide(BASE)), open_slide(whole_slide(BASE[::4, ::4], SOPInstanceUID="1.2.3.5")) as mine:
        assert mine.levels == ((400, 300),)


@LINUX
def test_a_tiff_that_is_dicom_as_well_is_read_as_dicom_and_not_by_openslide(slide_bytes):
    twofold = bytearray(whole_slide(BASE[:100, :100]))
    twofold[:8] = b"II*\0" + (200).to_bytes(4, "little")

    with open_slide(bytes(twofold)) as slide:
        assert slide.kind == "dicom"


# --- what is a slide, and what is refused


def test_what_counts_as_a_slide(slide_bytes, make_file, make_dicom, ramp):
    one_tiled, stack = BytesIO(), BytesIO()
    tifffile.imwrite(one_tiled, BASE, tile=(256, 256), photometric="rgb")
    with tifffile.TiffWriter(stack) as writer:
        for _ in range(3):
            writer.write(BASE[:256, :256], tile=(256, 256), photometric="rgb")

    assert is_slide(slide_bytes)
    assert is_slide(pyramid(bigtiff=True))
    assert is_slide(whole_slide(BASE[:100, :100]))
    for data in (
        one_tiled.getvalue(), stack.getvalue(), make_file("TIFF", ramp), make_file("PNG", ramp), make_dicom(ramp),
        b"", b"II*\0", slide_bytes[:100],
    ):  # fmt: skip
        assert not is_slide(data)


@LINUX
def test_one_tiled_picture_is_a_slide_for_those_who_ask(make_file, ramp):
    file = BytesIO()
    tifffile.imwrite(file, BASE, tile=(256, 256), photometric="rgb", compression="zlib", metadata=None)

    with open_slide(file.getvalue()) as slide:
        assert slide.levels == ((1600, 1200),)
        assert np.array_equal(slide.whole(448).pixels, load(file.getvalue()).pixels)


@LINUX
def test_what_is_no_slide_is_refused(make_file, ramp, slide_bytes):
    for data in (
        make_file("PNG", ramp), make_file("TIFF", ramp), b"not a slide", b"II*\0", slide_bytes[:300],
        b"[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=/etc/passwd\n",
        b"[GENERAL]\nSLIDE_VERSION=01.02\n",
    ):  # fmt: skip
        assert code_of(lambda data=data: open_slide(data)) == "UNHANDLED_GENERIC_BYTES_ERROR"


def test_bytes_are_limited(slide_bytes):
    for data in (b"", slide_bytes):
        with pytest.raises(ImageError, match="bytes"):
            open_slide(data, limits=Limits(max_bytes=1000))


@pytest.mark.parametrize("name", ["missing.svs", "."])
def test_a_path_that_cannot_be_read_is_not_quoted(tmp_path, name):
    with pytest.raises(ImageError, match="cannot be read") as caught:
        open_slide(tmp_path / CANARY / name)

    assert CANARY not in repr(caught.value) + str(caught.value)
    assert caught.value.__context__ is None


def one_directory(entries: dict[int, int], *, following: int = 0) -> bytes:
    body = b"".join(
        tag.to_bytes(2, "little") + b"\4\0\1\0\0\0" + value.to_bytes(4, "little") for tag, value in entries.items()
    )
    count = len(entries).to_bytes(2, "little")
    return b"II*\0\x08\0\0\0" + count + body + following.to_bytes(4, "little") + bytes(64)


@pytest.mark.parametrize("sides", [(2**30, 2**30, 3), (8192, 8192, 3), (256, 256, 65535)])
def test_a_tile_of_gigabytes_never_reaches_openslide(sides):
    width, height, samples = sides
    huge = one_directory({256: 2**31, 257: 2**31, 277: samples, 322: width, 323: height})

    assert code_of(lambda: open_slide(huge)) == "IMAGE_DIMENSION_ERROR"


@pytest.mark.parametrize(
    "data",
    [
        one_directory({256: 10}, following=8),
        one_directory({256: 10}, following=2**31),
        b"II*\0\x08\0\0\0\xff\xff" + bytes(100),
        b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + b"\xff" * 8 + bytes(100),
        b"MM\0*\0\0\0\x08\0",
    ],
    ids=["loop", "beyond", "entries", "big-entries", "cut"],
)
def test_directories_that_do_not_end_are_refused(data):
    assert code_of(lambda: open_slide(data)) == "UNHANDLED_GENERIC_BYTES_ERROR"
    assert not is_slide(data)


def test_the_walk_agrees_with_tifffile(slide_bytes):
    found = directories(BytesIO(slide_bytes))

    with tifffile.TiffFile(BytesIO(slide_bytes)) as file:
        expected = [(page.imagewidth, page.imagelength, page.tilewidth, page.tilelength) for page in file.pages]
    assert [(one.width, one.height, one.tile_width, one.tile_height) for one in found] == expected
    assert is_pyramid(found)


_FUZZ = """
import sys, random
sys.path.insert(0, sys.argv[2])
from medport.errors import MedportError
from medport.images import open_slide
data = open(sys.argv[1], "rb").read()
random.seed(7)
opened = 0
for _ in range(300):
    changed = bytearray(data)
    for _ in range(random.choice((1, 4, 30))):
        changed[random.choice((random.randrange(600), random.randrange(len(data))))] = random.randrange(256)
    try:
        with open_slide(bytes(changed[: random.choice((len(data), random.randrange(len(data))))])) as slide:
            opened += 1
            slide.read(0, 0, 0, min(300, slide.levels[0][0]), min(300, slide.levels[0][1]))
    except MedportError as error:
        assert error.__context__ is None
print(opened)
"""


@LINUX
@pytest.mark.parametrize("description", [None, "Aperio Image Library v1\n512x512 |AppMag = 20|MPP = 0.5"])
def test_damaged_slides_neither_crash_nor_print(tmp_path, description):
    path = tmp_path / "slide.tif"
    path.write_bytes(pyramid(BASE[:512, :512], description=description))
    sdk = Path(sys.modules["medport"].__file__ or "").parents[1]

    done = subprocess.run(
        [sys.executable, "-c", _FUZZ, str(path), str(sdk)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 20


@LINUX
def test_without_openslide_the_extra_is_named(slide_bytes, monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)

    with pytest.raises(ConfigError, match=r"medport\[slides\]"):
        open_slide(slide_bytes)

    assert memory_files() == []


def test_where_no_files_in_memory_are_bytes_are_refused(slide_bytes, monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)

    with pytest.raises(ImageError, match="Linux") as caught:
        open_slide(slide_bytes)

    assert "path" in str(caught.value)


# --- colour profiles


@pytest.fixture
def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@LINUX
def test_the_profile_of_a_slide_is_handed_out(srgb):
    with open_slide(pyramid(iccprofile=srgb)) as slide:
        assert slide.icc_profile is not None
        region = slide.read(0, 0, 0, 64, 64)
        converted = to_icc_profile(region, slide.icc_profile, "SRGB")

    assert np.abs(converted.pixels.astype(int) - region.pixels).max() <= 1
    assert converted.origin.steps[-1] == "to sRGB"


def test_a_dicom_slide_has_the_profile_of_its_optical_path(srgb):
    path = pydicom.Dataset()
    path.ICCProfile = srgb

    with open_slide(whole_slide(BASE[:100, :100], OpticalPathSequence=[path])) as slide:
        assert slide.icc_profile == srgb
    with open_slide(whole_slide(BASE[:100, :100])) as slide:
        assert slide.icc_profile is None


@LINUX
def test_a_damaged_profile_matters_to_those_who_ask_for_it():
    with open_slide(pyramid(iccprofile=b"no profile" * 20)) as slide:
        region = slide.read(0, 0, 0, 64, 64)
        assert to_icc_profile(region, slide.icc_profile, "NONE") is region
        code = code_of(lambda: to_icc_profile(region, slide.icc_profile, "SRGB"))

    assert code == "INVALID_ICC_PROFILE_TRANSFORM_ERROR"


def test_profiles_that_are_not_here(srgb):
    image = load(BASE[:8, :8])

    for target in ("ADOBERGB", "ROMMRGB", "DISPLAYP3"):
        code = code_of(lambda target=target: to_icc_profile(image, srgb, target))
        assert code == "INVALID_ICC_PROFILE_TRANSFORM_ERROR"
    assert to_icc_profile(image, None, "SRGB") is image
    grey = load(BASE[:8, :8, 0])
    assert code_of(lambda: to_icc_profile(grey, srgb, "SRGB")) == "INVALID_ICC_PROFILE_TRANSFORM_ERROR"


def test_the_conversion_agrees_with_littlecms_on_another_profile():
    """pydicom ships a profile of another colour space than sRGB."""
    profile = (Path(pydicom.__file__).parent / "data" / "test_files" / "crayons.icc").read_bytes()
    image = load(BASE[:64, :64])

    converted = to_icc_profile(image, profile, "SRGB")

    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    expected = np.asarray(ImageCms.applyTransform(pil.fromarray(BASE[:64, :64]), transform))
    assert np.array_equal(converted.pixels, expected)


def test_the_extra_is_asked_for_through_the_one_door():
    assert _extras.load("openslide", extra="slides").__name__ == "openslide"
