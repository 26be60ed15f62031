"""How long until an image is ready to be sent: read, checked, made 8-bit, square and small enough, encoded?

Against the bare decoder: Pillow's or pydicom's pixels, which are not yet fit to be sent. A PNG or JPEG that is
fit already keeps its bytes; DICOM goes through its window, is shrunk to 1792 pixels and encoded as PNG.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from io import BytesIO

import harness
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
from sdk_overhead import png_2mb

from medport import images

SIDE_PX = 2048


def main() -> None:
    given = harness.arguments(__doc__, rounds=40)
    files: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
        "PNG, 2 MB": (png_2mb(), _pillow),
        "JPEG, 2048²": (_jpeg(), _pillow),
        "DICOM, 2048², 16-bit": (_dicom(), _pydicom),
    }
    table = []
    for what, (data, decode) in files.items():
        cases: dict[str, Callable[[], object]] = {
            "decoder alone": partial(decode, data),
            "medport, load and prepare": partial(_ready, data),
            "medport, and encode": partial(_encoded, data),
        }
        table += harness.rows(what, harness.alternate(cases, given.rounds, warm_up=3), "decoder alone")
    harness.report(__doc__, table, given.json)


def _ready(data: bytes) -> images.PreparedImage:
    return images.prepare(images.load(data))


def _encoded(data: bytes) -> bytes:
    return _ready(data).data


def _pillow(data: bytes) -> object:
    return np.asarray(Image.open(BytesIO(data)))


def _pydicom(data: bytes) -> object:
    return pydicom.dcmread(BytesIO(data)).pixel_array


def _radiograph() -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """0 to 1: smooth as a body is, with a film's grain, so that it compresses as radiographs do."""
    across = np.linspace(-1, 1, SIDE_PX)
    body = np.exp(-2 * (across[:, np.newaxis] ** 2 + across**2))
    grain = np.random.default_rng(7).normal(0, 0.01, (SIDE_PX, SIDE_PX))
    return np.clip(body + grain, 0, 1)


def _jpeg() -> bytes:
    file = BytesIO()
    Image.fromarray((_radiograph() * 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _dicom() -> bytes:
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.SOPClassUID, dataset.Modality = DigitalXRayImageStorageForPresentation, "DX"
    dataset.Rows = dataset.Columns = SIDE_PX
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 14, 13, 0
    dataset.WindowCenter, dataset.WindowWidth = 8192, 16384
    dataset.PixelData = (_radiograph() * 16383).astype("<u2").tobytes()
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


if __name__ == "__main__":
    main()
