"""A chat request as MedGemma's "dicom" container takes it: images from GCS, DICOMweb and slides, keys all known.

Source: Google-Health/medgemma, python/serving (request schema and predictor).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from medport.errors import InputError
from medport.wire import Whole
from medport.wire.chat import MAX_MESSAGES, MAX_PARTS, MAX_TOKENS_LIMIT, Generation
from medport.wire.regions import Credential, Region, Strict, check_level

DEFAULT_MAX_TOKENS = 500

Url = Annotated[str, Field(pattern=r"^(https?://.+|\s*data\s*:\s*image/(png|jpeg|jpg|gif)\s*;\s*base64\s*,.+)$")]
GcsUri = Annotated[str, Field(pattern=r"^gs://[^/]+(/[^/]+)*/[^/]+\.[^/]+$", max_length=2048)]
DicomUri = Annotated[str, Field(pattern=r"^https?://.+/studies/.+/series/.+$", max_length=2048)]


class ImageUrl(Region):
    url: Url | Annotated[list[Url], Field(min_length=1, max_length=1024)]
    access_credential: Credential | None = None


class ImageBytes(Region):
    input_bytes: Annotated[str, Field(min_length=1)]


class ImageGcs(Region):
    gcs_source: GcsUri | Annotated[list[GcsUri], Field(min_length=1, max_length=1024)]
    access_credential: Credential | None = None


class ImageDicom(Region):
    dicom_source: DicomUri | Annotated[list[DicomUri], Field(min_length=1, max_length=1024)]
    access_credential: Credential | None = None


class TextPart(Strict):
    type: Literal["text"]
    text: str


class RefusalPart(Strict):
    type: Literal["refusal"]
    refusal: str


class ImageUrlPart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


class ImagePart(Region):
    """The older spelling, as transformers' chat templates have it."""

    type: Literal["image"]
    image: Url
    access_credential: Credential | None = None


class ImageBytesPart(Strict):
    type: Literal["image_bytes"]
    image_bytes: ImageBytes


class ImageGcsPart(Strict):
    type: Literal["image_gcs"]
    image_gcs: ImageGcs


class ImageDicomPart(Strict):
    type: Literal["image_dicom"]
    image_dicom: ImageDicom


UserPart = Annotated[
    TextPart | ImageUrlPart | ImagePart | ImageBytesPart | ImageGcsPart | ImageDicomPart,
    Field(discriminator="type"),
]
AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]


class SystemMessage(Strict):
    role: Literal["system"]
    content: str | Annotated[list[TextPart], Field(max_length=MAX_PARTS)]
    name: str | None = None


class UserMessage(Strict):
    role: Literal["user"]
    content: str | Annotated[list[UserPart], Field(max_length=MAX_PARTS)]
    name: str | None = None


class AssistantMessage(Strict):
    role: Literal["assistant"]
    content: str | Annotated[list[AssistantPart], Field(max_length=MAX_PARTS)] | None = None
    name: str | None = None
    refusal: str | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class DicomChatRequest(Generation):
    """One request. No ``stream``, ``tools`` or ``response_format``: this container has none of them."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, populate_by_name=True)

    request_format: Annotated[Literal["chatCompletions"], Field(alias="@requestFormat")] = "chatCompletions"
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    model: str | None = None
    max_tokens: Annotated[Whole, Field(ge=1, le=MAX_TOKENS_LIMIT)] = DEFAULT_MAX_TOKENS
    best_of: Annotated[Whole, Field(ge=1)] = 1
    spaces_between_special_tokens: bool = True
    truncate_prompt_tokens: Annotated[Whole, Field(ge=1)] | None = None
    add_generation_prompt: bool = True

    def check(self) -> None:
        """What no field can check alone, and what is not honoured: silence would mislead."""
        super().check()
        if self.best_of not in (1, self.n):
            raise InputError("is not supported by this server", field="best_of", remedy="leave it out")
        if self.truncate_prompt_tokens is not None:
            raise InputError(
                "is not supported by this server", field="truncate_prompt_tokens", remedy="leave it out"
            )
        if not self.add_generation_prompt:
            raise InputError(
                "is not supported by this server", field="add_generation_prompt", remedy="leave it out"
            )
        for i, message in enumerate(self.messages):
            for j, part in enumerate(message.content if isinstance(message.content, list) else []):
                region = region_of(part)
                if region is not None:
                    check_level(
                        region.openslide_pyramid_level, f"messages[{i}].content[{j}].openslide_pyramid_level"
                    )


def region_of(part: UserPart | AssistantPart) -> Region | None:
    """Where an image part says which part of the image it means; ``None`` for text."""
    if isinstance(part, ImageUrlPart):
        return part.image_url
    if isinstance(part, ImageBytesPart):
        return part.image_bytes
    if isinstance(part, ImageGcsPart):
        return part.image_gcs
    if isinstance(part, ImageDicomPart):
        return part.image_dicom
    return part if isinstance(part, ImagePart) else None


def normalised(values: Mapping[str, Any]) -> dict[str, Any]:
    """The request with older spellings in their newer form, and nulls left out."""
    given = {key: value for key, value in values.items() if value is not None}
    if "max_completion_tokens" in given:
        given["max_tokens"] = given.pop("max_completion_tokens")
    messages = given.get("messages")
    if isinstance(messages, list):
        given["messages"] = [_message(message) for message in messages]
    return given


def _message(message: object) -> object:
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), list):
        return message
    return {**message, "content": [_part(part) for part in message["content"]]}


def _part(part: object) -> object:
    if not isinstance(part, Mapping):
        return part
    for key, older, newer in (
        ("image_gcs", "gcs_uri", "gcs_source"),
        ("image_dicom", "dicomweb_uri", "dicom_source"),
    ):
        inner = part.get(key)
        if isinstance(inner, Mapping) and older in inner and newer not in inner:
            renamed = {newer if name == older else name: value for name, value in inner.items()}
            return {**part, key: renamed}
    return part
