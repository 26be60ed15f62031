"""Which part of an image is meant, and how to come by it: shared by MedSigLIP's and MedGemma's "dicom" container.

Source: Google-Health/medsiglip, python/serving/vertex_schemata; Google-Health/medgemma, python/serving.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from medport.errors import InputError
from medport.wire import Deferred, Whole

Credential = Annotated[str, Field(pattern=r"^(application_default|[a-zA-Z0-9_\-.]+)$", max_length=16_384)]
"""A bearer token for the image's own server, or ``application_default`` for the credential of this one."""
IccProfile = Literal["ADOBERGB", "ROMMRGB", "SRGB", "DISPLAYP3", "NONE"]
MAX_PATCHES = 4096
"""In one image; more would be cut from a slide than a request may embed."""


class Strict(Deferred):
    """Unknown keys are refused, as the containers' schemata do."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Patch(Strict):
    """A rectangle in pixels; without a size, the model's own input size."""

    x_origin: Annotated[Whole, Field(ge=0, lt=2**31)]
    y_origin: Annotated[Whole, Field(ge=0, lt=2**31)]
    width: Annotated[Whole, Field(ge=1, lt=2**31)] | None = None
    height: Annotated[Whole, Field(ge=1, lt=2**31)] | None = None


class PyramidLevel(Strict):
    """A level of a whole slide: by its place, -1 being the smallest, or by its size."""

    index: Annotated[Whole, Field(ge=-1000, le=1000)] | None = None
    width: Annotated[Whole, Field(ge=1, lt=2**31)] | None = None
    height: Annotated[Whole, Field(ge=1, lt=2**31)] | None = None


class Size(Strict):
    width: Annotated[Whole, Field(ge=1, lt=2**31)]
    height: Annotated[Whole, Field(ge=1, lt=2**31)]


class WindowLevel(Strict):
    """In HU for CT; the DICOM object's own unit otherwise."""

    center: Annotated[float, Field(allow_inf_nan=False)]
    width: Annotated[float, Field(ge=1, allow_inf_nan=False)]


class Extensions(Deferred):
    """Free-form by the schema; these keys are acted upon, others belong to the reference's caches."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    image_dimensions: Size | None = None
    transform_imaging_to_icc_profile: IccProfile | None = None
    require_patches_fully_in_source_image: bool = True


class Region(Strict):
    """Which part of an image: a level of a slide, patches of it, and how to read them."""

    patch_coordinates_list: Annotated[list[Patch], Field(min_length=1, max_length=MAX_PATCHES)] | None = None
    openslide_pyramid_level: PyramidLevel | None = None
    extensions: Extensions | None = None


def check_level(level: PyramidLevel | None, field: str) -> None:
    """Raise ``InputError`` unless a level is given by its place alone or by both of its sides."""
    if level is None:
        return
    if (level.width is None) != (level.height is None) or (level.index is None) == (level.width is None):
        raise InputError("is neither an index nor a width and a height", field=field, remedy="give one of the two")
