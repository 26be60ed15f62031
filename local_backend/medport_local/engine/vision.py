"""Images → soft tokens, by the model's own tower, a few of its layers at a time.

An image of 896 pixels a side takes seconds on a CPU. Sequences that decode must not wait so long, so the work can
be left and taken up again between layers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medport_local.engine import devices

_CARD_AT_ONCE = 9
"""Layers between two looks at the clock. A card is waited for at each, and then has nothing to do."""


@dataclass(slots=True)
class Unfinished:
    """An image on its way through the tower."""

    hidden: Tensor
    """``[1, patches, width]``"""
    layer: int = 0


class Vision:
    """The tower and the projector of a ``Gemma3Model``."""

    def __init__(self, model: Any) -> None:
        self._tower = model.vision_tower
        self._projector = model.multi_modal_projector
        weight = self._tower.post_layernorm.weight
        self._dtype, self._device = weight.dtype, weight.device
        self._at_once = 1 if weight.device.type == "cpu" else _CARD_AT_ONCE

    def begin(self, pixels: npt.NDArray[np.float32]) -> Unfinished:
        """Take in an image, float32 ``[3, size, size]``."""
        values = torch.from_numpy(pixels)[None].to(self._device, self._dtype)
        hidden = self._tower.embeddings(values, interpolate_pos_encoding=False)
        # It comes column by column, and every norm would copy it.
        return Unfinished(hidden.contiguous())

    def advance(self, image: Unfinished, seconds: float) -> Tensor | None:
        """Work for about ``seconds``; gives ``[soft tokens, hidden]`` after the last layer.

        At least one layer is computed, on a card some.
        """
        layers = self._tower.encoder.layers
        until = time.monotonic() + seconds
        while image.layer < len(layers):
            began = time.monotonic()
            for layer in layers[image.layer : image.layer + self._at_once]:
                image.hidden = layer(image.hidden, None)
                image.layer += 1
            devices.wait(self._device)
            now = time.monotonic()
            if now + (now - began) > until and image.layer < len(layers):
                return None
        features: Tensor = self._projector(self._tower.post_layernorm(image.hidden))
        return features[0]
