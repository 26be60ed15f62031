"""Draw grey-scale "phantom radiographs": chests made of smooth shapes, with at most one finding.

Coordinates are fractions of the picture's side: x to the viewer's right, y down. The patient faces the
viewer, so the patient's left is the viewer's right. Everything random comes from the caller's generator and
the pixel noise is drawn last, so one seed gives the same chest at every size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]
Gray8 = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""(y0, x0, y1, x1) in thousandths of the picture's side."""


class Finding(StrEnum):
    """What a drawing shows; exactly one each."""

    NORMAL = "normal"
    NODULE = "nodule"
    EFFUSION = "effusion"
    PNEUMOTHORAX = "pneumothorax"
    CARDIOMEGALY = "cardiomegaly"
    FRACTURE = "fracture"
    CONSOLIDATION = "consolidation"


class Side(StrEnum):
    """The patient's side."""

    LEFT = "left"
    RIGHT = "right"


class Zone(StrEnum):
    """Height within the lung."""

    UPPER = "upper"
    MIDDLE = "middle"
    LOWER = "lower"


ZONED = frozenset({Finding.NODULE, Finding.CONSOLIDATION})
SIDED = ZONED | {Finding.EFFUSION, Finding.PNEUMOTHORAX, Finding.FRACTURE}


@dataclass(frozen=True, slots=True)
class Attributes:
    """What is to be drawn, and what a text about the drawing may say."""

    finding: Finding
    side: Side | None = None
    """Given for ``SIDED`` findings only."""
    zone: Zone | None = None
    """Given for ``ZONED`` findings only."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """One drawn picture."""

    pixels: Gray8
    """uint8 ``[height, width]``."""
    box: Box | None
    """Where the finding is; None for a normal chest."""


def sample(rng: np.random.Generator, finding: Finding | None = None) -> Attributes:
    """Attributes drawn evenly; ``finding`` fixes the finding and leaves the place to chance."""
    chosen = Finding(finding) if finding is not None else list(Finding)[rng.integers(len(Finding))]
    side = list(Side)[rng.integers(2)]
    zone = list(Zone)[rng.integers(3)]
    return Attributes(chosen, side if chosen in SIDED else None, zone if chosen in ZONED else None)


def render(attributes: Attributes, rng: np.random.Generator, size_px: int = 192) -> Drawing:
    """Draw a square picture with varied pose, build, contrast and noise."""
    chest = _draw_chest(attributes, rng, size_px)
    mask = _PAINTERS[attributes.finding](chest, attributes, rng)
    grey = chest.image + chest.markings
    grey = (grey - 0.5) * np.float32(rng.uniform(0.85, 1.15)) + np.float32(0.5 + rng.uniform(-0.05, 0.05))
    amplitude = np.float32(rng.uniform(0.002, 0.018))
    grey = grey + amplitude * rng.standard_normal((size_px, size_px), dtype=np.float32)
    pixels = np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)
    return Drawing(pixels, None if mask is None else _bounds(mask))


@dataclass(slots=True)
class _Lung:
    centre_x: float
    centre_y: float
    half_width: float
    half_height: float
    mask: Plane


@dataclass(slots=True)
class _Chest:
    """The picture while it is being drawn; painters change ``image`` and ``markings``."""

    x: Plane
    y: Plane
    image: Plane
    markings: Plane
    lungs: dict[Side, _Lung]
    heart: Plane


def _draw_chest(attributes: Attributes, rng: np.random.Generator, size_px: int) -> _Chest:
    x, y = _pose(rng, size_px)
    body = _step(1 - ((x - 0.5) / 0.47) ** 2 - ((y - 0.62) / 0.62) ** 4, 12)
    image = 0.12 + 0.5 * body
    lungs: dict[Side, _Lung] = {}
    for side, centre_x in ((Side.RIGHT, 0.30), (Side.LEFT, 0.70)):
        half_width, half_height = rng.uniform(0.155, 0.175), rng.uniform(0.30, 0.33)
        diaphragm = 0.72 + rng.uniform(-0.02, 0.02) + 1.2 * (x - centre_x) ** 2
        oval = _oval(x, y, centre_x, 0.45, half_width, half_height)
        mask = _step(oval, 9) * _step(diaphragm - y, 45)
        lungs[side] = _Lung(centre_x, 0.45, half_width, half_height, mask)
        image = image - 0.34 * mask
    image = image + 0.13 * np.exp(-(((x - 0.5) / 0.035) ** 2)) * body
    image, heart = _draw_heart(image, x, y, attributes.finding is Finding.CARDIOMEGALY, rng)
    arch = y - 0.7 * (np.abs(x - 0.5) - 0.1) ** 2
    # exp(k(cos t - 1)) is a row of bell curves: all ribs for the price of one.
    ribs = np.exp(6.0 * (np.cos((arch - 0.14) * (2 * np.pi / 0.075)) - 1)) * _step(0.70 - arch, 60)
    image = image + 0.045 * ribs * body
    chest = _Chest(x, y, image, np.zeros_like(image), lungs, heart)
    for side in Side:
        if not (attributes.finding is Finding.FRACTURE and side == attributes.side):
            _draw_clavicle(chest, side, rng)
    both = lungs[Side.LEFT].mask + lungs[Side.RIGHT].mask
    chest.markings = _texture(rng, size_px, cells=24, amplitude=0.022) * both
    return chest


def _draw_heart(image: Plane, x: Plane, y: Plane, enlarged: bool, rng: np.random.Generator) -> tuple[Plane, Plane]:
    half_width = rng.uniform(0.235, 0.275) if enlarged else rng.uniform(0.125, 0.16)
    growth = 0.25 * (half_width - 0.14)
    oval = 1 - ((x - 0.545 - growth) / half_width) ** 2 - ((y - 0.60) / (0.125 + growth)) ** 2
    heart = _step(oval, 9)
    return _cover(image, heart, 0.66 + rng.uniform(-0.03, 0.03)), heart


def _draw_clavicle(chest: _Chest, side: Side, rng: np.random.Generator, broken: bool = False) -> Mask | None:
    """Add one collar bone; if broken, the outer part is displaced downward. Gives the mask of the break."""
    outward = (chest.x - 0.5) * _outward(side)
    slope, height = rng.uniform(-0.16, -0.06), rng.uniform(0.135, 0.155)
    extent = _step(outward - 0.06, 90) * _step(0.34 - outward, 90)
    line = height + slope * outward
    strength = np.full_like(outward, 0.24)
    mask: Mask | None = None
    if broken:
        place, gap, drop = rng.uniform(0.14, 0.25), rng.uniform(0.020, 0.030), rng.uniform(0.045, 0.065)
        beyond = outward - place - rng.uniform(-0.5, 0.5) * (chest.y - height - slope * place)
        line = line + drop * (beyond > 0)
        strength = strength * np.clip(np.abs(beyond) / gap - 0.35, 0, 1)
        middle = height + slope * place + drop / 2
        mask = (np.abs(outward - place) < 0.05) & (np.abs(chest.y - middle) < 0.05)
    chest.image = chest.image + strength * np.exp(-(np.abs((chest.y - line) / 0.019) ** 3)) * extent
    return mask


def _paint_nothing(chest: _Chest, attributes: Attributes, rng: np.random.Generator) -> Mask | None:
    return None


def _paint_nodule(chest: _Chest, attributes: Attributes, rng: np.random.Generator) -> Mask | None:
    x, y = _spot(chest, attributes, rng, spread=0.06)
    radius = rng.uniform(0.042, 0.062)
    distance = np.asarray(((chest.x - x) ** 2 + (chest.y - y) ** 2) / radius**2, dtype=np.float32)
    chest.image = chest.image + rng.uniform(0.28, 0.38) * _step(1 - distance, 7)
    return distance < 1.1


def _paint_consolidation(chest: _Chest, attributes: Attributes, rng: np.random.Generator) -> Mask | None:
    lung = chest.lungs[_side(attributes)]
    x, y = _spot(chest, attributes, rng, spread=0.03)
    half_width, half_height = rng.uniform(0.090, 0.125), rng.uniform(0.075, 0.10)
    distance = ((chest.x - x) / half_width) ** 2 + ((chest.y - y) / half_height) ** 2
    blob = np.exp(-(distance**1.2)) * lung.mask
    patches = _texture(rng, len(chest.x), cells=26, amplitude=0.06)
    chest.image = chest.image + blob * (0.32 + patches)
    return blob > 0.4


def _paint_effusion(chest: _Chest, attributes: Attributes, rng: np.random.Generator) -> Mask | None:
    side = _side(attributes)
    lung = chest.lungs[side]
    lateral = (chest.x - lung.centre_x) * _outward(side) / lung.half_width
    surface = rng.uniform(0.52, 0.63) - 0.10 * np.clip(lateral, 0, 1) ** 2
    column = _step(1 - np.abs(lateral / 1.06) ** 4, 8)
    fluid = _step(chest.y - surface, 45) * column * _step(0.80 - chest.y, 40)
    chest.image = _cover(chest.image, fluid, 0.64)
    return fluid > 0.5


def _paint_pneumothorax(chest: _Chest, attributes: Attributes, rng: np.random.Generator) -> Mask | None:
    side = _side(attributes)
    lung = chest.lungs[side]
    gap = rng.uniform(0.05, 0.085)
    # The lung shrinks toward the middle: its edge becomes a bright line with dark air outside.
    centre_x = lung.centre_x - _outward(side) * 0.8 * gap
    half_width, half_height = lung.half_width - 0.75 * gap, lung.half_height - 0.03
    edge = _oval(chest.x, chest.y, centre_x, lung.centre_y + 0.05, half_width, half_height)
    air = lung.mask * (1 - _step(edge, 14))
    pleura = np.exp(-((edge / 0.10) ** 2)) * lung.mask * _step(0.66 - chest.y, 30)
    chest.image = chest.image - 0.13 * air + 0.16 * pleura
    chest.markings = chest.markings * (1 - air)
    return air > 0.5


def _paint_fracture(chest: _Chest, attributes: Attributes, rng: np.random.Generator) -> Mask | None:
    return _draw_clavicle(chest, _side(attributes), rng, broken=True)


def _paint_cardiomegaly(chest: _Chest, attributes: Attributes, rng: np.random.Generator) -> Mask | None:
    return chest.heart > 0.5


_PAINTERS: dict[Finding, Callable[[_Chest, Attributes, np.random.Generator], Mask | None]] = {
    Finding.NORMAL: _paint_nothing,
    Finding.NODULE: _paint_nodule,
    Finding.EFFUSION: _paint_effusion,
    Finding.PNEUMOTHORAX: _paint_pneumothorax,
    Finding.CARDIOMEGALY: _paint_cardiomegaly,
    Finding.FRACTURE: _paint_fracture,
    Finding.CONSOLIDATION: _paint_consolidation,
}

_ZONE_Y = {Zone.UPPER: 0.27, Zone.MIDDLE: 0.44, Zone.LOWER: 0.61}


def _spot(
    chest: _Chest, attributes: Attributes, rng: np.random.Generator, *, spread: float
) -> tuple[float, float]:
    """A place in the stated zone; lower ones further out, where the heart does not hide them."""
    if attributes.zone is None:
        raise ValueError(f"a {attributes.finding} needs a zone")
    side = _side(attributes)
    away = 0.05 if attributes.zone == Zone.LOWER else 0.02
    x = chest.lungs[side].centre_x + rng.uniform(-spread, spread) + away * _outward(side)
    return x, _ZONE_Y[attributes.zone] + rng.uniform(-0.035, 0.035)


def _side(attributes: Attributes) -> Side:
    if attributes.side is None:
        raise ValueError(f"a {attributes.finding} needs a side")
    return attributes.side


def _outward(side: Side) -> int:
    return 1 if side == Side.LEFT else -1


def _pose(rng: np.random.Generator, size_px: int) -> tuple[Plane, Plane]:
    """Coordinates ``[size, size]`` of a chest slightly shifted, scaled and turned."""
    shift_x, shift_y = rng.uniform(-0.03, 0.03, 2).astype(np.float32)
    scale, angle = rng.uniform(0.94, 1.06), rng.uniform(-0.05, 0.05)
    steps = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px - 0.5
    x, y = (steps[None, :] + shift_x) * np.float32(scale), (steps[:, None] + shift_y) * np.float32(scale)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return 0.5 + x * cosine - y * sine, 0.5 + x * sine + y * cosine


def _oval(x: Plane, y: Plane, centre_x: float, centre_y: float, half_width: float, half_height: float) -> Plane:
    """Positive inside a squarish oval, 1 at its centre."""
    flat: Plane = np.abs((x - centre_x) / half_width) ** 2.4 + np.abs((y - centre_y) / half_height) ** 2.6
    return 1 - flat


def _step(value: Plane, steepness: float) -> Plane:
    """A soft step: 0 where ``value`` is negative, 1 where positive."""
    step: Plane = 1 / (1 + np.exp(np.clip(-steepness * value, -30, 30)))
    return step


def _cover(image: Plane, mask: Plane, level: float) -> Plane:
    """Raise the masked part to at least ``level``."""
    raised: Plane = np.maximum(image, np.float32(level))
    return image + mask * (raised - image)


def _texture(rng: np.random.Generator, size_px: int, *, cells: int, amplitude: float) -> Plane:
    """Smooth noise whose grain is a fraction of the picture, so that it looks alike at every size."""
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    fine = Image.fromarray(coarse).resize((size_px, size_px), Image.Resampling.BICUBIC)
    return np.asarray(fine, dtype=np.float32) * np.float32(amplitude)


def _bounds(mask: Mask) -> Box | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    height, width = mask.shape
    return (
        round(1000 * int(rows[0]) / height),
        round(1000 * int(columns[0]) / width),
        round(1000 * (int(rows[-1]) + 1) / height),
        round(1000 * (int(columns[-1]) + 1) / width),
    )
