"""What a model sees of the files behind one image."""

from __future__ import annotations

import numpy as np
import pytest
from support.dicomweb import pydicom_file, slices
from support.slides import picture, pyramid, whole_slide

from medport.errors import InputError
from medport.images import Image
from medport.images.codes import CodedImageError
from medport.wire.regions import Patch, PyramidLevel, Region
from medport_local.serving.regions import chat_images, embed_images


def volume(count: int, name: str = "CT_small.dcm") -> list[bytes]:
    """Slices that differ: each a little brighter than the one below."""
    return slices(count, name, brighter=60)


def seen(
    files: list[bytes], region: Region | None = None, *, ordered: bool = False, most: int = 100
) -> tuple[list[tuple[Image, str | None]], list[str]]:
    notes: list[str] = []
    views = chat_images(
        files, region or Region(), side_px=32, ordered=ordered, field="image", most=most, notes=notes
    )
    return list(views), notes


def brightness(views: list[tuple[Image, str | None]]) -> list[float]:
    return [float(image.pixels.mean()) for image, _ in views]


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm"])
def test_series_is_sorted_and_numbered(name: str) -> None:
    files = volume(4, name)

    views, notes = seen(files[::-1])

    assert [caption for _, caption in views] == ["SLICE 1", "SLICE 2", "SLICE 3", "SLICE 4"]
    assert brightness(views) == sorted(brightness(views))
    assert notes == []


def test_list_of_the_caller_keeps_its_order() -> None:
    views, _ = seen(volume(4)[::-1], ordered=True)

    assert brightness(views) == sorted(brightness(views), reverse=True)
    assert [caption for _, caption in views] == ["SLICE 1", "SLICE 2", "SLICE 3", "SLICE 4"]


def test_missing_slice_is_a_note() -> None:
    files = volume(6)
    del files[2]

    _, notes = seen(files)

    assert any("missing" in note for note in notes)


def test_one_ct_object_is_three_windows_and_has_no_number() -> None:
    ((image, caption),), _ = seen(volume(1))

    assert image.pixels.shape[2] == 3
    assert not np.array_equal(image.pixels[..., 0], image.pixels[..., 1])
    assert caption is None


def test_more_slices_than_images_are_refused() -> None:
    with pytest.raises(InputError, match="has 4 slices, and this server takes 3 images"):
        seen(volume(4), most=3)


def test_patches_of_a_dicom_object_are_cut_before_anything_else() -> None:
    region = Region(patch_coordinates_list=[Patch(x_origin=0, y_origin=0), Patch(x_origin=32, y_origin=64)])

    views, _ = seen(volume(1), region)

    assert [image.pixels.shape[:2] for image, _ in views] == [(32, 32), (32, 32)]


def test_level_of_a_picture_is_not_found() -> None:
    region = Region(openslide_pyramid_level=PyramidLevel(index=0))

    with pytest.raises(CodedImageError) as caught:
        list(embed_images(pydicom_file("CT_small.dcm"), region, side_px=32, window=None, field="image"))

    assert caught.value.code == "LEVEL_NOT_FOUND_ERROR"


def test_series_of_a_slide_gives_one_level() -> None:
    base = picture(512, 384)
    levels = [
        whole_slide(np.ascontiguousarray(base[::step, ::step]), SOPInstanceUID=f"1.2.3.{step}")
        for step in (4, 1, 8)
    ]

    ((whole, _),), _ = seen(levels)
    patches, _ = seen(levels, Region(patch_coordinates_list=[Patch(x_origin=100, y_origin=200)]))

    assert whole.pixels.shape[:2] == (48, 64)  # the smallest that fills the input of 32
    assert np.array_equal(patches[0][0].pixels, base[200:232, 100:132])


def test_level_of_a_tiff_slide_is_where_patches_are_cut() -> None:
    base = picture(1600, 1200)
    slide = pyramid(base)
    region = Region(
        openslide_pyramid_level=PyramidLevel(index=1),
        patch_coordinates_list=[Patch(x_origin=10, y_origin=20)],
    )

    ((image, patch),) = embed_images(slide, region, side_px=32, window=None, field="image")

    assert np.array_equal(image.pixels, base[::4, ::4][20:52, 10:42])
    assert patch == Patch(x_origin=10, y_origin=20, width=32, height=32)
