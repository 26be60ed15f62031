"""Model input → unit vectors: one batch through one of MedSigLIP's towers, as transformers computes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medport_local.engine.loading import Siglip

PixelValues = npt.NDArray[np.float32]


@torch.inference_mode()
def of_images(siglip: Siglip, images: Sequence[PixelValues]) -> Tensor:
    """Unit vectors, float32 ``[images, projection]`` on the CPU, of float32 ``[3, size, size]`` each."""
    pixels = _together(images, siglip.model.dtype, siglip.device)  # [images, 3, size, size]
    return _unit(siglip.model.get_image_features(pixel_values=pixels).pooler_output)


@torch.inference_mode()
def of_texts(siglip: Siglip, texts: Sequence[Tensor]) -> Tensor:
    """Unit vectors, float32 ``[texts, projection]`` on the CPU, of token ids, int64 ``[length]`` each."""
    ids = torch.stack(list(texts)).to(siglip.device)  # [texts, length]
    return _unit(siglip.model.get_text_features(input_ids=ids).pooler_output)


def _together(images: Sequence[PixelValues], dtype: torch.dtype, device: torch.device) -> Tensor:
    """All images in one tensor, rounded to ``dtype`` on the way, so that half the bytes go to the device."""
    pinned = device.type == "cuda"
    pixels = torch.empty((len(images), *images[0].shape), dtype=dtype, pin_memory=pinned)
    for place, image in zip(pixels, images, strict=True):
        place.copy_(torch.from_numpy(image))
    return pixels.to(device, non_blocking=pinned)


def _unit(features: Tensor) -> Tensor:
    # Reading the result is also what waits for a GPU to finish.
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu()
