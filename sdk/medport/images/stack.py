"""Which slices of a DICOM series make one volume, and in which order.

Only numbers of the attributes are looked at, no pixels. What is left out or looks wrong is said in notes, in
counts only: a note never quotes a value of a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from medport.errors import DicomError
from medport.images.dicom import functional_group, modality_of, number

if TYPE_CHECKING:
    from pydicom import Dataset

Vector = tuple[float, ...]
_SAME_PLACE_MM = 0.01
_FARTHEST_MM = 1e6
_AXES = ("sagittal", "coronal", "axial")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One frame of one object, by its numbers."""

    source: int
    """Which of the objects, from 0."""
    frame: int
    """Which frame of it, from 0."""
    uid: str | None
    """SOPInstanceUID, to find duplicates; never shown."""
    series: str
    """SeriesInstanceUID, to compare; never shown."""
    modality: str
    derived: bool
    acquisition: int | None
    instance: int
    shape: tuple[int, int, int]
    """Rows, columns, samples per pixel."""
    orientation: Vector | None
    """ImageOrientationPatient: direction of a row, then of a column."""
    position: Vector | None
    """ImagePositionPatient in mm."""

    @property
    def normal(self) -> tuple[float, float, float] | None:
        """Unit vector across the slice; ``None`` without a usable orientation."""
        if self.orientation is None:
            return None
        ax, ay, az, bx, by, bz = self.orientation
        across = (ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx)
        length = math.hypot(*across)
        return (across[0] / length, across[1] / length, across[2] / length) if length > 0.1 else None

    @property
    def height_mm(self) -> float | None:
        """Where the slice lies along its normal."""
        normal = self.normal
        if normal is None or self.position is None:
            return None
        return sum(part * along for part, along in zip(self.position, normal, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The slices of one volume in order."""

    slices: tuple[Slice, ...]
    positions_mm: tuple[float, ...] | None
    """Along the normal, ascending unless the order was kept; ``None`` if the files do not say."""
    notes: tuple[str, ...]


def slices_of(ds: Dataset, source: int) -> list[Slice]:
    """The slices that an object holds; call it inside ``dicom.guarded``, after ``dicom.check_image``."""
    return [_slice(ds, source, frame) for frame in range(int(ds.get("NumberOfFrames") or 1))]


def stack(found: Sequence[Slice], *, field: str, keep_order: bool = False) -> Stack:
    """Choose and sort.

    In this order: the same SOPInstanceUID counts once; DERIVED images go, if there are others; of several
    sizes and orientations the most frequent stays; of acquisitions that cover the same range (passes before
    and after contrast, for instance) the largest stays, while acquisitions that lie one after the other are
    one volume; then the rest is sorted by position along the normal, upwards, or, if any position is missing,
    by InstanceNumber. With ``keep_order`` everything stays, as it came.

    Raises:
        DicomError: the objects are of several series or modalities.
    """
    if len({one.series for one in found}) > 1 or len({one.modality for one in found}) > 1:
        raise DicomError(
            "the objects are of several series or modalities", field=field, remedy="send one series at a time"
        )
    if keep_order:
        places = tuple(one.height_mm for one in found)
        known = tuple(place for place in places if place is not None)
        return Stack(slices=tuple(found), positions_mm=known if len(known) == len(places) else None, notes=())
    notes: list[str] = []
    kept = _unique(found, notes)
    kept = _preferred(kept, notes)
    kept = _most(kept, lambda one: (one.shape, _rounded(one.orientation)), "size or orientation", notes)
    kept = _one_acquisition(kept, notes)
    heights = [one.height_mm for one in kept]
    if any(height is None for height in heights):
        if len(kept) > 1:
            notes.append("sorted by InstanceNumber: positions or orientations are missing")
        return Stack(slices=tuple(sorted(kept, key=_by_number)), positions_mm=None, notes=tuple(notes))
    placed = sorted(kept, key=lambda one: (one.height_mm or 0.0, _by_number(one)))
    positions = tuple(one.height_mm or 0.0 for one in placed)
    notes += _spacing(positions)
    notes += _direction(placed[0])
    return Stack(slices=tuple(placed), positions_mm=positions, notes=tuple(notes))


def _slice(ds: Dataset, source: int, frame: int) -> Slice:
    kind: Any = ds.get("ImageType") or ()
    kind = (kind,) if isinstance(kind, str) else kind
    acquisition = number(ds, "AcquisitionNumber", None)
    orientation = functional_group(ds, frame, "PlaneOrientationSequence").get("ImageOrientationPatient")
    position = functional_group(ds, frame, "PlanePositionSequence").get("ImagePositionPatient")
    uid = ds.get("SOPInstanceUID")
    return Slice(
        source=source,
        frame=frame,
        uid=str(uid) if uid else None,
        series=str(ds.get("SeriesInstanceUID") or ""),
        modality=modality_of(ds),
        derived=len(kind) > 0 and str(kind[0]).strip() == "DERIVED",
        acquisition=None if acquisition is None else int(acquisition),
        instance=int(number(ds, "InstanceNumber", 0.0)),
        shape=(int(ds.Rows), int(ds.Columns), int(ds.SamplesPerPixel)),
        orientation=_vector(orientation, 6),
        position=_vector(position, 3),
    )


def _vector(value: Any, length: int) -> Vector | None:
    if value is None or isinstance(value, str) or not hasattr(value, "__len__") or len(value) != length:
        return None
    numbers = tuple(float(part) for part in value)
    return numbers if all(abs(part) < _FARTHEST_MM for part in numbers) else None  # False for NaN


def _rounded(orientation: Vector | None) -> Vector | None:
    """To 0.01, half a degree: what scanners write differs in the last digits from slice to slice."""
    return None if orientation is None else tuple(round(part, 2) + 0.0 for part in orientation)


def _by_number(one: Slice) -> tuple[int, int, int]:
    return one.instance, one.source, one.frame


def _unique(found: Sequence[Slice], notes: list[str]) -> list[Slice]:
    first: dict[Hashable, Slice] = {}
    for one in found:
        first.setdefault((one.uid or one.source, one.frame), one)
    kept = list(first.values())
    _say_dropped(len(found) - len(kept), "duplicate", notes)
    return kept


def _preferred(found: list[Slice], notes: list[str]) -> list[Slice]:
    originals = [one for one in found if not one.derived]
    if not originals or len(originals) == len(found):
        return found
    _say_dropped(len(found) - len(originals), "derived image", notes)
    return originals


def _most(found: list[Slice], key: Callable[[Slice], Hashable], what: str, notes: list[str]) -> list[Slice]:
    """Those with the most frequent key; of equals the first."""
    groups: dict[Hashable, list[Slice]] = {}
    for one in found:
        groups.setdefault(key(one), []).append(one)
    largest = max(groups.values(), key=len)
    _say_dropped(len(found) - len(largest), f"image of another {what}", notes, plural=f"images of another {what}")
    return largest


def _one_acquisition(found: list[Slice], notes: list[str]) -> list[Slice]:
    groups: dict[int | None, list[float | None]] = {}
    for one in found:
        groups.setdefault(one.acquisition, []).append(one.height_mm)
    if len(groups) > 1 and not _one_after_the_other(groups.values()):
        return _most(found, lambda one: one.acquisition, "acquisition", notes)
    return found


def _one_after_the_other(groups: Iterable[Sequence[float | None]]) -> bool:
    """Whether no two groups cover the same range: scanners that step give each step its own number."""
    ranges: list[tuple[float, float]] = []
    for heights in groups:
        known = [height for height in heights if height is not None]
        if len(known) < len(heights):
            return False
        ranges.append((min(known), max(known)))
    ranges.sort()
    return all(before[1] + _SAME_PLACE_MM < after[0] for before, after in pairwise(ranges))


def _say_dropped(count: int, what: str, notes: list[str], *, plural: str | None = None) -> None:
    if count:
        notes.append(f"{count} {what if count == 1 else plural or what + 's'} dropped")


def _spacing(positions: Sequence[float]) -> list[str]:
    steps = np.diff(positions)
    shared = int((steps <= _SAME_PLACE_MM).sum())
    notes = [f"{shared} slices share the position of another (several times or echoes?)"] if shared else []
    steps = steps[steps > _SAME_PLACE_MM]
    if len(steps) < 2:
        return notes
    usual = float(np.median(steps))
    gaps = steps[steps > 1.5 * usual]
    if len(gaps):
        missing = int(np.round(gaps / usual - 1).sum())
        notes.append(f"about {missing} slices are missing, in {len(gaps)} gap{'s' if len(gaps) > 1 else ''}")
    elif float(np.abs(steps - usual).max()) > 0.1 * usual:
        notes.append("the spacing of the slices is uneven")
    return notes


def _direction(one: Slice) -> list[str]:
    normal = one.normal
    if normal is None:
        return []
    main = max(range(3), key=lambda axis: abs(normal[axis]))
    if abs(normal[main]) < 0.9:
        return ["the slices are oblique, not axial"]
    return [] if _AXES[main] == "axial" else [f"the slices are {_AXES[main]}, not axial"]
