"""PNG, JPEG and the other picture files, or what Pillow has opened → upright 8-bit pixels.

Only the formats below are ever handed to a decoder, each to its own, and none before its header has been
read.
"""

from __future__ import annotations

import re
from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from medport.errors import ImageError, MedportError
from medport.images.image import Image, Kind, Limits, Origin, Pixels
from medport.images.metadata import JPEG_MAGIC, PNG_MAGIC, Damaged, clean_jpeg, clean_png
from medport.images.quiet import quiet

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

FORMATS = "PNG, JPEG, DICOM, TIFF, BMP, WebP, GIF or JPEG 2000"
# Magic → kind, Pillow's format name, and the plug-in to import: Pillow then never tries the other fifty.
_FORMATS: tuple[tuple[bytes, Kind, str, str], ...] = (
    (re.escape(PNG_MAGIC), "png", "PNG", "PngImagePlugin"),
    (re.escape(JPEG_MAGIC), "jpeg", "JPEG", "JpegImagePlugin"),
    (rb"GIF8[79]a", "gif", "GIF", "GifImagePlugin"),
    (rb"BM", "bmp", "BMP", "BmpImagePlugin"),
    (rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]", "tiff", "TIFF", "TiffImagePlugin"),
    (rb"RIFF....WEBP", "webp", "WEBP", "WebPImagePlugin"),
    (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "jpeg2000", "JPEG2000", "Jpeg2KImagePlugin"),
)
# What people send by mistake, to be told apart in the message.
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (rb"%PDF-", "a PDF"),
    (rb"(?i)\s*(\xef\xbb\xbf)?\s*(<\?xml.{0,400})?\s*<svg", "an SVG drawing"),
    (rb"(?i)\s*<(!doctype html|html)", "an HTML page"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"\x1f\x8b", "a gzip file"),
    (rb".{4}ftyp", "a HEIC, AVIF or video file"),
    (rb"\x5c\x01\0\0.{336}(n\+1|ni1)\0", "a NIfTI volume"),
)
_TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
    6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip
