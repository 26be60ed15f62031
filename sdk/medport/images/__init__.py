"""Images: whatever the caller has → the 8-bit square PNG or JPEG that every backend takes."""

from medport.images.codes import Code, CodedImageError
from medport.images.colour import IccTarget, to_icc_profile
from medport.images.image import Image, Limits, Origin
from medport.images.load import Source, is_data_url, is_remote, load
from medport.images.patches import MAX_DICOM_DOWNSAMPLING, MAX_PATCH_PIXELS, Plane, cut, resized
from medport.images.prepare import MAX_SIDE_PX, PreparedImage, decode, prepare
from medport.images.series import MAX_CT_SLICES, Series, ct_rgb, sample, series
from medport.images.slides import Level, Slide, is_slide, open_slide
from medport.images.window import CT_WINDOWS_HU, RADIOGRAPHY, SIGLIP_CT_WINDOW

__all__ = [
    "CT_WINDOWS_HU",
    "MAX_CT_SLICES",
    "MAX_DICOM_DOWNSAMPLING",
    "MAX_PATCH_PIXELS",
    "MAX_SIDE_PX",
    "RADIOGRAPHY",
    "SIGLIP_CT_WINDOW",
    "Code",
    "CodedImageError",
    "IccTarget",
    "Image",
    "Level",
    "Limits",
    "Origin",
    "Plane",
    "PreparedImage",
    "Series",
    "Slide",
    "Source",
    "ct_rgb",
    "cut",
    "decode",
    "is_data_url",
    "is_remote",
    "is_slide",
    "load",
    "open_slide",
    "prepare",
    "resized",
    "sample",
    "series",
    "to_icc_profile",
]
