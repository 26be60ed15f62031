"""MedSigLIP's instance and prediction.

Source: Google-Health/medsiglip, python/serving/vertex_schemata; MedSigLIP model card.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class EmbedImage(BaseModel):
    """An image by value (``input_bytes``: base64 of an encoded file) or by reference."""

    model_config = ConfigDict(extra="forbid")

    input_bytes: str | None = None
    gcs_uri: str | None = None
    dicomweb_uri: str | None = None
    image_url: str | None = None
    access_credential: str | None = None


class EmbedInstance(BaseModel):
    """Exactly one of ``text`` and ``image``."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = None
    image: EmbedImage | None = None


class EmbedRequest(BaseModel):
    instances: list[EmbedInstance]


class ItemError(BaseModel):
    code: str
    description: Annotated[str, Field(max_length=1024)] = ""


class EmbedPrediction(BaseModel):
    """One answer per instance, in order: an L2-normalised embedding, or an error.

    ``model_temperature`` is the checkpoint's raw ``logit_scale`` (its logarithm: logit = exp(scale)·cos + bias),
    ``model_bias`` its ``logit_bias``.
    """

    embedding: list[float] | None = None
    input_type: Literal["image", "text"] | None = None
    model_temperature: float | None = None
    model_bias: float | None = None
    error: ItemError | None = None
