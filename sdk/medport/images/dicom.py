"""One DICOM object → 8-bit pixels: transfer syntax, rescale, window, inversion, colour.

What is not done, on purpose: overlays are not burnt in, ICC profiles are not applied, and non-square pixels
(PixelAspectRatio, PixelSpacing) stay as stored, so such images reach the model on their pixel grid. Of
several windows the first is used; a VOI LUT goes before a window.

The file is hostile until decoded (its attributes are checked against the bytes that are there before
anything is allocated) and private for ever: no value of it, and no text of pydicom, which quotes values,
leaves this module.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from medport.errors import DicomError, MedportError
from medport.images.frame import PIXEL_KEYWORDS, check_inflated, decode_frame, pydicom_module
from medport.images.image import Image, Limits, Origin, Pixels
from medport.images.quiet import quiet
from medport.images.window import Function, Rendering, Table, Window

if TYPE_CHECKING:
    from pydicom import Dataset

Default = TypeVar("Default", float, None)
Result = TypeVar("Result")
_SEND_AN_IMAGE = "send an image object, not a report, a plan or a document"
_REPAIR = "check that the file is whole"
_MODALITIES = frozenset(
    {
        "BI", "CR", "CT", "DX", "ES", "GM", "IO", "IVUS", "MG", "MR", "NM", "OCT", "OP", "OPT", "OT", "PT", "PX",
        "RF", "RG", "SC", "SM", "US", "XA", "XC",
    }
)  # fmt: skip
_REQUIRED = ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation")
_FUNCTIONS: dict[str, Function] = {"LINEAR": "LINEAR", "LINEAR_EXACT": "LINEAR_EXACT", "SIGMOID": "SIGMOID"}


def is_dicom(data: bytes) -> bool:
    """Whether the bytes say that they are a DICOM file (PS3.10 7.1), whatever their name."""
    return data[128:132] == b"DICM"


def lacks_preamble(data: bytes) -> bool:
    """Whether the bytes may be a DICOM data set without the file header: a first element of group 2 or 8."""
    return data[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08") and len(data) > 132


def read(
    source: bytes | Dataset,
    *,
    field: str,
    frame: int | None = None,
    window: tuple[float, float] | None = None,
    window_modalities: Collection[str] | None = None,
    ct_default: tuple[float, float] | None = None,
    limits: Limits,
) -> Image:
    """Decode one DICOM object into 8-bit pixels.

    Args:
        source: a file's bytes, or a data set that pydicom has read or built; it is not changed.
        field: the argument to name in errors.
        frame: which frame, from 0; needed when there are several.
        window: centre and width instead of its own, in the unit of its rescaled values (HU for CT).
        window_modalities: the modalities for which ``window`` is meant, such as ``RADIOGRAPHY``; objects of
            others are shown as if there were none. All, if not given.
        ct_default: centre and width for CT that has no window and no VOI LUT of its own, where ``window`` is
            not given; without it such an object is shown from its lowest to its highest value.
        limits: what it may cost.

    Raises:
        DicomError: it holds no image, is damaged, has several frames, or cannot be decoded here.
        ConfigError: pydicom is not installed.
    """

    def decode() -> Image:
        ds = parsed(source, field, limits)
        meant = window_modalities is None or modality_of(ds) in window_modalities
        return _read(ds, field, frame, window if meant else None, ct_default, limits)

    return guarded(decode, field=field)


def guarded(work: Callable[[], Result], *, field: str) -> Result:
    """Run what reads a DICOM object, silence pydicom, and let no text of its failures out.

    Raises:
        DicomError: whatever pydicom raised; errors of this package pass.
        ConfigError: pydicom is not installed.
    """
    pydicom_module("pixels")  # before quiet(): its loggers must exist to be silenced
    try:
        with quiet():
            return work()
    except MedportError:
        raise
    # A parser of untrusted bytes fails in every way there is (struct, zlib, Key, Type, Recursion, …), with a
    # text that quotes the file. Only the class is kept; nothing is chained, for tracebacks get logged.
    except Exception as fault:
        kind = type(fault).__name__
    raise DicomError(f"the DICOM object cannot be read ({kind})", field=field, remedy=_REPAIR)


def parsed(source: bytes | Dataset, field: str, limits: Limits) -> Dataset:
    """The data set of a file's bytes, or the one given; call it inside ``guarded``."""
    if not isinstance(source, bytes):
        return source
    check_inflated(source, 132 if is_dicom(source) else 0, field, limits)
    ds: Dataset = pydicom_module().dcmread(BytesIO(source), force=not is_dicom(source))
    return ds


def modality_of(ds: Dataset) -> str:
    """The modality, such as ``"CT"``; ``""`` for one that is unknown here, which may be any text."""
    modality = str(ds.get("Modality") or "").strip()
    return modality if modality in _MODALITIES else ""


