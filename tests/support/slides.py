"""Slides made from pixels that are known: a TIFF pyramid, and a DICOM whole-slide instance."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import tifffile
from PIL import Image as pil
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    VLWholeSlideMicroscopyImageStorage,
)

CANARY = "MUELLER^ANNA"


def picture(width: int, height: int) -> np.ndarray[Any, Any]:
    """uint8 ``[height, width, 3]``: every place has a colour of its own, and no two tiles are alike."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x % 251, y % 241, (x // 7 + y // 5) % 239], axis=-1).astype(np.uint8)


BASE = picture(1600, 1200)


def pyramid(base: np.ndarray[Any, Any] = BASE, *, steps: tuple[int, ...] = (4, 8), **options: Any) -> bytes:
    """A tiled TIFF of ``base`` and of every fourth and eighth of its pixels."""
    file = BytesIO()
    plain = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(file, bigtiff=options.pop("bigtiff", False)) as writer:
        writer.write(base, subfiletype=0, **(plain | options))
        options.pop("iccprofile", None)
        for step in steps:
            small = np.ascontiguousarray(base[::step, ::step])
            writer.write(small, subfiletype=1, **(plain | options))
    return file.getvalue()


def whole_slide(pixels: np.ndarray[Any, Any], *, tile: int = 256, jpeg: bool = False, **attributes: Any) -> bytes:
    """One VL Whole Slide Microscopy instance, TILED_FULL; ``None`` takes an attribute out."""
    height, width = pixels.shape[:2]
    across, down = -(-width // tile), -(-height // tile)
    padded = np.zeros((down * tile, across * tile, 3), np.uint8)
    padded[:height, :width] = pixels
    tiles = [
        np.ascontiguousarray(padded[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile])
        for row in range(down)
        for column in range(across)
    ]
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = VLWholeSlideMicroscopyImageStorage, "1.2.3.4", "SM"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.PatientName = "1.2.1", "1.2.2", CANARY
    ds.ImageType, ds.DimensionOrganizationType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "TILED_FULL"
    ds.Rows, ds.Columns, ds.NumberOfFrames = tile, tile, len(tiles)
    ds.TotalPixelMatrixColumns, ds.TotalPixelMatrixRows = width, height
    ds.SamplesPerPixel, ds.PlanarConfiguration, ds.PixelRepresentation = 3, 0, 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    if jpeg:
        frames = []
        for one in tiles:
            file = BytesIO()
            pil.fromarray(one).save(file, "JPEG", quality=95)
            frames.append(file.getvalue())
        ds.PhotometricInterpretation = "YBR_FULL_422"
        ds.PixelData = encapsulate(frames)
    else:
        ds.PhotometricInterpretation = "RGB"
        ds.PixelData = b"".join(one.tobytes() for one in tiles)
    ds["PixelData"].VR = "OB"
    for keyword, value in attributes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian
    file = BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()
