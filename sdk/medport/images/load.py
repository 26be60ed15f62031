"""The one door for images: whatever the caller has → upright 8-bit pixels.

A file is taken for what its bytes say it is, whatever its name. Nothing is fetched. What a decoder may
allocate is bounded by the header before it starts, and only the formats below are ever handed to a decoder.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeGuard, Union, cast

import numpy as np
import numpy.typing as npt

from medport.errors import ImageError, InputError
from medport.images import dicom, raster
from medport.images.image import Image, Limits, Origin

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage
    from pydicom import Dataset

Source: TypeAlias = Union[
    str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryIO, "PilImage", npt.NDArray[Any], "Dataset"
]

_TAKEN = f"send {raster.FORMATS}"
_REMOTE = re.compile(r"(?i)\s*(https?|gs)://")
_SCHEME = re.compile(r"(?i)\s*[a-z][a-z0-9+.-]+://")
_DATA_URL = re.compile(r"(?i)\s*data:[^,]{0,200};base64,")


def is_remote(source: object) -> bool:
    """Whether ``source`` is an ``http(s)://`` or ``gs://`` URL, which backends may fetch, ``load`` never."""
    return isinstance(source, str) and _REMOTE.match(source) is not None


def is_data_url(source: object) -> TypeGuard[str]:
    """Whether ``source`` is a ``data:`` URL, well-formed or not."""
    return isinstance(source, str) and source.lstrip()[:5].lower() == "data:"


def load(
    source: Source,
    *,
    field: str = "images[0]",
    frame: int | None = None,
    window: tuple[float, float] | None = None,
    window_modalities: Collection[str] | None = None,
    ct_default: tuple[float, float] | None = None,
    limits: Limits | None = None,
) -> Image:
    """Read one image.

    Args:
        source: a path, a file's bytes, a file opened in binary mode, a ``data:`` URL, a PIL image, a pydicom
            data set, or an array: uint8 or uint16 ``[height, width]`` or ``[height, width, 1 | 3 | 4]``.
        field: the argument to name in errors.
        frame: which frame of a file with several, from 0.
        window: centre and width for grey DICOM, instead of its own, in the unit of its rescaled values.
        window_modalities: the DICOM modalities for which ``window`` is meant; all, if not given.
        ct_default: centre and width for DICOM CT without a window of its own, where ``window`` is not given.
        limits: what it may cost; ``Limits()`` if not given.

    Returns:
        Upright 8-bit grey or RGB. EXIF orientation is applied; palette, CMYK and YCbCr become RGB; alpha is
        dropped, so what it hid is seen, as by the reference server; 16-bit grey is divided by 257. DICOM
        goes through its rescale and window instead: see ``dicom.read``.

    Raises:
        InputError: no image, or something that cannot be one, such as a URL or an array of floats.
        ImageError: an image that is damaged, too large, of an unknown format or of several frames.
        DicomError: the same for DICOM.
    """
    limits = limits or Limits()
    from_dicom = partial(
        dicom.read,
        field=field,
        frame=frame,
        window=window,
        window_modalities=window_modalities,
        ct_default=ct_default,
        limits=limits,
    )
    data: bytes
    if source is None or (isinstance(source, str) and not source.strip()):
        raise InputError("there is no image", field=field, remedy=_TAKEN)
    if isinstance(source, np.ndarray):
        return _from_array(source, field, limits)
    if is_data_url(source):
        data = data_url_bytes(source, field, limits)
    elif isinstance(source, (str, os.PathLike)):
        data = _from_path(source, field, limits)
        named_dicom = Path(source).suffix.lower() in (".dcm", ".dicom")
        # Without the file header a data set can only be guessed at, so its name has to say so as well.
        if named_dicom and not dicom.is_dicom(data) and dicom.lacks_preamble(data):
            return from_dicom(data)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        _check_bytes(memoryview(source).nbytes, field, limits)
        data = bytes(source)
    elif hasattr(source, "read"):
        data = _from_file(source, field, limits)
    elif _is_instance(source, "pydicom.dataset", "Dataset"):
        return from_dicom(cast("Dataset", source))
    elif _is_instance(source, "PIL.Image", "Image"):
        return raster.from_pil(source, field=field, frame=frame, limits=limits)
    else:
        raise InputError(
            f"{type(source).__name__} is not an image",
            field=field,
            remedy="give a path, bytes, binary file, data: URL, PIL image, pydicom data set or array",
        )
    return from_dicom(data) if dicom.is_dicom(data) else raster.read(data, field=field, frame=frame, limits=limits)


