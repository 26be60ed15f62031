"""Stored grey values → 8-bit grey: modality rescale, value-of-interest window, inversion, padding.

Plain numpy; what to apply is read from the DICOM object in ``dicom.py``. Order and formulas: DICOM PS3.4 N.2
(modality LUT, then VOI LUT, then presentation), PS3.3 C.11.1 and C.11.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medport.errors import DicomError
from medport.images.image import Pixels

Values = npt.NDArray[np.float64]
Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

# The three views of CT in MedGemma's red, green and blue: lowest and highest HU. They are those of Google's
# notebook and of the technical report. The released container has (centre, width) pairs instead, (0, 2048),
# (175, 80), (40, 80): its green would be 135 to 215 HU, which shows hardly anything but contrast medium and
# bone. That reads like a slip of -135 to 215; the model was not trained on it, so we do not follow it.
CT_WINDOWS_HU: tuple[tuple[float, float], ...] = ((-1024.0, 1024.0), (-135.0, 215.0), (0.0, 80.0))

# MedSigLIP's own: centre and width for CT that has no window, from the schema of its container, and the
# modalities for which its ``radiology_dicom_window_level`` is meant, CT and projection radiography.
SIGLIP_CT_WINDOW: tuple[float, float] = (100.0, 2500.0)
RADIOGRAPHY = frozenset({"CT", "CR", "DX", "IO", "MG", "PX", "RF", "RG", "XA"})

# Above this span of stored values a table of all of them would be larger than most images.
_TABLE_SPAN = 2**16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """A lookup table (PS3.3 C.11.1.1, C.11.2.1.1): input ``first`` gives ``entries[0]``, the ends hold on."""

    first: int
    entries: Values
    """float64 ``[n]``, 0 … ``2**bits - 1``."""
    bits: int

    def __call__(self, values: Values) -> Values:
        at = np.clip(np.nan_to_num(values) - self.first, 0, len(self.entries) - 1)
        return self.entries[at.astype(np.intp)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A VOI window in the unit of the rescaled values."""

    center: float
    width: float
    function: Function = "LINEAR"

    def __call__(self, values: Values) -> Values:
        """Map rescaled values to shades 0 … 1.

        Source: PS3.3 C.11.2.1.2.1 (LINEAR; the -0.5 and -1 terms are part of it), C.11.2.1.3.1 (SIGMOID),
        C.11.2.1.3.2 (LINEAR_EXACT).
        """
        center, width = self.center, self.width
        if self.function == "SIGMOID":
            # Clipped before exp, which would overflow; beyond ±50 the shade is 0 or 1 to the last bit of 8.
            falling: Values = 1 + np.exp(np.clip(-4 * (values - center) / width, -50, 50))
            return 1 / falling
        if self.function == "LINEAR":
            center, width = center - 0.5, width - 1
        if width == 0:  # LINEAR with width 1: a step
            return (values > center).astype(np.float64)
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)

    def check(self, field: str) -> None:
        """Refuse what the standard does.

        Raises:
            DicomError: a number is not finite, or the width is below 1 (LINEAR) or not above 0 (the others).
        """
        smallest = self.width >= 1 if self.function == "LINEAR" else self.width > 0
        if not (np.isfinite(self.center) and np.isfinite(self.width) and smallest):
            raise DicomError(
                f"WindowCenter or WindowWidth cannot be used with {self.function}",
                field=field,
                remedy="pass window=(center, width), with a width of at least 1",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """How one grey object is shown."""

    modality: Table | tuple[float, float]
    """A modality LUT, or (slope, intercept); ``(1.0, 0.0)`` leaves the values alone."""
    voi: Table | Window | None
    """``None``: from the lowest to the highest valid value."""
    inverted: bool
    """MONOCHROME1: the lowest value is shown white. Applied after the window (PS3.3 C.7.6.3.1.2)."""
    padding: tuple[float, float] | None
    """First and last *stored* value that mean "no image here" (PS3.3 C.7.5.1.1.2); always black."""

    def __call__(self, stored: npt.NDArray[Any]) -> Pixels:
        """Render stored values.

        Args:
            stored: integer or float ``[height, width]``, before any rescale.

        Returns:
            uint8 ``[height, width]``; shades are rounded half up.
        """
        # Each step looks at one value at a time, so it runs once over the values that occur, not over all
        # pixels.
        domain, present, spread = _domain(stored)
        valid = present & np.isfinite(domain)
        padded = np.zeros_like(valid)
        if self.padding is not None:
            padded = (domain >= self.padding[0]) & (domain <= self.padding[1])
            valid &= ~padded
        values = self._rescaled(domain)
        shades = self.voi(values) if isinstance(self.voi, Window) else self._stretched(values, valid)
        grey = np.floor(np.nan_to_num(shades) * 255 + 0.5).astype(np.uint8)
        if self.inverted:
            grey = 255 - grey
        grey[padded | ~np.isfinite(domain)] = 0
        return spread(grey)

    def channels(self, stored: npt.NDArray[Any], ranges: Sequence[tuple[float, float]]) -> Pixels:
        """Render stored values once per range, as the channels of one picture; ``voi`` is not used.

        Args:
            stored: integer or float ``[height, width]``, before any rescale.
            ranges: lowest and highest rescaled value of each channel, in the unit of the rescaled values.

        Returns:
            uint8 ``[height, width, channels]``.

        Source: the arithmetic of Google's CT notebook, in float32 and with halves rounded to even, so that
        the same slice gives the same bytes.
        """
        domain, _, spread = _domain(stored)
        values = np.nan_to_num(self._rescaled(domain))
        hidden = ~np.isfinite(domain)
        if self.padding is not None:
            hidden |= (domain >= self.padding[0]) & (domain <= self.padding[1])
        shades = np.empty((*domain.shape, len(ranges)), dtype=np.uint8)
        for channel, (low, high) in enumerate(ranges):
            scaled = np.clip(values, low, high).astype(np.float32)
            scaled -= np.float32(low)
            scaled /= np.float32(high - low)
            scaled *= np.float32(255)
            shades[..., channel] = np.round(scaled)
        if self.inverted:
            shades = 255 - shades
        shades[hidden] = 0
        return spread(shades)

    def span(self, stored: npt.NDArray[Any]) -> tuple[float, float] | None:
        """Lowest and highest rescaled value that is neither padding nor infinite; ``None`` if there is none."""
        domain, present, _ = _domain(stored)
        valid = present & np.isfinite(domain)
        if self.padding is not None:
            valid &= ~((domain >= self.padding[0]) & (domain <= self.padding[1]))
        inside = self._rescaled(domain)[valid]
        return (float(inside.min()), float(inside.max())) if inside.size else None

    def _rescaled(self, domain: Values) -> Values:
        if isinstance(self.modality, Table):
            return self.modality(domain)
        slope, intercept = self.modality
        return domain * slope + intercept

    def _stretched(self, values: Values, valid: npt.NDArray[np.bool_]) -> Values:
        """Shades through a VOI table, or from the lowest to the highest valid value; a flat image is 0."""
        if isinstance(self.voi, Table):
            scaled: Values = self.voi(values) / (2**self.voi.bits - 1)
            return scaled
        inside = values[valid]
        low, high = (inside.min(), inside.max()) if inside.size else (0.0, 0.0)
        if not high > low:
            return np.zeros_like(values)
        return np.clip((values - low) / (high - low), 0.0, 1.0)


def _domain(
    stored: npt.NDArray[Any],
) -> tuple[Values, npt.NDArray[np.bool_], Callable[[Pixels], Pixels]]:
    """The values that can occur, float64 ``[n]``; which of them do; how to spread results over the pixels."""
    if stored.dtype.kind in "ui":
        low, high = int(stored.min()), int(stored.max())
        if high - low < _TABLE_SPAN:
            # 64 bits only where 32 could overflow before the lowest value is taken off.
            wide = np.int32 if stored.itemsize <= 2 else np.int64
            index = stored.astype(wide) - low
            present = np.bincount(index.ravel(), minlength=high - low + 1) > 0
            return np.arange(low, high + 1, dtype=np.float64), present, lambda grey: grey[index]
    flat = stored.astype(np.float64)
    return flat, np.ones(flat.shape, dtype=bool), lambda grey: grey
