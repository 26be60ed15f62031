"""The error codes of the public MedSigLIP container, on an error of this package.

A server that answers in that container's form sends ``code``; everyone else reads the message. Source: the
codes that its predictions name in ``error.code``.
"""

from __future__ import annotations

from typing import Literal

from medport.errors import ImageError

Code = Literal[
    "DICOM_ERROR",
    "DICOM_IMAGE_DOWNSAMPLING_TOO_LARGE_ERROR",
    "DICOM_TILED_FULL_ERROR",
    "IMAGE_DIMENSION_ERROR",
    "INVALID_ICC_PROFILE_TRANSFORM_ERROR",
    "LEVEL_NOT_FOUND_ERROR",
    "PATCH_DIMENSIONS_DO_NOT_MATCH_ENDPOINT_INPUT_DIMENSIONS_ERROR",
    "PATCH_OUTSIDE_OF_IMAGE_DIMENSIONS_ERROR",
    "UNHANDLED_GENERIC_BYTES_ERROR",
]


class CodedImageError(ImageError):
    """An image error for which the public container has a code.

    Attributes:
        code: that code.
    """

    def __init__(self, message: str, *, code: Code, field: str, remedy: str) -> None:
        super().__init__(message, field=field, remedy=remedy)
        self.code: Code = code
