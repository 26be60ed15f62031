"""From gallery views to training tensors: normalisation, augmentation, per-patch targets."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import SiglipVisionModel

from medport_local.phantom.draw import Box, Finding, Gray8
from medport_local.phantom.view import INPUT_PX, Gallery

PATCH_PX = 14
GRID = INPUT_PX // PATCH_PX
SHIFT_PX = 4
FINDINGS = list(Finding)


def to_pixel_values(pixels: Tensor) -> Tensor:
    """Grey levels 0-255 ``[n, h, w]`` to the models' input ``[n, 3, h, w]`` in -1..1."""
    return (pixels.float() / 127.5 - 1).unsqueeze(1).expand(-1, 3, -1, -1)


def augment(gallery: Gallery, indices: list[int], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Shifted views with other contrast; and the finding each patch shows.

    Returns:
        pixels: float32 ``[n, INPUT_PX, INPUT_PX]`` grey levels, whole numbers as an 8-bit image has them.
        patches: int64 ``[n, GRID * GRID]``, the finding's index where its box covers a patch, else 0.
    """
    count = len(indices)
    margin = (SHIFT_PX, SHIFT_PX)
    padded = np.pad(gallery.pixels[indices], ((0, 0), margin, margin), mode="edge")
    offsets = rng.integers(0, 2 * SHIFT_PX + 1, (count, 2))
    shifted = np.stack(
        [each[y : y + INPUT_PX, x : x + INPUT_PX] for each, (y, x) in zip(padded, offsets.tolist(), strict=True)]
    )
    grey = torch.from_numpy(shifted).float() / 255
    # A power and a factor keep black padding black, as windowing before the padding does.
    power = torch.from_numpy(rng.uniform(0.8, 1.25, (count, 1, 1)).astype(np.float32))
    gain = torch.from_numpy(rng.uniform(0.8, 1.2, (count, 1, 1)).astype(np.float32))
    pixels = (255 * gain * grey**power).round().clamp(0, 255)
    patches = torch.zeros(count, GRID * GRID, dtype=torch.int64)
    for row, (index, offset) in enumerate(zip(indices, offsets.tolist(), strict=True)):
        box = gallery.boxes[index]
        if box is not None:
            covered = _covered(box, SHIFT_PX - offset[0], SHIFT_PX - offset[1])
            patches[row, torch.from_numpy(covered)] = FINDINGS.index(gallery.attributes[index].finding)
    return pixels, patches


def start_from_patches(vision: SiglipVisionModel, pixels: Gray8) -> None:
    """Begin with whitened principal components as patch filters and sine/cosine positions.

    Without this the first steps see little but mean brightness, and hundreds of steps go by before
    the contrastive loss leaves chance.
    """
    embeddings: Any = vision.embeddings
    hidden = embeddings.patch_embedding.weight.shape[0]
    with torch.no_grad():
        grey = to_pixel_values(torch.from_numpy(pixels))[:, :1]
        cut = functional.unfold(grey, PATCH_PX, stride=PATCH_PX).transpose(1, 2).reshape(-1, PATCH_PX**2)
        mean = cut.mean(0)
        values, vectors = torch.linalg.eigh((cut - mean).T @ (cut - mean) / len(cut))
        strength = values.flip(0)[:hidden].clamp(min=0)
        filters = (vectors.flip(1)[:, :hidden] / (strength + 2e-3).sqrt()).T  # [hidden, patch pixels]
        weight = filters.view(hidden, 1, PATCH_PX, PATCH_PX).expand(-1, 3, -1, -1) / 3
        embeddings.patch_embedding.weight.copy_(weight)
        embeddings.patch_embedding.bias.copy_(-filters @ mean)
        embeddings.position_embedding.weight.copy_(_waves(hidden))


def _waves(hidden: int) -> Tensor:
    """Sine/cosine positions, ``[GRID * GRID, hidden]``: half the width for rows, half for columns."""
    frequencies = 1.5 / 30 ** (torch.arange(hidden // 4) / (hidden // 4))
    angles = torch.arange(float(GRID))[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = line[:, None].expand(GRID, GRID, -1), line[None].expand(GRID, GRID, -1)
    return 0.7 * torch.cat([rows, columns], dim=-1).reshape(GRID * GRID, hidden)


def _covered(box: Box, down_px: int, right_px: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which patches the box covers by at least 30 %; always the one at its centre."""
    thousandth = 1000 / INPUT_PX
    y0, y1 = box[0] + down_px * thousandth, box[2] + down_px * thousandth
    x0, x1 = box[1] + right_px * thousandth, box[3] + right_px * thousandth
    size = 1000 / GRID
    edges = np.arange(GRID) * size
    rows = np.clip(np.minimum(y1, edges + size) - np.maximum(y0, edges), 0, None) / size
    columns = np.clip(np.minimum(x1, edges + size) - np.maximum(x0, edges), 0, None) / size
    covered = np.outer(rows, columns) >= 0.3
    centre = (int((y0 + y1) / 2 / size), int((x0 + x1) / 2 / size))
    covered[min(GRID - 1, max(0, centre[0])), min(GRID - 1, max(0, centre[1]))] = True
    return covered.reshape(-1)