def stored_grey(
    ds: Dataset, index: int, field: str
) -> tuple[np.ndarray[Any, Any], Rendering, tuple[str, ...]] | None:
    """A frame's stored values, how to rescale them (without a window), and that in words; ``None`` for colour.

    Call it inside ``guarded``, after ``check_image``.
    """
    stored, photometric = decode_frame(ds, index, field)
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or stored.ndim != 2:
        return None
    rendering, steps = _unwindowed(ds, index, field)
    return stored, rendering, steps


def _read(
    ds: Dataset,
    field: str,
    frame: int | None,
    window: tuple[float, float] | None,
    ct_default: tuple[float, float] | None,
    limits: Limits,
) -> Image:
    check_image(ds, field, limits)
    index = _frame_index(ds, field, frame, limits)
    stored, photometric = decode_frame(ds, index, field)
    if photometric in ("MONOCHROME1", "MONOCHROME2") and stored.ndim == 2:
        rendering, steps = _rendering(ds, index, window, ct_default, field)
        pixels = rendering(stored)
        voi = rendering.voi
        used = (voi.center, voi.width) if isinstance(voi, Window) else None
    else:
        pixels, steps, used = _colour(ds, stored, photometric, field), ("to RGB",), None
    origin = Origin(
        kind="dicom", width_px=int(ds.Columns), height_px=int(ds.Rows), frame=frame, window=used, steps=steps
    )
    return Image(pixels=pixels, origin=origin)


def check_image(ds: Dataset, field: str, limits: Limits) -> None:
    """Refuse what holds no image, or a larger one than the limits allow.

    Raises:
        DicomError: an attribute that every image has is missing or wrong, or it is too large.
    """
    if not any(keyword in ds for keyword in PIXEL_KEYWORDS):
        raise DicomError("PixelData is missing", field=field, remedy=_SEND_AN_IMAGE)
    for keyword in _REQUIRED:
        if ds.get(keyword) in (None, ""):
            raise DicomError(f"{keyword} is missing", field=field, remedy=_SEND_AN_IMAGE)
    rows, columns = int(ds.Rows), int(ds.Columns)
    if rows < 1 or columns < 1 or int(ds.SamplesPerPixel) not in (1, 3):
        raise DicomError("Rows, Columns or SamplesPerPixel is wrong", field=field, remedy=_SEND_AN_IMAGE)
    if rows * columns > limits.max_pixels:
        raise DicomError(
            f"has {columns} x {rows} pixels, more than {limits.max_pixels}",
            field=field,
            remedy="send a smaller image, or raise Limits.max_pixels",
        )


def check_frames(ds: Dataset, field: str, limits: Limits) -> int:
    """The number of frames.

    Raises:
        DicomError: it is below 1 or above the limit.
    """
    frames = int(ds.get("NumberOfFrames") or 1)
    if frames < 1 or frames > limits.max_frames:
        raise DicomError(
            f"NumberOfFrames is not between 1 and {limits.max_frames}",
            field=field,
            remedy="send single frames",
        )
    return frames


def _frame_index(ds: Dataset, field: str, frame: int | None, limits: Limits) -> int:
    frames = check_frames(ds, field, limits)
    if frame is None and frames > 1:
        raise DicomError(f"has {frames} frames", field=field, remedy="choose one: frame=0 is the first")
    if frame is not None and not 0 <= frame < frames:
        raise DicomError(
            f"has no frame {frame}, only 0 to {frames - 1}", field=field, remedy="choose another frame"
        )
    return frame or 0


def _rendering(
    ds: Dataset,
    index: int,
    window: tuple[float, float] | None,
    ct_default: tuple[float, float] | None,
    field: str,
) -> tuple[Rendering, tuple[str, ...]]:
    """How a grey object is to be shown, and the same in words."""
    plain, steps = _unwindowed(ds, index, field)
    voi: Table | Window | None
    if window is not None:
        voi, step = Window(center=float(window[0]), width=float(window[1])), "window given"
    else:
        voi, step = _voi(ds, functional_group(ds, index, "FrameVOILUTSequence"), field)
        if voi is None and ct_default is not None and modality_of(ds) == "CT":
            voi, step = Window(center=float(ct_default[0]), width=float(ct_default[1])), "default CT window"
    if isinstance(voi, Window):
        voi.check(field)
    after_rescale = int(steps[:1] in (("modality LUT",), ("rescaled",)))
    return replace(plain, voi=voi), (*steps[:after_rescale], step, *steps[after_rescale:])


def _unwindowed(ds: Dataset, index: int, field: str) -> tuple[Rendering, tuple[str, ...]]:
    modality, first = _modality(ds, functional_group(ds, index, "PixelValueTransformationSequence"), field)
    inverted, padding = ds.PhotometricInterpretation == "MONOCHROME1", _padding(ds)
    steps = tuple(
        step for step in (first, "inverted" if inverted else "", "padding black" if padding else "") if step
    )
    return Rendering(modality=modality, voi=None, inverted=inverted, padding=padding), steps


