"""Train the MedSigLIP stand-in: sigmoid contrastive loss over captions that several images may fit."""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import SiglipConfig, SiglipModel, SiglipProcessor, SiglipTokenizer
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from medport_local.phantom import words
from medport_local.phantom.batches import FINDINGS, PATCH_PX, augment, start_from_patches, to_pixel_values
from medport_local.phantom.draw import Attributes, Side, Zone
from medport_local.phantom.optimise import Optimiser
from medport_local.phantom.tokenizers import SIGLIP_TEXT_LENGTH, siglip_tokenizer
from medport_local.phantom.view import INPUT_PX, Gallery

HIDDEN = 128
IMAGES_PER_STEP, CAPTIONS_PER_STEP = 64, 48
MATRIX_RATE, OTHER_RATE = 6e-3, 2e-3
SIDES: list[Side | None] = [None, *Side]
ZONES: list[Zone | None] = [None, *Zone]

logger = logging.getLogger(__name__)


def train_siglip(gallery: Gallery, folder: Path, *, steps: int, seed: int) -> SiglipModel:
    """Train on the gallery and write model and processor to ``folder`` (float32)."""
    torch.manual_seed(seed)
    rng = np.random.default_rng((seed, 1))
    tokenizer = siglip_tokenizer(folder)
    model = build_siglip(tokenizer)
    start_from_patches(model.vision_model, gallery.pixels[:400])
    heads = _Heads()
    optimiser = Optimiser(
        [model, heads],
        steps=steps,
        warmup=60,
        matrix_rate=MATRIX_RATE,
        other_rate=OTHER_RATE,
        weight_decay=0.05,
    )
    order: list[int] = []
    started = time.monotonic()
    model.train()
    for step in range(1, steps + 1):
        if len(order) < IMAGES_PER_STEP:
            order = rng.permutation(len(gallery)).tolist()
        indices, order = order[:IMAGES_PER_STEP], order[IMAGES_PER_STEP:]
        contrastive, auxiliary = _losses(model, heads, tokenizer, gallery, indices, rng)
        optimiser.step(contrastive + auxiliary * (1 - 0.8 * optimiser.progress))
        if step % 100 == 0:
            elapsed = time.monotonic() - started
            logger.info(
                "siglip step %d: contrastive %.3f, auxiliary %.3f, %.0f s",
                step,
                contrastive.item(),
                auxiliary.item(),
                elapsed,
            )
    model.train(False)
    model.save_pretrained(folder)
    save_processor(tokenizer, folder)
    return model


def build_siglip(tokenizer: SiglipTokenizer) -> SiglipModel:
    """A fresh SiglipModel of 1.6 million parameters."""
    shape = {"hidden_size": HIDDEN, "intermediate_size": 4 * HIDDEN, "num_attention_heads": 4}
    vision = {**shape, "num_hidden_layers": 4, "image_size": INPUT_PX, "patch_size": PATCH_PX}
    end = tokenizer.eos_token_id
    text = {
        **shape,
        "num_hidden_layers": 2,
        "vocab_size": tokenizer.vocab_size,
        "max_position_embeddings": SIGLIP_TEXT_LENGTH,
        "projection_size": HIDDEN,
        "pad_token_id": end,
        "bos_token_id": end,
        "eos_token_id": end,
    }
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-5.0)
    return model


def save_processor(tokenizer: SiglipTokenizer, folder: Path) -> None:
    """Write the processor: bicubic to the input size, no padding, mean and deviation 0.5."""
    image_processor = SiglipImageProcessorPil(
        size={"height": INPUT_PX, "width": INPUT_PX}, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=3
    )
    processor: Any = SiglipProcessor
    processor(image_processor, tokenizer).save_pretrained(folder)


def text_ids(tokenizer: SiglipTokenizer, texts: list[str]) -> Tensor:
    """Token ids ``[n, 64]``; padded to the full length, because the text is pooled at the last place."""
    encoded = tokenizer(
        texts, padding="max_length", max_length=SIGLIP_TEXT_LENGTH, truncation=True, return_tensors="pt"
    )
    ids: Tensor = encoded.input_ids
    return ids


class _Heads(nn.Module):
    """Auxiliary classifiers that speed up the start; thrown away afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(HIDDEN, len(FINDINGS))
        self.image = nn.Linear(HIDDEN, len(FINDINGS) + len(SIDES) + len(ZONES))
        self.caption = nn.Linear(HIDDEN, len(FINDINGS))
        # Most patches show nothing.
        self.patch_weights = torch.tensor([0.25] + [1.0] * (len(FINDINGS) - 1))


def _losses(
    model: SiglipModel,
    heads: _Heads,
    tokenizer: SiglipTokenizer,
    gallery: Gallery,
    indices: list[int],
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    shown = [gallery.attributes[index] for index in indices]
    captions = [words.caption(attributes, rng) for attributes in shown[:CAPTIONS_PER_STEP]]
    fits = torch.tensor([[caption.fits(attributes) for attributes in shown] for caption in captions])
    pixels, patches = augment(gallery, indices, rng)
    with torch.autocast("cpu", torch.bfloat16):
        image = model.get_image_features(pixel_values=to_pixel_values(pixels))
        text = model.get_text_features(input_ids=text_ids(tokenizer, [caption.text for caption in captions]))
        by_patch = heads.patch(image.last_hidden_state).float()
        by_image = heads.image(image.pooler_output).float()
        by_caption = heads.caption(text.pooler_output).float()
    similarity = _unit(text.pooler_output.float()) @ _unit(image.pooler_output.float()).T
    logits = similarity * model.logit_scale.exp() + model.logit_bias  # [captions, images]
    contrastive = -functional.logsigmoid(torch.where(fits, logits, -logits)).sum(-1).mean() / 8
    finding, side, zone = by_image.split([len(FINDINGS), len(SIDES), len(ZONES)], dim=-1)
    auxiliary = (
        functional.cross_entropy(by_patch.flatten(0, 1), patches.flatten(), weight=heads.patch_weights)
        + functional.cross_entropy(finding, torch.tensor([FINDINGS.index(a.finding) for a in shown]))
        + functional.cross_entropy(side, _targets(SIDES, [a.side for a in shown]))
        + functional.cross_entropy(zone, _targets(ZONES, [a.zone for a in shown])) / 2
        + functional.cross_entropy(by_caption, _caption_targets([caption.states for caption in captions]))
    )
    return contrastive, auxiliary


def _unit(vectors: Tensor) -> Tensor:
    return functional.normalize(vectors, dim=-1)


def _targets(choices: Sequence[object], values: Sequence[object]) -> Tensor:
    return torch.tensor([choices.index(value) for value in values])


def _caption_targets(states: list[Attributes]) -> Tensor:
    return torch.tensor([FINDINGS.index(each.finding) for each in states])
