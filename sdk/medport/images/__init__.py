"""Images: whatever the caller has → the 8-bit square PNG or JPEG that every backend takes."""

from medport.images.image import Image, Limits, Origin
from medport.images.load import Source, is_data_url, is_remote, load
from medport.images.prepare import MAX_SIDE_PX, PreparedImage, decode, prepare

__all__ = [
    "MAX_SIDE_PX",
    "Image",
    "Limits",
    "Origin",
    "PreparedImage",
    "Source",
    "decode",
    "is_data_url",
    "is_remote",
    "load",
    "prepare",
]