def _modality(ds: Dataset, group: Dataset, field: str) -> tuple[Table | tuple[float, float], str]:
    if group.get("ModalityLUTSequence"):
        return _table(ds, group.ModalityLUTSequence[0], "ModalityLUTSequence", field), "modality LUT"
    slope, intercept = number(group, "RescaleSlope", 1.0), number(group, "RescaleIntercept", 0.0)
    if not np.isfinite([slope, intercept]).all():
        raise DicomError("RescaleSlope or RescaleIntercept is not finite", field=field, remedy=_REPAIR)
    return (slope, intercept), "rescaled" if (slope, intercept) != (1.0, 0.0) else ""


def _voi(ds: Dataset, group: Dataset, field: str) -> tuple[Table | Window | None, str]:
    if group.get("VOILUTSequence"):
        return _table(ds, group.VOILUTSequence[0], "VOILUTSequence", field), "VOI LUT"
    center, width = number(group, "WindowCenter", None), number(group, "WindowWidth", None)
    if center is None or width is None:
        return None, "lowest to highest value"
    function = _FUNCTIONS.get(str(group.get("VOILUTFunction") or "LINEAR").strip().upper())
    if function is None:
        raise DicomError("VOILUTFunction is unknown", field=field, remedy="pass window=(center, width)")
    return Window(center=center, width=width, function=function), "window"


def functional_group(ds: Dataset, index: int, macro: str) -> Dataset:
    """Where a frame's attributes stand: its functional group, the shared one, or the top (PS3.3 C.7.6.16)."""
    for groups, at in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        items = ds.get(groups) or []
        found = items[at].get(macro) if at < len(items) else None
        if found:
            item: Dataset = found[0]
            return item
    return ds


def number(ds: Dataset, keyword: str, default: Default) -> float | Default:
    """The first value of a decimal attribute; ``default`` if it is absent or empty."""
    value: Any = ds.get(keyword)
    if hasattr(value, "__len__") and not isinstance(value, str):
        value = value[0] if len(value) else None
    return default if value in (None, "") else float(value)


def _table(ds: Dataset, item: Dataset, keyword: str, field: str) -> Table:
    """A LUT item (PS3.3 C.11.1.1.1, C.11.2.1.1): descriptor of count, first input and bits, then the data."""
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count or 2**16
    data = item.LUTData
    if isinstance(data, bytes):
        packed = bits == 8 and len(data) in (count, count + count % 2)  # else one entry in two bytes
        wide = ">u2" if ds.original_encoding[1] is False else "<u2"
        entries = np.frombuffer(data, np.uint8 if packed else wide)
    else:
        entries = np.asarray(data, dtype=np.int64).reshape(-1) & 0xFFFF
    if len(entries) < count or not 8 <= bits <= 16:
        raise DicomError(f"{keyword} is damaged", field=field, remedy="pass window=(center, width)")
    if int(ds.PixelRepresentation) == 1 and first > 2**15 - 1:
        first -= 2**16  # read as unsigned by a writer or reader that missed PixelRepresentation
    return Table(first=first, entries=entries[:count].astype(np.float64).clip(0, 2**bits - 1), bits=bits)


def _padding(ds: Dataset) -> tuple[float, float] | None:
    value = ds.get("PixelPaddingValue")
    if value in (None, "") or "PixelData" not in ds:
        return None
    limit = ds.get("PixelPaddingRangeLimit")
    ends = [int(value), int(value if limit in (None, "") else limit)]
    if int(ds.PixelRepresentation) == 1:  # US and SS are mixed up in practice
        bits = int(ds.BitsAllocated)
        ends = [end - 2**bits if end >= 2 ** (bits - 1) else end for end in ends]
    return float(min(ends)), float(max(ends))


def _colour(ds: Dataset, stored: np.ndarray[Any, Any], photometric: str, field: str) -> Pixels:
    """Colour samples → uint8 ``[rows, columns, 3]``; above 8 bits divided by the largest possible value."""
    bits = int(ds.get("BitsStored") or ds.BitsAllocated)
    if photometric == "PALETTE COLOR":
        stored = pydicom_module("pixels").apply_color_lut(stored, ds)[..., :3]
        bits = stored.dtype.itemsize * 8
    elif photometric != "RGB" or stored.ndim != 3:
        raise DicomError("its colour space is not supported", field=field, remedy="convert it to RGB or YBR_FULL")
    if bits <= 8:
        return stored.astype(np.uint8)
    top = float(2**bits - 1)
    return np.floor(stored.clip(0, top) * (255 / top) + 0.5).astype(np.uint8)
