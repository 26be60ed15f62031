"""What a model sees of the files behind one image: the picture, its patches, a slide's level, a series' slices.

CPU work, all of it: call it in a decoding thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from medport.errors import InputError
from medport.images import Image, load
from medport.images.codes import CodedImageError
from medport.images.colour import to_icc_profile
from medport.images.dicom import guarded, is_dicom, modality_of, parsed
from medport.images.load import data_url_bytes
from medport.images.patches import MAX_DICOM_DOWNSAMPLING, Plane, cut, resized
from medport.images.series import series
from medport.images.slides import Level, Slide, is_slide, open_slide
from medport.images.tiff_header import is_tiff
from medport.images.window import RADIOGRAPHY, SIGLIP_CT_WINDOW
from medport.wire.regions import Extensions, Patch, Region
from medport_local.serving.endpoints import IMAGE_LIMITS

VOLUMES = frozenset(("CT", "MR"))
"""The modalities whose objects make one volume, with "SLICE n" after each."""
PUBLISHED_SIDE_PX = 448
"""MedSigLIP's input. A patch may have this size too where a phantom of a smaller input stands for it."""


def chat_images(
    sources: Sequence[bytes | str],
    region: Region,
    *,
    side_px: int,
    ordered: bool,
    field: str,
    most: int,
    notes: list[str],
) -> Iterator[tuple[Image, str | None]]:
    """What MedGemma's "dicom" container shows the model of one content part.

    CT and MR objects of more than one slice are one volume: sorted by position unless ``ordered`` says that the
    caller did so, each slice followed by "SLICE n". A single CT object is shown as a slice of a volume would be.
    What looks wrong with a volume, such as a missing slice, is added to ``notes``: a warning, not a failure.

    Args:
        sources: the files' bytes, or ``data:`` URLs.
        side_px: of the model's input: a patch without a size has it.
        most: how many images a request may have.

    Yields:
        Each image and what is written after it.

    Raises:
        InputError: a source is no image, a patch lies outside, or there are too many.
    """
    files = [_bytes(source, f"{field}[{i}]" if len(sources) > 1 else field) for i, source in enumerate(sources)]
    if _is_whole(region):
        modalities = {_modality(data, field) if is_dicom(data) else None for data in files}
        if modalities <= VOLUMES and len(modalities) == 1:
            yield from _volume(files, ordered=ordered, field=field, most=most, notes=notes)
            return
    if len(files) > 1 and not ordered and all(map(is_slide, files)):
        files = [_level_of_series(files, region, side_px, field)]
    for i, data in enumerate(files):
        place = f"{field}[{i}]" if len(files) > 1 else field
        for image, _ in _parts(data, region, side_px=side_px, field=place):
            yield image, None


def embed_images(
    source: bytes | str,
    region: Region,
    *,
    side_px: int,
    window: tuple[float, float] | None,
    field: str,
) -> Iterator[tuple[Image, Patch | None]]:
    """What MedSigLIP's container embeds of one image: the whole of it, or each of its patches."""
    data = _bytes(source, field)
    yield from _parts(data, region, side_px=side_px, field=field, window=window, only_side=True)


def _parts(
    data: bytes,
    region: Region,
    *,
    side_px: int,
    field: str,
    window: tuple[float, float] | None = None,
    only_side: bool = False,
) -> Iterator[tuple[Image, Patch | None]]:
    """The whole picture, or each patch of it: of a slide's level where it is a slide."""
    wants = region.extensions or Extensions()
    # A tiled TIFF of one level is a picture, unless its level is asked for; DICOM may begin like a TIFF.
    levelled = region.openslide_pyramid_level is not None and is_tiff(data) and not is_dicom(data)
    if levelled or is_slide(data):
        with open_slide(data, field=field, limits=IMAGE_LIMITS) as slide:
            target = wants.transform_imaging_to_icc_profile or "NONE"
            recolour = partial(
                to_icc_profile, profile=slide.icc_profile, target=target, field=f"{field}.extensions"
            )
            level = _level(slide, region, wants)
            if region.patch_coordinates_list is None and _is_whole(region):
                yield recolour(slide.whole(side_px)), None
            else:
                yield from _cut(level, region, wants, side_px, field, only_side, recolour)
        return
    if region.openslide_pyramid_level is not None:
        raise CodedImageError(
            "has no levels: it is no slide",
            code="LEVEL_NOT_FOUND_ERROR",
            field=f"{field}.openslide_pyramid_level",
            remedy="leave the level out",
        )
    image = _shown(data, window, field)
    if _is_whole(region):
        yield image, None
    else:
        yield from _cut(image, region, wants, side_px, field, only_side, _as_it_is)


