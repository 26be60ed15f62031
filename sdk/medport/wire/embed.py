"""MedSigLIP's instance and prediction.

Source: Google-Health/medsiglip, python/serving/vertex_schemata; MedSigLIP model card.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from medport.errors import InputError
from medport.wire import Deferred
from medport.wire.regions import Credential, Patch, Region, Strict, WindowLevel, check_level

InputType = Literal["image", "text"]
SOURCES = ("input_bytes", "gcs_uri", "dicomweb_uri", "image_url")

Code = Literal[
    "INTERNAL_ERROR",
    "INVALID_REQUEST_FIELD_ERROR",
    "INVALID_CREDENTIALS_ERROR",
    "HTTP_ERROR",
    "DICOM_PATH_ERROR",
    "UNAPPROVED_DICOM_STORE_ERROR",
    "TOO_MANY_PATCHES_ERROR",
    "LEVEL_NOT_FOUND_ERROR",
    "EZ_WSI_STATE_ERROR",
    "INVALID_ICC_PROFILE_TRANSFORM_ERROR",
    "IMAGE_DIMENSION_ERROR",
    "DICOM_TILED_FULL_ERROR",
    "DICOM_ERROR",
    "DICOM_IMAGE_DOWNSAMPLING_TOO_LARGE_ERROR",
    "UNHANDLED_GCS_FILE_ERROR",
    "UNHANDLED_HTTP_FILE_ERROR",
    "UNHANDLED_GENERIC_BYTES_ERROR",
    "PATCH_OUTSIDE_OF_IMAGE_DIMENSIONS_ERROR",
    "PATCH_DIMENSIONS_DO_NOT_MATCH_ENDPOINT_INPUT_DIMENSIONS_ERROR",
]
"""What can be wrong with one instance, in the reference container's words."""


class EmbedImage(Region):
    """An image by value (``input_bytes``: base64 of an encoded file) or by reference; exactly one of the four."""

    input_bytes: str | None = None
    gcs_uri: Annotated[str, Field(pattern=r"^gs://[^/]+(/[^/]+)*/[^/]+\.[^/]+$", max_length=2048)] | None = None
    dicomweb_uri: Annotated[str, Field(pattern=r"^https?://.+/studies/.+$", max_length=2048)] | None = None
    image_url: Annotated[str, Field(pattern=r"^[hH][tT][tT][pP][sS]?://.+$", max_length=8192)] | None = None
    access_credential: Credential | None = None
    radiology_dicom_window_level: WindowLevel | None = None


class EmbedInstance(Strict):
    """Exactly one of ``text`` and ``image``."""

    text: str | None = None
    image: EmbedImage | None = None

    def check(self) -> None:
        """What no field can check alone.

        Raises:
            InputError: names the field.
        """
        if (self.text is None) == (self.image is None):
            raise InputError("an instance holds exactly one of text and image", remedy="send two instances")
        image = self.image
        if image is None:
            return
        given = [name for name in SOURCES if getattr(image, name) is not None]
        if len(given) != 1:
            raise InputError(
                f"holds {' and '.join(given) or 'no source'}, and an image has one source",
                field="image",
                remedy=f"give one of {', '.join(SOURCES)}",
            )
        if given[0] == "input_bytes" and image.access_credential is not None:
            raise InputError(
                "goes with a reference, not with input_bytes",
                field="image.access_credential",
                remedy="leave it out",
            )
        if given[0] in ("input_bytes", "dicomweb_uri") and image.openslide_pyramid_level is not None:
            raise InputError(
                f"does not go with {given[0]}", field="image.openslide_pyramid_level", remedy="leave it out"
            )
        check_level(image.openslide_pyramid_level, "image.openslide_pyramid_level")


class ItemError(Deferred):
    code: Code
    description: Annotated[str, Field(max_length=1024)] = ""


class PatchCoordinate(Deferred):
    x_origin: int
    y_origin: int
    width: int
    height: int


class PatchEmbedding(Deferred):
    embedding: list[float]
    patch_coordinate: PatchCoordinate


class EmbedPrediction(Deferred):
    """One answer per instance, in order: an L2-normalised embedding, one for each patch, or an error.

    ``model_temperature`` is the checkpoint's raw ``logit_scale`` (its logarithm: logit = exp(scale)·cos + bias),
    ``model_bias`` its ``logit_bias``.
    """

    embedding: list[float] | None = None
    patch_embeddings: list[PatchEmbedding] | None = None
    input_type: InputType | None = None
    model_temperature: float | None = None
    model_bias: float | None = None
    error: ItemError | None = None


__all__ = [
    "SOURCES", "Code", "EmbedImage", "EmbedInstance", "EmbedPrediction", "InputType", "ItemError", "Patch",
    "PatchCoordinate", "PatchEmbedding",
]  # fmt: skip