_ORIENTATION = 0x0112
_SMALLER = "send a smaller image, or raise Limits.max_pixels"
_REPAIR = "check that the file is whole"
# 16 → 8 bits by the largest value of the type: round(v * 255 / 65535), which never meets a half.
EIGHT_BITS: Pixels = ((np.arange(65536, dtype=np.uint32) + 128) // 257).astype(np.uint8)


def read(data: bytes, *, field: str, frame: int | None, limits: Limits) -> Image:
    """Decode a picture file, known by its first bytes.

    Raises:
        ImageError: of no known format, too large, of several frames and none chosen, cut off or damaged.
    """
    known = next((row for row in _FORMATS if re.match(row[0], data[:16], re.DOTALL)), None)
    if known is None:
        what = next((what for magic, what in _OTHERS if re.match(magic, data[:512], re.DOTALL)), None)
        raise ImageError(
            f"is {what}" if what else "is of no known image format", field=field, remedy=f"send {FORMATS}"
        )
    _, kind, name, plugin = known
    from PIL import Image as pil

    import_module(f"PIL.{plugin}")  # also makes its logger, which quiet() then finds
    try:
        with quiet(), pil.open(BytesIO(data), formats=(name,)) as opened:
            return _image(opened, kind, data, field, frame, limits)
    except MedportError:
        raise
    except pil.DecompressionBombError:
        # Pillow's own bound is for the whole process: it stays, and is seen only when Limits allow more.
        fault, remedy = f"has more than {limits.max_pixels} pixels, or than Pillow allows", _SMALLER
    except Damaged as damaged:
        fault, remedy = str(damaged), _REPAIR
    # Pillow's plug-ins fail in every way there is on hostile bytes, and quote them: only the class is kept.
    except Exception as error:
        fault = f"the {kind.upper()} file is cut off or damaged ({type(error).__name__})"
        remedy = _REPAIR
    raise ImageError(fault, field=field, remedy=remedy)


def check_pixels(width: int, height: int, field: str, limits: Limits) -> None:
    """Refuse a size before anything of that size is allocated."""
    if width < 1 or height < 1:
        raise ImageError("has no pixels", field=field, remedy=f"send {FORMATS}")
    if width * height > limits.max_pixels:
        raise ImageError(
            f"has {width} x {height} pixels, more than {limits.max_pixels}",
            field=field,
            remedy=_SMALLER,
        )


def from_pil(opened: PilImage, *, field: str, frame: int | None, limits: Limits) -> Image:
    """Take the pixels of a PIL image; of an animated one the frame it stands at, if none is chosen.

    Raises:
        ImageError: too large, of a mode without a fixed range, or its file is closed or damaged.
    """
    try:
        with quiet():
            return _image(opened, "pil", None, field, frame, limits)
    except MedportError:
        raise
    except Exception as error:  # it decodes only now: as above
        fault = type(error).__name__
    raise ImageError(
        f"the PIL image cannot be read ({fault})", field=field, remedy="load it before its file closes"
    )


def _image(
    opened: PilImage, kind: Kind, data: bytes | None, field: str, frame: int | None, limits: Limits
) -> Image:
    """Decode what Pillow has opened; its header is read, its pixels are not."""
    width, height = opened.size
    check_pixels(width, height, field, limits)
    several = _choose_frame(opened, kind, field, frame, limits)
    opened.load()
    upright, turned = _upright(opened)
    pixels, steps = _eight_bit(upright, field)
    origin = Origin(
        kind=kind,
        width_px=width,
        height_px=height,
        frame=frame,
        steps=("rotated", *steps) if turned else steps,
    )
    encoded = _as_it_is(data, kind, opened) if data and not (several or turned) else None
    return Image(pixels=pixels, origin=origin, encoded=encoded)


def _choose_frame(opened: PilImage, kind: Kind, field: str, frame: int | None, limits: Limits) -> bool:
    """Seek the frame that was asked for; whether there are several."""
    # The second picture of a phone's JPEG is a preview or a gain map: the first one is the image.
    frames = 1 if kind == "jpeg" else getattr(opened, "n_frames", 1)
    if frames > limits.max_frames:
        raise ImageError(f"has more than {limits.max_frames} frames", field=field, remedy="send single frames")
    if frame is None and frames > 1 and kind != "pil":
        raise ImageError(f"has {frames} frames", field=field, remedy="choose one: frame=0 is the first")
    if frame is not None:
        if not 0 <= frame < frames:
            raise ImageError(f"has no frame {frame}, only 0 to {frames - 1}", field=field, remedy="choose another")
        if frames > 1:
            opened.seek(frame)
            check_pixels(*opened.size, field, limits)
    return bool(frames > 1)


def _upright(opened: PilImage) -> tuple[PilImage, bool]:
    from PIL import Image as pil

    try:
        turn = _TURNS.get(opened.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF that cannot be read says nothing about the pixels, which can
        turn = None
    return (opened.transpose(pil.Transpose[turn]), True) if turn else (opened, False)


def _eight_bit(opened: PilImage, field: str) -> tuple[Pixels, tuple[str, ...]]:
    """Any Pillow mode → uint8 ``[height, width]`` or ``[height, width, 3]``, and what was done."""
    mode = opened.mode
    if mode in ("L", "RGB"):
        return np.asarray(opened), ()
    if mode == "1":
        return np.asarray(opened.convert("L")), ("1 to 8 bits",)
    if mode.startswith("I;16"):
        return EIGHT_BITS[np.asarray(opened)], ("16 to 8 bits",)
    if mode == "La":  # premultiplied, and Pillow has only the one way out of it
        opened, mode = opened.convert("LA"), "LA"
    if mode in ("LA", "RGBA", "RGBX", "RGBa"):
        # Pillow converts these by cutting alpha off; what lies under it is kept.
        return np.asarray(opened.convert("L" if mode[0] == "L" else "RGB")), ("alpha dropped",)
    if mode in ("P", "PA"):
        return np.asarray(opened.convert("RGBA").convert("RGB")), ("palette to RGB",)
    if mode in ("CMYK", "YCbCr"):
        return np.asarray(opened.convert("RGB")), (f"{mode} to RGB",)
    raise ImageError(
        f"its pixels (Pillow mode {mode}) have no fixed range",
        field=field,
        remedy="convert them to 8 or 16 bits, or send the DICOM object they came from",
    )


def _as_it_is(data: bytes, kind: Kind, opened: PilImage) -> bytes | None:
    """The file's own bytes without metadata, if they hold exactly the pixels that were read."""
    if opened.mode not in ("L", "RGB"):
        return None
    if kind == "png":
        return clean_png(data)
    if kind == "jpeg":
        try:
            return clean_jpeg(data)
        except Damaged:  # stray bytes, which decoders skip: the pixels are fine, the file is not sent on
            return None
    return None