def _is_instance(source: Any, module: str, name: str) -> bool:
    """``isinstance`` without importing: an object of a library exists only once the library is there."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(source, kind)


def _check_bytes(size: int, field: str, limits: Limits) -> None:
    if size == 0:
        raise ImageError("has 0 bytes", field=field, remedy=_TAKEN)
    if size > limits.max_bytes:
        raise ImageError(f"has more than {limits.max_bytes} bytes", field=field, remedy="raise Limits.max_bytes")


def data_url_bytes(url: str, field: str, limits: Limits) -> bytes:
    """The bytes in a ``data:`` URL.

    Raises:
        ImageError: it is not base64, empty, or larger than the limit.
    """
    import pybase64

    head = _DATA_URL.match(url)
    if head is None:
        raise ImageError("is a data: URL without ;base64", field=field, remedy="encode the bytes as base64")
    _check_bytes((len(url) - head.end()) * 3 // 4, field, limits)
    try:
        return bytes(pybase64.b64decode(url[head.end() :].strip(), validate=True))
    except ValueError:
        pass
    raise ImageError("is a data: URL with broken base64", field=field, remedy="encode the whole file as base64")


def _from_path(path: str | os.PathLike[str], field: str, limits: Limits) -> bytes:
    # The path itself stays out of every message: names of files are names of patients, and a string may be
    # anything at all. The field says which one it was.
    if isinstance(path, str) and _SCHEME.match(path):
        raise InputError(
            "is a URL, and images are not fetched here",
            field=field,
            remedy="download it first; only http(s) and gs:// may be passed on, to a backend that fetches",
        )
    fault: str
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise IsADirectoryError
            return _from_file(file, field, limits)
    except FileNotFoundError:
        fault = "there is no such file"
    except IsADirectoryError:
        fault = "is a folder or a device, not a file"
    except PermissionError:
        fault = "the file may not be read"
    except (OSError, ValueError) as error:  # too long a name, a zero byte in it, a network drive that is gone
        fault = f"the file cannot be opened ({type(error).__name__})"
    raise ImageError(fault, field=field, remedy="give the path of one image file")


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a named pipe would block for ever


def _from_file(file: Any, field: str, limits: Limits) -> bytes:
    try:
        data = file.read(limits.max_bytes + 1)
    except (OSError, ValueError) as error:
        data, fault = None, type(error).__name__
    if data is None:
        raise ImageError(f"the file cannot be read ({fault})", field=field, remedy="give an open binary file")
    if not isinstance(data, (bytes, bytearray)):
        raise InputError("the file gives text", field=field, remedy='open it in binary mode: open(path, "rb")')
    _check_bytes(len(data), field, limits)
    return bytes(data)


def _from_array(array: npt.NDArray[Any], field: str, limits: Limits) -> Image:
    remedy = "give uint8 or uint16, [height, width] or [height, width, 1, 3 or 4]"
    if array.dtype.kind == "b":
        raise InputError("an array of bool is ambiguous", field=field, remedy="mask.astype(numpy.uint8) * 255")
    if array.dtype.kind == "f":
        raise InputError(
            "an array of floats has no fixed range",
            field=field,
            remedy="scale it to 0-255 yourself: numpy.round(array * 255).astype(numpy.uint8) if it is 0-1",
        )
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise InputError(f"an array of {array.dtype} is not an image", field=field, remedy=remedy)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        shape = " x ".join(map(str, array.shape))
        raise InputError(
            f"an array of shape {shape} is not one image",
            field=field,
            remedy=f"{remedy}; a volume slice by slice",
        )
    raster.check_pixels(array.shape[1], array.shape[0], field, limits)
    steps: tuple[str, ...] = ()
    pixels = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels, steps = pixels[:, :, :3], ("alpha dropped",)
    if pixels.dtype.itemsize == 2:
        pixels, steps = raster.EIGHT_BITS[pixels], (*steps, "16 to 8 bits")
    else:
        pixels = np.array(pixels, dtype=np.uint8, order="C", subok=False)  # the caller's may change later
    origin = Origin(kind="array", width_px=array.shape[1], height_px=array.shape[0], steps=steps)
    return Image(pixels=pixels, origin=origin)
