"""float32 or bfloat16, as measured with this model on this device: how well they agree, which is faster."""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from medport_local.engine import vectors
from medport_local.engine.loading import SMALL_PARAMETERS, DtypeRule, Siglip
from medport_local.engine.packing import by_rows, pack
from medport_local.engine.vectors import PixelValues

logger = logging.getLogger(__name__)

Probe: TypeAlias = "Callable[[Siglip], Tensor]"

LEAST_COSINE = 0.9999
"""Below it a bfloat16 vector is no longer taken for the float32 one."""

_TEXTS = ("a red circle on white paper", "three short lines", "noise", "a dark square to the left of a bright one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What the probes said."""

    dtype: Literal["float32", "bfloat16"]
    """The dtype that was chosen."""
    min_cosine: float
    """Of the float32 vector and the bfloat16 one, over all probes."""
    speedup: float
    """How many times faster than float32 bfloat16 embeds one image; the median of the probes."""
    probes: int


def settle(siglip: Siglip, rule: DtypeRule) -> tuple[Siglip, Agreement | None]:
    """The model in the dtype to serve it in, laid out in memory as is fastest.

    With ``"auto"`` a model in float32 of at least 200 million parameters is measured against its copy in bfloat16,
    on synthetic images and texts one at a time. bfloat16 is taken only if each vector's cosine to the float32 one
    is at least 0.9999 and if it is faster. Another model keeps its dtype.

    Peak memory: with ``"auto"`` that of both copies, 1.5 times the float32 model, until the measurement is over
    and the caller lets go of ``siglip``. With a fixed dtype the model is converted weight by weight, in place.

    Returns:
        The model, and what was measured; ``None`` if nothing was.
    """
    by_rows(siglip.model)
    if rule != "auto":
        return _ready(siglip, torch.float32 if rule == "float32" else torch.bfloat16), None
    if siglip.model.dtype != torch.float32 or siglip.model.num_parameters() < SMALL_PARAMETERS:
        return _ready(siglip, siglip.model.dtype), None
    short = replace(siglip, model=copy.deepcopy(siglip.model).to(torch.bfloat16))
    pack(short.model)
    agreement = compare(siglip, short)
    logger.info(
        "%s: least cosine %.6f of %d probes, bfloat16 is %.2f times as fast",
        agreement.dtype,
        agreement.min_cosine,
        agreement.probes,
        agreement.speedup,
    )
    return short if agreement.dtype == "bfloat16" else siglip, agreement


def compare(full: Siglip, short: Siglip) -> Agreement:
    """Embed each probe with the float32 model and with the bfloat16 one, in turn, and choose.

    Nothing medical is in the probes: noise, a gradient, shapes and stripes, then four short texts.
    """
    images = _images(full.images.side_px)
    texts = full.text.encode(_TEXTS)  # int64 [texts, length]
    of_images: list[Probe] = [partial(_embed, vectors.of_images, image) for image in images]
    of_texts: list[Probe] = [partial(_embed, vectors.of_texts, text) for text in texts]
    for siglip in (full, short):
        of_texts[0](siglip)  # warms the device up
    cosines, ratios = [], []
    for probe in [*of_images, *of_texts]:
        (mine, mine_s), (other, other_s) = _timed(probe, full), _timed(probe, short)
        # What is not a number must not pass: it is no less than any other.
        cosines.append(torch.nan_to_num((mine * other).sum(), nan=-1.0).item())
        ratios.append(mine_s / other_s)
    speedup = statistics.median(ratios[: len(images)])
    return Agreement(
        dtype="bfloat16" if min(cosines) >= LEAST_COSINE and speedup > 1 else "float32",
        min_cosine=min(cosines),
        speedup=speedup,
        probes=len(cosines),
    )


def _ready(siglip: Siglip, dtype: torch.dtype) -> Siglip:
    siglip.model.to(dtype)
    pack(siglip.model)
    return siglip


def _timed(probe: Probe, siglip: Siglip) -> tuple[Tensor, float]:
    began = time.perf_counter()
    vector = probe(siglip)
    return vector, time.perf_counter() - began


def _embed(tower: Callable[[Siglip, Sequence[Any]], Tensor], value: object, siglip: Siglip) -> Tensor:
    return tower(siglip, [value])


def _images(side: int) -> list[PixelValues]:
    """float32 ``[3, side, side]`` each, in -1 … 1 as the processor scales them."""
    down, across = np.mgrid[0:side, 0:side].astype(np.float32) / side
    noise = np.random.default_rng(0).uniform(-1, 1, (3, side, side))
    disc = (across - 0.4) ** 2 + (down - 0.6) ** 2 < 0.06
    square = (abs(across - 0.7) < 0.15) & (abs(down - 0.3) < 0.15)
    pictures = (2 * across - 1, disc * 1.6 + square * 0.8 - 0.8, np.sin(40 * (across + 0.5 * down)))
    return [
        np.ascontiguousarray(np.broadcast_to(picture, (3, side, side)), dtype=np.float32)
        for picture in (noise, *pictures)
    ]
