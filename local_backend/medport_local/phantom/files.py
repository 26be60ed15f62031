"""Drawings as files: PNG, and DICOM as a radiography unit writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medport import _extras
from medport_local.phantom.draw import Gray8

DIGITAL_X_RAY = "1.2.840.10008.5.1.4.1.1.1.1"
BITS_STORED = 12


def write_png(path: Path, pixels: Gray8) -> Path:
    """An 8-bit grey PNG."""
    Image.fromarray(pixels).save(path)
    return path


def write_dicom(path: Path, pixels: Gray8, *, inverted: bool = False) -> Path:
    """A Digital X-Ray object with 12 bits stored, a VOI window and a clearly false patient.

    Args:
        pixels: uint8 ``[height, width]``; stored times 16, so that the window gives them back.
        inverted: write MONOCHROME1, where low values are white.
    """
    pydicom: Any = _extras.load("pydicom", extra="dicom")
    uid: Any = _extras.load("pydicom.uid", extra="dicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = DIGITAL_X_RAY
    meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = DIGITAL_X_RAY
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID = "Phantom^Drawn", "NOT-A-PATIENT"
    dataset.Modality = "DX"
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, BITS_STORED, BITS_STORED - 1
    top = (1 << BITS_STORED) - 1
    stored = pixels.astype(np.uint16) * 16
    dataset.PixelData = (top - stored if inverted else stored).astype("<u2").tobytes()
    dataset.RescaleIntercept, dataset.RescaleSlope = 0, 1
    dataset.WindowCenter, dataset.WindowWidth = (top + 1) // 2, top + 1
    dataset.save_as(path, enforce_file_format=True)
    return path
