"""One frame of a DICOM object, decoded to its stored values, for every transfer syntax that is installed.

What the attributes declare is compared with the bytes that are there before anything of either size is
allocated.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from medport import _extras
from medport.errors import DicomError
from medport.images.image import Limits
from medport.images.metadata import jpeg_size

if TYPE_CHECKING:
    from pydicom import Dataset

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_LONG_LENGTH = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())  # PS3.5 7.1.2
_RLE = "1.2.840.10008.1.2.5"
# By the prefix of the transfer syntax UID: what decodes it where pydicom and Pillow do not.
_REMEDIES = {
    "1.2.840.10008.1.2.4.51": "pip install python-gdcm",  # JPEG, 12 bits
    "1.2.840.10008.1.2.4.57": "pip install python-gdcm",  # JPEG lossless
    "1.2.840.10008.1.2.4.70": "pip install python-gdcm",
    "1.2.840.10008.1.2.4.8": "pip install pyjpegls",  # JPEG-LS
    "1.2.840.10008.1.2.4.9": "pip install pylibjpeg pylibjpeg-openjpeg",  # JPEG 2000
    "1.2.840.10008.1.2.4.20": "pip install pylibjpeg pylibjpeg-openjpeg",  # high-throughput JPEG 2000
    "1.2.840.10008.1.2.4.1": "it is a video: export a still picture",
}


def pydicom_module(module: str = "") -> ModuleType:
    return _extras.load(f"pydicom.{module}".rstrip("."), extra="dicom")


def decode_frame(ds: Dataset, index: int, field: str) -> tuple[np.ndarray[Any, Any], str]:
    """Stored values, ``[rows, columns]`` or ``[rows, columns, 3]``, and their photometric interpretation.

    Raises:
        DicomError: no decoder for its transfer syntax, or the frame is damaged.
    """
    syntax = _transfer_syntax(ds, field)
    decoder, name, remedy = _decoder(syntax, field)
    _check_size(ds, syntax, index, field)
    options = pydicom_module("pixels.utils").as_pixel_options(ds)
    options["transfer_syntax_uid"] = syntax
    try:
        array, properties = decoder.as_array(ds, index=index, **options)
        return array, str(properties["photometric_interpretation"])
    except RuntimeError:  # every decoder that is installed has tried
        pass
    raise DicomError(
        f"a frame in {name} cannot be decoded",
        field=field,
        remedy="fetch it again" + (f", or {remedy}" if remedy else ""),
    )


def check_inflated(data: bytes, at: int, field: str, limits: Limits) -> None:
    """Refuse a deflated data set (PS3.5 A.5) that unpacks beyond the limit; pydicom unpacks without one.

    Args:
        at: where the file meta elements begin: 132, or 0 in a file without preamble.
    """
    deflated = False
    for tag, value, after in _meta_elements(data, at, field):
        at, deflated = after, deflated or (tag == b"\x02\x00\x10\x00" and value.rstrip(b"\0 ") == _DEFLATED)
    if not deflated:
        return
    inflate, pending, size = zlib.decompressobj(-zlib.MAX_WBITS), data[at:], 0
    while pending and not inflate.eof:
        size += len(inflate.decompress(pending, 2**20))
        if size > limits.max_bytes:
            raise DicomError(
                f"unpacks to more than {limits.max_bytes} bytes", field=field, remedy="raise Limits.max_bytes"
            )
        pending = inflate.unconsumed_tail


def media_storage_class(data: bytes) -> str | None:
    """The SOP class that the header of a DICOM file declares; ``None`` if it does not."""
    try:
        for tag, value, _ in _meta_elements(data, 132, "data"):
            if tag == b"\x02\x00\x02\x00":
                return value.rstrip(b"\0 ").decode("ascii", "replace")
    except DicomError:
        pass
    return None


def _meta_elements(data: bytes, at: int, field: str) -> Iterator[tuple[bytes, bytes, int]]:
    """Tag, value and end of each file meta element; always explicit VR little endian (PS3.10 7.1)."""
    while data[at : at + 2] == b"\x02\x00":
        if data[at + 4 : at + 6] in _LONG_LENGTH:
            start, length = at + 12, int.from_bytes(data[at + 8 : at + 12], "little")
        else:
            start, length = at + 8, int.from_bytes(data[at + 6 : at + 8], "little")
        if start + length > len(data):  # cut off, or of undefined length, which hides what follows
            raise DicomError("its file meta information is damaged", field=field, remedy="fetch it again")
        yield data[at : at + 4], data[start : start + length], start + length
        at = start + length


def _transfer_syntax(ds: Dataset, field: str) -> Any:
    """The transfer syntax UID; without a file header, the uncompressed one in which it was parsed."""
    uid = pydicom_module("uid")
    given = (getattr(ds, "file_meta", None) or {}).get("TransferSyntaxUID")
    if given:
        return given
    implicit, little = ds.original_encoding
    if little is None or implicit is None or ds[_keyword(ds)].is_undefined_length:
        raise DicomError(
            "TransferSyntaxUID is missing",
            field=field,
            remedy="set file_meta.TransferSyntaxUID, or send the file",
        )
    if not little:
        return uid.ExplicitVRBigEndian
    return uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian


def _decoder(syntax: Any, field: str) -> tuple[Any, str, str | None]:
    """What decodes a transfer syntax, the name of that syntax, and how to get a (better) decoder."""
    remedy = next((cure for prefix, cure in _REMEDIES.items() if syntax.startswith(prefix)), None)
    name = syntax.name if syntax.name != syntax else "unknown"  # an unknown UID is text of the file
    try:
        decoder = pydicom_module("pixels").get_decoder(syntax)
        ready = decoder.is_available
    except NotImplementedError:
        ready = False
    if not ready:
        raise DicomError(
            f"its transfer syntax ({name}) is not supported here",
            field=field,
            remedy=remedy or "convert it to Explicit VR Little Endian",
        )
    return decoder, name, remedy


def _check_size(ds: Dataset, syntax: Any, index: int, field: str) -> None:
    """Compare what the attributes declare with the bytes that are there, before a decoder allocates."""
    expected = int(pydicom_module("pixels.utils").get_expected_length(ds))
    if not syntax.is_encapsulated:
        if len(ds[_keyword(ds)].value) < expected:
            raise DicomError(
                "PixelData has fewer bytes than Rows, Columns and BitsAllocated ask for",
                field=field,
                remedy="the file is cut off: fetch it again",
            )
        return
    frames = int(ds.get("NumberOfFrames") or 1)
    stream = pydicom_module("encaps").get_frame(ds.PixelData, index, number_of_frames=frames)
    if syntax == _RLE:
        # PackBits adds at most one byte to 128; a longer stream is there to unpack to something enormous.
        if len(stream) > 2 * (expected // frames) + 1024:
            raise DicomError("PixelData is larger than its frame can be", field=field, remedy="fetch it again")
        return
    declared = _codestream_size(stream)
    if declared != (int(ds.Columns), int(ds.Rows)):
        raise DicomError(
            "the compressed frame is damaged or not of the size that Rows and Columns say",
            field=field,
            remedy="fetch the file again",
        )


def _codestream_size(stream: bytes) -> tuple[int, int] | None:
    """Width and height in the header of a JPEG, JPEG-LS or JPEG 2000 frame; ``None`` without a sane one."""
    if stream[:2] == b"\xff\xd8":
        return jpeg_size(stream)
    # JPEG 2000 (T.800 A.5.1): SOC, then SIZ. In DICOM it may stand in a JP2 box, hence the search.
    siz = re.search(rb"\xff\x4f\xff\x51.{38}", stream[:4096], re.DOTALL)
    if siz is None:
        return None
    right, bottom, left, top = (int.from_bytes(siz[0][at : at + 4], "big") for at in (8, 12, 16, 20))
    components = int.from_bytes(siz[0][40:42], "big")
    return (right - left, bottom - top) if components in (1, 3, 4) else None


def _keyword(ds: Dataset) -> str:
    return next(keyword for keyword in PIXEL_KEYWORDS if keyword in ds)
