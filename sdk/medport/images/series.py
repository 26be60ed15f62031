"""One CT or MR series → ordered 8-bit slices, as MedGemma takes volumes.

CT becomes RGB of three windows, ``CT_WINDOWS_HU`` in ``window.py``, which also says why they are these and
not those of the released container. MR becomes grey from the lowest to the highest value of the whole
volume, padding aside, whatever window the file suggests. Every other modality is shown as ``dicom.read``
shows a single object. MONOCHROME1 is inverted.

A slice is decoded when it is asked for and not kept: besides the objects themselves, which the caller holds,
a series costs one parsed object and one slice.

``stack.py`` says which slices are used, and in which order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from medport.errors import DicomError, ImageError, InputError
from medport.images import dicom
from medport.images.image import Image, Limits, Origin
from medport.images.stack import Slice, slices_of, stack
from medport.images.window import CT_WINDOWS_HU, Rendering, Window

if TYPE_CHECKING:
    from pydicom import Dataset

Ranges = tuple[tuple[float, float], ...]
MAX_CT_SLICES = 85


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Series:
    """The slices of one volume in order: ``len(series)``, ``series[0]``, ``for image in series``.

    Each access decodes the slice anew; several threads may do so at once.
    """

    modality: str
    """``"CT"``, ``"MR"``, …; ``""`` if it is none that is known here."""
    positions_mm: tuple[float, ...] | None
    """Of each slice, along the normal of the slices, ascending unless the caller's order was kept; ``None`` if the
    files do not say."""
    notes: tuple[str, ...]
    """What was left out and what looks wrong, for people: a warning, not a failure."""
    windows: Ranges
    """Lowest and highest HU of red, green and blue; empty if it is not CT."""
    _chosen: tuple[int, ...] = field(repr=False)
    _render: Callable[[int], Image] = field(repr=False)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Image:
        """Decode one slice.

        Raises:
            DicomError: it is damaged.
            IndexError: there is no such slice.
        """
        return self._render(self._chosen[index])

    def __iter__(self) -> Iterator[Image]:
        return self.slices

    @property
    def slices(self) -> Iterator[Image]:
        """Every slice in order, decoded one by one."""
        return (self._render(index) for index in self._chosen)


def series(
    objects: Sequence[bytes | Dataset],
    *,
    field: str = "series",
    limits: Limits | None = None,
    windows: Ranges = CT_WINDOWS_HU,
    keep_order: bool = False,
) -> Series:
    """Read the objects of one series.

    Args:
        objects: files' bytes or pydicom data sets, in any order, of one frame each or an enhanced object of
            many. They are kept, and not changed.
        field: the argument to name in errors; an object is then ``series[3]``.
        limits: what one object may cost; ``max_frames`` bounds the slices of the whole series.
        windows: lowest and highest HU of the three channels, for CT.
        keep_order: the caller chose and sorted the objects: all of them stay, in their order.

    Raises:
        InputError: there are no objects.
        DicomError: one holds no image or is damaged, there are too many, or they are of several series.
        ConfigError: pydicom is not installed.
    """
    limits = limits or Limits()
    if not objects:
        raise InputError("there are no objects", field=field, remedy="send the DICOM objects of one series")
    _check_windows(windows, field)
    found: list[Slice] = []
    for index, source in enumerate(objects):
        found += dicom.guarded(_look(source, index, f"{field}[{index}]", limits), field=f"{field}[{index}]")
        if len(found) > limits.max_frames:
            raise DicomError(
                f"has more than {limits.max_frames} slices", field=field, remedy="raise Limits.max_frames"
            )
    chosen = stack(found, field=field, keep_order=keep_order)
    modality = chosen.slices[0].modality
    files = _Files(objects=tuple(objects), name=field, limits=limits)
    span = files.span(chosen.slices) if modality == "MR" else None

    def render(index: int) -> Image:
        return files.render(chosen.slices[index], windows if modality == "CT" else None, span)

    return Series(
        modality=modality,
        positions_mm=chosen.positions_mm,
        notes=chosen.notes,
        windows=windows if modality == "CT" else (),
        _chosen=tuple(range(len(chosen.slices))),
        _render=render,
    )


def sample(whole: Series, count: int = MAX_CT_SLICES) -> Series:
    """At most ``count`` slices, evenly spread; the same series if it has no more.

    The formula is the one Google publishes, ``round(i / count * (n - 1))`` for i from 1 to ``count``, kept to
    the letter: the last slice is always among them, the first one (index 0) never.
    """
    assert count >= 1
    total = len(whole)
    if total <= count:
        return whole
    picked = [round(i / count * (total - 1)) for i in range(1, count + 1)]
    positions = whole.positions_mm
    return replace(
        whole,
        positions_mm=None if positions is None else tuple(positions[index] for index in picked),
        notes=(*whole.notes, f"{count} of {total} slices"),
        _chosen=tuple(whole._chosen[index] for index in picked),
    )


def ct_rgb(
    source: bytes | Dataset,
    *,
    field: str = "images[0]",
    frame: int | None = None,
    windows: Ranges = CT_WINDOWS_HU,
    limits: Limits | None = None,
) -> Image:
    """One CT object as MedGemma sees a slice of a volume: RGB of three windows.

    Args:
        frame: which frame, from 0; needed when there are several.

    Raises:
        DicomError: it is not CT, has several frames and none is chosen, or cannot be read.
    """
    limits = limits or Limits()
    _check_windows(windows, field)
    found = dicom.guarded(_look(source, 0, field, limits), field=field)
    if found[0].modality != "CT":
        raise DicomError("is not CT", field=field, remedy="HU windows are for CT; use load")
    if frame is None and len(found) > 1:
        raise DicomError(f"has {len(found)} frames", field=field, remedy="choose one: frame=0 is the first")
    if not 0 <= (frame or 0) < len(found):
        raise DicomError(f"has no such frame, only 0 to {len(found) - 1}", field=field, remedy="choose another")
    files = _Files(objects=(source,), name=field, limits=limits, numbered=False)
    return files.render(found[frame or 0], windows, None)


def _look(source: bytes | Dataset, index: int, field: str, limits: Limits) -> Callable[[], list[Slice]]:
    def look() -> list[Slice]:
        if isinstance(source, bytes) and not 0 < len(source) <= limits.max_bytes:
            raise ImageError(
                f"has 0 or more than {limits.max_bytes} bytes", field=field, remedy="raise Limits.max_bytes"
            )
        ds = dicom.parsed(source, field, limits)
        dicom.check_image(ds, field, limits)
        dicom.check_frames(ds, field, limits)
        return slices_of(ds, index)

    return look


def _check_windows(windows: Ranges, field: str) -> None:
    finite = np.isfinite(np.array(windows, dtype=np.float64)).all()
    if len(windows) != 3 or not finite or not all(low < high for low, high in windows):
        raise InputError(
            "windows are not three ranges of HU", field=field, remedy="give ((lowest, highest), …) for R, G, B"
        )


@dataclass(slots=True, kw_only=True, eq=False)
class _Files:
    """The objects, and the data set parsed last: the frames of an enhanced object follow each other."""

    objects: tuple[bytes | Dataset, ...]
    name: str
    limits: Limits
    numbered: bool = True
    last: tuple[int, Dataset] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def render(self, one: Slice, windows: Ranges | None, span: tuple[float, float] | None) -> Image:
        """One slice: through ``windows`` (CT), over ``span`` (MR), or as its file suggests."""
        place = self._place(one)

        def work() -> Image:
            ds = self._parsed(one)
            frame = one.frame if int(ds.get("NumberOfFrames") or 1) > 1 else None
            grey = None if windows is None and span is None else dicom.stored_grey(ds, one.frame, place)
            if grey is None:  # another modality, or a colour picture among the slices
                return dicom.read(ds, field=place, frame=frame, limits=self.limits)
            stored, rendering, steps = grey
            if windows is not None:
                pixels = rendering.channels(stored, windows)
                shown = "HU " + ", ".join(f"{low:g} to {high:g}" for low, high in windows)
            else:
                assert span is not None
                pixels, shown = _over(rendering, span)(stored), "lowest to highest value of the volume"
            origin = Origin(
                kind="dicom",
                width_px=one.shape[1],
                height_px=one.shape[0],
                frame=frame,
                steps=(*steps, shown),
            )
            return Image(pixels=pixels, origin=origin)

        return dicom.guarded(work, field=place)

    def span(self, slices: Sequence[Slice]) -> tuple[float, float]:
        """Lowest and highest value of a volume, padding aside; (0, 0) if there is none."""
        low, high = np.inf, -np.inf
        for one in slices:
            place = self._place(one)

            def work(one: Slice = one, place: str = place) -> tuple[float, float] | None:
                grey = dicom.stored_grey(self._parsed(one), one.frame, place)
                return None if grey is None else grey[1].span(grey[0])

            found = dicom.guarded(work, field=place)
            if found is not None:
                low, high = min(low, found[0]), max(high, found[1])
        return (float(low), float(high)) if low <= high else (0.0, 0.0)

    def _place(self, one: Slice) -> str:
        return f"{self.name}[{one.source}]" if self.numbered else self.name

    def _parsed(self, one: Slice) -> Dataset:
        source = self.objects[one.source]
        if not isinstance(source, bytes):
            return source
        with self.lock:
            if self.last is None or self.last[0] != one.source:
                self.last = None  # free the old one before the new one is there
                self.last = (one.source, dicom.parsed(source, self._place(one), self.limits))
            return self.last[1]


def _over(rendering: Rendering, span: tuple[float, float]) -> Rendering:
    low, high = span
    width = high - low if high > low else 1.0  # a flat volume is black
    return replace(rendering, voi=Window(center=low + width / 2, width=width, function="LINEAR_EXACT"))