def _level(slide: Slide, region: Region, wants: Extensions) -> Level:
    asked = region.openslide_pyramid_level
    if asked is not None:
        return slide.level(asked.index, width=asked.width, height=asked.height)
    if wants.image_dimensions is not None:
        return slide.level_covering(wants.image_dimensions.width, wants.image_dimensions.height)
    return slide.level(0)


def _cut(
    source: Image | Level,
    region: Region,
    wants: Extensions,
    side_px: int,
    field: str,
    only_side: bool,
    recolour: Callable[[Image], Image],
) -> Iterator[tuple[Image, Patch | None]]:
    plane: Image | Plane = source
    if wants.image_dimensions is not None:
        largest = MAX_DICOM_DOWNSAMPLING if isinstance(source, Level) and source.is_dicom else None
        size = wants.image_dimensions
        plane = resized(source, size.width, size.height, largest_factor=largest, field=f"{field}.extensions")
    if region.patch_coordinates_list is None:
        whole = cut(plane, 0, 0, plane.width_px, plane.height_px, field=field)
        yield recolour(whole), None
        return
    for i, patch in enumerate(region.patch_coordinates_list):
        place = f"{field}.patch_coordinates_list[{i}]"
        width, height = patch.width or side_px, patch.height or side_px
        if only_side and (width != height or width not in (side_px, PUBLISHED_SIDE_PX)):
            raise CodedImageError(
                f"is not {side_px} x {side_px}, which the model takes",
                code="PATCH_DIMENSIONS_DO_NOT_MATCH_ENDPOINT_INPUT_DIMENSIONS_ERROR",
                field=place,
                remedy="leave width and height out",
            )
        inside = wants.require_patches_fully_in_source_image
        piece = cut(plane, patch.x_origin, patch.y_origin, width, height, require_inside=inside, field=place)
        yield recolour(piece), Patch(x_origin=patch.x_origin, y_origin=patch.y_origin, width=width, height=height)


def _as_it_is(image: Image) -> Image:
    return image


def _level_of_series(files: Sequence[bytes], region: Region, side_px: int, field: str) -> bytes:
    """Of a slide's series, an object for each level: the largest for patches, else the smallest that will do."""
    sizes: list[tuple[int, int]] = []
    for data in files:
        with open_slide(data, field=field, limits=IMAGE_LIMITS) as slide:
            sizes.append(slide.levels[0])
    by_size = sorted(range(len(files)), key=lambda i: sizes[i][0] * sizes[i][1])
    if not _is_whole(region):
        return files[by_size[-1]]
    return files[next((i for i in by_size if max(sizes[i]) >= side_px), by_size[-1])]


def _volume(
    files: Sequence[bytes], *, ordered: bool, field: str, most: int, notes: list[str]
) -> Iterator[tuple[Image, str | None]]:
    whole = series(files, field=field, limits=IMAGE_LIMITS, keep_order=ordered)
    if len(whole) > most:
        raise InputError(
            f"has {len(whole)} slices, and this server takes {most} images in a request",
            field=field,
            remedy="choose slices, for instance 85 that are evenly spread",
        )
    notes += whole.notes
    several = len(whole) > 1
    for i, image in enumerate(whole, start=1):
        yield image, f"SLICE {i}" if several else None


def _shown(data: bytes, window: tuple[float, float] | None, field: str) -> Image:
    return load(
        data,
        field=field,
        window=window,
        window_modalities=RADIOGRAPHY,
        ct_default=SIGLIP_CT_WINDOW,
        limits=IMAGE_LIMITS,
    )


def _is_whole(region: Region) -> bool:
    wants = region.extensions or Extensions()
    return (
        region.patch_coordinates_list is None
        and region.openslide_pyramid_level is None
        and wants.image_dimensions is None
    )


def _modality(data: bytes, field: str) -> str:
    return guarded(lambda: modality_of(parsed(data, field, IMAGE_LIMITS)), field=field)


def _bytes(source: bytes | str, field: str) -> bytes:
    return data_url_bytes(source, field, IMAGE_LIMITS) if isinstance(source, str) else source
