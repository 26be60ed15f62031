"""The prompts of vLLM's test: made up, no patient's, and the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medport_local.engine.sequence import GenerationRequest, Sampling

if TYPE_CHECKING:
    from medport_local.engine.engine import Engine

_ANSWER = 24
_BEYOND_WINDOW = 1_600
"""Tokens of the long prompts: more than MedGemma's sliding window of 1,024."""
_IMAGE = "<start_of_image>"
_LINE = "The heart is of normal size, and both lungs are clear. "


@dataclass(frozen=True, slots=True)
class Probe:
    """One prompt of the test."""

    name: str
    request: GenerationRequest = field(repr=False)


def text_probes(engine: Engine) -> list[Probe]:
    """Prompts without images, one of them longer than the sliding window."""
    return [
        _probe(engine, "short", "What is a pleural effusion?"),
        _probe(engine, "chinese", "双肺清晰，心影大小正常。请用一句话总结。"),
        _probe(engine, "long", f"{_long(engine)}\nSummarise the findings."),
    ]


def image_probes(engine: Engine) -> list[Probe]:
    """Prompts with one image in front, within, at the end and beyond the window, and with three."""
    assert engine.images is not None
    drawn = [engine.images.pixel_values(rgb) for rgb in drawings(engine.images.side_px)]
    ramp, stripes, noise = ([each] for each in drawn)
    long = _long(engine)
    return [
        _probe(engine, "image first", f"{_IMAGE}Describe the image.", ramp),
        _probe(engine, "image last", f"Describe the image.{_IMAGE}", stripes),
        _probe(engine, "image within", f"Before it. {_IMAGE} After it: what is shown?", noise),
        _probe(engine, "image after the window", f"{long}{_IMAGE}What is shown?", ramp),
        _probe(engine, "image before the window", f"{_IMAGE}{long}What is shown?", stripes),
        _probe(engine, "three images together", f"{_IMAGE * 3}Compare the images.", drawn),
        _probe(engine, "three images apart", f"First: {_IMAGE}Second: {_IMAGE}Third: {_IMAGE}Compare.", drawn),
    ]


def drawings(side: int) -> list[npt.NDArray[np.uint8]]:
    """A ramp with a disc, stripes, and noise: uint8 ``[side, side, 3]`` each."""
    rows, columns = np.mgrid[0:side, 0:side] / side
    disc = (rows - 0.4) ** 2 + (columns - 0.6) ** 2 < 0.04
    noise = np.random.default_rng(7).random((side, side))
    grey = [columns * 0.6 + disc * 0.4, (np.sin(rows * 40) + 1) / 2, noise]
    return [np.repeat((each * 255).astype(np.uint8)[:, :, None], 3, axis=2) for each in grey]


def _long(engine: Engine) -> str:
    # A third of a short context leaves room for images and the answer.
    wanted = min(_BEYOND_WINDOW, engine.prompts.room(()) // 3)
    return _LINE * math.ceil(wanted / len(engine.prompts.raw(_LINE, 0)))


def _probe(engine: Engine, name: str, text: str, images: Sequence[npt.NDArray[np.float32]] = ()) -> Probe:
    turn = f"<start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n"
    # The end token is a token like others, so that there are enough of them to compare.
    sampling = Sampling(max_tokens=_ANSWER, ignore_eos=True, logprobs=1)
    tokens = engine.prompts.raw(turn, len(images))
    return Probe(name, GenerationRequest(tokens=tokens, images=tuple(images), sampling=sampling))
