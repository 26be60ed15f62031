"""Builders of small image files. Each gives bytes, as they would lie on a disk."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image as pil

from medport.errors import ImageError
from medport.images import Image, load

Make = Callable[..., bytes]


@pytest.fixture(scope="session")
def make_file() -> Make:
    """``make_file("PNG", pixels, **save_options)``; ``pixels`` is an array or a PIL image."""

    def make(kind: str, pixels: Any, **options: Any) -> bytes:
        image = pixels if isinstance(pixels, pil.Image) else pil.fromarray(pixels)
        file = BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def make_dicom() -> Make:
    """``make_dicom(stored, Keyword=value, …)``: explicit VR little endian; ``None`` takes one out."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    def make(stored: np.ndarray[Any, Any] | None, /, **attributes: Any) -> bytes:
        ds = pydicom.Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = SecondaryCaptureImageStorage, "1.2.3", "OT"
        if stored is not None:
            bits = stored.dtype.itemsize * 8
            colour = stored.ndim > 2 and stored.shape[-1] == 3
            ds.Rows, ds.Columns = stored.shape[-3:-1] if colour else stored.shape[-2:]
            ds.SamplesPerPixel = 3 if colour else 1
            if colour:
                ds.PlanarConfiguration = 0
            ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
            ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
            ds.PixelRepresentation = int(stored.dtype.kind == "i")
            data = stored.tobytes()
            ds.PixelData = data + b"\0" * (len(data) % 2)
        syntax = attributes.pop("TransferSyntaxUID", ExplicitVRLittleEndian)
        for keyword, value in attributes.items():
            if value is None:
                delattr(ds, keyword)
            else:
                setattr(ds, keyword, value)
        if "PixelData" in ds:
            ds["PixelData"].VR = "OB" if ds.get("BitsAllocated", 8) <= 8 else "OW"
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = syntax
        file = BytesIO()
        ds.save_as(file, enforce_file_format=True, implicit_vr=False, little_endian=True)
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def ramp() -> np.ndarray[Any, Any]:
    """uint8 ``[24, 40]``, every pixel different from its mirror images."""
    return (np.arange(24 * 40, dtype=np.uint32) * 7 % 251).astype(np.uint8).reshape(24, 40)


@pytest.fixture(scope="session")
def colours() -> np.ndarray[Any, Any]:
    """uint8 ``[20, 20, 3]``, smooth enough for JPEG to keep."""
    y, x = np.mgrid[0:20, 0:20]
    return np.stack([x * 12, y * 12, 240 - x * 6 - y * 6], axis=2).astype(np.uint8)


@pytest.fixture(scope="session")
def attempt() -> Callable[..., Image | ImageError]:
    """``load``, but a refusal is given back and not raised."""

    def attempt(source: Any, **options: Any) -> Image | ImageError:
        try:
            return load(source, **options)
        except ImageError as error:
            return error

    return attempt
