"""What a fleet is asked when it is tried: texts and drawings of ours, the same every time. No patient's data.

The pictures look like a chest X-ray from afar, so that the whole way of an image is gone. Nothing that a model
says of them has a meaning.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from medport import _extras
from medport.errors import ConfigError
from medport.lock import LockedModel

SIDE_PX = 224
_DESCRIBE = "Describe this X-ray in one sentence."
_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
_DIGITAL_XRAY = "1.2.840.10008.5.1.4.1.1.1.1"
_SMOKE_TOKENS, _GOLDEN_TOKENS = 24, 16


@dataclass(frozen=True, slots=True)
class Case:
    """One request. With a ``prompt`` it is for MedGemma, without for MedSigLIP."""

    kind: str
    """``text``, ``image``, ``stream``, ``dicom``, or one of the three with ``embedding``."""
    name: str
    """One of a kind among golden cases."""
    prompt: str = ""
    texts: tuple[str, ...] = ()
    images: tuple[bytes, ...] = ()
    """PNG, or DICOM's file format."""
    streams: bool = False
    max_tokens: int = _SMOKE_TOKENS
    missing: str = ""
    """Why it cannot be sent, if it cannot."""

    @property
    def items(self) -> int:
        """How many vectors are the answer; 0 for a chat."""
        return 0 if self.prompt else len(self.texts) + len(self.images)


def smoke(model: LockedModel) -> list[Case]:
    """A request of each kind that a model answers."""
    if model.family == "medsiglip":
        return [
            Case("text embedding", "texts", texts=("a chest X-ray", "a bone")),
            Case("image embedding", "images", images=(png(0), png(1))),
            _of_dicom("dicom embedding"),
        ]
    text = Case("text", "text", "Name one bone of the arm.")
    stream = Case("stream", "stream", "Name two organs in the chest.", streams=True)
    if takes_text_alone(model.model_id):
        return [text, stream]
    return [text, Case("image", "image", _DESCRIBE, images=(png(0),)), stream, _of_dicom("dicom", _DESCRIBE)]


def golden(model: LockedModel) -> list[Case]:
    """Requests whose answers are compared: between two fleets, and of one lock over time."""
    if model.family == "medsiglip":
        return [
            Case("text embedding", "texts-1", texts=("clear lungs", "an enlarged heart")),
            Case("text embedding", "texts-2", texts=("a broken rib", "a pleural effusion")),
            Case("image embedding", "images-1", images=(png(2), png(3))),
            Case("image embedding", "images-2", images=(png(4), png(5))),
        ]
    questions = (
        "What is a radiograph?",
        "Name the parts of the lung.",
        "What does the heart do?",
        "What is a CT?",
    )
    texts = [
        Case("text", f"text-{number}", each, max_tokens=_GOLDEN_TOKENS)
        for number, each in enumerate(questions, start=1)
    ]
    if takes_text_alone(model.model_id):
        return texts
    images = [
        Case("image", f"image-{number}", _DESCRIBE, images=(png(number + 1),), max_tokens=_GOLDEN_TOKENS)
        for number in (1, 2)
    ]
    return [*texts[:2], *images]


def takes_text_alone(model_id: str) -> bool:
    """Whether a MedGemma has no eyes, such as ``google/medgemma-27b-text-it``."""
    return "text" in model_id.rpartition("/")[2].split("-")


def drawing(which: int) -> npt.NDArray[np.uint8]:
    """A drawing of a chest, grey, ``[SIDE_PX, SIDE_PX]``; each number gives another."""
    y, x = np.mgrid[-1 : 1 : SIDE_PX * 1j, -1 : 1 : SIDE_PX * 1j]
    plane = 150.0 - 40 * y
    for side in (-1, 1):
        inside = ((x - side * 0.42) / 0.3) ** 2 + ((y + 0.05) / 0.68) ** 2 < 1
        plane = np.where(inside, 50 + 18 * np.sin(14 * y + side + which), plane)
    heart = ((x - 0.12) / (0.2 + 0.03 * which)) ** 2 + ((y - 0.3) / 0.28) ** 2 < 1
    plane = np.where(heart, 190.0, plane)
    spot = (x + 0.45 - 0.05 * which) ** 2 + (y + 0.3 - 0.1 * which) ** 2 < 0.012
    return np.clip(np.where(spot, 220.0, plane), 0, 255).astype(np.uint8)


@cache
def png(which: int) -> bytes:
    """A drawing's file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(drawing(which)).save(file, "PNG")
    return file.getvalue()


@cache
def dicom(which: int) -> bytes:
    """A drawing as a DICOM file of a digital X-ray, 12 bits, of nobody.

    Raises:
        ConfigError: pydicom is not installed.
    """
    pydicom = _extras.load("pydicom", extra="dicom")
    ids = _extras.load("pydicom.uid", extra="dicom")
    made: Any = pydicom.Dataset()
    meta: Any = _extras.load("pydicom.dataset", extra="dicom").FileMetaDataset()
    meta.TransferSyntaxUID = made_syntax = ids.UID(_EXPLICIT_LITTLE_ENDIAN)
    made.SOPClassUID = meta.MediaStorageSOPClassUID = ids.UID(_DIGITAL_XRAY)
    made.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = ids.UID(f"2.25.{which + 1}")
    made.StudyInstanceUID, made.SeriesInstanceUID = ids.UID("2.25.7"), ids.UID("2.25.8")
    made.PatientName, made.PatientID, made.Modality = "Nobody^Drawn", "DRAWN", "DX"
    made.Rows = made.Columns = SIDE_PX
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 12, 11
    made.WindowCenter, made.WindowWidth = 2048, 4096
    made.PixelData = (drawing(which).astype("<u2") << 4).tobytes()
    made.file_meta = meta
    file = io.BytesIO()
    pydicom.dcmwrite(
        file, made, enforce_file_format=True, implicit_vr=made_syntax.is_implicit_VR, little_endian=True
    )
    return file.getvalue()


def _of_dicom(kind: str, prompt: str = "") -> Case:
    try:
        return Case(kind, kind, prompt, images=tuple(_dicoms(prompt)))
    except ConfigError as none:
        return Case(kind, kind, prompt, missing=str(none))


def _dicoms(prompt: str) -> Iterator[bytes]:
    yield dicom(0)
    if not prompt:
        yield dicom(1)
