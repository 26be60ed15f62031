"""Colour profiles: what ``transform_imaging_to_icc_profile`` asks for, as far as it can be had offline.

Only sRGB can: Pillow's LittleCMS builds that profile itself. Adobe RGB, ROMM RGB and Display P3 are files that
are not ours to ship. The profile of an image is hostile bytes that a C library parses: its size is bounded.
"""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from typing import Literal

import numpy as np

from medport.images.codes import CodedImageError
from medport.images.image import Image

IccTarget = Literal["ADOBERGB", "ROMMRGB", "SRGB", "DISPLAYP3", "NONE"]

_MAX_PROFILE_BYTES = 4 * 2**20


def to_icc_profile(
    image: Image,
    profile: bytes | None,
    target: IccTarget,
    *,
    field: str = "extensions.transform_imaging_to_icc_profile",
) -> Image:
    """Convert pixels from their own colour profile to another, by perceptual intent.

    Args:
        image: uint8 RGB.
        profile: the one its pixels are in, such as ``Slide.icc_profile``. Without one, pixels stay as they
            are: nobody knows what they mean.
        target: ``"NONE"`` leaves them alone.

    Raises:
        CodedImageError: INVALID_ICC_PROFILE_TRANSFORM_ERROR, the target is not available here, the profile is
            damaged or too large, or it is not for RGB.
    """
    if target == "NONE":
        return image
    if target != "SRGB":
        raise _invalid(f"there is no {target} profile here", field, "ask for SRGB or NONE")
    if profile is None:
        return image
    if len(profile) > _MAX_PROFILE_BYTES or image.pixels.ndim != 3:
        raise _invalid("the colour profile is too large, or the image is grey", field, "ask for NONE")
    from PIL import Image as pil
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        converted = ImageCms.profileToProfile(
            pil.fromarray(image.pixels), source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # their texts quote the profile
        converted = None
    if converted is None:
        raise _invalid("the colour profile of the image cannot be used", field, "ask for NONE")
    origin = replace(image.origin, steps=(*image.origin.steps, "to sRGB"))
    return Image(pixels=np.asarray(converted), origin=origin)


def _invalid(message: str, field: str, remedy: str) -> CodedImageError:
    return CodedImageError(message, code="INVALID_ICC_PROFILE_TRANSFORM_ERROR", field=field, remedy=remedy)
