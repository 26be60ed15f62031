"""How a drawing reaches a model: framed, padded to a square with black, and resized to the model's input.

Clients pad pictures that are not square, so the models must have seen padded ones of every shape.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
from PIL import Image

from medport_local.phantom.draw import Attributes, Box, Drawing, Gray8, render, sample

INPUT_PX = 112


@dataclass(frozen=True, slots=True)
class Gallery:
    """Many views at the models' input size."""

    pixels: Gray8
    """uint8 ``[n, INPUT_PX, INPUT_PX]``."""
    attributes: list[Attributes]
    boxes: list[Box | None]

    def __len__(self) -> int:
        return len(self.attributes)


def gallery(count: int, seed: int, *, workers: int = 2) -> Gallery:
    """Draw ``count`` views. The result depends on ``count`` and ``seed`` alone, not on the workers."""
    portions = [(seed, start, min(start + 500, count)) for start in range(0, count, 500)]
    if workers < 2 or len(portions) < 2:
        parts = [_portion(*portion) for portion in portions]
    else:
        # spawn: a fork after torch has started its threads can hang.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            parts = list(pool.map(_portion, *zip(*portions, strict=True)))
    return Gallery(
        np.concatenate([part.pixels for part in parts]),
        [attributes for part in parts for attributes in part.attributes],
        [box for part in parts for box in part.boxes],
    )


def view(attributes: Attributes, rng: np.random.Generator) -> Drawing:
    """One drawing of a random size and frame, padded and resized as client and processor would do it."""
    low, high = ((112, 150), (150, 224), (224, 420))[rng.choice(3, p=(0.55, 0.33, 0.12))]
    drawing = _frame(render(attributes, rng, int(rng.integers(low, high))), rng)
    squared = pad_to_square(drawing)
    resample = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)[rng.integers(2)]
    small = Image.fromarray(squared.pixels).resize((INPUT_PX, INPUT_PX), resample)
    return Drawing(np.asarray(small), squared.box)


def pad_to_square(drawing: Drawing) -> Drawing:
    """Centre the picture on a black square; the box moves with it. A square one is returned unchanged."""
    height, width = drawing.pixels.shape
    side = max(height, width)
    if height == width:
        return drawing
    top, left = (side - height) // 2, (side - width) // 2
    pixels = np.zeros((side, side), np.uint8)
    pixels[top : top + height, left : left + width] = drawing.pixels
    return Drawing(pixels, _moved(drawing.box, (height, width), (top, left), (side, side)))


def _frame(drawing: Drawing, rng: np.random.Generator) -> Drawing:
    """Leave the square as it is, or trim it, or squeeze it, or put it on a larger black plate."""
    kind = rng.random()
    if kind < 0.45:
        return drawing
    short = rng.uniform(0.78, 1.0)
    upright = rng.random() < 0.5
    if kind < 0.65:
        return _trimmed(drawing, short, upright, rng)
    if kind < 0.85:
        return _squeezed(drawing, short, upright)
    return _mounted(drawing, rng)


def _trimmed(drawing: Drawing, short: float, upright: bool, rng: np.random.Generator) -> Drawing:
    """Cut two opposite margins, never into the finding's box."""
    size = len(drawing.pixels)
    cut = round((1 - short) * size)
    # The chest is centred across but sits high: the lower margin holds nothing but belly.
    share = rng.uniform(0.35, 0.65) if upright else rng.uniform(0.0, 0.3)
    before = round(share * cut)
    after = size - (cut - before)
    if drawing.box is not None:
        first, last = (drawing.box[1], drawing.box[3]) if upright else (drawing.box[0], drawing.box[2])
        before = min(before, first * size // 1000)
        after = max(after, -(-last * size // 1000))
    if upright:
        pixels, offset = drawing.pixels[:, before:after], (0, -before)
    else:
        pixels, offset = drawing.pixels[before:after], (-before, 0)
    return Drawing(pixels, _moved(drawing.box, (size, size), offset, pixels.shape))


def _squeezed(drawing: Drawing, short: float, upright: bool) -> Drawing:
    """A narrower or shorter patient. The box is in fractions of the sides, so it stays."""
    size = len(drawing.pixels)
    shape = (round(short * size), size) if upright else (size, round(short * size))
    pixels = Image.fromarray(drawing.pixels).resize(shape, Image.Resampling.BICUBIC)
    return Drawing(np.asarray(pixels), drawing.box)


def _mounted(drawing: Drawing, rng: np.random.Generator) -> Drawing:
    """The picture anywhere on a black plate up to a quarter larger."""
    size = len(drawing.pixels)
    height, width = (round(size * rng.uniform(1.0, 1.25)) for _ in range(2))
    top, left = (int(rng.integers(0, slack - size + 1)) for slack in (height, width))
    pixels = np.zeros((height, width), np.uint8)
    pixels[top : top + size, left : left + size] = drawing.pixels
    return Drawing(pixels, _moved(drawing.box, (size, size), (top, left), (height, width)))


def _moved(box: Box | None, old: tuple[int, ...], offset: tuple[int, int], new: tuple[int, ...]) -> Box | None:
    """The box after the picture of shape ``old`` was put at ``offset`` on one of shape ``new``."""
    if box is None:
        return None
    y0, x0, y1, x1 = (
        min(1000, max(0, round((edge * old[axis] + 1000 * offset[axis]) / new[axis])))
        for edge, axis in zip(box, (0, 1, 0, 1), strict=True)
    )
    return y0, x0, y1, x1


def _portion(seed: int, start: int, stop: int) -> Gallery:
    rng = np.random.default_rng((seed, start))
    attributes = [sample(rng) for _ in range(start, stop)]
    views = [view(each, rng) for each in attributes]
    return Gallery(np.stack([each.pixels for each in views]), attributes, [each.box for each in views])
